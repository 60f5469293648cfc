"""Keeps a run alive and consistent: workdir, lock, signals, processes, provenance."""
