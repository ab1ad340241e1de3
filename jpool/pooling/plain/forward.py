"""The forward pass: `select` finds the value and the winner of every window of one example.

    select :: (geometry; x) -> (values, winners)        (static arguments; arrays)

Pad x, so that no window overhangs. Walk the taps of the window in row-major order: one strided slice reads one tap of
all windows. Keep the larger value and the number of its tap, the winner; the rule for ties decides between equal
values. The backward pass needs only the winners.

    x = [3, 1, 4, 1, 5, 9], window 2, stride 2         tap 0 of all windows: [3, 4, 5]
    values = [3, 4, 9], winners = [0, 0, 1]            tap 1 of all windows: [1, 1, 9]

A window of more than 9 taps is pooled in steps: one axis after the other, and a long axis block by block (see `steps`).
Each step pools the result of the step before. This is the plain algorithm, which GPUs and TPUs run as it is here.
`cpu.forward` computes the same, arranged for XLA:CPU.
"""

from functools import reduce

import jax
import numpy as np
from jax import lax

from jpool.pooling.integers.geometry import Geometry, Step
from jpool.pooling.plain.arrays import padding_value
from jpool.pooling.plain.steps import DEFAULT, Arrangement, steps
from jpool.pooling.plain.ties import RULES, Candidate
from jpool.pooling.plain.windows import pad_for_windows, read_tap

# One array of tap numbers; if ties are split, an array of bit masks for every step, with a bit for each tap of the
# step.
Winners = tuple[jax.Array, ...]


def select(geometry: Geometry, x: jax.Array, arrangement: Arrangement = DEFAULT) -> tuple[jax.Array, Winners]:
    """Finds the maximum of every window of one example, or the minimum if geometry.minimum, and the tap that holds it.

    Args:
      geometry: the pooling.
      x: one example, shape `geometry.example_shape`, any real dtype.
      arrangement: what differs between platforms: how large windows are divided into steps.

    Returns:
      values: shape `geometry.values_shape`, dtype of x. That of an all-padding window is the value of padding: -inf, or
        the lowest of the dtype.
      winners: see `Winners`. The number of an all-padding window is `geometry.taps`: no winner.
    """
    rule, padding = RULES[geometry.ties], padding_value(geometry, x.dtype)
    values, winners = x, list[jax.Array]()
    for step in steps(geometry, arrangement):
        inner = None if rule.masks or not winners else winners.pop()  # of the step before: inside each block
        values, step_winners = _select_step(geometry, step, values, inner, padding)
        if rule.masks:  # they belong to this step; numbers are those of the whole window, and final after the last step
            step_winners = rule.resolve_padding(step.geometry, values, step_winners, padding)
        winners.append(step_winners)
    if not rule.masks:
        winners = [rule.resolve_padding(geometry, values, winners[0], padding)]
    return values, tuple(winners)


def select_values(geometry: Geometry, x: jax.Array, arrangement: Arrangement = DEFAULT) -> jax.Array:
    """The values only; XLA removes the winners, which are not read."""
    return select(geometry, x, arrangement)[0]


def _select_step(
    geometry: Geometry, step: Step, values: jax.Array, inner: jax.Array | None, padding: np.ndarray
) -> Candidate:
    """Pools elements, or blocks given by their values and the winners inside them."""
    if step.reduced_axes:
        return reduce_axes(geometry, step, values, inner, padding)
    rule, axes = RULES[geometry.ties], step.geometry.axes
    values = pad_for_windows(axes, values, padding)
    inner = None if inner is None else pad_for_windows(axes, inner, 0)  # any number: `resolve_padding` replaces it

    def candidate(tap: int, index: tuple[int, ...]) -> Candidate:
        value = read_tap(axes, index, values)
        return value, rule.mark(geometry, step, tap, value, None if inner is None else read_tap(axes, index, inner))

    candidates = map(candidate, range(step.taps), np.ndindex(*(axis.window for axis in axes)))
    return reduce(lambda best, later: rule.combine(geometry, best, later), candidates)


def reduce_axes(
    geometry: Geometry, step: Step, values: jax.Array, inner: jax.Array | None, padding: np.ndarray
) -> Candidate:
    """`_select_step` along axes that one window covers completely, for rules with one winner: a `lax.reduce`.

    Its order is free, so two candidates are ordered by their marks.
    """
    rule = RULES[geometry.ties]
    marks = marks_of_all_taps(geometry, step, values.shape, inner)

    def combine(a: Candidate, b: Candidate) -> Candidate:
        in_order = lax.le(a[1], b[1])
        first = lax.select(in_order, a[0], b[0]), lax.select(in_order, a[1], b[1])
        second = lax.select(in_order, b[0], a[0]), lax.select(in_order, b[1], a[1])
        return rule.combine(geometry, first, second)

    # The initial candidate loses to every element, also to an equal one: its mark is the first, or one after the last.
    init = padding, np.asarray(0 if rule.last_wins else geometry.taps, marks.dtype)
    result = lax.reduce((values, marks), init, combine, step.reduced_axes)
    return result[0].reshape(step.geometry.values_shape), result[1].reshape(step.geometry.values_shape)


def marks_of_all_taps(geometry: Geometry, step: Step, shape: tuple[int, ...], inner: jax.Array | None) -> jax.Array:
    """`rule.mark` of every element or block of a reduction, at once."""
    dtype = RULES[geometry.ties].winners_dtype(geometry)
    window = [step.geometry.axes[i].window for i in step.reduced_axes]
    marks = lax.mul(lax.iota(dtype, step.taps), np.asarray(step.block_stride, dtype)).reshape(window)
    marks = lax.broadcast_in_dim(marks, shape, step.reduced_axes)
    return marks if inner is None else lax.add(marks, inner)
