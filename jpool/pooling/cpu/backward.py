"""The backward pass arranged for XLA:CPU: elements read the windows that cover them, in place.

The plain form moves cotangents by padding, which XLA:CPU compiles to a branch for each element: 15 times slower where
windows overlap at stride 1 (3x3/1 on 16x28x28x192: 16 ms instead of 1.1; AMD EPYC, 2 cores, jax 0.12.0.1, 2026-11-25).
And a step back through blocks computes two arrays, cotangents and winners within the blocks: here in one loop.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax import lax

from jpool.pooling.cpu.forward import ARRANGEMENT
from jpool.pooling.cpu.loops import Arrays, by_runs, in_one_pass
from jpool.pooling.cpu.runs import Run, reads_in_place
from jpool.pooling.integers.geometry import Axis, Geometry, Step
from jpool.pooling.plain.arrays import to_accumulator
from jpool.pooling.plain.backward import count_tied
from jpool.pooling.plain.forward import Winners
from jpool.pooling.plain.phases import PhaseGroup, taps_by_shift
from jpool.pooling.plain.steps import steps
from jpool.pooling.plain.ties import RULES
from jpool.pooling.plain.windows import pad_for_windows, read_tap


def route(geometry: Geometry, winners: Winners, ct: jax.Array) -> jax.Array:
    """The same as `plain.backward.route`, except for the order of sums."""
    routed = to_accumulator(ct)
    masks = RULES[geometry.ties].masks
    if masks:
        routed = lax.div(routed, count_tied(geometry, winners, routed.dtype, ARRANGEMENT))
    step_winners = winners[-1]
    for i, step in reversed(list(enumerate(steps(geometry, ARRANGEMENT)))):
        routed, step_winners = _route_step(step, winners[i] if masks else step_winners, routed)
    return lax.convert_element_type(routed, ct.dtype)


def _route_step(step: Step, winners: jax.Array, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    """From the windows of a step back to what it compared: cotangents, and the winners within the blocks."""
    rule, axes = RULES[step.geometry.ties], step.geometry.axes
    blocks_win = step.block > 1 and not rule.masks
    taps = taps_by_shift(axes)
    first_shifts = [min(shift[i] for shift in taps) for i in range(len(axes))]
    # Elements `m * stride + phase` read windows as a pooling of stride 1 reads elements, from window `m + first` on.
    readers = [
        Axis(axis.output, max(shift[i] for shift in taps) - first + 1, 1, 1, -first, -(-axis.size // axis.stride))
        for i, (axis, first) in enumerate(zip(axes, first_shifts, strict=True))
    ]
    split = reads_in_place(readers)
    if not split:
        winners = pad_for_windows(readers, winners, 0 if rule.masks else step.no_winner)
        ct = pad_for_windows(readers, ct, 0)

    def compute(chosen: Sequence[Run]) -> Arrays:
        run_axes = [run.axis for run in chosen]
        group = PhaseGroup([_elements(axis, run_axis) for axis, run_axis in zip(axes, run_axes, strict=True)], {}, {})
        inner = lax.broadcast(np.asarray(step.block if blocks_win else 0, winners.dtype), group.shape)
        routed = zeros = lax.broadcast(np.zeros((), ct.dtype), group.shape)
        for index in np.ndindex(*(axis.window for axis in run_axes)):
            shift = tuple(i + run.first_tap + first for i, run, first in zip(index, chosen, first_shifts, strict=True))
            if shift in taps:
                winner, cotangent = (group.repeat(read_tap(run_axes, index, array)) for array in (winners, ct))
                won = rule.won(step, winner, taps[shift], group.by_phase)
                if blocks_win:
                    begin = group.by_phase(np.maximum(taps[shift], 0) * step.block_stride, winner.dtype)
                    inner = lax.select(won, lax.sub(winner, begin), inner)
                routed = lax.add(lax.select(won, cotangent, zeros), routed)
        inner, routed = group.interleave(inner, 0), group.interleave(routed, 0)
        return in_one_pass(routed, inner, 0) if blocks_win else (routed, inner)

    whole_periods = by_runs(readers, compute, split=split)
    routed, inner = (lax.slice(array, [0] * len(axes), step.geometry.example_shape) for array in whole_periods)
    return routed, inner


def _elements(axis: Axis, run_axis: Axis) -> Axis:
    """The elements that a run of readers computes along an axis: its number of periods of the stride."""
    return axis._replace(size=run_axis.output * axis.stride, output=run_axis.output)
