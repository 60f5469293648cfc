"""What a run logs: console, metrics.jsonl, TensorBoard and tracking services."""
