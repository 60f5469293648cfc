"""What in an image a network looks at: pure functions of a model and normalised images."""
