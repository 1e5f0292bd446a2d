"""What people see of results: tables on the terminal, pages, figures and files for other programs."""
