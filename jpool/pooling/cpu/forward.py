"""The forward pass arranged for XLA:CPU: x is read once and, where that is faster, without a padded copy."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax import lax

from jpool.pooling.cpu import reductions
from jpool.pooling.cpu.loops import Arrays, bits_to_accumulator, by_runs, from_bits, in_one_pass, to_bits
from jpool.pooling.cpu.runs import Run, selects_in_place
from jpool.pooling.integers.geometry import DIRECT_TAPS, Geometry
from jpool.pooling.plain import forward
from jpool.pooling.plain.arrays import padding_value
from jpool.pooling.plain.forward import Index, best_of, settle_no_winner
from jpool.pooling.plain.steps import is_reduction, steps
from jpool.pooling.plain.ties import RULES, Candidate
from jpool.pooling.slices import best_of_padded, pad_for_windows, slice_tap


def select_step(pooling: Geometry, x: jax.Array) -> Candidate:
    """The same as `plain.forward.select_step`, bit for bit."""
    if is_reduction(pooling):
        return reductions.select_step(pooling, x)
    return _select_step(pooling, x, with_winners=True)


def select_values(geometry: Geometry, x: jax.Array) -> jax.Array:
    """The values of a whole pooling, bit for bit.

    Without winners, blocks are at most as slow as a reduction that keeps NaNs, and up to four times as fast.
    """
    for step in steps(geometry, reduces=False):
        x, _ = _select_step(step, x, with_winners=False)
    return x


def _select_step(pooling: Geometry, x: jax.Array, *, with_winners: bool) -> Candidate:
    """A step that is no reduction. Without winners, XLA removes what would find them."""
    in_place = selects_in_place(pooling)
    if not in_place and pooling.is_adaptive:
        return forward.select_step(pooling, x)
    padding, bits = padding_value(pooling, x.dtype), to_bits(x, x.dtype)
    if not in_place:
        bits = pad_for_windows(pooling.axes, bits, padding.view(bits.dtype))
    strides, dtype = [pooling.tap_strides[i] for i in pooling.pooled], RULES[pooling.ties].winners_dtype(pooling)

    def taps(chosen: Sequence[Run]) -> Iterator[tuple[Index, jax.Array]]:
        run_axes = [run.axis for run in chosen]
        for tap in np.ndindex(*(axis.window for axis in run_axes)):
            index = tuple(tap[i] + chosen[i].first_tap for i in pooling.pooled)
            yield index, bits_to_accumulator(slice_tap(run_axes, tap, bits), x.dtype)

    def compute(chosen: Sequence[Run]) -> Arrays:
        if in_place:  # a tap has the same number in all windows of a run
            constants = ((a, lax.full(a.shape, int(np.dot(index, strides)), dtype)) for index, a in taps(chosen))
            best = best_of(pooling, constants)
        else:
            best = best_of_padded(pooling, taps(chosen), padding)
        value, winner = settle_no_winner(pooling, best, padding)
        # XLA:CPU moves rounding to 16 bits into a chain of selects, in exponential time (jax 0.12.0.1: 17 taps 3 s).
        if not with_winners and pooling.taps > DIRECT_TAPS:
            value = lax.optimization_barrier(value)
        value = to_bits(value, x.dtype)
        # Runs at an edge are small, and cheaper to compile into the loop that concatenates them.
        inside = all(run.axis.window == axis.window for run, axis in zip(chosen, pooling.axes, strict=True))
        return in_one_pass(value, winner, padding.view(value.dtype)) if with_winners and inside else (value, winner)

    values, winners = by_runs(pooling.axes, compute, split=in_place)
    return from_bits(values, x.dtype), winners
