"""select, route and gather as primitives of JAX: one operation each while tracing, then arranged for the platform.

    select_p  :: (x; geometry)           -> values, *winners
    largest_p :: (x; geometry)           -> values
    route_p   :: (*winners, ct; geometry) -> cotangent of x
    gather_p  :: (*winners, t; geometry)  -> tangent of values

What they compute is written in `forward` and `backward`, and for XLA:CPU in `cpu`. That they are primitives buys three
things. Tracing is short: types follow from the geometry, and the taps are written out once, when a program is lowered,
for the one platform that it is for. A batch is one more axis of the geometry, so a vmap costs nothing. And JAX is told
that route and gather are each other's transpose: derived from their operations, they would be scatters.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jpool.geometry import Geometry, identity
from jpool.pooling import backward, forward
from jpool.pooling.steps import GPU, Arrangement, steps
from jpool.pooling.ties import RULES


class Operations(NamedTuple):
    """How a platform computes."""

    select: Any  # (geometry, x) -> (values, winners)
    largest: Any  # (geometry, x) -> values
    route: Any  # (geometry, winners, ct) -> cotangent of x
    gather: Any  # (geometry, winners, t) -> tangent of values


def plain(arrangement: Arrangement) -> Operations:
    """The plain algorithm, with windows divided into steps as the platform likes them."""
    every: Any = forward.select, forward.largest, backward.route, backward.gather
    return Operations(*(partial(each, arrangement=arrangement) for each in every))


PLAIN = plain(GPU)
PLATFORMS: dict[str, Operations] = {"tpu": plain(Arrangement(axis_taps=8, spread_axes=1))}  # `cpu` adds its own


select_p, largest_p = Primitive("max_pool_select"), Primitive("max_pool_largest")
route_p, gather_p = Primitive("max_pool_route"), Primitive("max_pool_gather")
select_p.multiple_results = True


def select(geometry: Geometry, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """See `forward.select`."""
    values, *winners = _bind(select_p, x, geometry=geometry)
    return values, tuple(winners)


def largest(geometry: Geometry, x: jax.Array) -> jax.Array:
    """See `forward.largest`."""
    return _bind(largest_p, x, geometry=geometry)


def route(geometry: Geometry, winners: tuple[jax.Array, ...], ct: jax.Array) -> jax.Array:
    """See `backward.route`."""
    return _bind(route_p, *winners, ct, geometry=geometry)


def gather(geometry: Geometry, winners: tuple[jax.Array, ...], t: jax.Array) -> jax.Array:
    """See `backward.gather`."""
    return _bind(gather_p, *winners, t, geometry=geometry)


def _bind(primitive: Primitive, *operands: jax.Array, geometry: Geometry) -> Any:
    """Inside a `jax.shard_map`, marks what is the same on all devices as varying, where another operand varies."""
    varying = [jax.typeof(operand).manual_axis_type.varying for operand in operands]
    axes = frozenset[str]().union(*varying)
    if axes:
        missing = [tuple(sorted(axes - own)) for own in varying]
        pairs = zip(operands, missing, strict=True)
        operands = tuple(jax.lax.pcast(each, names, to="varying") if names else each for each, names in pairs)
    return primitive.bind(*operands, geometry=geometry)


# --- types ---


def _like(operands: Any, geometry: Geometry, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """The type of a result: sharded as the operands are along the axes that no window reaches over, else whole."""
    last, spec = operands[-1], []
    for i, axis in enumerate(geometry.axes):
        names = [each.sharding.spec[i] for each in operands if axis.is_identity]
        spec.append(next((name for name in names if name is not None), None))
    sharding = next((each.sharding for each in operands if not each.sharding.mesh.empty), last.sharding)
    sharding = sharding.update(spec=sharding.spec.update(partitions=spec))
    return last.update(shape=shape, dtype=dtype or last.dtype, weak_type=False, sharding=sharding)


def _types_of_select(x: Any, *, geometry: Geometry) -> list[Any]:
    rule = RULES[geometry.ties]
    if rule.masks:
        masks = [step.geometry for step in steps(geometry, GPU)]
        winners = [_like([x], geometry, mask.values_shape, rule.winners_dtype(mask)) for mask in masks]
    else:
        winners = [_like([x], geometry, geometry.values_shape, rule.winners_dtype(geometry))]
    return [_like([x], geometry, geometry.values_shape), *winners]


select_p.def_abstract_eval(_types_of_select)
largest_p.def_abstract_eval(lambda x, *, geometry: _like([x], geometry, geometry.values_shape))
route_p.def_abstract_eval(lambda *arrays, geometry: _like(arrays, geometry, geometry.example_shape))
gather_p.def_abstract_eval(lambda *arrays, geometry: _like(arrays, geometry, geometry.values_shape))


# --- derivatives ---


def _no_tangent(primal: Any) -> Any:
    return ad.Zero(jax.typeof(primal).to_tangent_aval())


def _select_jvp(primals: Any, tangents: Any, *, geometry: Geometry) -> Any:
    values, winners = select(geometry, *primals)
    (t,) = tangents
    tangent = _no_tangent(values) if isinstance(t, ad.Zero) else gather(geometry, winners, t)
    return [values, *winners], [tangent, *map(_no_tangent, winners)]


def _largest_jvp(primals: Any, tangents: Any, *, geometry: Geometry) -> Any:
    (values, *_), (tangent, *_) = _select_jvp(primals, tangents, geometry=geometry)
    return values, tangent


def _linear_jvp(primitive: Primitive, primals: Any, tangents: Any, *, geometry: Geometry) -> Any:
    out = primitive.bind(*primals, geometry=geometry)
    if isinstance(tangents[-1], ad.Zero):
        return out, _no_tangent(out)
    return out, primitive.bind(*primals[:-1], tangents[-1], geometry=geometry)


def _transpose(transposed: Primitive, ct: Any, *arrays: Any, geometry: Geometry) -> list[Any]:
    *winners, _ = arrays
    sent = ct if isinstance(ct, ad.Zero) else transposed.bind(*winners, ct, geometry=geometry)
    return [*[None] * len(winners), sent]


ad.primitive_jvps[select_p] = _select_jvp
ad.primitive_jvps[largest_p] = _largest_jvp
for linear, transposed in ((route_p, gather_p), (gather_p, route_p)):
    ad.primitive_jvps[linear] = partial(_linear_jvp, linear)
    ad.primitive_transposes[linear] = partial(_transpose, transposed)


# --- batches ---


def _batched(primitive: Primitive, arrays: Any, axes: Any, *, geometry: Geometry) -> Any:
    moved = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(arrays, axes, strict=True)]
    examples = next(array for array, axis in zip(moved, axes, strict=True) if axis is not None)
    every = [_repeated(a, examples) if axis is None else a for a, axis in zip(moved, axes, strict=True)]
    with_batch = geometry._replace(axes=(identity(examples.shape[0]), *geometry.axes))
    out = _bind(primitive, *every, geometry=with_batch)
    return out, [0] * len(out) if primitive.multiple_results else 0


def _repeated(array: jax.Array, examples: jax.Array) -> jax.Array:
    """The array once for each example, over devices as the examples are."""
    sharding = jax.typeof(examples).sharding
    if sharding.mesh.empty or sharding.spec[0] is None:
        sharding = None
    else:
        partitions = [sharding.spec[0], *jax.typeof(array).sharding.spec]
        sharding = sharding.update(spec=sharding.spec.update(partitions=partitions))
    shape = (examples.shape[0], *array.shape)
    return jax.lax.broadcast_in_dim(array, shape, range(1, len(shape)), out_sharding=sharding)


# --- programs ---


def _lowering(primitive: Primitive, platform: str | None) -> Any:
    """Writes the program of a primitive for a platform, without shardings: XLA's partitioner knows them."""

    def function(*arrays: jax.Array, geometry: Geometry) -> Any:
        operations = PLATFORMS.get(platform or "", PLAIN)
        if primitive is select_p:
            values, winners = operations.select(geometry, *arrays)
            return values, *winners
        if primitive is largest_p:
            return (operations.largest(geometry, *arrays),)
        *winners, array = arrays
        return ((operations.route if primitive is route_p else operations.gather)(geometry, winners, array),)

    def rule(ctx: Any, *operands: Any, geometry: Geometry) -> Any:
        types = [jax.core.ShapedArray(aval.shape, aval.dtype) for aval in ctx.avals_in]
        return mlir.lower_fun(partial(function, geometry=geometry))(ctx.replace(avals_in=types), *operands)

    return rule


@partial(jax.jit, static_argnums=(0, 1))
def _program(primitive: Primitive, geometry: Geometry, *arrays: jax.Array) -> Any:
    return primitive.bind(*arrays, geometry=geometry)


def _run(primitive: Primitive, *arrays: jax.Array, geometry: Geometry) -> Any:
    """Outside a trace: as a program, also where jit is disabled, for a primitive cannot be run in another way."""
    with jax.disable_jit(False):
        return _program(primitive, geometry, *arrays)


for each in (select_p, largest_p, route_p, gather_p):
    each.def_impl(partial(_run, each))
    batching.primitive_batchers[each] = partial(_batched, each)
    mlir.register_lowering(each, _lowering(each, None))
    for platform in ("cpu", "tpu"):
        mlir.register_lowering(each, _lowering(each, platform), platform=platform)
