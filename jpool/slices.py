"""Static slices, the only way in which this library reads an array: no gather, no scatter, no dynamic index."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from jpool.geometry import Axis


def pad(array: jax.Array, low: Sequence[int], high: Sequence[int], value: Any) -> jax.Array:
    """Surrounds the array with a value, once, for many reads. A negative amount adds nothing."""
    config = [(max(before, 0), max(after, 0), 0) for before, after in zip(low, high, strict=True)]
    if not any(before or after for before, after, _ in config):
        return array
    # Without the barrier XLA fuses the padding into every read of the result, as a branch per element.
    return lax.optimization_barrier(lax.pad(array, lax.convert_element_type(value, array.dtype), config))


def pad_for_windows(axes: Sequence[Axis], array: jax.Array, value: Any) -> jax.Array:
    """Surrounds an array with the padding that the windows reach."""
    low = [axis.low for axis in axes]
    return pad(array, low, [axis.reach - axis.low - axis.size for axis in axes], value)


def read_tap(axes: Sequence[Axis], tap: Sequence[int], padded: jax.Array) -> jax.Array:
    """One tap of all windows at once: an array with one element per window."""
    start = [index * axis.dilation for index, axis in zip(tap, axes, strict=True)]
    limit = [at + max((axis.output - 1) * axis.stride + 1, 0) for at, axis in zip(start, axes, strict=True)]
    return lax.slice(padded, start, limit, [axis.stride for axis in axes])
