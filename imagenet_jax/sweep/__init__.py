"""Sweeps: runs of one config with different values and seeds, and their comparison."""
