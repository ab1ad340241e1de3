"""How a window is divided into steps that compile fast and run fast. Each step is itself a small pooling.

A small window is one step: all its taps are compared at once. A large window is pooled axis by axis, the last axis
first: the winner of each row, then the winning row. This is the winner in row-major order. Along a long axis each step
compares a few blocks, which the step before it has compared, so a window of n taps costs O(log n) comparisons per
element. Neighbouring blocks may overlap: an element that wins in two blocks wins in the earlier one, or
in the later one if the last of equal elements wins.

Blocks do not overlap where a rule for ties compares an element with every other one, because none may count twice. The
window is then divided into its factors. The same is done for windows that share no element, if the factors are small.

Each step keeps its own winners. `all_steps` walks the steps from the input to the values, and back.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from jpool.pooling.integers.geometry import DIRECT_TAPS, Axis, Geometry, identity
from jpool.pooling.integers.tables import all_padding
from jpool.pooling.plain.ties import MASK_BITS, RULES, largest_prime

BLOCKS = 4  # overlapping blocks that a step along a long axis compares
MAX_REDUCED = 2**30  # larger windows are no reduction: a platform needs two bits beside the number of a tap
AXIS_TAPS = 8  # steps along one axis compare up to this many taps, if the rule for ties allows it


@lru_cache(1024)
def steps(geometry: Geometry, *, reduces: bool = True) -> tuple[Geometry, ...]:
    """The steps of a pooling, in the order in which the forward pass walks them.

    With `reduces`, neighbouring axes that one window covers completely are one step.
    """
    # With more windows than elements, many windows cover an element; the number of choices is their product over axes.
    many_cover = any(axis.parts and axis.output > axis.size for axis in geometry.axes)
    if geometry.one_step or (geometry.taps <= DIRECT_TAPS and not many_cover):
        return (geometry,)
    return tuple(geometry._replace(axes=axes) for axes in _axis_by_axis(geometry, reduces))


def _axis_by_axis(geometry: Geometry, reduces: bool) -> Iterator[tuple[Axis, ...]]:
    """Pools the last of the remaining axes, until none remains."""
    shape, axes, rule = [*geometry.example_shape], [*geometry.axes], RULES[geometry.ties]
    while axes:
        covered = _first_covered(axes) if reduces and rule.one_winner else len(axes)
        if DIRECT_TAPS < math.prod(axis.window for axis in axes[covered:]) < MAX_REDUCED:
            first, along = covered, [axes[covered:]]
        else:
            first = len(axes) - 1
            along = [[axis] for axis in _along(axes[first], rule.one_winner)]
        for step in along:
            yield (*map(identity, shape[:first]), *step, *map(identity, shape[len(axes) :]))
            shape[first : len(axes)] = [axis.output for axis in step]
        del axes[first:]


def is_reduction(step: Geometry) -> bool:
    """Whether a step is a reduction along its pooled axes, because one window covers them."""
    one_winner = RULES[step.ties].one_winner and not step.one_step
    return one_winner and DIRECT_TAPS < step.taps < MAX_REDUCED and all(step.axes[i].is_covered for i in step.pooled)


def _first_covered(axes: list[Axis]) -> int:
    """From which axis on one window covers all axes that are pooled; the number of axes if there is none."""
    first = len(axes)
    for i in reversed(range(len(axes))):
        if axes[i].is_covered:
            first = i
        elif first < len(axes) or not axes[i].is_identity:
            break
    return first


def _along(axis: Axis, one_winner: bool) -> Iterator[Axis]:
    """The steps along one axis. A step pools only blocks with an element; the next step has padding for the others."""
    if axis.is_identity:
        return
    if axis.parts and axis.window > AXIS_TAPS:
        count = -(-axis.window // AXIS_TAPS)
        yield axis._replace(window=-(-axis.window // count), output=axis.output * count, parts=count)
        axis = Axis(axis.output * count, count, count, 1, 0, axis.output)
    if (
        axis.window <= AXIS_TAPS or axis.dilation > axis.size
    ):  # a window with a large dilation holds one element at most
        yield axis
        return
    share_no_element = axis.output == 1 or axis.stride >= axis.window * axis.dilation
    disjoint = not one_winner or (share_no_element and largest_prime(axis.window) <= AXIS_TAPS)
    yield from _in_blocks(axis, _disjoint_blocks(axis.window) if disjoint else _overlapping_blocks(axis.window))


def _in_blocks(axis: Axis, blocks: list[tuple[int, int]]) -> Iterator[Axis]:
    """The steps that compare these blocks: (how many, taps from one to the next)."""
    # A step pools only the blocks that the next step reads: one per `spacing` elements; 0 means a single block.
    spacings = [axis.stride if axis.output > 1 or len(blocks) == 1 else 0]
    for _, block_stride in reversed(blocks[1:]):
        spacings.insert(0, math.gcd(spacings[0], block_stride * axis.dilation))
    size, low, reach, previous_spacing = axis.size, axis.low, axis.reach, 1
    for (count, block_stride), spacing in zip(blocks, spacings, strict=True):
        stride, dilation = max(spacing // previous_spacing, 1), block_stride * axis.dilation // previous_spacing
        reach -= (count - 1) * dilation
        output = (reach - 1) // stride + 1 if spacing else 1
        step, low = Axis(size, count, stride, dilation, low, output), 0
        if (count, block_stride) != blocks[-1] and (real := np.flatnonzero(~all_padding(step))).size:
            low = int(real[0])
            step = step._replace(low=step.low - low * stride, output=int(real[-1]) + 1 - low)
        yield step
        size, reach, previous_spacing = step.output, output, spacing


def _overlapping_blocks(window: int) -> list[tuple[int, int]]:
    """The blocks to compare in each step, from single elements up to the window."""
    if window <= AXIS_TAPS:
        return [(window, 1)]
    block_stride = window // BLOCKS
    return [*_overlapping_blocks(window - (BLOCKS - 1) * block_stride), (BLOCKS, block_stride)]


def _disjoint_blocks(window: int) -> list[tuple[int, int]]:
    """The same, but no two blocks share an element."""
    counts = [count for count in range(2, MASK_BITS + 1) if window % count == 0]
    if window <= AXIS_TAPS or not counts:
        return [(window, 1)]
    count = max((few for few in counts if few <= AXIS_TAPS), default=counts[0])
    return [*_disjoint_blocks(window // count), (count, window // count)]
