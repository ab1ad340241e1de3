"""How JAX differentiates a pooling."""
