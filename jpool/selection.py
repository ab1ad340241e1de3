"""select: which element of each window wins, and its value. This is the forward pass.

Winners are numbers of taps, 0 .. taps - 1 in row-major order; the number `taps` says "none". They are all that the
backward pass needs. `largest` finds the values alone, for when there is no backward pass.
"""

from collections.abc import Iterator, Sequence
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.geometry import Axis, Geometry
from jpool.runs import Run, selects_in_place
from jpool.slices import (
    Arrays,
    bits_as,
    by_runs,
    in_one_pass,
    pad_for_windows,
    read_tap,
    storage,
    stored,
    widened,
)
from jpool.steps import Step, steps


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
    found: Arrays = (stored(x, x.dtype),)
    for step in steps(geometry):
        found = _select_step(geometry, step, lowest(x.dtype), found)
    values, winners = found
    return bits_as(values, x.dtype), winners


def largest(geometry: Geometry, x: jax.Array) -> jax.Array:
    """The values of `select`, the same to the bit."""
    found: Arrays = (stored(x, x.dtype),)
    for step in steps(geometry):
        found = _largest_step(geometry, step, lowest(x.dtype), found)
    return bits_as(found[0], x.dtype)


def lowest(dtype: np.dtype) -> np.ndarray:
    """The value of padding: -inf, or the least number of a dtype that has no infinity, or False."""
    if dtype == np.bool_:
        return np.zeros((), dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        return np.array(jnp.iinfo(dtype).min, dtype)
    infinity = np.array(-np.inf, dtype)
    return infinity if np.isinf(infinity.astype(np.float32)) else np.array(jnp.finfo(dtype).min, dtype)


def _select_step(geometry: Geometry, step: Step, padding: np.ndarray, found: Arrays) -> Arrays:
    """From elements, or blocks of them, to the windows that compare them: their values and winners."""
    axes, in_place = step.geometry.axes, selects_in_place(geometry)
    dtype = np.min_scalar_type(geometry.taps)
    found = found if in_place else _padded(step, padding, found)

    def compute(chosen: Sequence[Run]) -> Arrays:
        value, winner = reduce(_later_if_larger, _candidates(step, padding.dtype, dtype, chosen, found))
        if step.none == geometry.taps and not in_place:
            winner = _repaired(geometry, padding, value, winner)
        # Runs at an edge are small, and cheaper to compile into the loop that joins them.
        inside = all(run.axis.window == axis.window for run, axis in zip(chosen, axes, strict=True))
        value = stored(value, padding.dtype)
        return in_one_pass(value, winner, padding.view(storage(padding.dtype))) if inside else (value, winner)

    return by_runs(axes, compute, split=in_place)


def _largest_step(geometry: Geometry, step: Step, padding: np.ndarray, found: Arrays) -> Arrays:
    """The same without winners."""
    in_place = selects_in_place(geometry)
    found = found if in_place else _padded(step, padding, found)

    def compute(chosen: Sequence[Run]) -> Arrays:
        candidates: list[Arrays] = [
            (widened(read_tap(axes, tap, found[0]), padding.dtype),) for _, axes, tap in _taps(step, chosen)
        ]
        while len(candidates) > 1:  # in pairs, which a processor can overlap
            pairs = [_later_if_larger(*candidates[i : i + 2]) for i in range(0, len(candidates) - 1, 2)]
            candidates = pairs + candidates[2 * len(pairs) :]
        return (stored(candidates[0][0], padding.dtype),)

    return by_runs(step.geometry.axes, compute, split=in_place)


def _padded(step: Step, padding: np.ndarray, found: Arrays) -> Arrays:
    return tuple(
        pad_for_windows(step.geometry.axes, array, value)
        for array, value in zip(found, (padding.view(storage(padding.dtype)), 0), strict=False)
    )


def _candidates(
    step: Step, x_dtype: np.dtype, dtype: np.dtype, chosen: Sequence[Run], found: Arrays
) -> Iterator[Arrays]:
    """What these windows find at each tap, in row-major order: values and winners."""
    for number, axes, tap in _taps(step, chosen):
        value = widened(read_tap(axes, tap, found[0]), x_dtype)
        winner = lax.full(value.shape, number * step.apart, dtype)
        yield value, winner if step.block == 1 else lax.add(winner, read_tap(axes, tap, found[1]))


def _taps(step: Step, chosen: Sequence[Run]) -> Iterator[tuple[int, list[Axis], tuple[int, ...]]]:
    """The taps of these windows, in row-major order: their numbers in the step, and where to read them."""
    axes = [run.axis for run in chosen]
    for tap in np.ndindex(*(axis.window for axis in axes)):
        whole = [at + run.first for at, run in zip(tap, chosen, strict=True)]
        yield int(np.ravel_multi_index(whole, [axis.window for axis in step.geometry.axes])), axes, tap


def _later_if_larger(best: Arrays, later: Arrays) -> Arrays:
    """Of two candidates, values with or without their winners, the second where its value is larger, else the first."""
    # `not <=` instead of `>` lets the first NaN win; `best == best` lets nothing win over it.
    wins = lax.bitwise_and(lax.bitwise_not(lax.le(later[0], best[0])), lax.eq(best[0], best[0]))
    return tuple(lax.select(wins, each, other) for each, other in zip(later, best, strict=True))


def _repaired(geometry: Geometry, padding: np.ndarray, values: jax.Array, winners: jax.Array) -> jax.Array:
    """Winners, but where nothing exceeds the lowest value, and padding may have won, the first tap that is not padding.

    Which tap that is, is a fact of the geometry, so padding needs no mask: where the value of a window is the lowest
    there is, every real element of the window equals it, and the first of them wins.
    """
    axes = geometry.axes
    if not any(axis.overhangs for axis in axes):
        return winners
    number = jnp.zeros((), winners.dtype)
    exists = jnp.ones((), bool)
    for i, axis in enumerate(axes):
        start = np.arange(axis.output) * axis.stride - axis.low
        tap = np.maximum(-(start // axis.dilation), 0)
        real = (tap < axis.window) & (start + tap * axis.dilation < axis.size)
        along = [axis.output if j == i else 1 for j in range(len(axes))]
        number = number * axis.window + jnp.where(real, tap, 0).astype(winners.dtype).reshape(along)
        exists = exists & real.reshape(along)
    first_real = jnp.where(exists, number, np.asarray(geometry.taps, winners.dtype))
    return jnp.where(values == padding.astype(values.dtype), first_real, winners)
