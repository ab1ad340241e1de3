"""The integers of a pooling. No jax."""
