"""From the official archives or an image folder to a tfds directory: `imagenet_jax.prepare`."""
