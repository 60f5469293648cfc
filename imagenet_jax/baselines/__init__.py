"""Publishes, reads and reproduces baselines."""
