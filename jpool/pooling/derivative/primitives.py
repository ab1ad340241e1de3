"""The operations of pooling as JAX primitives: one each while tracing, with a program for each platform.

    select_p :: (geometry, with_winners; x)       -> values, *winners        (static arguments; arrays)
    route_p  :: (geometry; *winners, ct)          -> cotangent of x
    gather_p :: (geometry; *winners, t)           -> tangent of values

Their programs are in `plain.all_steps`. Being primitives has three advantages. Tracing is short: result types follow
from the geometry, and the taps are written out once, when a program is lowered, for its platform. A batch is one more
axis of the geometry, so vmap costs nothing. And JAX knows that route and gather are transposes of each other:
transposed operation by operation, they would become scatters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jpool import jax_extensions as extensions
from jpool.pooling.integers.geometry import Geometry, identity
from jpool.pooling.plain import all_steps
from jpool.pooling.plain.all_steps import Platform, Winners
from jpool.pooling.plain.steps import steps
from jpool.pooling.plain.ties import RULES

select_p, route_p, gather_p = (extensions.Primitive(f"max_pool_{name}") for name in ("select", "route", "gather"))
select_p.multiple_results = True


def select(geometry: Geometry, x: jax.Array) -> tuple[jax.Array, Winners]:
    """See `all_steps.select`."""
    values, *winners = extensions.bind(select_p, x, geometry=geometry, with_winners=True)
    return values, tuple(winners)


def select_values(geometry: Geometry, x: jax.Array) -> jax.Array:
    """The values of `select`."""
    return extensions.bind(select_p, x, geometry=geometry, with_winners=False)[0]


def route(geometry: Geometry, winners: Winners, ct: jax.Array) -> jax.Array:
    """See `all_steps.route`."""
    return extensions.bind(route_p, *winners, ct, geometry=geometry)


def gather(geometry: Geometry, winners: Winners, t: jax.Array) -> jax.Array:
    """See `all_steps.gather`."""
    return extensions.bind(gather_p, *winners, t, geometry=geometry)


# --- types ---


def _type(operands: Any, geometry: Geometry, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """The type of a result: sharded as the operands are along identity axes, replicated along the others."""
    return extensions.result_type(
        operands, shape, [i for i, axis in enumerate(geometry.axes) if axis.is_identity], dtype
    )


def _types_of_select(x: Any, *, geometry: Geometry, with_winners: bool) -> list[Any]:
    kept = steps(geometry) if with_winners else ()
    dtypes = [RULES[geometry.ties].winners_dtype(step) for step in kept]
    winners = [_type([x], geometry, step.values_shape, dtype) for step, dtype in zip(kept, dtypes, strict=True)]
    return [_type([x], geometry, geometry.values_shape), *winners]


select_p.def_abstract_eval(_types_of_select)
route_p.def_abstract_eval(lambda *arrays, geometry: _type(arrays, geometry, geometry.example_shape))
gather_p.def_abstract_eval(lambda *arrays, geometry: _type(arrays, geometry, geometry.values_shape))


# --- derivatives ---


def _select_jvp(primals: Any, tangents: Any, *, geometry: Geometry, with_winners: bool) -> Any:
    values, winners = select(geometry, *primals)
    (t,) = tangents
    tangent = extensions.no_tangent(values) if extensions.is_zero(t) else gather(geometry, winners, t)
    kept = winners if with_winners else ()
    return [values, *kept], [tangent, *map(extensions.no_tangent, kept)]


extensions.define_jvp(select_p, _select_jvp)
extensions.define_linear(route_p, lambda geometry: (gather_p, {"geometry": geometry}))
extensions.define_linear(gather_p, lambda geometry: (route_p, {"geometry": geometry}))


# --- batches ---


def _batched(primitive: extensions.Primitive, operands: Any, axes: Any, *, geometry: Geometry, **params: Any) -> Any:
    moved = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(operands, axes, strict=True)]
    batch = next(array for array, axis in zip(moved, axes, strict=True) if axis is not None)
    batched = [
        extensions.repeat_for_batch(a, batch) if axis is None else a for a, axis in zip(moved, axes, strict=True)
    ]
    with_batch = geometry._replace(axes=(identity(batch.shape[0]), *geometry.axes))
    out = extensions.bind(primitive, *batched, geometry=with_batch, **params)
    return out, [0] * len(out) if primitive.multiple_results else 0


# --- programs ---


def _select_program(platform: Platform, x: jax.Array, *, geometry: Geometry, with_winners: bool) -> list[jax.Array]:
    if not with_winners and platform.select_values:
        return [platform.select_values(geometry, x)]
    values, winners = all_steps.select(platform, geometry, x)
    return [values, *winners] if with_winners else [values]


def _linear_program(function: Callable[..., Any], platform: Platform, *arrays: jax.Array, geometry: Geometry) -> Any:
    *winners, array = arrays
    return function(platform, geometry, tuple(winners), array)


PROGRAMS: dict[extensions.Primitive, Callable[..., Any]] = {
    select_p: _select_program,
    route_p: partial(_linear_program, all_steps.route),
    gather_p: partial(_linear_program, all_steps.gather),
}


def define_platform(name: str | None, platform: Platform) -> None:
    """Lowers all primitives in the way of a platform: "cpu", "tpu", "cuda", "rocm"; None for all others."""
    for primitive, program in PROGRAMS.items():
        extensions.define_lowering(primitive, partial(program, platform), name)


for primitive in PROGRAMS:
    extensions.define_eager(primitive)
    extensions.define_batching(primitive, partial(_batched, primitive))
define_platform(None, Platform())
