"""select: which element of each window wins, and its value. This is the forward pass.

Winners are numbers of taps, 0 .. taps - 1 in row-major order; the number `taps` says "none". They are all that the
backward pass needs.
"""

from collections.abc import Iterator
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

from jpool.geometry import Geometry
from jpool.slices import pad_for_windows, read_tap
from jpool.steps import Step, steps

Candidate = tuple[jax.Array, jax.Array]  # values and winners


def select(geometry: Geometry, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the largest element of every window of one example.

    The first in row-major order wins a tie, the first NaN wins over every number, and a real element wins over padding.
    A window without a real element has no winner; its value is the lowest of the dtype.

    Args:
      geometry: the pooling.
      x: one example, shape `geometry.example_shape`, any real dtype.

    Returns:
      values: shape `geometry.values_shape`, dtype of x.
      winners: same shape, uint8 for windows of up to 255 taps, uint16 up to 65,535, else uint32.
    """
    values = x
    winners = jnp.zeros(x.shape, np.min_scalar_type(geometry.taps))
    for step in steps(geometry):
        values, winners = reduce(_later_if_larger, _candidates(step, values, winners))
    if any(axis.overhangs for axis in geometry.axes):
        winners = jnp.where(values == lowest(x.dtype), _first_real_tap(geometry, winners.dtype), winners)
    return values, winners


def lowest(dtype: np.dtype) -> np.ndarray:
    """The value of padding: -inf, or the least number of a dtype that has no infinity, or False."""
    if dtype == np.bool_:
        return np.zeros((), dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        return np.array(jnp.iinfo(dtype).min, dtype)
    infinity = np.array(-np.inf, dtype)
    return infinity if np.isinf(infinity.astype(np.float32)) else np.array(jnp.finfo(dtype).min, dtype)


def _candidates(step: Step, values: jax.Array, winners: jax.Array) -> Iterator[Candidate]:
    """For each tap in row-major order, what every window finds there."""
    axes = step.geometry.axes
    values = pad_for_windows(axes, values, lowest(values.dtype))
    winners = pad_for_windows(axes, winners, 0) if step.block > 1 else winners
    for number, tap in enumerate(np.ndindex(*(axis.window for axis in axes))):
        value = read_tap(axes, tap, values)
        winner = jnp.full(value.shape, number * step.apart, winners.dtype)
        yield value, winner + read_tap(axes, tap, winners) if step.block > 1 else winner


def _later_if_larger(best: Candidate, later: Candidate) -> Candidate:
    # `not <=` instead of `>` lets the first NaN win; `best == best` lets nothing win over it.
    wins = ~(later[0] <= best[0]) & (best[0] == best[0])
    return jnp.where(wins, later[0], best[0]), jnp.where(wins, later[1], best[1])


def _first_real_tap(geometry: Geometry, dtype: np.dtype) -> jax.Array:
    """The winner of a window in which nothing exceeds the lowest value: its first tap that is not padding.

    That is a fact of the geometry, so padding needs no mask: where the value of a window is the lowest there is, every
    real element of the window equals it, and the first of them wins.
    """
    number = jnp.zeros((), dtype)
    exists = jnp.ones((), bool)
    for i, axis in enumerate(geometry.axes):
        start = np.arange(axis.output) * axis.stride - axis.low
        tap = np.maximum(-(start // axis.dilation), 0)
        real = (tap < axis.window) & (start + tap * axis.dilation < axis.size)
        along = [axis.output if j == i else 1 for j in range(len(geometry.axes))]
        number = number * axis.window + jnp.where(real, tap, 0).astype(dtype).reshape(along)
        exists = exists & real.reshape(along)
    return jnp.where(exists, number, np.asarray(geometry.taps, dtype))
