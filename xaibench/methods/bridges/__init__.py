"""Other libraries' own versions of their methods."""
