"""route and gather: what to do once the winners are known. Both are linear, and each is the transpose of the other.

`route` sends every cotangent home to the element that won it: the backward pass. `gather` reads the winners of another
array: the tangent. <gather(t), ct> = <t, route(ct)>.

Neither scatters. A backward pass is usually written as "every window adds to its winner", which has to write at places
that are known only at run time. Turned around it reads at places that are known beforehand: every element asks the few
windows that cover it "did I win?", and adds up the cotangents of those that say yes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.geometry import Axis, Geometry
from jpool.slices import pad, pad_for_windows, read_tap
from jpool.steps import Step, steps

Index = tuple[int, ...]


def route(geometry: Geometry, winners: jax.Array, ct: jax.Array) -> jax.Array:
    """Sends each cotangent to the element that won its window; what overlapping windows send to one element adds up.

    Args:
      geometry: the pooling.
      winners: from `select`, shape `geometry.values_shape`.
      ct: cotangents of the values, same shape. Dtypes under 32 bits are added up in float32 and rounded once.

    Returns:
      The cotangent of the example, shape `geometry.example_shape`, dtype of ct.
    """
    routed = ct.astype(jnp.float32) if ct.dtype.itemsize < 4 else ct
    for step in reversed(steps(geometry)):
        winners, routed = _route_step(step, winners, routed)
    return routed.astype(ct.dtype)


def gather(geometry: Geometry, winners: jax.Array, t: jax.Array) -> jax.Array:
    """Reads from t, of shape `geometry.example_shape`, the element at each winner; 0 where a window has none."""
    walk = []
    for step in reversed(steps(geometry)):
        walk.append((step, winners))
        winners, _ = _route_step(step, winners, jnp.zeros(winners.shape, t.dtype))
    for step, step_winners in reversed(walk):
        t = _gather_step(step, step_winners, t)
    return t


def _route_step(step: Step, winners: jax.Array, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    """From the windows of one step back to the elements, or blocks, that it compared: their winners and cotangents.

    Windows that share a block agree on its winner, so one number per block is enough.
    """
    axes = step.geometry.axes
    counts = [-(-axis.size // axis.stride) for axis in axes]
    taps = _taps_by_shift(axes)
    low = [-min(shift[i] for shift in taps) for i in range(len(axes))]
    high = [counts[i] + max(shift[i] for shift in taps) - axis.output for i, axis in enumerate(axes)]
    winners, ct = pad(winners, low, high, step.none), pad(ct, low, high, 0)

    shape = [n for count, axis in zip(counts, axes, strict=True) for n in (count, axis.stride)]
    inner, routed = jnp.full(shape, step.block, winners.dtype), jnp.zeros(shape, ct.dtype)
    for shift, tap in taps.items():
        start = [max(before, 0) + by for before, by in zip(low, shift, strict=True)]
        winner, sent = _read_windows(winners, start, counts), _read_windows(ct, start, counts)
        won = _won(step, tap, winner)
        inner = jnp.where(won, winner - (tap * step.apart).astype(winner.dtype), inner)
        routed = jnp.where(won, sent, 0) + routed
    return _interleaved(inner, axes), _interleaved(routed, axes)


def _gather_step(step: Step, winners: jax.Array, t: jax.Array) -> jax.Array:
    """From elements, or blocks, to the windows that compared them: each reads the one that holds its winner."""
    axes = step.geometry.axes
    padded = pad_for_windows(axes, t, 0)
    read = jnp.zeros(winners.shape, t.dtype)
    for number, tap in enumerate(np.ndindex(*(axis.window for axis in axes))):
        read = jnp.where(_won(step, np.asarray(number), winners), read_tap(axes, tap, padded), read)
    return read


def _won(step: Step, tap: np.ndarray, winners: jax.Array) -> jax.Array:
    """Whether a winner belongs to the tap; one in two blocks belongs to the earlier, and to no tap, -1, none does."""
    first = np.where(tap > 0, (tap - 1) * step.apart + step.block, 0).astype(winners.dtype)
    count = np.where(tap > 0, step.apart, np.where(tap == 0, step.block, 0)).astype(winners.dtype)
    return winners - first < count  # unsigned: a winner before `first` wraps around to a large number


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
    return {shift: table.reshape([n for s in strides for n in (1, s)]) for shift, table in tables.items()}


def _read_windows(array: jax.Array, start: Sequence[int], counts: Sequence[int]) -> jax.Array:
    """`counts` windows from `start` on, with an axis of length 1 after each one for the phases of the stride."""
    read = lax.slice(array, start, [at + count for at, count in zip(start, counts, strict=True)])
    return read.reshape([n for count in counts for n in (count, 1)])


def _interleaved(phases: jax.Array, axes: Sequence[Axis]) -> jax.Array:
    """(count, stride, count, stride, ..) to the sizes of the axes; the last stride may run over the end."""
    whole = phases.reshape([-(-axis.size // axis.stride) * axis.stride for axis in axes])
    return lax.slice(whole, [0] * len(axes), [axis.size for axis in axes])
