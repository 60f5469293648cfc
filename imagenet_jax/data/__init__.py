"""Data: encoded images in, batches of uint8 pixels out."""
