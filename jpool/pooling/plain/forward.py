"""The forward pass: `select_step` finds the value and the winner of every window of one example.

    select_step :: (pooling; x) -> (values, winners)        (static arguments; arrays)

Walk the taps of the window in row-major order. One tap of all windows is one array, read at the elements in the table
(see `tables`). Keep the larger value and the number of its tap, the winner; the rule for ties decides between equal
values. The backward pass needs only the winners.

    x = [3, 1, 4, 1, 5, 9], window 2, stride 2         tap 0 of all windows: [3, 4, 5]
    values = [3, 4, 9], winners = [0, 0, 1]            tap 1 of all windows: [1, 1, 9]
"""

from collections.abc import Iterable
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.pooling.integers.geometry import Axis, Geometry
from jpool.pooling.integers.tables import all_padding, reads, real_taps
from jpool.pooling.plain.arrays import padding_value, sum_of_tables, take
from jpool.pooling.plain.reductions import reduce_step
from jpool.pooling.plain.steps import is_reduction
from jpool.pooling.plain.ties import RULES, Candidate

Index = tuple[int, ...]  # of a tap, along each pooled axis
Taps = Iterable[tuple[Index, jax.Array]]  # in row-major order, and what all windows read there


def select_step(pooling: Geometry, x: jax.Array, taps: Taps | None = None) -> Candidate:
    """The values and the winners; those of a window of padding alone are the value of padding, and no winner.

    Args:
      pooling: one step of a pooling.
      x: one example, shape `pooling.example_shape`, any real dtype.
      taps: what windows read; by default at the elements in the table.

    Returns:
      values: shape `pooling.values_shape`, dtype of x.
      winners: the same shape, see `ties`.
    """
    if is_reduction(pooling):
        return reduce_step(pooling, x)
    dtype = RULES[pooling.ties].winners_dtype(pooling)
    numbered = ((value, tap_numbers(pooling, index, dtype)) for index, value in taps or read_taps(pooling, x))
    return settle_no_winner(pooling, best_of(pooling, numbered), padding_value(pooling, x.dtype))


def read_taps(pooling: Geometry, x: jax.Array) -> Taps:
    """Every tap of the window, read at the elements in the table."""

    def along(pooled: Index, index: Index, array: jax.Array) -> Taps:
        if not pooled:
            yield index, array
            return
        i, *others = pooled
        for tap in real_taps(pooling.axes[i]):
            yield from along(tuple(others), (*index, tap), read_tap(pooling.axes[i], i, tap, array))

    return along(pooling.pooled, (), x)


def read_tap(axis: Axis, i: int, tap: int, array: jax.Array) -> jax.Array:
    """The element that every window reads at a tap, along axis i: a strided slice if all windows are regular."""
    if not axis.is_regular:
        return take(array, i, reads(axis, tap).elements)
    start = tap * axis.dilation - axis.low
    stop = start + (axis.output - 1) * axis.stride + 1
    # XLA's partitioner reads a sharded axis wrongly where a slice of one element has a stride larger than 1.
    return lax.slice_in_dim(array, start, stop, axis.stride if axis.output > 1 else 1, i)


def tap_numbers(pooling: Geometry, index: Index, dtype: np.dtype, *, replaced: bool = True) -> jax.Array:
    """The number of this tap of every window; in the padding that of the tap that replaces it, or of no tap."""
    tables = []
    for i, tap in zip(pooling.pooled, index, strict=True):
        taps = reads(pooling.axes[i], tap).taps
        numbers = taps * pooling.tap_strides[i]
        tables.append((i, numbers if replaced else np.where(taps == tap, numbers, no_tap(pooling))))
    return sum_of_tables(tables, pooling.values_shape, dtype)


def no_tap(pooling: Geometry) -> int:
    """A number with which no sum is the number of a tap, or of no winner."""
    return pooling.taps + 1


def number_dtype(pooling: Geometry) -> np.dtype:
    """The dtype of sums of numbers of taps, and of `no_tap`."""
    return np.min_scalar_type((len(pooling.pooled) + 1) * no_tap(pooling))


def best_of(pooling: Geometry, numbered: Iterable[tuple[jax.Array, jax.Array]]) -> Candidate:
    """The best of all taps by the rule for ties, from their values and numbers, for windows with a real element."""
    rule = RULES[pooling.ties]
    dtype = rule.winners_dtype(pooling)
    candidates = ((value, rule.winner(number, dtype)) for value, number in numbered)
    return reduce(partial(rule.choose, pooling), candidates)


def settle_no_winner(pooling: Geometry, best: Candidate, padding: np.ndarray) -> Candidate:
    """Windows of padding alone get the value of padding and no winner; NaNs have none if by the rule no NaN wins."""
    rule, (values, winners) = RULES[pooling.ties], best
    no_winner = lax.full_like(winners, rule.no_winner(pooling))
    for i in pooling.pooled:
        if (empty := all_padding(pooling.axes[i])).any():
            here = lax.broadcast_in_dim(empty, values.shape, (i,))
            values = lax.select(here, lax.full_like(values, padding.astype(values.dtype)), values)
            winners = lax.select(here, no_winner, winners)
    if not rule.nan_wins and jnp.issubdtype(values.dtype, jnp.floating):
        winners = lax.select(lax.eq(values, values), winners, no_winner)
    return values, winners
