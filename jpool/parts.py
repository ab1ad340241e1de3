"""Windows of different sizes: an irregular pooling as regular ones side by side, one axis after the other.

Window i of o along an axis of n elements reads from floor(i n / o) to ceil((i + 1) n / o): torch's and Keras's windows
of adaptive pooling. Neighbours of one size and one distance are a regular pooling of a slice of the axis: a part. The
parts find their values and winners by themselves, and what they find is joined. In the backward pass every part sends
its cotangents home to its slice, and where slices share elements they add up.

One axis is pooled after the other, the last one first: the largest of each row, then the first row that holds the
largest of all. That is row-major order with the first winning.

The four functions have the types of those in `selection` and `routing`, with `Parts` in the place of `Geometry`.
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
from jax import lax

from jpool import routing, selection
from jpool.geometry import Axis, Geometry, alone
from jpool.slices import Winners, wide

AllWinners = tuple[tuple[Winners, ...], ...]  # of every pass, of every part


class Part(NamedTuple):
    """A regular pooling of the slice that begins at `start`."""

    start: int
    geometry: Geometry


class Pass(NamedTuple):
    """Everything along one axis, whose elements are `groups` times pooled alike, by these parts."""

    axis: int
    groups: int
    parts: tuple[Part, ...]


Parts = tuple[Pass, ...]


def parts_of(shape: Sequence[int], outputs: Sequence[int]) -> Parts:
    """The passes from an example of that shape to one value for each window; an axis without windows is left alone."""
    passes, sizes = [], list(shape)
    for i in reversed(range(len(sizes))):
        if outputs[i] != sizes[i]:
            groups = math.gcd(sizes[i], outputs[i])  # no window lies in two of them
            before, after = [alone(size) for size in [*sizes[:i], groups]], [alone(size) for size in sizes[i + 1 :]]
            found = _regular(sizes[i] // groups, outputs[i] // groups)
            passes.append(Pass(i, groups, tuple(Part(at, Geometry((*before, axis, *after))) for at, axis in found)))
            sizes[i] = outputs[i]
    return tuple(passes)


def select(parts: Parts, x: jax.Array) -> tuple[jax.Array, AllWinners]:
    """Values, and winners for every part of every pass."""
    winners = []
    for each in parts:
        slices = _slices(each, x)
        found = [selection.select(part.geometry, piece) for part, piece in zip(each.parts, slices, strict=True)]
        x = _joined(each, [values for values, _ in found])
        winners.append(tuple(won for _, won in found))
    return x, tuple(winners)


def largest(parts: Parts, x: jax.Array) -> jax.Array:
    """The values alone."""
    for each in parts:
        x = _joined(each, map(selection.largest, [part.geometry for part in each.parts], _slices(each, x)))
    return x


def gather(parts: Parts, winners: AllWinners, t: jax.Array) -> jax.Array:
    """Reads the winners of another array."""
    for each, won in zip(parts, winners, strict=True):
        t = _joined(each, map(routing.gather, [part.geometry for part in each.parts], won, _slices(each, t)))
    return t


def route(parts: Parts, winners: AllWinners, ct: jax.Array) -> jax.Array:
    """Sends each cotangent to its winner; the transpose of `gather`."""
    routed = wide(ct)
    for each, won in reversed(list(zip(parts, winners, strict=True))):
        axis, grouped, at, sent = each.axis + 1, _split(routed, each.axis, each.groups), 0, []
        for part, winner in zip(each.parts, won, strict=True):
            count = part.geometry.axes[axis].output
            piece = lax.slice_in_dim(grouped, at, at + count, axis=axis)
            sent.append((part.start, routing.route(part.geometry, winner, piece)))
            at += count
        routed = _join(_added(axis, sent), each.axis)
    return routed.astype(ct.dtype)


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
        stride = stride if count > 1 else 1
        yield starts[first], Axis((count - 1) * stride + windows[first], windows[first], stride, 1, 0, count)
        first += count


def _slices(each: Pass, array: jax.Array) -> list[jax.Array]:
    """What every part pools."""
    grouped, axis = _split(array, each.axis, each.groups), each.axis + 1
    stops = [part.start + part.geometry.axes[axis].size for part in each.parts]
    return [
        lax.slice_in_dim(grouped, part.start, stop, axis=axis) for part, stop in zip(each.parts, stops, strict=True)
    ]


def _joined(each: Pass, arrays: Any) -> jax.Array:
    return _join(lax.concatenate(list(arrays), each.axis + 1), each.axis)


def _added(axis: int, pieces: Sequence[tuple[int, jax.Array]]) -> jax.Array:
    """Pieces at their places along the axis, added where they share elements."""
    rows: list[list[jax.Array]] = []  # of pieces that share none, with zeros between
    ends: list[int] = []
    size = max(start + piece.shape[axis] for start, piece in pieces)
    for start, piece in pieces:
        row = next((row for row, end in enumerate(ends) if end <= start), len(rows))
        if row == len(rows):
            rows.append([])
            ends.append(0)
        rows[row] += [_zeros(piece, axis, start - ends[row]), piece]
        ends[row] = start + piece.shape[axis]
    filled = [[*row, _zeros(row[0], axis, size - end)] for row, end in zip(rows, ends, strict=True)]
    return reduce(lax.add, [lax.concatenate(row, axis) for row in filled])


def _zeros(like: jax.Array, axis: int, count: int) -> jax.Array:
    return lax.full([count if i == axis else size for i, size in enumerate(like.shape)], 0, like.dtype)


def _split(array: jax.Array, axis: int, groups: int) -> jax.Array:
    return array.reshape(*array.shape[:axis], groups, array.shape[axis] // groups, *array.shape[axis + 1 :])


def _join(array: jax.Array, axis: int) -> jax.Array:
    return array.reshape(*array.shape[:axis], array.shape[axis] * array.shape[axis + 1], *array.shape[axis + 2 :])
