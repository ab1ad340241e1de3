"""Which windows are computed together. Integers, no arrays.

A window that overhangs an edge is computed as a smaller window, without reading padding. So the windows along an axis
are divided into runs: neighbours that read with the same taps. Most windows are in one run, the interior. Every run
reads the array in place, and the results of all runs are concatenated.

Where there would be too many runs the array is padded instead, and all windows are alike. Both ways give the same
winners; which one is faster depends on the geometry.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from jpool.pooling.integers.geometry import Axis, Geometry
from jpool.pooling.plain.steps import Arrangement, steps

MAX_EDGES = 3  # windows along one axis that may overhang, each a run of its own


class Run(NamedTuple):
    """Windows along one axis that read with the same taps, as an `Axis`; its tap 0 is tap `first_tap` of the window.

    The axis has no padding: its `low` is minus the number of elements before the first tap of the first window.
    """

    axis: Axis
    first_tap: int


def runs(axis: Axis) -> list[Run]:
    """The windows along one axis, in order. None reads padding; a run of all-padding windows has no taps."""
    if axis.is_identity:
        return [Run(axis, 0)]
    inside, beyond = _interior(axis)
    cuts = [*range(inside), inside, *range(beyond, axis.output), axis.output]
    return [_run(axis, start, stop) for start, stop in pairwise(cuts) if start < stop] or [Run(axis, 0)]


def reads_in_place(axes: Sequence[Axis], *, last_axis_edges: int = 0) -> bool:
    """Whether arrays are read in place, because few windows overhang: at most `last_axis_edges` along the last axis.

    Along that axis the runs are concatenated in the innermost loop, which must stay a small part of the work.
    """
    edges = [0 if axis.is_identity else _overhanging(axis) for axis in axes]
    return max(edges) <= MAX_EDGES and edges[-1] <= last_axis_edges


def selects_in_place(geometry: Geometry, arrangement: Arrangement) -> bool:
    """Whether `select` reads x in place: if x is much larger than the values, because padding would copy x.

    And only if every window has a real element: a run without taps has no value.
    """
    pooled = [axis for axis in geometry.axes if not axis.is_identity]
    shrinks = math.prod(axis.size for axis in pooled) >= 2 * math.prod(axis.output for axis in pooled)
    return (
        len(steps(geometry, arrangement)) == 1
        and shrinks
        and reads_in_place(geometry.axes, last_axis_edges=MAX_EDGES)
        and all(run.axis.window for axis in geometry.axes for run in runs(axis))
    )


def _interior(axis: Axis) -> tuple[int, int]:
    """The first window that does not overhang the low edge, and the first after it that overhangs the high edge."""
    first = min(max(-(-axis.low // axis.stride), 0), axis.output)
    beyond = (axis.size + axis.low - axis.extent) // axis.stride + 1
    return first, min(max(beyond, first), axis.output)


def _overhanging(axis: Axis) -> int:
    """How many windows overhang."""
    inside, beyond = _interior(axis)
    return inside + axis.output - beyond


def _run(axis: Axis, start: int, stop: int) -> Run:
    """Windows `start` to `stop`, without the taps by which the first of them overhangs."""
    position = start * axis.stride - axis.low
    first = min(max(-(position // axis.dilation), 0), axis.window)
    end = min(max((axis.size - 1 - position) // axis.dilation + 1, first), axis.window)
    low = -(position + first * axis.dilation)
    return Run(axis._replace(window=end - first, low=low, output=stop - start), first)
