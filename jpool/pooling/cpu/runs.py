"""Which windows are computed together. Integers only.

Padding is not read where it need not be: a window that overhangs the edge is a smaller window. So the windows along
an axis are taken apart into runs, neighbours that read with the same taps. Most of them are in one run, those inside.
Every run reads the array where it is, and what the runs find is joined.

Where there would be too many runs the array is padded instead, and all windows are alike. Both ways find the same
winners; which of them is faster is a fact of the geometry.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from jpool.geometry import Axis, Geometry
from jpool.pooling.steps import Arrangement, steps

MOST_EDGES = 3  # windows along one axis that may hang over, each a run of its own


class Run(NamedTuple):
    """Windows along one axis that read with the same taps: an `Axis` of their own, and the number of its first tap.

    Its `low` is minus the number of elements before the first tap of the first window.
    """

    axis: Axis
    first: int


def runs(axis: Axis) -> list[Run]:
    """The windows along one axis, in their order. None reads padding; a run of windows in the padding has no taps."""
    if axis.is_identity:
        return [Run(axis, 0)]
    inside, beyond = _inside(axis)
    cuts = [*range(inside), inside, *range(beyond, axis.output), axis.output]
    return [_run(axis, start, stop) for start, stop in pairwise(cuts) if start < stop] or [Run(axis, 0)]


def in_place(axes: Sequence[Axis], *, last: int = 0) -> bool:
    """Whether arrays are read where they are, because few windows hang over: at most `last` along the last axis.

    Along that axis what the runs find is joined in the innermost loop, so joining should be a small part of the work.
    """
    edges = [0 if axis.is_identity else _edges(axis) for axis in axes]
    return max(edges) <= MOST_EDGES and edges[-1] <= last


def selects_in_place(geometry: Geometry, arrangement: Arrangement) -> bool:
    """Whether selecting reads x where it is: x is the larger by far, for padding copies x and joining copies values.

    And every window has a real element, for a value that is none cannot come from a run.
    """
    pooled = [axis for axis in geometry.axes if not axis.is_identity]
    shrinks = math.prod(axis.size for axis in pooled) >= 2 * math.prod(axis.output for axis in pooled)
    return (
        len(steps(geometry, arrangement)) == 1
        and shrinks
        and in_place(geometry.axes, last=MOST_EDGES)
        and all(map(_all_real, geometry.axes))
    )


def _inside(axis: Axis) -> tuple[int, int]:
    """The first window that does not hang over the low edge, and the first after it that hangs over the high edge."""
    first = min(max(-(-axis.low // axis.stride), 0), axis.output)
    beyond = (axis.size + axis.low - axis.extent) // axis.stride + 1
    return first, min(max(beyond, first), axis.output)


def _edges(axis: Axis) -> int:
    """How many windows hang over."""
    inside, beyond = _inside(axis)
    return inside + axis.output - beyond


def _run(axis: Axis, start: int, stop: int) -> Run:
    """Windows `start` to `stop`, without the taps by which the first of them hangs over."""
    place = start * axis.stride - axis.low
    first = min(max(-(place // axis.dilation), 0), axis.window)
    end = min(max((axis.size - 1 - place) // axis.dilation + 1, first), axis.window)
    low = -(place + first * axis.dilation)
    return Run(axis._replace(window=end - first, low=low, output=stop - start), first)


def _all_real(axis: Axis) -> bool:
    return all(run.axis.window for run in runs(axis))
