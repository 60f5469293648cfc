"""What is wrong with a data set on disk: every image looked at, nothing changed."""
