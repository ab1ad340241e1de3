"""The forward pass, in its plain form: `select` finds the value and the winner of every window of one example.

    select :: (geometry; x) -> (values, winners)

Pad x once, so that every window is whole. Walk the taps of the window in row-major order: one strided slice reads that
tap of all windows at once. Keep the better value, and the number of its tap: the winner. Winners are all that the
backward pass needs.

A large window is divided into steps (see `steps`), each a small pooling of what the step before it found.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax import lax

from jpool.geometry import Axis, Geometry
from jpool.pooling.steps import Arrangement, Step, steps
from jpool.pooling.ties import RULES, Candidate, low_value

Winners = tuple[jax.Array, ...]  # one array of numbers; where ties are split, a mask for every step


def select(geometry: Geometry, x: jax.Array, arrangement: Arrangement = Arrangement()) -> tuple[jax.Array, Winners]:
    """Finds the maximum of every window of one example, or the minimum if the geometry says so, and where it was.

    Args:
      geometry: the pooling.
      x: one example, shape `geometry.example_shape`, any real dtype.
      arrangement: how large windows are divided into steps.

    Returns:
      values: shape `geometry.values_shape`, dtype of x. Padding for a window that has no element of x.
      winners: one array of that shape, as narrow as the rule's `winners_dtype`; or a mask for every step.
    """
    rule, low = RULES[geometry.ties], low_value(geometry, x.dtype)
    values, winners, masks = x, None, ()
    for step in steps(geometry, arrangement):
        values, winners = _select_step(geometry, step, values, winners, low)
        if rule.masks:
            masks, winners = (*masks, rule.resolve_padding(step.geometry, values, winners, low)), None
    if rule.masks:
        return values, masks
    return values, (rule.resolve_padding(geometry, values, rule.resolve_nan(geometry, values, winners), low),)


def largest(geometry: Geometry, x: jax.Array, arrangement: Arrangement = Arrangement()) -> jax.Array:
    """The values alone; XLA computes no winners that nobody reads."""
    return select(geometry, x, arrangement)[0]


def _select_step(
    geometry: Geometry, step: Step, values: jax.Array, winners: jax.Array | None, low: np.ndarray
) -> Candidate:
    """From elements, or blocks of them that have winners already, to the windows that compare them."""
    rule = RULES[geometry.ties]
    numbered = step.geometry if rule.masks else geometry  # whose taps the winners number
    if step.reduced:
        return _reduce(geometry, step, values, winners, low)
    axes = step.geometry.axes
    values = pad_for_windows(axes, values, low)
    winners = None if winners is None else pad_for_windows(axes, winners, 0)
    best = None
    for number, tap in enumerate(np.ndindex(*(axis.window for axis in axes))):
        value = read_tap(axes, tap, values)
        inner = None if winners is None else read_tap(axes, tap, winners)
        candidate = value, rule.mark(numbered, step, number, value, inner)
        best = candidate if best is None else rule.combine(geometry, best, candidate)
    return best


def _reduce(geometry: Geometry, step: Step, values: jax.Array, winners: jax.Array | None, low: np.ndarray) -> Candidate:
    """Along axes that one window covers whole: a reduction of (value, winner), which may take them in any order."""
    rule = RULES[geometry.ties]
    dtype = rule.winners_dtype(geometry)
    window = [step.geometry.axes[i].window for i in step.reduced]
    numbers = lax.iota(dtype, step.taps).reshape(window) * np.asarray(step.block_stride, dtype)
    numbers = lax.broadcast_in_dim(numbers, values.shape, step.reduced)

    def combine(a: Candidate, b: Candidate) -> Candidate:
        in_order = lax.le(a[1], b[1])
        best, later = zip(*((lax.select(in_order, *ab), lax.select(in_order, *ab[::-1])) for ab in zip(a, b, strict=True)), strict=True)
        return rule.combine(geometry, best, later)

    start = low, np.asarray(0 if rule.from_the_end else geometry.taps, dtype)  # where it ties, an element beats it
    found = lax.reduce((values, numbers if winners is None else lax.add(numbers, winners)), start, combine, step.reduced)
    return tuple(array.reshape(step.geometry.values_shape) for array in found)


def pad_for_windows(axes: Sequence[Axis], array: jax.Array, value: np.ndarray | int) -> jax.Array:
    """The array with the padding that the windows read."""
    if not any(axis.overhangs for axis in axes):
        return array
    config = [
        (max(axis.low, 0), max(axis.reach - axis.low - axis.size, 0), 0) if axis.overhangs else (0, 0, 0)
        for axis in axes
    ]
    return lax.pad(array, np.asarray(value, array.dtype), config)


def read_tap(axes: Sequence[Axis], tap: Sequence[int], padded: jax.Array) -> jax.Array:
    """One tap of all windows at once: an array with one element per window."""
    start = [number * axis.dilation for number, axis in zip(tap, axes, strict=True)]
    limit = [
        axis.output if axis.is_identity else max(at + (axis.output - 1) * axis.stride + 1, 0)
        for at, axis in zip(start, axes, strict=True)
    ]
    return lax.slice(padded, start, limit, [axis.stride for axis in axes])
