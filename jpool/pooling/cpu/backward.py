"""The backward pass arranged for XLA:CPU: elements ask the windows that cover them, whose arrays are read in place.

The plain form moves what windows send by padding it, which XLA:CPU compiles to a branch for each element: 15 times
slower where windows overlap at stride 1 (3x3/1 on 16x28x28x192: 16 ms against 1.1; AMD EPYC, 2 cores, jax 0.12.0.1,
2026-11-25). And a step back through blocks finds two arrays, which one loop should write.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax import lax

from jpool.geometry import Axis, Geometry
from jpool.pooling.backward import to_accumulator
from jpool.pooling.cpu.forward import ARRANGEMENT
from jpool.pooling.cpu.loops import Arrays, by_runs, in_one_pass
from jpool.pooling.cpu.runs import Run, in_place
from jpool.pooling.forward import Winners
from jpool.pooling.grid import Grid, taps_by_shift
from jpool.pooling.steps import Step, steps
from jpool.pooling.ties import RULES
from jpool.pooling.windows import count_tied, pad_for_windows, read_tap


def route(geometry: Geometry, winners: Winners, ct: jax.Array) -> jax.Array:
    """The same as `backward.route`, but for the order of sums."""
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
    lows = [min(shift[i] for shift in taps) for i in range(len(axes))]
    # As windows read elements, so do elements read windows: `m * stride + phase` those from `m + low` on.
    readers = [
        Axis(axis.output, max(shift[i] for shift in taps) - low + 1, 1, 1, -low, -(-axis.size // axis.stride))
        for i, (axis, low) in enumerate(zip(axes, lows, strict=True))
    ]
    split = in_place(readers)
    if not split:
        winners = pad_for_windows(readers, winners, 0 if rule.masks else step.no_winner)
        ct = pad_for_windows(readers, ct, 0)

    def compute(chosen: Sequence[Run]) -> Arrays:
        blocks = [run.axis for run in chosen]
        grid = Grid([_interleaved(axis, block) for axis, block in zip(axes, blocks, strict=True)], {}, {})
        inner = lax.broadcast(np.asarray(step.block if blocks_win else 0, winners.dtype), grid.shape)
        routed = nothing = lax.broadcast(np.zeros((), ct.dtype), grid.shape)
        for place in np.ndindex(*(block.window for block in blocks)):
            shift = tuple(at + run.first + low for at, run, low in zip(place, chosen, lows, strict=True))
            if shift in taps:
                winner, sent = (grid.spread(read_tap(blocks, place, array)) for array in (winners, ct))
                won = rule.won(step, winner, taps[shift], grid.table)
                if blocks_win:
                    begin = grid.table(np.maximum(taps[shift], 0) * step.block_stride, winner.dtype)
                    inner = lax.select(won, lax.sub(winner, begin), inner)
                routed = lax.add(lax.select(won, sent, nothing), routed)
        inner, routed = grid.interleaved(inner, 0), grid.interleaved(routed, 0)
        return in_one_pass(routed, inner, 0) if blocks_win else (routed, inner)

    whole = by_runs(readers, compute, split=split)
    routed, inner = (lax.slice(array, [0] * len(axes), step.geometry.example_shape) for array in whole)
    return routed, inner


def _interleaved(axis: Axis, block: Axis) -> Axis:
    """The elements that a run of readers finds along an axis: so many times its stride."""
    return axis._replace(size=block.output * axis.stride, output=block.output)
