"""Review a data set: label errors, near-duplicates, leaks between splits, unreadable files."""
