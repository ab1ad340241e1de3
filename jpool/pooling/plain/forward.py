"""The forward pass: `select` finds the value and the winner of every window of one example.

    select :: (geometry; x) -> (values, winners)

Pad x once, so that no window overhangs. Walk the taps of the window in row-major order: one strided slice reads one tap
of all windows. Keep the larger value, and the number of its tap: the winner. The backward pass needs only the winners.

    x = [3, 1, 4, 1, 5, 9], window 2, stride 2         tap 0 of all windows: [3, 4, 5]
    values = [3, 4, 9], winners = [0, 0, 1]            tap 1 of all windows: [1, 1, 9]

A large window is divided into steps (see `steps`): each is a small pooling of the result of the step before. This is
the plain algorithm, which GPUs and TPUs run as it is here. `cpu.forward` computes the same, arranged for XLA:CPU.
"""

from functools import reduce

import jax
import numpy as np
from jax import lax

from jpool.pooling.integers.geometry import Geometry, Step
from jpool.pooling.plain.steps import GPU, Arrangement, steps
from jpool.pooling.plain.ties import RULES, Candidate, low_value
from jpool.pooling.plain.windows import pad_for_windows, read_tap

Winners = tuple[jax.Array, ...]  # one array of tap numbers; if ties are split, a mask for every step


def select(geometry: Geometry, x: jax.Array, arrangement: Arrangement = GPU) -> tuple[jax.Array, Winners]:
    """Finds the maximum of every window of one example, or the minimum if geometry.minimum, and the tap that holds it.

    Args:
      geometry: the pooling.
      x: one example, shape `geometry.example_shape`, any real dtype.
      arrangement: how large windows are divided into steps.

    Returns:
      values: shape `geometry.values_shape`, dtype of x. An all-padding window has the value of padding.
      winners: one array of that shape, of the rule's `winners_dtype`; or a mask for each window of every step.
    """
    rule, low = RULES[geometry.ties], low_value(geometry, x.dtype)
    values, winners = x, list[jax.Array]()
    for step in steps(geometry, arrangement):
        inner = winners.pop() if winners and not rule.masks else None  # the winners within what this step compares
        values, marks = _select_step(geometry, step, values, inner, low)
        winners.append(rule.resolve(step.geometry, values, marks, low) if rule.masks else marks)
    if not rule.masks:
        winners = [rule.resolve(geometry, values, winners[0], low)]
    return values, tuple(winners)


def largest(geometry: Geometry, x: jax.Array, arrangement: Arrangement = GPU) -> jax.Array:
    """The values only; XLA removes the winners, which are not read."""
    return select(geometry, x, arrangement)[0]


def _select_step(
    geometry: Geometry, step: Step, values: jax.Array, winners: jax.Array | None, low: np.ndarray
) -> Candidate:
    """From elements, or blocks of them with their values and winners, to the windows that compare them."""
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
    """The same along axes that one window covers completely: a reduction, which takes candidates in any order."""
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

    init = low, np.asarray(0 if rule.last_wins else geometry.taps, dtype)  # loses to all elements, also to an equal one
    result = lax.reduce((values, marks if winners is None else lax.add(marks, winners)), init, combine, step.reduced)
    return result[0].reshape(step.geometry.values_shape), result[1].reshape(step.geometry.values_shape)
