"""Studies with people: pictures to show, the right answers, tests of what was answered, and how many to ask."""
