"""Weights files: reading, writing, identifying."""
