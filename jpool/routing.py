"""route and gather: what to do once the winners are known. Both are linear, and each is the transpose of the other.

`route` sends every cotangent home to the element that won it: the backward pass. `gather` reads the winners of another
array: the tangent. <gather(t), ct> = <t, route(ct)>.

Neither scatters. A backward pass is usually written as "every window adds to its winner", which has to write at places
that are known only at run time. Turned around it reads at places that are known beforehand: every element asks the few
windows that cover it "did I win?", and adds up the cotangents of those that say yes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import zero_from_primal

from jpool.geometry import Axis, Geometry
from jpool.runs import Run, in_place
from jpool.slices import Arrays, Winners, by_runs, in_one_pass, pad_for_windows, read_tap, wide
from jpool.steps import Step, steps

Index = tuple[int, ...]


def route(geometry: Geometry, winners: Winners, ct: jax.Array) -> jax.Array:
    """Sends each cotangent to the element that won its window; what overlapping windows send to one element adds up.

    Where ties are split, each element that tied gets an equal share.

    Args:
      geometry: the pooling.
      winners: from `select`, shape `geometry.values_shape`.
      ct: cotangents of the values, same shape. Dtypes under 32 bits are added up in float32 and rounded once.

    Returns:
      The cotangent of the example, shape `geometry.example_shape`, dtype of ct.
    """
    routed = wide(ct)
    if isinstance(winners, tuple):
        routed = lax.div(routed, _tied(geometry, winners, routed.dtype))
        for step, mask in reversed(list(zip(steps(geometry), winners, strict=True))):
            _, routed = _route_step(step, mask, routed)
        return routed.astype(ct.dtype)
    for step in reversed(steps(geometry)):
        winners, routed = _route_step(step, winners, routed)
    return routed.astype(ct.dtype)


def gather(geometry: Geometry, winners: Winners, t: jax.Array) -> jax.Array:
    """Reads from t, of shape `geometry.example_shape`, the element at each winner; 0 where a window has none.

    Where ties are split, the mean of the elements that tied.
    """
    if isinstance(winners, tuple):
        total = wide(t)
        for step, mask in zip(steps(geometry), winners, strict=True):
            total = _gather_step(step, mask, total)
        return lax.div(total, _tied(geometry, winners, total.dtype)).astype(t.dtype)
    first, *others = steps(geometry)
    walk = []
    for step in reversed(others):  # from the windows' winners to those of the blocks that they compared
        walk.append((step, winners))
        winners, _ = _route_step(step, winners, jnp.zeros(winners.shape, t.dtype))
    for step, step_winners in [(first, winners), *reversed(walk)]:
        t = _gather_step(step, step_winners, t)
    return t


def _tied(geometry: Geometry, masks: Arrays, dtype: np.dtype) -> jax.Array:
    """How many elements of each window tied; 1 where there is none, and nothing to divide."""
    first, *others = zip(steps(geometry), masks, strict=True)
    tied = lax.population_count(first[1]).astype(dtype)
    for step, mask in others:
        tied = _gather_step(step, mask, tied)
    return lax.max(tied, lax.full(tied.shape, 1, dtype))


def _route_step(step: Step, winners: jax.Array, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    """From the windows of one step back to the elements, or blocks, that it compared: their winners and cotangents.

    Windows that share a block agree on its winner, so one number per block is enough.
    """
    axes = step.geometry.axes
    blocks_win = step.block > 1 and step.geometry.ties != "split"  # so the winner among the elements of each is wanted
    taps = _taps_by_shift(axes)
    least = [min(shift[i] for shift in taps) for i in range(len(axes))]
    most = [max(shift[i] for shift in taps) for i in range(len(axes))]
    # As windows read elements, so do elements read windows: `m * stride + phase` those from `m + least` to `m + most`.
    readers = [
        Axis(axis.output, high - low + 1, 1, 1, -low, -(-axis.size // axis.stride))
        for axis, low, high in zip(axes, least, most, strict=True)
    ]
    split = in_place(readers)
    if not split:
        nobody = 0 if step.geometry.ties == "split" else step.none
        winners, ct = pad_for_windows(readers, winners, nobody), pad_for_windows(readers, ct, 0)

    def compute(chosen: Sequence[Run]) -> Arrays:
        blocks = [run.axis for run in chosen]
        phases = Phases([block.output for block in blocks], [axis.stride for axis in axes])
        inner = phases.full(step.block if blocks_win else 0, winners.dtype)
        routed = nothing = phases.full(0, ct.dtype)
        for place in np.ndindex(*(block.window for block in blocks)):
            shift = tuple(at + run.first + low for at, run, low in zip(place, chosen, least, strict=True))
            if shift in taps:
                winner, sent = (phases.spread(read_tap(blocks, place, array)) for array in (winners, ct))
                won = _won(step, taps[shift], winner, phases)
                if blocks_win:
                    first = phases.table(taps[shift] * step.apart, winner.dtype)
                    inner = lax.select(won, lax.sub(winner, first), inner)
                routed = lax.add(lax.select(won, sent, nothing), routed)
        inner, routed = phases.interleaved(inner), phases.interleaved(routed)
        return _in_one_pass(routed, inner) if blocks_win else (routed, inner)

    whole = by_runs(readers, compute, split=split)
    routed, inner = (lax.slice(array, [0] * len(axes), step.geometry.example_shape) for array in whole)
    return inner, routed


@jax.custom_jvp
def _in_one_pass(routed: jax.Array, inner: jax.Array) -> Arrays:
    return in_one_pass(routed, inner, 0)  # nothing is routed where there is no winner


@_in_one_pass.defjvp
def _in_one_pass_tangent(primals: Arrays, tangents: Arrays) -> Any:
    """Returning arrays as they are has itself for a derivative; JAX has none for a reduction of two operands."""
    return _in_one_pass(*primals), (tangents[0], zero_from_primal(primals[1]))


def _gather_step(step: Step, winners: jax.Array, t: jax.Array) -> jax.Array:
    """From elements, or blocks, to the windows that compared them: each reads the one that holds its winner."""
    axes = step.geometry.axes
    padded = pad_for_windows(axes, t, 0)
    phases = Phases(winners.shape, [1] * winners.ndim)
    read = phases.full(0, t.dtype)
    for number, tap in enumerate(np.ndindex(*(axis.window for axis in axes))):
        won, element = _won(step, np.asarray(number), winners, phases), read_tap(axes, tap, padded)
        if step.geometry.ties == "split":
            read = lax.add(lax.select(won, element, phases.full(0, t.dtype)), read)
        else:
            read = lax.select(won, element, read)
    return read


def _won(step: Step, tap: np.ndarray, winners: jax.Array, phases: "Phases") -> jax.Array:
    """Whether a winner belongs to the tap; one in two blocks belongs to the earlier, and to no tap, -1, none does."""
    if step.geometry.ties == "split":
        bit = np.where(tap >= 0, 1 << np.maximum(tap, 0), 0)
        return lax.ne(lax.bitwise_and(winners, phases.table(bit, winners.dtype)), phases.full(0, winners.dtype))
    if step.block == step.apart == 1 and tap.min() >= 0:
        return lax.eq(winners, phases.table(tap, winners.dtype))
    first = np.where(tap > 0, (tap - 1) * step.apart + step.block, 0)
    count = np.where(tap > 0, step.apart, np.where(tap == 0, step.block, 0))
    # Unsigned: a winner before `first` wraps around to a large number.
    return lax.lt(lax.sub(winners, phases.table(first, winners.dtype)), phases.table(count, winners.dtype))


class Phases:
    """The shape (count, stride, count, stride, ..) of elements `m * stride + phase`; a stride of 1 gets no axis."""

    def __init__(self, counts: Sequence[int], strides: Sequence[int]) -> None:
        """Takes one count and one stride for every axis of the array."""
        self.pairs = [
            (count, stride) if stride > 1 else (count,) for count, stride in zip(counts, strides, strict=True)
        ]
        self.shape = [n for pair in self.pairs for n in pair]
        self.counts = [sum(map(len, self.pairs[:i])) for i in range(len(self.pairs))]
        self.phases = [i for i in range(len(self.shape)) if i not in self.counts]

    def spread(self, array: jax.Array) -> jax.Array:
        """An array of the counts, the same for every phase."""
        return lax.broadcast_in_dim(array, self.shape, self.counts) if self.phases else array

    def table(self, numbers: np.ndarray, dtype: np.dtype) -> jax.Array:
        """Numbers by phase, the same for every count."""
        if numbers.min() == numbers.max():
            return self.full(numbers.flat[0], dtype)
        return lax.broadcast_in_dim(numbers.astype(dtype).squeeze(), self.shape, self.phases)

    def full(self, number: Any, dtype: np.dtype) -> jax.Array:
        """One number everywhere."""
        return lax.full(self.shape, number, dtype)

    def interleaved(self, array: jax.Array) -> jax.Array:
        """The array with one axis for each count and its stride; one by one, which JAX follows where it is sharded."""
        for i, pair in enumerate(self.pairs):
            if len(pair) > 1:
                array = array.reshape(*array.shape[:i], pair[0] * pair[1], *array.shape[i + 2 :])
        return array


def _taps_by_shift(axes: Sequence[Axis]) -> dict[Index, np.ndarray]:
    """Which tap of which window covers an element.

    Element `m * stride + phase` is tap j of window `m + shift`: for each shift, a table of j by phase, -1 for no tap.
    """
    strides = [axis.stride for axis in axes]
    tables: dict[Index, np.ndarray] = {}
    for number, tap in enumerate(np.ndindex(*(axis.window for axis in axes))):
        at = [j * axis.dilation - axis.low for j, axis in zip(tap, axes, strict=True)]
        shift = tuple(-(place // stride) for place, stride in zip(at, strides, strict=True))
        phase = tuple(place % stride for place, stride in zip(at, strides, strict=True))
        tables.setdefault(shift, np.full(strides, -1))[phase] = number
    return tables
