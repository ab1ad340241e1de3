"""Steps of pooling arranged for TPUs. Without this folder everything works there.

The TPU's compiler has no estimate of reading at the indices of a table. So x is padded, and every tap is a strided
slice; and the backward pass moves cotangents by padding (see `slices`).
"""

import jax
import numpy as np

from jpool.pooling.derivative.primitives import define_platform
from jpool.pooling.integers.geometry import Geometry
from jpool.pooling.plain import backward, forward
from jpool.pooling.plain.all_steps import Platform
from jpool.pooling.plain.arrays import padding_value
from jpool.pooling.plain.forward import Taps
from jpool.pooling.plain.steps import is_reduction
from jpool.pooling.plain.ties import Candidate
from jpool.pooling.slices import best_of_padded, pad_for_windows, route_by_phases, slice_tap


def select_step(pooling: Geometry, x: jax.Array) -> Candidate:
    """The same as `plain.forward.select_step`, bit for bit."""
    padding = padding_value(pooling, x.dtype)
    if (taps := _taps(pooling, x, padding)) is None:
        return forward.select_step(pooling, x)
    return forward.settle_no_winner(pooling, best_of_padded(pooling, taps, padding), padding)


def gather_step(pooling: Geometry, winners: jax.Array, t: jax.Array) -> jax.Array:
    """The same as `plain.backward.gather_step`, bit for bit."""
    return backward.gather_step(pooling, winners, t, _taps(pooling, t, 0))


def route_step(pooling: Geometry, winners: jax.Array, ct: jax.Array) -> jax.Array:
    """The same as `plain.backward.route_step`, except for the order of sums."""
    if pooling.is_adaptive:
        return backward.route_step(pooling, winners, ct)
    # With joint phases XLA estimates three times the cycles for a U-Net (libtpu 0.0.52).
    return route_by_phases(pooling, winners, ct, joint=False)


def _taps(pooling: Geometry, array: jax.Array, padding: np.ndarray | int) -> Taps | None:
    """What windows read of an array with padding; None if a table is needed, or all of it is read at once."""
    if pooling.is_adaptive or is_reduction(pooling):
        return None
    padded = pad_for_windows(pooling.axes, array, padding)
    indices = np.ndindex(*(axis.window for axis in pooling.axes))
    return ((tuple(index[i] for i in pooling.pooled), slice_tap(pooling.axes, index, padded)) for index in indices)


PLATFORM = Platform(select_step, route_step, gather_step)
define_platform("tpu", PLATFORM)
