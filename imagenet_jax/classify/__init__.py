"""Evaluation of checkpoints and weights files; predictions on images and by class."""
