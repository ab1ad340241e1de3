"""The whole idea: three digits, each with its own winners, and a step with the mean of their gradients of a filter."""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy

import jpool
from experiments.digits import one_filter


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Pools ONE feature map, of even height and width, in windows of 2x2."""
    return forward(x)[0]


def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the maximum of every window, and which of its four elements it is; the first of equal ones wins."""
    windows = x.reshape(len(x) // 2, 2, -1, 2).swapaxes(1, 2).reshape(len(x) // 2, -1, 4)
    return windows.max(-1), windows.argmax(-1)


def backward(argmax: jax.Array, cotangents: jax.Array) -> tuple[jax.Array]:
    """Passes every cotangent back to its winner: if a wins m = max(a, b), then J_a = J_m and J_b = 0 (J_x is dJ/dx)."""
    windows = jnp.where(jnp.arange(4) == argmax[..., None], cotangents[..., None], 0)
    return (windows.reshape(*argmax.shape, 2, 2).swapaxes(1, 2).reshape(2 * len(argmax), -1),)


max_pool.defvjp(forward, backward)  # JAX calls forward, keeps argmax, and later calls backward
argparse.ArgumentParser(description=__doc__).parse_args(None if __name__ == "__main__" else [])  # it has no options
xs = jax.random.choice(jax.random.key(0), jnp.array([-jnp.inf, 1, 2, 3, jnp.nan]), (200, 6, 8))
pools = max_pool, partial(jpool.max_pool, window_shape=(2, 2), strides=2, channel_axis=None)
(ours, back), (theirs, their_back) = (jax.vjp(partial(jax.lax.map, pool), xs) for pool in pools)
assert (ours.tobytes(), back(ours)[0].tobytes()) == (theirs.tobytes(), their_back(ours)[0].tobytes())
print("max_pool equals jpool.max_pool, bit for bit, with ties, NaN and -inf")
n = one_filter.measure()  # trains a small network for some seconds, and chooses three digits
digits, labels = n.images[n.chosen] / 255.0, n.labels[n.chosen].astype(int)
# Of ONE digit x (28x28): the same 5x5 filter w at all 24x24 positions, max pooling to 12x12, ten scores, cross entropy.
convolve = lambda w, x: jax.scipy.signal.correlate2d(x, w, "valid") + n.bias  # noqa: E731
loss = lambda w, x, y: cross_entropy(max_pool(convolve(w, x)).ravel() @ n.weights + n.biases, y)  # noqa: E731
gradients = jax.vmap(jax.grad(loss), (None, 0, 0))(n.filter, digits, labels)  # of the filter: 5x5 for each digit
mean = gradients.mean(0)
of_mean_loss = jax.grad(lambda w: jax.vmap(loss, (None, 0, 0))(w, digits, labels).mean())(n.filter)
assert jnp.allclose(mean, of_mean_loss, atol=1e-5)  # equal up to rounding
jnp.set_printoptions(precision=2, suppress=True, floatmode="fixed")
print(f"gradient of the filter for each of the digits {labels}:\n{gradients}\ntheir mean:\n{mean}")
print(f"filter:\n{n.filter}\nfilter after the step:\n{n.filter - one_filter.RATE * mean}")
