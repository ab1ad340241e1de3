"""One step of pooling arranged for GPUs. Without this folder everything works there.

Along the last axis of an array, neighbouring threads read at different indices of a table, and each thread reads four.
Where that axis is pooled (channels first, or none), the backward pass moves cotangents by padding instead: ResNet's
pooling takes 40 instructions an element of x instead of 69, Inception's 62 instead of 136 (compiled for an H100, jax
0.12.0.1, 2026-11-29; not timed).
"""

import jax

from jpool.pooling.derivative.primitives import define_platform
from jpool.pooling.integers.geometry import Geometry
from jpool.pooling.plain import backward
from jpool.pooling.plain.all_steps import Platform
from jpool.pooling.slices import route_by_phases


def route_step(pooling: Geometry, winners: jax.Array, ct: jax.Array) -> jax.Array:
    """The same as `plain.backward.route_step`, except for the order of sums."""
    if pooling.axes[-1].is_identity or pooling.is_adaptive:
        return backward.route_step(pooling, winners, ct)
    return route_by_phases(pooling, winners, ct)


PLATFORM = Platform(route_step=route_step)
for name in ("cuda", "rocm"):
    define_platform(name, PLATFORM)
