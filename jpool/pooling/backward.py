"""The backward pass in its plain form: `route` sends every cotangent to its winner. `gather` is its transpose.

    route  :: (geometry; winners, ct) -> cotangent of the example
    gather :: (geometry; winners, t)  -> tangent of the values

A backward pass is usually written as "every window adds to its winner", which writes where the data say: a scatter.
Turned around, it reads where the geometry says. Along an axis of stride s, element `m * s + phase` lies in the windows
`m + shift` for a few shifts, and which of their taps it is depends on shift and phase alone. So for each shift: keep
the cotangents of the windows whose winner is that tap, zero elsewhere; move them by the shift; add up. Windows that
share no element have one shift, and nothing to move.
"""

from collections.abc import Callable, Iterator
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.geometry import Geometry
from jpool.pooling.forward import Winners
from jpool.pooling.grid import Grid, grids
from jpool.pooling.steps import GPU, Arrangement, Step, steps
from jpool.pooling.ties import RULES, filled
from jpool.pooling.windows import count_tied, gather_step


def route(geometry: Geometry, winners: Winners, ct: jax.Array, arrangement: Arrangement = GPU) -> jax.Array:
    """Sends each cotangent to the element that won its window; what overlapping windows send to one element adds up.

    Where ties are split, each element that tied gets an equal share. Floats under 32 bits add up in float32 and are
    rounded once.

    Args:
      geometry: the pooling.
      winners: from `select`.
      ct: cotangents of the values, shape `geometry.values_shape`.
      arrangement: how large windows were divided into steps.

    Returns:
      The cotangent of the example, shape `geometry.example_shape`, dtype of ct.
    """
    routed = to_accumulator(ct)
    if RULES[geometry.ties].masks:
        routed = lax.div(routed, count_tied(geometry, winners, routed.dtype, arrangement))
    for step, step_winners in winners_by_step(geometry, winners, arrangement):
        routed = _to_winners(step, (step_winners, routed), lambda grid, taps, won_by, ct: ct, 0, lax.add, arrangement)
    return lax.convert_element_type(routed, ct.dtype)


def gather(geometry: Geometry, winners: Winners, t: jax.Array, arrangement: Arrangement = GPU) -> jax.Array:
    """Reads from t, of shape `geometry.example_shape`, the element at each winner; 0 where a window has none.

    Where ties are split, the mean of the elements that tied.
    """
    masks = RULES[geometry.ties].masks
    read = to_accumulator(t) if masks else t
    for step, step_winners in reversed(list(winners_by_step(geometry, winners, arrangement))):
        read = gather_step(step, step_winners, read)
    if masks:
        read = lax.div(read, count_tied(geometry, winners, read.dtype, arrangement))
    return lax.convert_element_type(read, t.dtype)


def winners_by_step(geometry: Geometry, winners: Winners, arrangement: Arrangement) -> Iterator[tuple[Step, jax.Array]]:
    """Each step with the winners of its windows, the last step first."""
    found = winners[-1]
    for i, step in reversed(list(enumerate(steps(geometry, arrangement)))):
        if RULES[geometry.ties].masks:
            yield step, winners[i]
            continue
        yield step, found
        if i:  # the winners within the blocks that it compared, which all windows that a block won agree on
            found = _to_winners(step, (found,), _number_within, step.block, lax.min, arrangement)


def to_accumulator(array: jax.Array) -> jax.Array:
    """Floats under 32 bits as float32, to add up without rounding every time; integers wrap around as they are."""
    narrow = array.dtype.itemsize < 4 and jnp.issubdtype(array.dtype, jnp.floating)
    return lax.convert_element_type(array, jnp.float32) if narrow else array


def _to_winners(
    step: Step,
    arrays: tuple[jax.Array, ...],
    sent: Callable[..., jax.Array],
    nothing: int,
    combine: Callable[[jax.Array, jax.Array], jax.Array],
    arrangement: Arrangement,
) -> jax.Array:
    """From the windows of a step to what it compared: each element gets what the windows that it won send, combined.

    `arrays` have an entry for each window, the winners first. `sent(grid, taps, *arrays)` is what they send to these
    taps; an element that won no window gets `nothing`.
    """
    rule, parts = RULES[step.geometry.ties], []
    for grid in grids(step, arrangement):
        spread = [grid.spread(array) for array in arrays]
        otherwise, moved = filled(spread[-1], nothing), []
        for shift, taps in grid.taps.items():
            won = rule.won(step, spread[0], taps, grid.table)
            moved.append(grid.moved(lax.select(won, sent(grid, taps, *spread), otherwise), shift, nothing))
        parts.append(grid.interleaved(reduce(combine, moved), nothing))
    return reduce(combine, parts or [lax.full(step.geometry.example_shape, nothing, arrays[-1].dtype)])


def _number_within(grid: Grid, taps: np.ndarray, winners: jax.Array) -> jax.Array:
    """The number that a winner has in the block that is this tap of the step."""
    return lax.sub(winners, grid.table(np.maximum(taps, 0) * grid.block_stride, winners.dtype))
