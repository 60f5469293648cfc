"""Logs of a run: console, metrics.jsonl, TensorBoard and tracking services."""
