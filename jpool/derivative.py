"""The derivative of a pooling, in reverse mode and, for who asks, in forward mode.

    _values   :: (pooling; x)           -> values
    _select   :: (pooling; x)           -> (values, winners)
    _backward :: (pooling; winners, ct) -> ct of x
    _tangent  :: (pooling; winners, t)  -> t of values

`select` already has the type of a forward rule, so the wiring is one line. The winners are the whole residual: once
they are known, pooling is linear, and neither x nor the values are needed again.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.custom_derivatives import zero_from_primal

from jpool import linear, parts, routing, selection
from jpool.geometry import Geometry

Winners = Any  # an array, or arrays in tuples


class Pooling(NamedTuple):
    """Four functions, and what each of them takes first: all that is static about one pooling."""

    select: Callable[[Any, jax.Array], tuple[jax.Array, Winners]]
    largest: Callable[[Any, jax.Array], jax.Array]
    route: Callable[[Any, Winners, jax.Array], jax.Array]
    gather: Callable[[Any, Winners, jax.Array], jax.Array]
    static: Hashable


def regular(geometry: Geometry) -> Pooling:
    """Windows of one size at one distance."""
    return Pooling(selection.select, selection.largest, routing.route, routing.gather, geometry)


def irregular(static: parts.Parts) -> Pooling:
    """Windows of different sizes."""
    return Pooling(parts.select, parts.largest, parts.route, parts.gather, static)


@partial(jax.jit, static_argnums=(0, 2), inline=True)
def pool(pooling: Pooling, x: jax.Array, forward_mode: bool) -> jax.Array:
    """The values, which are differentiable."""
    return (_values_in_both_modes if forward_mode else _values)(pooling, x)


@partial(jax.jit, static_argnums=(0, 2), inline=True)
def pool_with_argmax(
    pooling: Pooling, x: jax.Array, forward_mode: bool, places: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The values, differentiable in the same way, and of the places of the elements, integers >= 0, the winner's.

    Where a window has no winner, -1.
    """
    values, winners = (_select if forward_mode else _select_in_reverse)(pooling, x)
    return values, pooling.gather(pooling.static, winners, places + 1) - 1


def _backward(pooling: Pooling, winners: Winners, ct: jax.Array) -> tuple[jax.Array | None]:
    if ct.dtype == jax.dtypes.float0:  # integers have no cotangent
        return (None,)
    return (_route(pooling, winners, ct),)


@partial(jax.jit, static_argnums=0, inline=True)  # so that outside jit, too, it is one program
def _route(pooling: Pooling, winners: Winners, ct: jax.Array) -> jax.Array:
    # Without the barrier XLA, given both passes in one program, may find winners again for every read of them.
    return pooling.route(pooling.static, jax.lax.optimization_barrier(winners), ct)


def _tangent(pooling: Pooling, values: jax.Array, winners: Winners, t: jax.Array) -> jax.Array:
    if t.dtype == jax.dtypes.float0:
        return zero_from_primal(values)
    known, structure = jax.tree.flatten(winners)
    return linear.apply(linear.Pair(_gathered, _routed, (pooling, structure)), tuple(known), t)


def _gathered(static: Any, known: tuple[jax.Array, ...], t: jax.Array) -> jax.Array:
    pooling, structure = static
    return pooling.gather(pooling.static, jax.tree.unflatten(structure, known), t)


def _routed(static: Any, known: tuple[jax.Array, ...], ct: jax.Array) -> jax.Array:
    pooling, structure = static
    return _route(pooling, jax.tree.unflatten(structure, known), ct)


# --- in both modes, by custom_jvp; reverse mode is the transpose of the tangent, `route` ---


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _select(pooling: Pooling, x: jax.Array) -> tuple[jax.Array, Winners]:
    return pooling.select(pooling.static, x)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _values_in_both_modes(pooling: Pooling, x: jax.Array) -> jax.Array:
    return pooling.largest(pooling.static, x)


@_select.defjvp
def _select_tangent(pooling: Pooling, primals: Any, tangents: Any) -> Any:
    values, winners = _select(pooling, *primals)
    return (values, winners), (_tangent(pooling, values, winners, *tangents), jax.tree.map(zero_from_primal, winners))


@_values_in_both_modes.defjvp
def _values_tangent(pooling: Pooling, primals: Any, tangents: Any) -> Any:
    values, winners = _select(pooling, *primals)
    return values, _tangent(pooling, values, winners, *tangents)


# --- in reverse mode alone, by custom_vjp; second derivatives go through `_select`, whose derivative is above ---


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _values(pooling: Pooling, x: jax.Array) -> jax.Array:
    return pooling.largest(pooling.static, x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _select_in_reverse(pooling: Pooling, x: jax.Array) -> tuple[jax.Array, Winners]:
    return pooling.select(pooling.static, x)


def _forward(pooling: Pooling, x: jax.Array) -> tuple[tuple[jax.Array, Winners], Winners]:
    values, winners = _select(pooling, x)
    return (values, winners), winners


_values.defvjp(_select, _backward)
_select_in_reverse.defvjp(_forward, lambda pooling, winners, cts: _backward(pooling, winners, cts[0]))
