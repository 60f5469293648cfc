"""Tools that watch steps: NaNs, determinism, histograms, profiling, cost."""
