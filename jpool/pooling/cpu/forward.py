"""The forward pass arranged for XLA:CPU: x is read once, and where that is less work, without a padded copy of it."""

from collections.abc import Iterator, Sequence
from functools import partial, reduce
from typing import cast

import jax
import numpy as np
from jax import lax

from jpool.geometry import Axis, Geometry
from jpool.pooling.cpu.loops import Arrays, bits_dtype, by_runs, from_bits, in_one_pass, to_bits, widened
from jpool.pooling.cpu.runs import Run, selects_in_place
from jpool.pooling.forward import Winners
from jpool.pooling.steps import Arrangement, Step, steps
from jpool.pooling.ties import RULES, Candidate, low_value
from jpool.pooling.windows import pad_for_windows, read_tap

ARRANGEMENT = Arrangement(axis_taps=8, reduces=False)


def select(geometry: Geometry, x: jax.Array) -> tuple[jax.Array, Winners]:
    """The same as `forward.select`, bit for bit."""
    rule, low = RULES[geometry.ties], low_value(geometry, x.dtype)
    values, winners = to_bits(x, x.dtype), cast(Winners, ())
    walk = steps(geometry, ARRANGEMENT)
    for step in walk:
        inner = winners[-1] if winners and not rule.masks else None
        values, found = _select_step(geometry, step, values, inner, low, step is walk[-1])
        winners = (*winners, found) if rule.masks else (found,)
    return from_bits(values, x.dtype), winners


def largest(geometry: Geometry, x: jax.Array) -> jax.Array:
    """The values of `select`, bit for bit. Candidates are compared in pairs, which a processor can overlap."""
    rule, low = RULES[geometry.ties], low_value(geometry, x.dtype)
    in_place = selects_in_place(geometry, ARRANGEMENT)
    values = to_bits(x, x.dtype)
    for step in steps(geometry, ARRANGEMENT):
        axes = step.geometry.axes
        array = values if in_place else pad_for_windows(axes, values, low.view(bits_dtype(low.dtype)))

        def compute(chosen: Sequence[Run], step: Step = step, array: jax.Array = array) -> Arrays:
            found = [widened(read_tap(axes, tap, array), low.dtype) for _, axes, tap in _taps(step, chosen)]
            while len(found) > 1:
                pairs = [
                    lax.select(rule.stays(geometry, best, later), best, later)
                    for best, later in zip(found[::2], found[1::2], strict=False)
                ]
                found = pairs + found[2 * len(pairs) :]
            return (to_bits(found[0], low.dtype),)

        (values,) = by_runs(axes, compute, split=in_place)
    return from_bits(values, x.dtype)


def _select_step(
    geometry: Geometry,
    step: Step,
    values: jax.Array,
    winners: jax.Array | None,
    low: np.ndarray,
    last: bool,
) -> Candidate:
    """From elements, or blocks of them, to the windows that compare them; in the last step, with winners resolved."""
    rule, axes, in_place = RULES[geometry.ties], step.geometry.axes, selects_in_place(geometry, ARRANGEMENT)
    low_bits = low.view(bits_dtype(low.dtype))
    if not in_place:
        values = pad_for_windows(axes, values, low_bits)
        winners = None if winners is None else pad_for_windows(axes, winners, 0)

    def candidates(chosen: Sequence[Run]) -> Iterator[Candidate]:
        for number, run_axes, tap in _taps(step, chosen):
            value = widened(read_tap(run_axes, tap, values), low.dtype)
            inner = None if winners is None else read_tap(run_axes, tap, winners)
            yield value, rule.mark(geometry, step, number, value, inner)

    def compute(chosen: Sequence[Run]) -> Arrays:
        value, winner = reduce(partial(rule.combine, geometry), candidates(chosen))
        if rule.masks or last:
            numbered = step.geometry if rule.masks else geometry  # whose taps the winners number
            winner = rule.resolve(numbered, value, winner, None if in_place else low.astype(value.dtype))
        # Runs at an edge are small, and cheaper to compile into the loop that joins them.
        inside = all(run.axis.window == axis.window for run, axis in zip(chosen, axes, strict=True))
        value = to_bits(value, low.dtype)
        return in_one_pass(value, winner, low_bits) if inside else (value, winner)

    found = by_runs(axes, compute, split=in_place)
    return found[0], found[1]


def _taps(step: Step, chosen: Sequence[Run]) -> Iterator[tuple[int, list[Axis], tuple[int, ...]]]:
    """The taps of these windows, in row-major order: their numbers in the step, and where to read them."""
    axes = [run.axis for run in chosen]
    for tap in np.ndindex(*(axis.window for axis in axes)):
        whole = [at + run.first for at, run in zip(tap, chosen, strict=True)]
        yield int(np.ravel_multi_index(whole, [axis.window for axis in step.geometry.axes])), axes, tap
