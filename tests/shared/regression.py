"""Linear regression with small whole numbers, whose losses and gradients are exact in float32."""

import jax.numpy as jnp
import numpy as np

PARAMS = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array(0.25)}
XS = jnp.asarray(np.random.default_rng(0).integers(-3, 4, (5, 3)), jnp.float32)
YS = jnp.asarray(np.random.default_rng(1).integers(-3, 4, (5,)), jnp.float32)


def loss(params, x, y):
    """Of one example."""
    return (params["w"] @ x + params["b"] - y) ** 2
