"""How windows read an array."""

from collections.abc import Sequence

import jax
import numpy as np
from jax import lax

from jpool.pooling.integers.geometry import Axis
from jpool.pooling.plain.arrays import pad


def pad_for_windows(axes: Sequence[Axis], array: jax.Array, value: np.ndarray | int) -> jax.Array:
    """The array with the padding that the windows read."""
    config = [
        (max(axis.low, 0), max(axis.reach - axis.low - axis.size, 0), 0) if axis.overhangs else (0, 0, 0)
        for axis in axes
    ]
    return pad(array, config, value)


def read_tap(axes: Sequence[Axis], index: Sequence[int], padded: jax.Array) -> jax.Array:
    """One tap of all windows at once, by its index along each axis: a strided slice with one element per window.

    A negative `low` skips elements.
    """
    start = [along * axis.dilation + max(-axis.low, 0) for along, axis in zip(index, axes, strict=True)]
    end = [
        axis.output if axis.is_identity else first + max((axis.output - 1) * axis.stride + 1, 0)
        for first, axis in zip(start, axes, strict=True)
    ]
    # XLA's partitioner reads a sharded axis wrongly where a slice of one element has a stride larger than 1.
    strides = [axis.stride if axis.is_identity or axis.output > 1 else 1 for axis in axes]
    return lax.slice(padded, start, end, strides)
