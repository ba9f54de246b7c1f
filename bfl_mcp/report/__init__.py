"""The report of a dataset for people: in a terminal, as JSON, as one page to look at."""
