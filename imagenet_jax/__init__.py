"""ImageNet training in JAX/Flax: one readable path from config to metrics."""

__version__ = "0.1.0"
