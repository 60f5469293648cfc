"""Predictions on images and by class, with their pages and tables."""
