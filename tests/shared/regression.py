"""Linear regression with small whole numbers, whose losses and gradients are exact in float32; what is made of a loss; comparisons."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jpool

PARAMS = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array(0.25)}
XS = np.random.default_rng(0).integers(-3, 4, (5, 3)).astype(np.float32)
YS = np.random.default_rng(1).integers(-3, 4, (5,)).astype(np.float32)
SGD = optax.sgd(0.125)
MAKERS = {  # the functions of a loss
    "per_example_value_and_grad": jpool.per_example_value_and_grad,
    "gradient_statistics": jpool.gradient_statistics,
    "make_train_step": lambda loss, **options: jpool.make_train_step(loss, SGD, **options),
}


def loss(params, x, y):
    """Of one example."""
    return (params["w"] @ x + params["b"] - y) ** 2


def by_definition(params, xs=XS, ys=YS):
    """The loss and the gradient of every example, in NumPy and float64."""
    w, b, xs, ys = (np.asarray(a, np.float64) for a in (params["w"], params["b"], xs, ys))
    errors = xs @ w + b - ys
    return errors**2, {"w": 2 * errors[:, None] * xs, "b": 2 * errors}


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_close(actual, expected, rtol):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol), actual, expected)
