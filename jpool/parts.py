"""Windows of different sizes: an irregular pooling as regular ones side by side, one axis after the other.

Window i of o along an axis of n elements reads from floor(i n / o) to ceil((i + 1) n / o): torch's and Keras's windows
of adaptive pooling. Neighbours of one size and one distance are a regular pooling of a slice of the axis: a part.
Slices are pooled by themselves and the results are joined; JAX knows the derivatives of slicing and joining.

One axis is pooled after the other, the last one first: the maximum of each row, then the first row that holds the
maximum of all. That is row-major order with the first winning.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
from jax import lax

from jpool.geometry import Axis, Geometry, identity


class Part(NamedTuple):
    """A regular pooling of the slice that begins at `start`."""

    start: int
    geometry: Geometry


class Pass(NamedTuple):
    """Everything along one axis, whose elements are `groups` times pooled alike, by these parts."""

    axis: int
    groups: int
    parts: tuple[Part, ...]


def passes(shape: Sequence[int], outputs: Sequence[int]) -> tuple[Pass, ...]:
    """The passes from an example of that shape to one value for each window; an axis without windows is left alone."""
    found, sizes = [], list(shape)
    for i in reversed(range(len(sizes))):
        if outputs[i] != sizes[i]:
            groups = math.gcd(sizes[i], outputs[i])  # no window lies in two of them
            before, after = (
                [identity(size) for size in [*sizes[:i], groups]],
                [identity(size) for size in sizes[i + 1 :]],
            )
            regular = _regular(sizes[i] // groups, outputs[i] // groups)
            parts = tuple(Part(start, Geometry((*before, axis, *after))) for start, axis in regular)
            found.append(Pass(i, groups, parts))
            sizes[i] = outputs[i]
    return tuple(found)


def _regular(size: int, output: int) -> Iterator[tuple[int, Axis]]:
    """The windows along one axis in runs of one size and one distance: where each begins, and its axis."""
    starts = [i * size // output for i in range(output)]
    windows = [-(-(i + 1) * size // output) - start for i, start in enumerate(starts)]
    first = 0
    while first < output:
        stride = starts[first + 1] - starts[first] if first + 1 < output else 0
        count = 1  # the windows from the first on that are like it; none are where the next begins at the same place
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


def slices(each: Pass, array: jax.Array) -> list[jax.Array]:
    """What every part pools."""
    shape, axis = array.shape, each.axis
    grouped = array.reshape(*shape[:axis], each.groups, shape[axis] // each.groups, *shape[axis + 1 :])
    ends = [part.start + part.geometry.axes[axis + 1].size for part in each.parts]
    return [
        lax.slice_in_dim(grouped, part.start, end, axis=axis + 1) for part, end in zip(each.parts, ends, strict=True)
    ]


def joined(each: Pass, arrays: Sequence[jax.Array]) -> jax.Array:
    """What the parts found, side by side."""
    array, axis = lax.concatenate(arrays, each.axis + 1), each.axis
    return array.reshape(*array.shape[:axis], array.shape[axis] * array.shape[axis + 1], *array.shape[axis + 2 :])
