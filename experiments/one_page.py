"""The whole idea: max pooling of one example, its derivative, and one step with the mean gradient of a batch."""

import argparse

import jax
import jax.numpy as jnp
import optax

import jpool


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Pools ONE example, of even height and width, in windows of 2x2."""
    return forward(x)[0]


def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the maximum of every window, and which of its four elements it is; the first of equal ones wins."""
    height, width = x.shape[0] // 2, x.shape[1] // 2
    windows = x.reshape(height, 2, width, 2).swapaxes(1, 2).reshape(height, width, 4)
    return windows.max(-1), windows.argmax(-1)


def backward(argmax: jax.Array, cotangents: jax.Array) -> tuple[jax.Array]:
    """Passes every cotangent back to its winner: if a wins m = max(a, b), then J_a = J_m and J_b = 0 (J_x is dJ/dx)."""
    windows = jnp.where(jnp.arange(4) == argmax[..., None], cotangents[..., None], 0)
    return (windows.reshape(*argmax.shape, 2, 2).swapaxes(1, 2).reshape(2 * len(argmax), -1),)


max_pool.defvjp(forward, backward)  # JAX calls forward, keeps argmax, and later calls backward
argparse.ArgumentParser(description=__doc__).parse_args(None if __name__ == "__main__" else [])  # it has no options

loss = lambda w, x, y: (max_pool(w * x).sum() - y) ** 2  # noqa: E731 - of ONE example
examples = jnp.array([[[1.0, 5, 2, 0], [3, 4, 2, 2]], [[4, 0, 3, 5], [2, 1, 3, 3]]])  # each has its own winners
w, targets, optimizer = jnp.ones((2, 4)), jnp.array([6.0, 11.0]), optax.sgd(0.01)
gradients = jax.vmap(jax.grad(loss), (None, 0, 0))(w, examples, targets)  # for each example, the gradient of w
updates, _ = optimizer.update(gradients.mean(0), optimizer.init(w))  # their mean: one step
print(f"example 1:\n{gradients[0]}\nexample 2:\n{gradients[1]}\nw after the step:\n{w + updates}")
cotangents = jnp.arange(1.0, 13.0).reshape(3, 4)
for x in jax.random.choice(jax.random.key(0), jnp.array([-jnp.inf, 0, 1, 2, jnp.nan]), (200, 6, 8)):
    ours, back = jax.vjp(max_pool, x)
    theirs, their_back = jax.vjp(lambda x: jpool.max_pool(x, (2, 2), strides=2, channel_axis=None), x)
    assert (ours.tobytes(), back(cotangents)[0].tobytes()) == (theirs.tobytes(), their_back(cotangents)[0].tobytes())
print("equal to jpool.max_pool, bit for bit, with ties, NaN and -inf")
