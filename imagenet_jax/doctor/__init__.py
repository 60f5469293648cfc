"""Checks of a data set: counts, damage, duplicates, leakage between splits."""
