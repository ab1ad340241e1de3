"""The operations of pooling as JAX primitives: one each while tracing, with a program for each platform.

    select_p        :: (geometry; x)            -> values, *winners        (static arguments; arrays)
    select_values_p :: (geometry; x)            -> values
    route_p         :: (geometry; *winners, ct) -> cotangent of x
    gather_p        :: (geometry; *winners, t)  -> tangent of values

Their programs are `plain.forward` and `plain.backward`, and for XLA:CPU `cpu`. Being primitives has three advantages.
Tracing is short: result types follow from the geometry, and the taps are written out once, when a program is lowered,
for its platform. A batch is one more axis of the geometry, so vmap costs nothing. And JAX knows that route and gather
are transposes of each other: transposed operation by operation, they would become scatters.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jpool.jax_extensions import (
    Primitive,
    bind,
    define_batching,
    define_eager,
    define_jvp,
    define_linear,
    define_lowering,
    is_zero,
    no_tangent,
    repeat_for_batch,
    result_type,
)
from jpool.pooling.integers.geometry import Geometry, identity
from jpool.pooling.plain import backward, forward
from jpool.pooling.plain.steps import DEFAULT, Arrangement, steps
from jpool.pooling.plain.ties import RULES


class Operations(NamedTuple):
    """The program of each primitive on one platform."""

    select: Any  # (geometry, x) -> (values, winners)
    select_values: Any  # (geometry, x) -> values
    route: Any  # (geometry, winners, ct) -> cotangent of x
    gather: Any  # (geometry, winners, t) -> tangent of values


def plain(arrangement: Arrangement) -> Operations:
    """The plain algorithm, with windows divided into the steps that suit the platform."""
    functions: Any = forward.select, forward.select_values, backward.route, backward.gather
    return Operations(*(partial(function, arrangement=arrangement) for function in functions))


PLAIN = plain(DEFAULT)  # for every platform that is not in PLATFORMS, to which the folder `cpu` adds its own
# With separate phases the TPU's compiler estimates a third of the cycles for a U-Net (libtpu 0.0.52).
PLATFORMS: dict[str, Operations] = {"tpu": plain(Arrangement(axis_taps=8, joint_phase_axes=1))}


select_p, select_values_p = Primitive("max_pool_select"), Primitive("max_pool_select_values")
route_p, gather_p = Primitive("max_pool_route"), Primitive("max_pool_gather")
select_p.multiple_results = True


def select(geometry: Geometry, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """See `forward.select`."""
    values, *winners = bind(select_p, x, geometry=geometry)
    return values, tuple(winners)


def select_values(geometry: Geometry, x: jax.Array) -> jax.Array:
    """See `forward.select_values`."""
    return bind(select_values_p, x, geometry=geometry)


def route(geometry: Geometry, winners: tuple[jax.Array, ...], ct: jax.Array) -> jax.Array:
    """See `backward.route`."""
    return bind(route_p, *winners, ct, geometry=geometry)


def gather(geometry: Geometry, winners: tuple[jax.Array, ...], t: jax.Array) -> jax.Array:
    """See `backward.gather`."""
    return bind(gather_p, *winners, t, geometry=geometry)


# --- types ---


def _type(operands: Any, geometry: Geometry, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """The type of a result: sharded as the operands are along identity axes, replicated along the others."""
    return result_type(operands, shape, [i for i, axis in enumerate(geometry.axes) if axis.is_identity], dtype)


def _types_of_select(x: Any, *, geometry: Geometry) -> list[Any]:
    rule = RULES[geometry.ties]
    poolings = [step.geometry for step in steps(geometry, DEFAULT)] if rule.masks else [geometry]
    winners = [_type([x], geometry, pooling.values_shape, rule.winners_dtype(pooling)) for pooling in poolings]
    return [_type([x], geometry, geometry.values_shape), *winners]


select_p.def_abstract_eval(_types_of_select)
select_values_p.def_abstract_eval(lambda x, *, geometry: _type([x], geometry, geometry.values_shape))
route_p.def_abstract_eval(lambda *arrays, geometry: _type(arrays, geometry, geometry.example_shape))
gather_p.def_abstract_eval(lambda *arrays, geometry: _type(arrays, geometry, geometry.values_shape))


# --- derivatives ---


def _select_jvp(primals: Any, tangents: Any, *, geometry: Geometry) -> Any:
    values, winners = select(geometry, *primals)
    (t,) = tangents
    tangent = no_tangent(values) if is_zero(t) else gather(geometry, winners, t)
    return [values, *winners], [tangent, *map(no_tangent, winners)]


def _select_values_jvp(primals: Any, tangents: Any, *, geometry: Geometry) -> Any:
    (values, *_), (tangent, *_) = _select_jvp(primals, tangents, geometry=geometry)
    return values, tangent


define_jvp(select_p, _select_jvp)
define_jvp(select_values_p, _select_values_jvp)
define_linear(route_p, lambda geometry: (gather_p, {"geometry": geometry}))
define_linear(gather_p, lambda geometry: (route_p, {"geometry": geometry}))


# --- batches ---


def _batched(primitive: Primitive, operands: Any, axes: Any, *, geometry: Geometry) -> Any:
    moved = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(operands, axes, strict=True)]
    batch = next(array for array, axis in zip(moved, axes, strict=True) if axis is not None)
    batched = [repeat_for_batch(a, batch) if axis is None else a for a, axis in zip(moved, axes, strict=True)]
    with_batch = geometry._replace(axes=(identity(batch.shape[0]), *geometry.axes))
    out = bind(primitive, *batched, geometry=with_batch)
    return out, [0] * len(out) if primitive.multiple_results else 0


# --- programs ---


def _program(primitive: Primitive, platform: str | None) -> Any:
    """The program of a primitive, as a function of its operands."""

    def program(*operands: jax.Array, geometry: Geometry) -> Any:
        operations = PLATFORMS.get(platform or "", PLAIN)
        if primitive is select_p:
            values, winners = operations.select(geometry, *operands)
            return values, *winners
        if primitive is select_values_p:
            return operations.select_values(geometry, *operands)
        *winners, array = operands
        return (operations.route if primitive is route_p else operations.gather)(geometry, winners, array)

    return program


for primitive in (select_p, select_values_p, route_p, gather_p):
    define_eager(primitive)
    define_batching(primitive, partial(_batched, primitive))
    for platform in (None, "cpu", "tpu"):
        define_lowering(primitive, _program(primitive, platform), platform, shardings=False)
