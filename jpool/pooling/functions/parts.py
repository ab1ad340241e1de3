"""Windows of different sizes as regular poolings of slices, one axis after the other. Integers only.

Along an axis of n elements, window i of o reads from floor(i n / o) to ceil((i + 1) n / o): the windows of adaptive
pooling in torch and Keras. Neighbouring windows of one size at one distance are a regular pooling of a slice of the
axis: a part. Slices are pooled separately and their results concatenated.

The last axis is pooled first: the maximum of each row, then the first row that holds the overall maximum. This is
row-major order with the first maximum winning.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jpool.pooling.integers.geometry import Axis, Geometry, identity


class Part(NamedTuple):
    """A regular pooling of the slice from `start` to `stop`."""

    start: int
    stop: int
    geometry: Geometry


class Pass(NamedTuple):
    """The poolings along one axis. Its elements form `groups` of equal size, each pooled by the same parts."""

    axis: int
    groups: int
    parts: tuple[Part, ...]


def passes(shape: Sequence[int], outputs: Sequence[int]) -> tuple[Pass, ...]:
    """The passes from an example of that shape to one value per window; axes that stay as they are have no pass."""
    result, sizes = [], list(shape)
    for i in reversed(range(len(sizes))):
        if outputs[i] != sizes[i]:
            groups = math.gcd(sizes[i], outputs[i])  # no window is in two of them
            before, after = (*map(identity, sizes[:i]), identity(groups)), (*map(identity, sizes[i + 1 :]),)
            parts = tuple(
                Part(start, start + axis.size, Geometry((*before, axis, *after)))
                for start, axis in _regular(sizes[i] // groups, outputs[i] // groups)
            )
            result.append(Pass(i, groups, parts))
            sizes[i] = outputs[i]
    return tuple(result)


def _regular(size: int, output: int) -> Iterator[tuple[int, Axis]]:
    """The windows along one axis in runs of one size and one distance: the start of each run, and its axis."""
    starts = [i * size // output for i in range(output)]
    windows = [-(-(i + 1) * size // output) - start for i, start in enumerate(starts)]
    first = 0
    while first < output:
        stride = starts[first + 1] - starts[first] if first + 1 < output else 0
        count = 1  # windows in the run; a window at the same start as the next one is a run of its own
        while (
            stride
            and first + count < output
            and windows[first + count] == windows[first]
            and starts[first + count] == starts[first] + count * stride
        ):
            count += 1
        stride = stride if count > 1 else windows[first]
        yield starts[first], Axis((count - 1) * stride + windows[first], windows[first], stride, 1, 0, count)
        first += count
