"""Poolings of a batch with its channels last: jpool's, or what users of a framework write instead.

The first argument selects: True for jpool's.
"""

import importlib
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

import jpool


@cache
def linen() -> Any:
    """flax.linen, imported only when a network needs it."""
    return importlib.import_module("flax.linen")


def max_pool(
    ours: bool, x: jax.Array, window: tuple[int, ...], stride: int = 1, padding: int = 0, ceil_mode: bool = False
) -> jax.Array:
    """Max pooling."""
    if ours:
        return jax.vmap(lambda x: jpool.max_pool(x, window, stride, padding, ceil_mode=ceil_mode))(x)
    sizes = zip(x.shape[1:-1], window, strict=True)
    overhang = [(size + 2 * padding - side) % stride if ceil_mode else 0 for size, side in sizes]
    return linen().max_pool(x, window, (stride,) * len(window), [(padding, padding + more) for more in overhang])


def min_pool(ours: bool, x: jax.Array, window: tuple[int, ...]) -> jax.Array:
    """Min pooling with stride 1; the values have the size of x."""
    if ours:
        return jax.vmap(lambda x: jpool.min_pool(x, window, padding="SAME"))(x)
    return -linen().max_pool(-x, window, padding="SAME")


def global_max_pool(ours: bool, x: jax.Array) -> jax.Array:
    """The maximum over all axes between batch and channels."""
    return jax.vmap(jpool.global_max_pool)(x) if ours else x.max(tuple(range(1, x.ndim - 1)))


def max_pool_with_argmax(ours: bool, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maxima and winners of windows 2x2. No framework has the second, so users reshape the windows and take argmax."""
    if ours:
        return jax.vmap(lambda x: jpool.max_pool_with_argmax(x, (2, 2), 2))(x)
    batch, height, width, channels = x.shape
    windows = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4)
    return linen().max_pool(x, (2, 2), (2, 2)), windows.reshape(*windows.shape[:4], 4).argmax(-1)


def max_unpool(ours: bool, values: jax.Array, argmax: jax.Array) -> jax.Array:
    """The values back where `max_pool_with_argmax` found them, and zeros elsewhere."""
    batch, height, width, channels = values.shape
    shape = (2 * height, 2 * width)
    if ours:
        return jax.vmap(lambda values, argmax: jpool.max_unpool(values, argmax, shape, (2, 2), 2))(values, argmax)
    windows = values[..., None] * jax.nn.one_hot(argmax, 4, dtype=values.dtype)
    windows = windows.reshape(batch, height, width, channels, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return jnp.reshape(windows, (batch, *shape, channels))
