"""The backward pass, in its plain form: `route` sends every cotangent to its winner, and `gather` is the transpose.

    route  :: (geometry; winners, ct) -> cotangent of the example
    gather :: (geometry; winners, t)  -> tangent of the values

A backward pass is usually written as "every window adds to its winner", which writes where the data say: a scatter.
Turned around it reads where the geometry says. Along an axis of stride s, element `m * s + phase` can lie in the windows
`m + shift` for a few shifts, and which of their taps it is depends on shift and phase alone. So for each shift: mark
where the winner of a window is the tap of each phase, keep the cotangent there and zero elsewhere, move the result by the
shift, and add up. Windows that share no element have one shift, and nothing to move.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.geometry import Geometry
from jpool.pooling.forward import Winners, pad_for_windows, read_tap
from jpool.pooling.grid import Grid, grids
from jpool.pooling.steps import Arrangement, Step, steps
from jpool.pooling.ties import RULES, filled


def route(geometry: Geometry, winners: Winners, ct: jax.Array, arrangement: Arrangement = Arrangement()) -> jax.Array:
    """Sends each cotangent to the element that won its window; what overlapping windows send to one element adds up.

    Where ties are split, each element that tied gets an equal share.

    Args:
      geometry: the pooling.
      winners: from `select`.
      ct: cotangents of the values, shape `geometry.values_shape`.
      arrangement: how large windows were divided into steps.

    Returns:
      The cotangent of the example, shape `geometry.example_shape`, dtype of ct. Dtypes under 32 bits are added up in
      float32 and rounded once.
    """
    routed = to_accumulator(ct)
    if RULES[geometry.ties].masks:
        routed = lax.div(routed, tied(geometry, winners, routed.dtype, arrangement))
    for step, step_winners in winners_by_step(geometry, winners, arrangement):
        routed = _route_step(step, step_winners, routed, arrangement)
    return lax.convert_element_type(routed, ct.dtype)


def gather(geometry: Geometry, winners: Winners, t: jax.Array, arrangement: Arrangement = Arrangement()) -> jax.Array:
    """Reads from t, of shape `geometry.example_shape`, the element at each winner; 0 where a window has none.

    Where ties are split, the mean of the elements that tied.
    """
    masks = RULES[geometry.ties].masks
    read = to_accumulator(t) if masks else t
    for step, step_winners in reversed(list(winners_by_step(geometry, winners, arrangement))):
        read = _gather_step(step, step_winners, read)
    if masks:
        read = lax.div(read, tied(geometry, winners, read.dtype, arrangement))
    return lax.convert_element_type(read, t.dtype)


def winners_by_step(geometry: Geometry, winners: Winners, arrangement: Arrangement) -> Iterator[tuple[Step, jax.Array]]:
    """Each step with the winners of its windows, the last step first."""
    walk = steps(geometry, arrangement)
    inner = winners[-1]
    for i, step in reversed(list(enumerate(walk))):
        yield step, winners[i] if RULES[geometry.ties].masks else inner
        if i and not RULES[geometry.ties].masks:
            inner = _inner_winners(step, inner, arrangement)


def tied(geometry: Geometry, masks: Winners, dtype: np.dtype, arrangement: Arrangement) -> jax.Array:
    """How many elements of each window tied; 1 where there is none, and nothing to divide."""
    first, *others = zip(steps(geometry, arrangement), masks, strict=True)
    count = lax.convert_element_type(lax.population_count(first[1]), dtype)
    for step, mask in others:
        count = _gather_step(step, mask, count)
    return lax.max(count, filled(count, 1))


def to_accumulator(array: jax.Array) -> jax.Array:
    """Floats under 32 bits as float32, to add up without rounding every time; integers wrap around as they are."""
    narrow = array.dtype.itemsize < 4 and jnp.issubdtype(array.dtype, jnp.floating)
    return lax.convert_element_type(array, jnp.float32) if narrow else array


def _route_step(step: Step, winners: jax.Array, ct: jax.Array, arrangement: Arrangement) -> jax.Array:
    """From the windows of a step to what it compared: each element receives the cotangents of the windows it won."""
    return _to_winners(step, lambda grid, taps, winners, ct: ct, (winners, ct), 0, lax.add, arrangement)


def _inner_winners(step: Step, winners: jax.Array, arrangement: Arrangement) -> jax.Array:
    """The winner within each block that the step compared. All windows that a block won agree on it."""

    def number_within(grid: Grid, taps: np.ndarray, winners: jax.Array) -> jax.Array:
        return lax.sub(winners, grid.table(np.maximum(taps, 0) * step.block_stride, winners.dtype))

    return _to_winners(step, number_within, (winners,), step.block, lax.min, arrangement)


def _to_winners(
    step: Step, sent: Any, arrays: tuple[jax.Array, ...], nothing: int, combine: Any, arrangement: Arrangement
) -> jax.Array:
    """What windows send to the elements that won them, combined where they are several; `nothing` where there is none.

    `sent(grid, taps, *arrays)`, of arrays of the windows, the winners first, is what they send to these taps.
    """
    found = None
    for grid in grids(step, arrangement):
        spread = [grid.spread(array) for array in arrays]
        here, otherwise = None, filled(spread[-1], nothing)
        for shift, taps in grid.taps.items():
            won = RULES[step.geometry.ties].won(step, spread[0], taps, grid.table)
            array = grid.moved(lax.select(won, sent(grid, taps, *spread), otherwise), shift, nothing)
            here = array if here is None else combine(here, array)
        here = grid.interleaved(here, nothing)
        found = here if found is None else combine(found, here)
    return lax.full(step.geometry.example_shape, nothing, arrays[-1].dtype) if found is None else found


def _gather_step(step: Step, winners: jax.Array, t: jax.Array) -> jax.Array:
    """From what a step compared to its windows: each reads the one that holds its winner."""
    rule, axes, zero = RULES[step.geometry.ties], step.geometry.axes, np.zeros((), t.dtype)
    if step.reduced:
        (grid,) = grids(step, Arrangement())
        (taps,) = grid.taps.values()
        won = rule.won(step, grid.spread(winners), taps, grid.table)
        t = t.reshape(grid.shape)
        return lax.reduce(lax.select(won, t, filled(t, 0)), zero, lax.add, grid.phases)
    padded = pad_for_windows(axes, t, 0)
    read = nothing = lax.broadcast(zero, winners.shape)
    for number, tap in enumerate(np.ndindex(*(axis.window for axis in axes))):
        won = rule.won(step, winners, np.asarray(number), lambda n, dtype: filled(winners, n))
        element = read_tap(axes, tap, padded)
        read = lax.add(read, lax.select(won, element, nothing)) if rule.masks else lax.select(won, element, read)
    return read
