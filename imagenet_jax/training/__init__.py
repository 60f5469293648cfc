"""Training: the loop and the pure functions it calls."""
