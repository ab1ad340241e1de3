"""select: which element of each window wins, and its value. This is the forward pass.

Winners are numbers of taps, 0 .. taps - 1 in row-major order; the number `taps` says "none". They are all that the
backward pass needs. Where ties are split there is no one winner, and masks of the tied taps take the place of numbers.
`largest` finds the values alone, for when there is no backward pass.
"""

from collections.abc import Iterator, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.geometry import Axis, Geometry
from jpool.runs import Run, selects_in_place
from jpool.slices import (
    Arrays,
    Winners,
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


def select(geometry: Geometry, x: jax.Array) -> tuple[jax.Array, Winners]:
    """Finds the largest element of every window of one example; the smallest if `geometry.least`.

    The first in row-major order wins a tie, or who `geometry.ties` says, the first NaN wins over every number, and a
    real element wins over padding. A window without a real element has no winner; its value is that of padding.

    Args:
      geometry: the pooling.
      x: one example, shape `geometry.example_shape`, any real dtype.

    Returns:
      values: shape `geometry.values_shape`, dtype of x.
      winners: one array of the same shape, uint8 for windows of up to 255 taps, uint16 up to 65,535, else uint32. Where
        ties are split, a mask for every step: of the shape of what the step finds, with a bit for each of its taps.
    """
    padding = padding_value(geometry, x.dtype)
    found: Arrays = (stored(x, x.dtype),)
    masks: Arrays = ()
    for step in steps(geometry):
        found = _select_step(geometry, step, padding, found)
        if geometry.ties == "split":
            found, masks = found[:1], masks + found[1:]
    return bits_as(found[0], x.dtype), masks or found[1]


def largest(geometry: Geometry, x: jax.Array) -> jax.Array:
    """The values of `select`, the same to the bit."""
    padding = padding_value(geometry, x.dtype)
    found: Arrays = (stored(x, x.dtype),)
    for step in steps(geometry):
        found = _largest_step(geometry, step, padding, found)
    return bits_as(found[0], x.dtype)


def winners_dtype(geometry: Geometry) -> np.dtype:
    """The least that holds every number of a tap and "none", or every mask.

    Its largest number says that no value beats padding (see `in_one_pass`), so a tie that nobody wins needs another.
    """
    if geometry.ties == "split":
        return np.min_scalar_type(2**geometry.taps)
    return np.min_scalar_type(geometry.taps + (geometry.ties == "none"))


def padding_value(geometry: Geometry, dtype: np.dtype) -> np.ndarray:
    """What no element can lose to: -inf, or the least number of a dtype that has no infinity, or False.

    For the smallest element: inf, the greatest number, True.
    """
    if dtype == np.bool_:
        return np.array(geometry.least, dtype)
    limits = jnp.finfo(dtype) if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype)
    limit = np.array(limits.max if geometry.least else limits.min, dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        return limit
    infinity = np.array(np.inf if geometry.least else -np.inf, dtype)
    return infinity if np.isinf(infinity.astype(np.float32)) else limit


def _select_step(geometry: Geometry, step: Step, padding: np.ndarray, found: Arrays) -> Arrays:
    """From elements, or blocks of them, to the windows that compare them: their values and winners."""
    axes, in_place = step.geometry.axes, selects_in_place(geometry)
    numbered = step.geometry if geometry.ties == "split" else geometry  # whose taps the winners number
    dtype = winners_dtype(numbered)
    found = found if in_place else _padded(step, padding, found)

    def compute(chosen: Sequence[Run]) -> Arrays:
        candidates = _candidates(geometry, step, padding.dtype, dtype, chosen, found)
        value, winner = reduce(partial(_better, geometry), candidates)
        if geometry.ties == "split" or step == steps(geometry)[-1]:
            winner = _settled(numbered, padding, value, winner, in_place)
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
            pairs = [_better(geometry, *candidates[i : i + 2]) for i in range(0, len(candidates) - 1, 2)]
            candidates = pairs + candidates[2 * len(pairs) :]
        return (stored(candidates[0][0], padding.dtype),)

    return by_runs(step.geometry.axes, compute, split=in_place)


def _padded(step: Step, padding: np.ndarray, found: Arrays) -> Arrays:
    return tuple(
        pad_for_windows(step.geometry.axes, array, value)
        for array, value in zip(found, (padding.view(storage(padding.dtype)), 0), strict=False)
    )


def _candidates(
    geometry: Geometry, step: Step, x_dtype: np.dtype, dtype: np.dtype, chosen: Sequence[Run], found: Arrays
) -> Iterator[Arrays]:
    """What these windows find at each tap, in row-major order: values and winners."""
    for number, axes, tap in _taps(step, chosen):
        value = widened(read_tap(axes, tap, found[0]), x_dtype)
        winner = lax.full(value.shape, 1 << number if geometry.ties == "split" else number * step.apart, dtype)
        if len(found) > 1:  # what is read are blocks, with winners of their own
            inner = read_tap(axes, tap, found[1])
            winner = lax.add(winner, inner)
            if geometry.ties == "none":
                none = lax.full(inner.shape, geometry.taps, dtype)
                winner = lax.select(lax.eq(inner, none), none, winner)
        yield value, winner


def _taps(step: Step, chosen: Sequence[Run]) -> Iterator[tuple[int, list[Axis], tuple[int, ...]]]:
    """The taps of these windows, in row-major order: their numbers in the step, and where to read them."""
    axes = [run.axis for run in chosen]
    for tap in np.ndindex(*(axis.window for axis in axes)):
        whole = [at + run.first for at, run in zip(tap, chosen, strict=True)]
        yield int(np.ravel_multi_index(whole, [axis.window for axis in step.geometry.axes])), axes, tap


def _better(geometry: Geometry, best: Arrays, later: Arrays) -> Arrays:
    """Of two candidates, values with or without their winners, the second where it beats the first, else the first."""
    beaten = {False: lax.lt, True: lax.gt} if geometry.ties == "last" else {False: lax.le, True: lax.ge}
    # `not <=` instead of `>` lets the first NaN win; `best == best` lets nothing win over it.
    stays = beaten[geometry.least](later[0], best[0])
    wins = lax.bitwise_and(lax.bitwise_not(stays), lax.eq(best[0], best[0]))
    better = tuple(lax.select(wins, each, other) for each, other in zip(later, best, strict=True))
    if len(best) == 1 or geometry.ties in ("first", "last"):
        return better
    tie = lax.eq(later[0], best[0])
    if geometry.ties == "split":
        return better[0], lax.select(tie, lax.bitwise_or(best[1], later[1]), better[1])
    # Blocks overlap: one winner met in two of them does not tie with itself.
    none = lax.full(better[1].shape, geometry.taps, better[1].dtype)
    return better[0], lax.select(lax.bitwise_and(tie, lax.ne(later[1], best[1])), none, better[1])


def _settled(
    geometry: Geometry, padding: np.ndarray, values: jax.Array, winners: jax.Array, in_place: bool
) -> jax.Array:
    """Winners, but where nothing beats padding, and padding may have won, those that are a fact of the geometry.

    So padding needs no mask: where the value of a window is that of padding, every real element of the window equals
    it, and the winner is the first of them, or who the rule says. A window with a NaN has none where ties have none.
    """
    if geometry.ties == "none":
        winners = lax.select(lax.eq(values, values), winners, lax.full(winners.shape, geometry.taps, winners.dtype))
    if in_place or not any(axis.overhangs for axis in geometry.axes):
        return winners
    wins, exists = _real_winners(geometry, winners.dtype)
    nobody = np.asarray(0 if geometry.ties == "split" else geometry.taps, winners.dtype)
    return jnp.where(values == padding.astype(values.dtype), jnp.where(exists, wins, nobody), winners)


def _real_winners(geometry: Geometry, dtype: np.dtype) -> tuple[jax.Array, jax.Array]:
    """Who wins where every element is as low as padding, and whether anybody does."""
    wins, exists = jnp.zeros((), dtype), jnp.ones((), bool)
    if geometry.ties == "split":
        wins = jnp.ones((), dtype)
    for i, axis in enumerate(geometry.axes):
        along = [axis.output if j == i else 1 for j in range(len(geometry.axes))]
        start = np.arange(axis.output) * axis.stride - axis.low
        first = np.maximum(-(start // axis.dilation), 0)
        last = np.minimum((axis.size - 1 - start) // axis.dilation, axis.window - 1)
        real = (first == last) if geometry.ties == "none" else first <= last
        exists = exists & real.reshape(along)
        if geometry.ties == "split":  # a mask is the product of the masks along its axes
            apart = geometry.taps // int(np.prod([other.window for other in geometry.axes[: i + 1]]))
            taps = np.arange(axis.window)
            marks = (first[:, None] <= taps) & (taps <= last[:, None])
            wins = wins * (marks << (taps * apart)).sum(1).astype(dtype).reshape(along)
        else:
            tap = np.where(real, last if geometry.ties == "last" else first, 0)
            wins = wins * axis.window + tap.astype(dtype).reshape(along)
    return wins, exists
