"""The poolings of a network, by `by`: the framework's own, jpool's, or "free", which takes elements and compares none.

By windows, a network pools in the framework's way; for "jpool" it is given whole to `jpool.replace_pooling`.

A step with a strided slice in place of every pooling is about the limit that a faster pooling could reach. It is not a
strict one: XLA fuses the slice and its gradient, a pad, into their neighbours, which may help or not.
"""

from functools import cache, partial
from importlib import import_module
from typing import Any

import jax

import jpool

BY = ("framework", "jpool", "free")


@cache
def linen() -> Any:
    """flax.linen, imported only when a network needs it."""
    return import_module("flax.linen")


def max_pool(by: str, x: jax.Array, side: int, stride: int, padding: int = 0) -> jax.Array:
    """Max pooling of a batch with its channels last, over all axes between batch and channels."""
    axes = x.ndim - 2
    pool = partial(
        linen().max_pool, window_shape=(side,) * axes, strides=(stride,) * axes, padding=[(padding, padding)] * axes
    )
    return sliced(x, jax.eval_shape(pool, x).shape, stride) if by == "free" else pool(x)


def global_max_pool(by: str, x: jax.Array) -> jax.Array:
    """The maximum of every channel."""
    if by == "framework":
        return x.max(tuple(range(1, x.ndim - 1)))
    return jax.vmap(jpool.global_max_pool)(x) if by == "jpool" else x[(slice(None), *(0,) * (x.ndim - 2))]


def sliced(x: jax.Array, shape: tuple[int, ...], stride: int) -> jax.Array:
    """A slice of x with this shape, and with the stride along the axes between batch and channels."""
    steps = (1, *(stride,) * (x.ndim - 2), 1)
    ends = ((size - 1) * step + 1 for size, step in zip(shape, steps, strict=True))
    return jax.lax.slice(x, (0,) * x.ndim, tuple(ends), steps)
