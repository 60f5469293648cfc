"""Published baselines: writing, reading, reproducing."""
