"""How a window is taken apart into steps that compile fast and run fast. Integers only.

A small window is one step: all its taps are compared at once. A large one goes axis by axis, the last axis first: the
largest of each row, then the first row that holds the largest of all, which is row-major order with the first winning.
Along a long axis a step compares a few blocks instead of single elements, and the step before it made those blocks, so
a window of n taps costs O(log n) comparisons an element. Neighbouring blocks may overlap: a maximum taken twice is the
same maximum, and an element that both hold counts as the earlier block's.

Selecting walks the steps from the input to the values, routing walks them back. A step is itself a small pooling.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from jpool.geometry import Axis, Geometry

DIRECT_TAPS = 9  # windows of up to so many taps are one step
AXIS_TAPS = 8  # and so are longer windows along one axis
BLOCKS = 4  # beyond that a step compares so many blocks


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
        for axis, apart, block in _along(geometry.axes[i]):
            others = [Axis(size, 1, 1, 1, 0, size) for size in shape]
            yield Step(Geometry((*others[:i], axis, *others[i + 1 :])), apart * taps, block * taps)
            shape[i] = axis.output
        taps *= geometry.axes[i].window


def _along(axis: Axis) -> Iterator[tuple[Axis, int, int]]:
    """The steps along one axis. Only the first one meets the padding and only the last one strides."""
    if axis.window == 1 and axis.stride == 1 and not axis.overhangs:
        return
    size, low, reach = axis.size, axis.low, axis.reach
    *inner, last = _blocks(axis.window)
    for count, apart, block in inner:
        output = reach - (count - 1) * apart * axis.dilation
        yield Axis(size, count, 1, apart * axis.dilation, low, output), apart, block
        size, low, reach = output, 0, output
    count, apart, block = last
    yield Axis(size, count, axis.stride, apart * axis.dilation, low, axis.output), apart, block


def _blocks(window: int) -> list[tuple[int, int, int]]:
    """Blocks to compare per step: (how many, how far apart, how long each), from single elements up to the window."""
    if window <= AXIS_TAPS:
        return [(window, 1, 1)]
    apart = window // BLOCKS
    block = window - (BLOCKS - 1) * apart
    return [*_blocks(block), (BLOCKS, apart, block)]
