"""Prepares a data set: turns archives or folders into a tfds directory of ArrayRecord files."""
