"""Sweeps: many runs of one config, and their comparison."""
