"""How arrays are read and written, so that XLA makes good loops: static slices, in place, in one pass.

No gather, no scatter, no dynamic index.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.geometry import Axis
from jpool.runs import Run, runs

Arrays = tuple[jax.Array, ...]
Winners = jax.Array | Arrays  # a number for every window; or, where ties are split, a mask for every step


def read_tap(axes: Sequence[Axis], tap: Sequence[int], array: jax.Array) -> jax.Array:
    """One tap of all windows at once: an array with one element per window. Low padding must have been added."""
    start = [index * axis.dilation + max(-axis.low, 0) for index, axis in zip(tap, axes, strict=True)]
    limit = [at + max((axis.output - 1) * axis.stride + 1, 0) for at, axis in zip(start, axes, strict=True)]
    return lax.slice(array, start, limit, [axis.stride for axis in axes])


def storage(dtype: np.dtype) -> np.dtype:
    """How arrays of a dtype are kept: floats of up to 16 bits as their bits, for XLA:CPU makes wide copies of them."""
    bits = jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.floating) else 0
    return jnp.dtype(f"uint{bits}") if bits in (4, 8, 16) else dtype


def stored(array: jax.Array, dtype: np.dtype) -> jax.Array:
    """The array as dtype, and that as it is kept."""
    return bits_as(lax.convert_element_type(array, dtype), storage(dtype))


def bits_as(array: jax.Array, dtype: np.dtype) -> jax.Array:
    """The same bits as another dtype. Its derivative is zero, so nothing that is differentiated may pass through."""
    return array if array.dtype == dtype else lax.bitcast_convert_type(array, dtype)


def widened(array: jax.Array, dtype: np.dtype) -> jax.Array:
    """What was `stored` as dtype as numbers to compute with: narrow floats as float32, which is exact."""
    if storage(dtype) == dtype or array.dtype == jnp.float32:
        return array
    return lax.convert_element_type(bits_as(array, dtype), jnp.float32)


def wide(array: jax.Array) -> jax.Array:
    """In float32 what is narrower, to add up without rounding every time."""
    return lax.convert_element_type(array, jnp.float32) if array.dtype.itemsize < 4 else array


def pad_for_windows(axes: Sequence[Axis], array: jax.Array, value: Any) -> jax.Array:
    """Surrounds an array with the padding that the windows reach, once, for many reads."""
    config = [(max(axis.low, 0), max(axis.reach - axis.low - axis.size, 0), 0) for axis in axes]
    if not any(low or high for low, high, _ in config):
        return array
    # Without the barrier XLA fuses the padding into every read of the result, as a branch per element.
    return lax.optimization_barrier(lax.pad(array, lax.convert_element_type(value, array.dtype), config))


def by_runs(axes: Sequence[Axis], compute: Callable[[Sequence[Run]], Arrays], *, split: bool) -> Arrays:
    """Calls `compute` for every combination of runs and joins what it returns, arrays with an element per window.

    Without `split` there is one call, for all windows alike.
    """

    def along(i: int, chosen: tuple[Run, ...]) -> Arrays:
        if i == len(axes):
            return compute(chosen)
        parts = [along(i + 1, (*chosen, run)) for run in (runs(axes[i]) if split else [Run(axes[i], 0)])]
        if len(parts) == 1:
            return parts[0]
        return tuple(lax.concatenate(arrays, i) for arrays in zip(*parts, strict=True))

    return along(0, ())


def in_one_pass(values: jax.Array, winners: jax.Array, nothing: Any) -> Arrays:
    """Returns values and winners as they are, but computed in one pass over what they are computed from.

    XLA:CPU compiles one operation only to a loop that writes two arrays, a reduction of two operands. All else reads
    everything once for each. So this is a reduction, to the smaller winner, along an axis that holds each pair twice.

    Args:
      values: any array.
      winners: unsigned integers, same shape.
      nothing: what values hold wherever winners are the largest number of their dtype.
    """

    def smaller(a: Arrays, b: Arrays) -> Arrays:
        earlier = lax.lt(a[1], b[1])
        return lax.select(earlier, a[0], b[0]), lax.select(earlier, a[1], b[1])

    start = (jnp.array(nothing, values.dtype), jnp.array(jnp.iinfo(winners.dtype).max, winners.dtype))
    return tuple(lax.reduce((lax.broadcast(values, (2,)), lax.broadcast(winners, (2,))), start, smaller, (0,)))
