"""Preparation of a data set: archives or folders to a tfds directory of ArrayRecord files."""
