"""Studies made of several runs: sweeps, published baselines, reproduction."""
