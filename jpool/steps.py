"""How a window is taken apart into steps that compile fast and run fast. Integers only.

A small window is one step: all its taps are compared at once. A large one goes axis by axis, the last axis first: the
largest of each row, then the first row that holds the largest of all, which is row-major order with the first winning.
Along a long axis a step compares a few blocks instead of single elements, and the step before it made those blocks, so
a window of n taps costs O(log n) comparisons an element. Neighbouring blocks may overlap: a maximum taken twice is the
same maximum, and an element that both hold counts as the earlier block's.

Where an element must not count twice, because the maxima of a window share its cotangent, blocks do not overlap: the
window is taken apart into its factors. So it is, where they are small, for windows that share no element.

Selecting walks the steps from the input to the values, routing walks them back. A step is itself a small pooling.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from jpool.arguments import MOST_TIED, largest_prime
from jpool.geometry import Axis, Geometry, alone

DIRECT_TAPS = 9  # windows of up to so many taps are one step
AXIS_TAPS = 8  # and so are longer windows along one axis
BLOCKS = 4  # beyond that a step compares so many blocks


Blocks = tuple[int, int, int]  # how many, how far apart, how long each


class Step(NamedTuple):
    """A pooling of elements, or of blocks of elements, with the numbers that its taps have in the whole window.

    Tap j is a block of winners numbered `j * apart` to `j * apart + block - 1`; with block = 1 it is a single element.
    """

    geometry: Geometry
    apart: int
    block: int

    @property
    def none(self) -> int:
        """The number after the last winner."""
        return (self.geometry.taps - 1) * self.apart + self.block


@lru_cache(maxsize=4096)
def steps(geometry: Geometry) -> tuple[Step, ...]:
    """The steps of a pooling, in the order in which selecting walks them."""
    if geometry.taps <= DIRECT_TAPS:
        return (Step(geometry, apart=1, block=1),)
    return tuple(_axis_by_axis(geometry))


def _axis_by_axis(geometry: Geometry) -> Iterator[Step]:
    shape = list(geometry.example_shape)
    taps = 1
    for i in reversed(range(len(shape))):
        for axis, apart, block in _along(geometry.axes[i], once=geometry.ties == "split"):
            axes = (*map(alone, shape[:i]), axis, *map(alone, shape[i + 1 :]))
            yield Step(geometry._replace(axes=axes), apart * taps, block * taps)
            shape[i] = axis.output
        taps *= geometry.axes[i].window


def _along(axis: Axis, once: bool) -> Iterator[tuple[Axis, int, int]]:
    """The steps along one axis. Only the first one meets the padding."""
    if axis.window == 1 and axis.output == axis.size and not axis.overhangs:
        return
    disjoint = axis.output == 1 or axis.stride >= axis.window * axis.dilation
    side_by_side = once or (disjoint and largest_prime(axis.window) <= AXIS_TAPS)
    blocks = _factors(axis.window) if side_by_side else _blocks(axis.window)
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


def _blocks(window: int) -> list[Blocks]:
    """Blocks to compare per step, from single elements up to the window."""
    if window <= AXIS_TAPS:
        return [(window, 1, 1)]
    apart = window // BLOCKS
    block = window - (BLOCKS - 1) * apart
    return [*_blocks(block), (BLOCKS, apart, block)]


def _factors(window: int) -> list[Blocks]:
    """The same, but side by side: no two blocks share an element."""
    if window <= AXIS_TAPS:
        return [(window, 1, 1)]
    counts = [count for count in range(2, MOST_TIED + 1) if window % count == 0]
    count = max((few for few in counts if few <= AXIS_TAPS), default=counts[0])
    return [*_factors(window // count), (count, window // count, window // count)]
