"""The backward pass arranged for XLA:CPU: elements read the windows that cover them in place, by slices.

XLA:CPU reads at the indices of a table element by element, and compiles padding to a branch for each element: 15 times
slower where windows overlap at stride 1 (3x3/1 on 16x28x28x192: 16 ms instead of 1.1; AMD EPYC, 2 cores, jax 0.12.0.1,
2026-11-25).
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax import lax

from jpool.pooling.cpu.loops import Arrays, by_runs, in_one_pass
from jpool.pooling.cpu.runs import Run, reads_in_place
from jpool.pooling.integers.geometry import Axis, Geometry
from jpool.pooling.plain import backward
from jpool.pooling.plain.arrays import to_accumulator
from jpool.pooling.plain.ties import RULES
from jpool.pooling.slices import by_phase, merge, pad_for_windows, repeat, slice_tap, taps_by_shift

SHORT_ROWS = (4, 8, *range(16, 37, 4))  # channels, see `_has_short_rows`


def route_step(pooling: Geometry, winners: jax.Array, ct: jax.Array) -> jax.Array:
    """The same as `plain.backward.route_step`, except for the order of sums."""
    rule, axes = RULES[pooling.ties], pooling.axes
    if pooling.is_adaptive:
        return backward.route_step(pooling, winners, ct)
    tables, ct = taps_by_shift(pooling), to_accumulator(ct)
    first_shifts = [min(shift[i] for shift in tables) for i in range(len(axes))]
    # Elements `m * stride + phase` read windows as a pooling of stride 1 reads elements, from window `m + first` on: an
    # `Axis` with windows and elements exchanged.
    readers = [
        Axis(axis.output, max(shift[i] for shift in tables) - first + 1, 1, 1, -first, -(-axis.size // axis.stride))
        for i, (axis, first) in enumerate(zip(axes, first_shifts, strict=True))
    ]
    split = reads_in_place(readers)
    if not split:
        winners = pad_for_windows(readers, winners, rule.no_winner(pooling))
        ct = pad_for_windows(readers, ct, 0)

    def compute(chosen: Sequence[Run]) -> Arrays:
        run_axes = [run.axis for run in chosen]
        phases = [axis.stride for axis in axes]
        sums = zeros = repeat(lax.full([axis.output for axis in run_axes], 0, ct.dtype), phases)
        for index in np.ndindex(*(axis.window for axis in run_axes)):
            shift = tuple(i + run.first_tap + first for i, run, first in zip(index, chosen, first_shifts, strict=True))
            if (numbers := tables.get(shift)) is not None:
                winner, cotangent = (
                    repeat(slice_tap(run_axes, index, array), numbers.shape) for array in (winners, ct)
                )
                won = rule.has_won(winner, by_phase(pooling, numbers, zeros.shape))
                sums = lax.add(lax.select(won, cotangent, zeros), sums)
        return (merge(sums, len(axes)),)

    (whole_periods,) = by_runs(readers, compute, split=split)
    sums = lax.slice(whole_periods, [0] * len(axes), pooling.example_shape)
    if _has_short_rows(pooling, len(tables)):
        sums, _ = in_one_pass(sums, lax.full(sums.shape, 0, np.uint8), 0)
    return sums


def _has_short_rows(pooling: Geometry, shifts: int) -> bool:
    """Whether XLA:CPU compiles the sums to a slow loop, and a reduction with the same result to a fast one.

    With phases and up to 36 channels, 2x2/2 takes 1.3 to 1.6 ns an element; as a reduction 0.2 to 0.5, but only if the
    channels are a multiple of 4, and not 12. Where windows overlap, only up to 14 channels are slow (AMD EPYC, 2 cores,
    jax 0.10.2 and 0.12.0.1, 2026-11-29).
    """
    channels, strided = pooling.axes[-1], any(axis.stride > 1 for axis in pooling.axes)
    return strided and channels.is_identity and channels.size in (SHORT_ROWS if shifts == 1 else SHORT_ROWS[:2])
