"""The backward pass: `route` sends every cotangent to the winner of its window. `gather` is its transpose.

    route  :: (geometry; winners, ct) -> cotangent of the example
    gather :: (geometry; winners, t)  -> tangent of the values

A cotangent (`ct`) is the gradient of the loss with respect to one value. Usually "every window adds its cotangent to
its winner", which writes where the data say: a scatter. Here every element reads the windows that cover it, which is
known from the geometry. Along an axis of stride s, the element at `m * s + phase` is covered by the windows `m + shift`
for a few shifts, and which tap it is depends on shift and phase alone. Elements a to e, window 3, stride 2:

    element               a     b     c     d     e
    m, phase              0, 0  0, 1  1, 0  1, 1  2, 0
    shift 0:  window m,   tap   0     1     0     1     (there is no window 2)
    shift -1: window m-1, tap               2           2

So for each shift: keep the cotangents of the windows whose winner is that tap, zero elsewhere; move them by the shift;
add up. Windows that share no element have only shift 0.
"""

from collections.abc import Callable, Iterator
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.pooling.integers.geometry import Geometry, Step
from jpool.pooling.plain.forward import Winners
from jpool.pooling.plain.phases import Phases, phases_of
from jpool.pooling.plain.steps import GPU, Arrangement, steps
from jpool.pooling.plain.ties import RULES, filled
from jpool.pooling.plain.windows import gather_step


def route(geometry: Geometry, winners: Winners, ct: jax.Array, arrangement: Arrangement = GPU) -> jax.Array:
    """Sends each cotangent to the winner of its window; where windows overlap, an element adds up what it receives.

    If ties are split, each tied element receives an equal share. Floats of less than 32 bits add up in float32 and are
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
        routed = _to_elements(
            step, (step_winners, routed), lambda phases, taps, winner, ct: ct, 0, lax.add, arrangement
        )
    return lax.convert_element_type(routed, ct.dtype)


def gather(geometry: Geometry, winners: Winners, t: jax.Array, arrangement: Arrangement = GPU) -> jax.Array:
    """Reads from t, of shape `geometry.example_shape`, the element at each winner; 0 where a window has no winner.

    If ties are split, the mean of the tied elements.
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
    step_winners = winners[-1]
    for i, step in reversed(list(enumerate(steps(geometry, arrangement)))):
        if RULES[geometry.ties].masks:
            yield step, winners[i]
            continue
        yield step, step_winners
        if i:  # the winners within the blocks that it compared; all windows that a block won agree on them
            step_winners = _to_elements(step, (step_winners,), _number_in_block, step.block, lax.min, arrangement)


def count_tied(geometry: Geometry, masks: Winners, dtype: np.dtype, arrangement: Arrangement) -> jax.Array:
    """How many elements of each window are tied; 1 for an all-padding window, to divide by."""
    (_, first), *others = zip(steps(geometry, arrangement), masks, strict=True)
    count = lax.convert_element_type(lax.population_count(first), dtype)
    for step, mask in others:
        count = gather_step(step, mask, count)
    return lax.max(count, filled(count, 1))


def to_accumulator(array: jax.Array) -> jax.Array:
    """Floats of less than 32 bits as float32, so that a sum is rounded once; integers wrap around as they are."""
    narrow = array.dtype.itemsize < 4 and jnp.issubdtype(array.dtype, jnp.floating)
    return lax.convert_element_type(array, jnp.float32) if narrow else array


def _to_elements(
    step: Step,
    arrays: tuple[jax.Array, ...],
    sent: Callable[..., jax.Array],
    init_value: int,
    combine: Callable[[jax.Array, jax.Array], jax.Array],
    arrangement: Arrangement,
) -> jax.Array:
    """From the windows of a step to its elements or blocks: each combines what the windows that it won send to it.

    `arrays` have an entry for each window, the winners first. `sent(phases, taps, *arrays)` is what the windows send to
    these taps. An element that won no window has `init_value`.
    """
    rule, parts = RULES[step.geometry.ties], []
    for phases in phases_of(step, arrangement):
        repeated = [phases.repeat(array) for array in arrays]
        otherwise, shifted = filled(repeated[-1], init_value), []
        for shift, taps in phases.taps.items():
            won = rule.won(step, repeated[0], taps, phases.table)
            kept = lax.select(won, sent(phases, taps, *repeated), otherwise)
            shifted.append(phases.shift(kept, shift, init_value))
        parts.append(phases.interleave(reduce(combine, shifted), init_value))
    return reduce(combine, parts or [lax.full(step.geometry.example_shape, init_value, arrays[-1].dtype)])


def _number_in_block(phases: Phases, taps: np.ndarray, winners: jax.Array) -> jax.Array:
    """The number of a winner within the block that is this tap of the step."""
    return lax.sub(winners, phases.table(np.maximum(taps, 0) * phases.block_stride, winners.dtype))
