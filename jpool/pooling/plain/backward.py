"""The backward pass: `route` sends every cotangent to the winner of its window. `gather` is its transpose.

    route  :: (geometry; winners, ct) -> cotangent of the example        (static arguments; arrays)
    gather :: (geometry; winners, t)  -> tangent of the values

A cotangent (`ct`) is the gradient of the loss with respect to one value. Usually "every window adds its cotangent to
its winner", which writes to addresses that depend on the data: a scatter. Here every element reads the windows that
cover it, which depend on the geometry only. Along an axis of stride s, the element at `m * s + phase` is covered by the
windows `m + shift` for a few shifts, and which of their taps it is depends on shift and phase (without padding and
dilation it is tap `phase - shift * s`). For window 3 and stride 2:

    phase                                              0    1
    tap in window m         (shift 0)                  0    1
    tap in window m - 1     (shift -1)                 2    -

    x = [1, 5, 2, 5, 9], winners [1, 2], ct [10, 20]   m = 0         m = 1        m = 2
    ct of window m, where its winner is tap 0, 1       0, 10         0, 0         (no window)
    ct of window m - 1, where its winner is tap 2, -   (no window)   0, 0         20, 0
    sum, merged into elements: [0, 10, 0, 0, 20]       0, 10         0, 0         20, (cut off)

So for each shift: keep the cotangents of the windows whose winner is the tap in the table, zero elsewhere; shift them,
so that index m holds window `m + shift`; add up. The phases are an array axis after m, and a reshape merges both into
the elements. Windows that do not overlap usually have one shift, and nothing to move.

A pooling in steps is undone from the last step to the first; each yields the winners of the step before.
"""

from collections.abc import Callable, Iterator
from functools import reduce

import jax
import numpy as np
from jax import lax

from jpool.pooling.integers.geometry import Geometry, Step
from jpool.pooling.plain.arrays import filled, to_accumulator
from jpool.pooling.plain.forward import Winners
from jpool.pooling.plain.phases import PhaseGroup, phase_groups
from jpool.pooling.plain.steps import DEFAULT, Arrangement, steps
from jpool.pooling.plain.ties import RULES
from jpool.pooling.plain.windows import pad_for_windows, read_tap


def route(geometry: Geometry, winners: Winners, ct: jax.Array, arrangement: Arrangement = DEFAULT) -> jax.Array:
    """Sends each cotangent to the winner of its window; where windows overlap, an element adds up what it receives.

    If ties are split, each tied element receives an equal share. Floats of less than 32 bits add up in float32 and are
    rounded once.

    Args:
      geometry: the pooling.
      winners: from `select`, with the same arrangement.
      ct: cotangents of the values, shape `geometry.values_shape`.
      arrangement: what differs between platforms: the steps, and which phases are computed together.

    Returns:
      The cotangent of the example, shape `geometry.example_shape`, dtype of ct.
    """
    sums = ct if ct.dtype.itemsize > 1 else to_accumulator(ct)  # XLA:GPU cannot pad floats of 4 bits
    if RULES[geometry.ties].masks:
        sums = to_accumulator(ct)
        sums = lax.div(sums, count_tied(geometry, winners, sums.dtype, arrangement))
    for step, step_winners in winners_by_step(geometry, winners, arrangement):
        sums = _windows_to_elements(step, arrangement, _cotangent, step_winners, sums, combine=lax.add, init_value=0)
    return lax.convert_element_type(sums, ct.dtype)


def gather(geometry: Geometry, winners: Winners, t: jax.Array, arrangement: Arrangement = DEFAULT) -> jax.Array:
    """Reads from t, of shape `geometry.example_shape`, the element at each winner; 0 where a window has no winner.

    If ties are split, the mean of the tied elements.
    """
    masks = RULES[geometry.ties].masks
    read = to_accumulator(t) if masks else t  # only a mean adds
    for step, step_winners in reversed(list(winners_by_step(geometry, winners, arrangement))):
        read = _gather_step(step, step_winners, read)
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
        if i:
            # Windows won by one block agree on the winner inside it, so min returns it; `step.block` means not won.
            step_winners = _windows_to_elements(
                step, arrangement, _winner_in_block, step_winners, combine=lax.min, init_value=step.block
            )


def count_tied(geometry: Geometry, masks: Winners, dtype: np.dtype, arrangement: Arrangement) -> jax.Array:
    """How many elements of each window are tied; 1 for an all-padding window, to divide by."""
    first_mask, *later = masks
    count = lax.convert_element_type(lax.population_count(first_mask), dtype)
    for step, mask in zip(steps(geometry, arrangement)[1:], later, strict=True):
        count = _gather_step(step, mask, count)
    return lax.max(count, filled(count, 1))


def _windows_to_elements(
    step: Step,
    arrangement: Arrangement,
    contribution: Callable[..., jax.Array],
    winners: jax.Array,
    *arrays: jax.Array,
    combine: Callable[[jax.Array, jax.Array], jax.Array],
    init_value: int,
) -> jax.Array:
    """For each element or block of a step, combines the contributions of the windows that it won, else `init_value`.

    `contribution(group, taps, winners, *arrays)` is what each window contributes; `taps` has one tap per phase.
    `winners` and `arrays` have an entry for each window.
    """
    rule, parts = RULES[step.geometry.ties], []
    for group in phase_groups(step, arrangement):
        repeated = [group.repeat(array) for array in (winners, *arrays)]
        otherwise = filled(repeated[-1], init_value)
        aligned = []
        for shift, taps in group.taps.items():
            won = rule.won(step, repeated[0], taps, group.by_phase)
            kept = lax.select(won, contribution(group, taps, *repeated), otherwise)
            aligned.append(to_accumulator(group.align(kept, shift, init_value)))  # reads and selects are narrow
        parts.append(group.interleave(reduce(combine, aligned), init_value))
    # Without a covered element there are no parts.
    return reduce(combine, parts or [lax.full(step.geometry.example_shape, init_value, (winners, *arrays)[-1].dtype)])


def _cotangent(group: PhaseGroup, taps: np.ndarray, winners: jax.Array, ct: jax.Array) -> jax.Array:
    return ct


def _winner_in_block(group: PhaseGroup, taps: np.ndarray, winners: jax.Array) -> jax.Array:
    begin = np.maximum(taps, 0) * group.block_stride  # tap -1 is none, and wins nothing
    return lax.sub(winners, group.by_phase(begin, winners.dtype))


def _gather_step(step: Step, winners: jax.Array, t: jax.Array) -> jax.Array:
    """For each window of a step, reads the element or block that holds its winner; 0 where there is none."""
    rule, axes = RULES[step.geometry.ties], step.geometry.axes
    if step.reduced_axes:  # the stride is the window, so there is one shift, and the phases are the taps
        (group,) = phase_groups(step, DEFAULT)  # all phases together
        (taps,) = group.taps.values()
        won = rule.won(step, group.repeat(winners), taps, group.by_phase)
        t = t.reshape(group.shape)
        return lax.reduce(lax.select(won, t, filled(t, 0)), np.zeros((), t.dtype), lax.add, group.phase_dims)
    padded = pad_for_windows(axes, t, 0)
    read = zeros = lax.broadcast(np.zeros((), t.dtype), winners.shape)
    for tap, index in enumerate(np.ndindex(*(axis.window for axis in axes))):
        won = rule.won(step, winners, np.asarray(tap), lambda number, _: filled(winners, number))
        element = read_tap(axes, index, padded)
        read = lax.add(read, lax.select(won, element, zeros)) if rule.masks else lax.select(won, element, read)
    return read
