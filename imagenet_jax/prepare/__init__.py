"""Preparation of a data set as tfds stores it."""
