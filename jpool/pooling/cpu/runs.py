"""Which windows are computed together. Integers, no arrays.

A window that overhangs an edge is computed as a smaller window, without reading padding. So the windows along an axis
are divided into runs: neighbours at one distance that read with the same taps. Most windows are in one run, the
interior. Every run reads the array in place, and the results of all runs are concatenated.

Where there would be too many runs the array is padded instead, and all windows are alike. Both ways give the same
winners; which one is faster depends on the geometry.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jpool.pooling.integers.geometry import Axis, Geometry
from jpool.pooling.integers.tables import all_padding, spans

MAX_EDGES = 3  # windows along one axis that may overhang


class Run(NamedTuple):
    """Windows along one axis that read with the same taps, as an `Axis`; its tap 0 is tap `first_tap` of the window.

    The axis has no padding: its `low` is minus the number of elements before the first tap of the first window.
    """

    axis: Axis
    first_tap: int


@lru_cache(256)
def runs(axis: Axis) -> tuple[Run, ...]:
    """The windows along one axis, in order. None reads padding; a run of windows of padding alone has no taps."""
    if axis.is_identity or axis.is_regular:
        return (Run(axis, 0),)
    start, first, last = spans(axis)
    first, last = np.where(first > last, 0, first), np.where(first > last, -1, last)
    same = (np.diff(first) == 0) & (np.diff(last) == 0)
    distances = np.append(np.where(same, np.diff(start), 0), 0)  # 0 if the next window is in another run
    changes = np.append(np.flatnonzero(np.diff(distances)) + 1, axis.output)
    result, begin = list[Run](), 0
    while begin < axis.output:
        stride = int(distances[begin])
        count = int(changes[np.searchsorted(changes, begin, side="right")]) - begin + 1 if stride else 1
        result.append(_run(axis, int(start[begin]), int(first[begin]), int(last[begin]), stride or 1, count))
        begin += count
    return tuple(result)


def _run(axis: Axis, start: int, first: int, last: int, stride: int, count: int) -> Run:
    low = -(start + first * axis.dilation)
    return Run(axis._replace(window=last + 1 - first, stride=stride, low=low, output=count, parts=0), first)


def reads_in_place(axes: Sequence[Axis], *, last_axis_edges: int = 0) -> bool:
    """Whether arrays are read in place, because few windows overhang: at most `last_axis_edges` along the last axis.

    Along that axis the runs are concatenated in the innermost loop, which must stay a small part of the work.
    """
    edges = [len(runs(axis)) - 1 for axis in axes]
    return max(edges) <= MAX_EDGES and edges[-1] <= last_axis_edges


def selects_in_place(pooling: Geometry) -> bool:
    """Whether a step reads x in place: if x is much larger than the values, because padding would copy x.

    And only if every window has a real element: a run without taps has no value.
    """
    sizes, outputs = ([shape[i] for i in pooling.pooled] for shape in (pooling.example_shape, pooling.values_shape))
    return (
        math.prod(sizes) >= 2 * math.prod(outputs)
        and reads_in_place(pooling.axes, last_axis_edges=MAX_EDGES)
        and not any(all_padding(pooling.axes[i]).any() for i in pooling.pooled)
    )
