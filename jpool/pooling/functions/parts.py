"""Windows of different sizes as regular poolings of slices, one axis after the other. Integers only.

Along an axis of n elements, window i of o reads from floor(i n / o) to ceil((i + 1) n / o): the windows of adaptive
pooling in torch and Keras. Neighbouring windows of one size at one distance are a regular pooling of a slice of the
axis: a part. Slices are pooled separately and their results concatenated. Where there would be too many parts, which
take long to compile, all windows are read into one array, one after the other, and this is pooled as one part.

The last axis is pooled first: the maximum of each row, then the first row that holds the overall maximum. This is
row-major order with the first maximum winning.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from jpool.pooling.integers.geometry import Axis, Geometry, identity

MAX_PARTS = 16


class Part(NamedTuple):
    """A regular pooling of the slice from `start` to `stop`."""

    start: int
    stop: int
    geometry: Geometry


class Pass(NamedTuple):
    """The poolings along one axis. Its elements form `groups` of equal size, each pooled by the same parts.

    If `windows` is given, parts are of the elements that `window_elements(*windows)` lists, instead of all in order.
    """

    axis: int
    groups: int
    parts: tuple[Part, ...]
    windows: tuple[int, int] | None = None  # elements and windows of a group


def passes(shape: Sequence[int], outputs: Sequence[int]) -> tuple[Pass, ...]:
    """The passes from an example of that shape to one value per window; axes that stay as they are have no pass."""
    result, sizes = [], list(shape)
    for i in reversed(range(len(sizes))):
        if outputs[i] != sizes[i]:
            groups = math.gcd(sizes[i], outputs[i])  # no window is in two of them
            before, after = (*map(identity, sizes[:i]), identity(groups)), (*map(identity, sizes[i + 1 :]),)
            size, output = sizes[i] // groups, outputs[i] // groups
            axes, windows = [*islice(_regular(size, output), MAX_PARTS + 1)], None
            if len(axes) > MAX_PARTS:
                width, windows = int(_windows(size, output)[1].max()), (size, output)
                axes = [(0, Axis(output * width, width, width, 1, 0, output))]
            parts = tuple(Part(start, start + axis.size, Geometry((*before, axis, *after))) for start, axis in axes)
            result.append(Pass(i, groups, parts, windows))
            sizes[i] = outputs[i]
    return tuple(result)


def window_elements(size: int, output: int) -> np.ndarray:
    """The elements of all windows along an axis, window after window, each filled up to the longest by its last one.

    An element that is read twice by a window wins where it is read first, so the other reading has no effect.
    """
    starts, windows = _windows(size, output)
    return (starts[:, None] + np.minimum(np.arange(windows.max()), windows[:, None] - 1)).ravel()


def _windows(size: int, output: int) -> tuple[np.ndarray, np.ndarray]:
    """The first element and the size of every window."""
    i = np.arange(output)
    starts = i * size // output
    return starts, -(-(i + 1) * size // output) - starts


def _regular(size: int, output: int) -> Iterator[tuple[int, Axis]]:
    """The windows along one axis in runs of one size and one distance: the start of each run, and its axis."""
    starts, windows = _windows(size, output)
    strides = np.where(windows[1:] == windows[:-1], np.diff(starts), 0)  # 0 if the next window is not in the same run
    changes = np.append(np.flatnonzero(np.diff(strides)) + 1, output - 1)
    first = 0
    while first < output:
        start, window = int(starts[first]), int(windows[first])
        stride = int(strides[first]) if first + 1 < output else 0
        count = int(changes[np.searchsorted(changes, first, side="right")]) - first + 1 if stride else 1
        stride = stride if count > 1 else window
        yield start, Axis((count - 1) * stride + window, window, stride, 1, 0, count)
        first += count
