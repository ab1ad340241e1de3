"""Good loops for XLA:CPU: arrays that are read in place, two results in one pass, narrow floats kept as bits."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.pooling.cpu.runs import Run, runs
from jpool.pooling.integers.geometry import Axis

Arrays = tuple[jax.Array, ...]


def by_runs(axes: Sequence[Axis], compute: Callable[[Sequence[Run]], Arrays], *, split: bool) -> Arrays:
    """Calls `compute` for every combination of runs and concatenates its results, arrays with an element per window.

    Without `split` there is one call, for all windows.
    """

    def along(i: int, chosen: tuple[Run, ...]) -> Arrays:
        if i == len(axes):
            return compute(chosen)
        parts = [along(i + 1, (*chosen, run)) for run in (runs(axes[i]) if split else [Run(axes[i], 0)])]
        if len(parts) == 1:
            return parts[0]
        return tuple(lax.concatenate(arrays, i) for arrays in zip(*parts, strict=True))

    return along(0, ())


def in_one_pass(values: jax.Array, winners: jax.Array, fill: np.ndarray | int) -> Arrays:
    """Returns values and winners unchanged, but computed in one pass over what they are computed from.

    XLA:CPU compiles only one operation to a loop that writes two arrays: a reduction of two operands. Otherwise it
    reads everything once for each result. So this is a reduction, to the smaller winner, along an axis that holds each
    pair twice. Without it the forward pass takes 2 to 2.5 times as long (AMD EPYC, 2 cores, jax 0.10.2 and 0.12.0.1,
    2026-11-25).

    Args:
      values: any array.
      winners: unsigned integers, same shape.
      fill: what values must hold where winners are the largest number of their dtype: there the reduction returns it.
    """

    def smaller(a: Arrays, b: Arrays) -> Arrays:
        earlier = lax.lt(a[1], b[1])
        return lax.select(earlier, a[0], b[0]), lax.select(earlier, a[1], b[1])

    init = (np.array(fill, values.dtype), np.array(jnp.iinfo(winners.dtype).max, winners.dtype))
    return tuple(lax.reduce((lax.broadcast(values, (2,)), lax.broadcast(winners, (2,))), init, smaller, (0,)))


# XLA:CPU computes 16-bit floats in float32, and makes a float32 copy of every array of them that is sliced. An array of
# their bits is sliced as it is, and each element is converted where it is read, which is exact.


def to_bits(array: jax.Array, dtype: np.dtype) -> jax.Array:
    """The array as dtype, and floats of up to 16 bits as unsigned integers of the same bits."""
    return _bitcast(lax.convert_element_type(array, dtype), bits_dtype(dtype))


def from_bits(array: jax.Array, dtype: np.dtype) -> jax.Array:
    """Undoes `to_bits`."""
    return _bitcast(array, dtype)


def bits_to_accumulator(array: jax.Array, dtype: np.dtype) -> jax.Array:
    """The result of `to_bits` of an array of that dtype, to compute with: narrow floats in float32."""
    if bits_dtype(dtype) == dtype:
        return array
    return lax.convert_element_type(_bitcast(array, dtype), jnp.float32)


def bits_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of `to_bits`."""
    bits = jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.floating) else 0
    return jnp.dtype(f"uint{bits}") if bits in (4, 8, 16) else dtype


def _bitcast(array: jax.Array, dtype: np.dtype) -> jax.Array:
    return array if array.dtype == dtype else lax.bitcast_convert_type(array, dtype)
