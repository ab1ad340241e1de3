"""How a window is divided into steps that compile fast and run fast. Integers, no arrays.

A small window is one step: all its taps are compared at once. A large window is pooled axis by axis, the last axis
first: the winner of each row, then the winning row. This is the winner in row-major order. Along a long axis a step
compares a few blocks instead of single elements. The step before it pooled those blocks, so a window of n taps costs
O(log n) comparisons per element. Neighbouring blocks may overlap: an element in two blocks counts as part of the
earlier block.

Blocks do not overlap where the rule for ties shares a cotangent among elements, because no element may count twice.
The window is then divided into its factors. The same is done for windows that share no element, if the factors are
small.

`select` walks the steps from the input to the values, `route` walks them back. A step is itself a small pooling.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from jpool.pooling.integers.geometry import Axis, Geometry, Step, identity
from jpool.pooling.plain.ties import MASK_BITS, RULES, largest_prime

BLOCKS = 4  # blocks that a step along a long axis compares
MASK_TAPS = 8  # taps of a step along one axis if winners are masks: these are saved, so all platforms have equal steps

Blocks = tuple[int, int, int]  # count, block_stride, length of each


class Arrangement(NamedTuple):
    """What differs between platforms."""

    direct_taps: int = 9  # windows of up to this many taps are one step; the same everywhere: saved masks depend on it
    axis_taps: int = 16  # steps along one axis compare up to this many taps
    reduces: bool = True  # whether axes that one window covers completely are one step, a reduction
    joint_phase_axes: int | None = None  # strided axes whose phases are computed together; None for all


DEFAULT = Arrangement()  # GPUs, and every platform without an arrangement of its own


def steps(geometry: Geometry, arrangement: Arrangement) -> tuple[Step, ...]:
    """The steps of a pooling, in the order in which `select` walks them."""
    if geometry.taps <= arrangement.direct_taps:
        return (Step(geometry, block_stride=1, block=1),)
    return tuple(_axis_by_axis(geometry, arrangement))


def _axis_by_axis(geometry: Geometry, arrangement: Arrangement) -> Iterator[Step]:
    """Pools the last of the remaining axes, until none remains; `taps` are those of the axes pooled before."""
    shape = list(geometry.example_shape)
    axes, taps = list(geometry.axes), 1
    while axes:
        covered = _covered_axes(axes) if arrangement.reduces and RULES[geometry.ties].one_winner else []
        if math.prod(axes[i].window for i in covered) > arrangement.direct_taps:
            first = covered[0]
            # With the window as stride, the phases of `backward` are the taps.
            one_window = [axis if axis.is_identity else axis._replace(stride=axis.window) for axis in axes[first:]]
            step_axes = (*map(identity, shape[:first]), *one_window, *map(identity, shape[len(axes) :]))
            yield Step(geometry._replace(axes=step_axes), taps, taps, tuple(covered))
        else:
            first = len(axes) - 1
            for axis, block_stride, block in _along(axes[first], RULES[geometry.ties].masks, arrangement):
                step_axes = (*map(identity, shape[:first]), axis, *map(identity, shape[first + 1 :]))
                yield Step(geometry._replace(axes=step_axes), block_stride * taps, block * taps)
                shape[first] = axis.output
        for i in range(first, len(axes)):
            shape[i] = axes[i].output
            taps *= axes[i].window
        del axes[first:]


def _covered_axes(axes: list[Axis]) -> list[int]:
    """Neighbouring axes that one window covers completely; after them only axes that are not pooled."""
    covered: list[int] = []
    for i in reversed(range(len(axes))):
        axis = axes[i]
        if axis.output == 1 and axis.window == axis.size and axis.low == 0 and axis.dilation == 1:
            covered.append(i)
        elif covered or not axis.is_identity:
            break
    return sorted(covered)


def _along(axis: Axis, masks: bool, arrangement: Arrangement) -> Iterator[tuple[Axis, int, int]]:
    """The steps along one axis: (axis, block_stride, block). Only the first one sees the padding."""
    if axis.is_identity:
        return
    most = MASK_TAPS if masks else arrangement.axis_taps
    share_no_element = axis.output == 1 or axis.stride >= axis.window * axis.dilation
    disjoint = masks or (share_no_element and largest_prime(axis.window) <= most)
    blocks = _disjoint_blocks(axis.window, most) if disjoint else _overlapping_blocks(axis.window, most)
    # A step pools only the blocks that the next step reads: one per `spacing` elements; 0 means a single block.
    spacings = [axis.stride if axis.output > 1 or len(blocks) == 1 else 0]
    for _, block_stride, _ in reversed(blocks[1:]):
        spacings.insert(0, math.gcd(spacings[0], block_stride * axis.dilation))
    size, low, reach, before = axis.size, axis.low, axis.reach, 1
    for (count, block_stride, block), spacing in zip(blocks, spacings, strict=True):
        distance = block_stride * axis.dilation  # elements from one block to the next
        reach -= (count - 1) * distance
        output = (reach - 1) // spacing + 1 if spacing else 1
        yield Axis(size, count, max(spacing // before, 1), distance // before, low, output), block_stride, block
        size, low, before = output, 0, spacing


def _overlapping_blocks(window: int, most: int) -> list[Blocks]:
    """The blocks to compare in each step, from single elements up to the window."""
    if window <= most:
        return [(window, 1, 1)]
    block_stride = window // BLOCKS
    block = window - (BLOCKS - 1) * block_stride
    return [*_overlapping_blocks(block, most), (BLOCKS, block_stride, block)]


def _disjoint_blocks(window: int, most: int) -> list[Blocks]:
    """The same, but no two blocks share an element."""
    if window <= most:
        return [(window, 1, 1)]
    counts = [count for count in range(2, MASK_BITS + 1) if window % count == 0]
    count = max((few for few in counts if few <= most), default=counts[0])
    return [*_disjoint_blocks(window // count, most), (count, window // count, window // count)]
