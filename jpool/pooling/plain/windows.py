"""How windows read an array: the taps of all windows at once, and the elements at their winners."""

from collections.abc import Sequence

import jax
import numpy as np
from jax import lax

from jpool.pooling.integers.geometry import Axis, Step
from jpool.pooling.plain.phases import phases_of
from jpool.pooling.plain.steps import GPU
from jpool.pooling.plain.ties import RULES, filled


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
    """One tap of all windows at once: a strided slice with one element per window. Negative padding is skipped."""
    start = [number * axis.dilation + max(-axis.low, 0) for number, axis in zip(tap, axes, strict=True)]
    end = [
        axis.output if axis.is_identity else first + max((axis.output - 1) * axis.stride + 1, 0)
        for first, axis in zip(start, axes, strict=True)
    ]
    # XLA's partitioner reads a sharded axis wrongly where a slice of one element has a stride larger than 1.
    strides = [axis.stride if axis.is_identity or axis.output > 1 else 1 for axis in axes]
    return lax.slice(padded, start, end, strides)


def gather_step(step: Step, winners: jax.Array, t: jax.Array) -> jax.Array:
    """Reads for each window of a step the element or block that holds its winner; 0 where there is none."""
    rule, axes = RULES[step.geometry.ties], step.geometry.axes
    if step.reduced:
        (phases,) = phases_of(step, GPU)
        ((_, taps),) = phases.taps.items()
        won = rule.won(step, phases.repeat(winners), taps, phases.table)
        t = t.reshape(phases.shape)
        return lax.reduce(lax.select(won, t, filled(t, 0)), np.zeros((), t.dtype), lax.add, phases.phase_dims)
    padded = pad_for_windows(axes, t, 0)
    read = zeros = lax.broadcast(np.zeros((), t.dtype), winners.shape)
    for number, tap in enumerate(np.ndindex(*(axis.window for axis in axes))):
        won = rule.won(step, winners, np.asarray(number), lambda numbers, _: filled(winners, numbers))
        element = read_tap(axes, tap, padded)
        read = lax.add(read, lax.select(won, element, zeros)) if rule.masks else lax.select(won, element, read)
    return read
