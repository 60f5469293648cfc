"""Tools to inspect training steps: NaNs, determinism, histograms, profiles, cost."""
