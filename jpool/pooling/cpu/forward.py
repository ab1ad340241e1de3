"""The forward pass arranged for XLA:CPU: x is read once and, where that is faster, without a padded copy."""

from collections.abc import Iterator, Sequence
from functools import partial, reduce

import jax
import numpy as np
from jax import lax

from jpool.pooling.cpu import reductions
from jpool.pooling.cpu.loops import Arrays, bits_dtype, bits_to_accumulator, by_runs, from_bits, in_one_pass, to_bits
from jpool.pooling.cpu.runs import Run, selects_in_place
from jpool.pooling.integers.geometry import Axis, Geometry, Step
from jpool.pooling.plain.arrays import padding_value
from jpool.pooling.plain.forward import Winners
from jpool.pooling.plain.steps import Arrangement, steps
from jpool.pooling.plain.ties import RULES, Candidate
from jpool.pooling.plain.windows import pad_for_windows, read_tap

ARRANGEMENT = Arrangement(axis_taps=8)
# Without winners, blocks are at most as slow as a reduction that keeps NaNs, and up to four times as fast.
VALUES_ARRANGEMENT = ARRANGEMENT._replace(reduces=False)


def select(geometry: Geometry, x: jax.Array) -> tuple[jax.Array, Winners]:
    """The same as `plain.forward.select`, bit for bit."""
    masks, all_steps = RULES[geometry.ties].masks, steps(geometry, ARRANGEMENT)
    values, winners = to_bits(x, x.dtype), list[jax.Array]()
    for step in all_steps:
        inner = winners.pop() if winners and not masks else None
        # The pooling for which ties with padding are resolved: the step, or after the last step the whole pooling.
        finished = step.geometry if masks else geometry if step is all_steps[-1] else None
        select_step = reductions.select_step if step.reduced_axes else _select_step
        values, step_winners = select_step(geometry, step, values, inner, x.dtype, finished)
        winners.append(step_winners)
    return from_bits(values, x.dtype), tuple(winners)


def select_values(geometry: Geometry, x: jax.Array) -> jax.Array:
    """The values of `select`, bit for bit. Candidates are compared in pairs, which a processor can overlap."""
    rule, in_place = RULES[geometry.ties], selects_in_place(geometry, VALUES_ARRANGEMENT)
    values = to_bits(x, x.dtype)

    def larger(best: jax.Array, later: jax.Array) -> jax.Array:
        return lax.select(rule.stays(geometry, best, later), best, later)

    for step in steps(geometry, VALUES_ARRANGEMENT):
        axes = step.geometry.axes
        array = values if in_place else pad_for_windows(axes, values, _padding_bits(geometry, x.dtype))

        def compute(chosen: Sequence[Run], step: Step = step, array: jax.Array = array) -> Arrays:
            taps = [read_tap(run_axes, index, array) for _, run_axes, index in _taps(step, chosen)]
            best = [bits_to_accumulator(tap, x.dtype) for tap in taps]
            while len(best) > 1:
                best = [reduce(larger, best[i : i + 2]) for i in range(0, len(best), 2)]
            return (to_bits(best[0], x.dtype),)

        (values,) = by_runs(axes, compute, split=in_place)
    return from_bits(values, x.dtype)


def _select_step(
    geometry: Geometry,
    step: Step,
    values: jax.Array,
    winners: jax.Array | None,
    dtype: np.dtype,
    finished: Geometry | None,
) -> Candidate:
    """From elements, or blocks of them, to the windows that compare them; `values` are the bits of x's dtype."""
    rule, axes, in_place = RULES[geometry.ties], step.geometry.axes, selects_in_place(geometry, ARRANGEMENT)
    padding_bits = _padding_bits(geometry, dtype)
    if not in_place:
        values = pad_for_windows(axes, values, padding_bits)
        winners = None if winners is None else pad_for_windows(axes, winners, 0)

    def candidates(chosen: Sequence[Run]) -> Iterator[Candidate]:
        for tap, run_axes, index in _taps(step, chosen):
            value = bits_to_accumulator(read_tap(run_axes, index, values), dtype)
            inner = None if winners is None else read_tap(run_axes, index, winners)
            yield value, rule.mark(geometry, step, tap, value, inner)

    def compute(chosen: Sequence[Run]) -> Arrays:
        value, winner = reduce(partial(rule.combine, geometry), candidates(chosen))
        if finished is not None:
            padding = None if in_place else padding_value(geometry, dtype).astype(value.dtype)
            winner = rule.resolve_padding(finished, value, winner, padding)
        # Runs at an edge are small, and cheaper to compile into the loop that concatenates them.
        inside = all(run.axis.window == axis.window for run, axis in zip(chosen, axes, strict=True))
        value = to_bits(value, dtype)
        return in_one_pass(value, winner, padding_bits) if inside else (value, winner)

    values, winners = by_runs(axes, compute, split=in_place)
    return values, winners


def _taps(step: Step, chosen: Sequence[Run]) -> Iterator[tuple[int, list[Axis], tuple[int, ...]]]:
    """The taps of these windows, in row-major order: the number of each in the step, and where to read it."""
    run_axes = [run.axis for run in chosen]
    for index in np.ndindex(*(axis.window for axis in run_axes)):
        in_step = [along + run.first_tap for along, run in zip(index, chosen, strict=True)]
        yield int(np.ravel_multi_index(in_step, [axis.window for axis in step.geometry.axes])), run_axes, index


def _padding_bits(geometry: Geometry, dtype: np.dtype) -> np.ndarray:
    return padding_value(geometry, dtype).view(bits_dtype(dtype))
