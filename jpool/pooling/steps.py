"""How a window is divided into steps that compile fast and run fast. Integers only.

A small window is one step: all its taps are compared at once. A large one goes axis by axis, the last axis first: the
maximum of each row, then the first row that holds the maximum of all, which is row-major order with the first winning.
Along a long axis a step compares a few blocks instead of single elements, and the step before it made those blocks, so
a window of n taps costs O(log n) comparisons an element. Neighbouring blocks may overlap: a maximum taken twice is the
same maximum, and an element in both blocks counts as the earlier block's.

Where an element must not count twice, because the maxima of a window share its cotangent, blocks do not overlap: the
window is divided into its factors. So it is, where they are small, for windows that share no element.

Selecting walks the steps from the input to the values, routing walks them back. A step is itself a small pooling.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from jpool.arguments import MOST_TIED, largest_prime
from jpool.geometry import Axis, Geometry, identity

BLOCKS = 4  # a step along a long axis compares so many blocks
MASK_TAPS = 8  # along one axis where ties are split: their masks are saved, and so the same on every platform

Blocks = tuple[int, int, int]  # how many, how far apart, how long each


class Arrangement(NamedTuple):
    """What differs between platforms. The defaults are those of GPUs."""

    direct_taps: int = 9  # windows of up to so many taps are one step
    axis_taps: int = 16  # and so are longer windows along one axis
    reduces: bool = True  # whether axes that one window covers whole are one step, a reduction
    spread_axes: int | None = None  # how many strided axes of the gradient are written by broadcasting; None for all


GPU = Arrangement()


class Step(NamedTuple):
    """A pooling of elements, or of blocks of elements, with the numbers that its taps have in the whole window.

    Tap j is a block of winners numbered `j * block_stride` to `j * block_stride + block - 1`; with block = 1 it is a
    single element.
    """

    geometry: Geometry
    block_stride: int
    block: int
    reduced: tuple[int, ...] = ()  # the axes, if this step is a reduction along them

    @property
    def taps(self) -> int:
        """How many elements or blocks it compares."""
        return self.geometry.taps

    @property
    def no_winner(self) -> int:
        """The number after the last winner."""
        return (self.taps - 1) * self.block_stride + self.block


def steps(geometry: Geometry, arrangement: Arrangement) -> tuple[Step, ...]:
    """The steps of a pooling, in the order in which selecting walks them."""
    if geometry.taps <= arrangement.direct_taps:
        return (Step(geometry, block_stride=1, block=1),)
    return tuple(_axis_by_axis(geometry, arrangement))


def _axis_by_axis(geometry: Geometry, arrangement: Arrangement) -> Iterator[Step]:
    shape = list(geometry.example_shape)
    axes, taps = list(geometry.axes), 1
    while axes:
        whole = _whole_at_the_end(axes) if arrangement.reduces and geometry.ties in ("first", "last") else []
        if math.prod(axes[i].window for i in whole) > arrangement.direct_taps:
            first = whole[0]
            one_window = [axis if axis.is_identity else axis._replace(stride=axis.window) for axis in axes[first:]]
            step_axes = (*map(identity, shape[:first]), *one_window, *map(identity, shape[len(axes) :]))
            yield Step(geometry._replace(axes=step_axes), taps, taps, tuple(whole))
        else:
            first = len(axes) - 1
            for axis, block_stride, block in _along(axes[first], geometry.ties, arrangement):
                step_axes = (*map(identity, shape[:first]), axis, *map(identity, shape[first + 1 :]))
                yield Step(geometry._replace(axes=step_axes), block_stride * taps, block * taps)
                shape[first] = axis.output
        for i in range(first, len(axes)):
            shape[i] = axes[i].output
            taps *= axes[i].window
        del axes[first:]


def _whole_at_the_end(axes: list[Axis]) -> list[int]:
    """The axes that one window covers whole, from the last one back to one that it does not."""
    whole: list[int] = []
    for i in reversed(range(len(axes))):
        axis = axes[i]
        if axis.output == 1 and axis.window == axis.size and axis.low == 0 and axis.dilation == 1:
            whole.append(i)
        elif not axis.is_identity:
            break
    return sorted(whole)


def _along(axis: Axis, ties: str, arrangement: Arrangement) -> Iterator[tuple[Axis, int, int]]:
    """The steps along one axis: (axis, block_stride, block). Only the first one meets the padding."""
    if axis.is_identity:
        return
    most = MASK_TAPS if ties == "split" else arrangement.axis_taps
    disjoint = axis.output == 1 or axis.stride >= axis.window * axis.dilation
    side_by_side = ties == "split" or (disjoint and largest_prime(axis.window) <= most)
    blocks = _factors(axis.window, most) if side_by_side else _blocks(axis.window, most)
    # A step finds those blocks alone that the next one reads: not at every element, but at every `spacing` elements.
    spacings = [axis.stride if axis.output > 1 or len(blocks) == 1 else 0]
    for _, apart, _ in reversed(blocks[1:]):
        spacings.insert(0, math.gcd(spacings[0], apart * axis.dilation))
    size, low, reach, before = axis.size, axis.low, axis.reach, 1
    for (count, apart, block), spacing in zip(blocks, spacings, strict=True):
        reach -= (count - 1) * apart * axis.dilation
        output = (reach - 1) // spacing + 1 if spacing else 1
        yield Axis(size, count, max(spacing // before, 1), apart * axis.dilation // before, low, output), apart, block
        size, low, before = output, 0, spacing


def _blocks(window: int, most: int) -> list[Blocks]:
    """Blocks to compare per step, from single elements up to the window."""
    if window <= most:
        return [(window, 1, 1)]
    apart = window // BLOCKS
    block = window - (BLOCKS - 1) * apart
    return [*_blocks(block, most), (BLOCKS, apart, block)]


def _factors(window: int, most: int) -> list[Blocks]:
    """The same, but side by side: no two blocks share an element."""
    if window <= most:
        return [(window, 1, 1)]
    counts = [count for count in range(2, MOST_TIED + 1) if window % count == 0]
    count = max((few for few in counts if few <= most), default=counts[0])
    return [*_factors(window // count, most), (count, window // count, window // count)]
