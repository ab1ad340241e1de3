"""The forward pass in its plain form: `select` finds the value and the winner of every window of one example.

    select :: (geometry; x) -> (values, winners)

Pad x once, so that every window is whole. Walk the taps of the window in row-major order: one strided slice reads one
tap of all windows. Keep the better value, and the number of its tap: the winner. The backward pass needs nothing else.

A large window is divided into steps (see `steps`); each is a small pooling of what the step before it found.
"""

from functools import reduce
from typing import cast

import jax
import numpy as np
from jax import lax

from jpool.geometry import Geometry
from jpool.pooling.steps import GPU, Arrangement, Step, steps
from jpool.pooling.ties import RULES, Candidate, low_value
from jpool.pooling.windows import pad_for_windows, read_tap

Winners = tuple[jax.Array, ...]  # one array of numbers; where ties are split, a mask for every step


def select(geometry: Geometry, x: jax.Array, arrangement: Arrangement = GPU) -> tuple[jax.Array, Winners]:
    """Finds the maximum of every window of one example, or the minimum if the geometry says so, and which tap it is.

    Args:
      geometry: the pooling.
      x: one example, shape `geometry.example_shape`, any real dtype.
      arrangement: how large windows are divided into steps.

    Returns:
      values: shape `geometry.values_shape`, dtype of x. A window without an element of x has the value of padding.
      winners: one array of that shape, of the rule's `winners_dtype`; or for every step a mask of each of its windows.
    """
    rule, low = RULES[geometry.ties], low_value(geometry, x.dtype)
    values, winners = x, cast(Winners, ())
    for step in steps(geometry, arrangement):
        values, found = _select_step(geometry, step, values, winners[-1] if winners and not rule.masks else None, low)
        winners = (*winners, rule.resolve(step.geometry, values, found, low)) if rule.masks else (found,)
    return values, winners if rule.masks else (rule.resolve(geometry, values, winners[0], low),)


def largest(geometry: Geometry, x: jax.Array, arrangement: Arrangement = GPU) -> jax.Array:
    """The values alone; XLA leaves out the winners, which are not read."""
    return select(geometry, x, arrangement)[0]


def _select_step(
    geometry: Geometry, step: Step, values: jax.Array, winners: jax.Array | None, low: np.ndarray
) -> Candidate:
    """From elements, or blocks of them that have winners already, to the windows that compare them."""
    if step.reduced:
        return _reduce(geometry, step, values, winners, low)
    rule, axes = RULES[geometry.ties], step.geometry.axes
    values = pad_for_windows(axes, values, low)
    winners = None if winners is None else pad_for_windows(axes, winners, 0)

    def candidate(number: int, tap: tuple[int, ...]) -> Candidate:
        value = read_tap(axes, tap, values)
        inner = None if winners is None else read_tap(axes, tap, winners)
        return value, rule.mark(geometry, step, number, value, inner)

    taps = np.ndindex(*(axis.window for axis in axes))
    return reduce(lambda best, later: rule.combine(geometry, best, later), map(candidate, range(step.taps), taps))


def _reduce(geometry: Geometry, step: Step, values: jax.Array, winners: jax.Array | None, low: np.ndarray) -> Candidate:
    """The same along axes that one window covers whole: a reduction, which may take its candidates in any order."""
    rule = RULES[geometry.ties]
    dtype = rule.winners_dtype(geometry)
    window = [step.geometry.axes[i].window for i in step.reduced]
    marks = lax.mul(lax.iota(dtype, step.taps), np.asarray(step.block_stride, dtype)).reshape(window)
    marks = lax.broadcast_in_dim(marks, values.shape, step.reduced)

    def combine(a: Candidate, b: Candidate) -> Candidate:
        in_order = lax.le(a[1], b[1])
        first = lax.select(in_order, a[0], b[0]), lax.select(in_order, a[1], b[1])
        second = lax.select(in_order, b[0], a[0]), lax.select(in_order, b[1], a[1])
        return rule.combine(geometry, first, second)

    start = low, np.asarray(0 if rule.from_the_end else geometry.taps, dtype)  # loses to every element, also if equal
    found = lax.reduce((values, marks if winners is None else lax.add(marks, winners)), start, combine, step.reduced)
    return found[0].reshape(step.geometry.values_shape), found[1].reshape(step.geometry.values_shape)
