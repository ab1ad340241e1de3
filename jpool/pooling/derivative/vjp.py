"""The derivative of a pooling: reverse mode by `jax.custom_vjp`, and forward mode on request.

    _values   :: (geometry; x)           -> values
    select    :: (geometry; x)           -> (values, winners)
    _backward :: (geometry; winners, ct) -> ct of x

`select` has the type of a forward rule. The winners are the only residual: given them, pooling is linear, and neither x
nor the values are needed again. `_select_with_vjp` is the same for the argmax, which needs the winners as a result too.

Forward mode and higher derivatives are rules of the primitives: the tangent of the values is `gather`. JAX could derive
reverse mode from them as well; `jax.custom_vjp` states it in one place, for the reader.
"""

from functools import partial

import jax

from jpool.pooling.derivative.primitives import gather, route, select, select_values
from jpool.pooling.integers.geometry import Geometry
from jpool.pooling.plain.all_steps import Winners
from jpool.pooling.plain.arrays import flat_indices


@partial(jax.jit, static_argnums=(0, 2), inline=True)
def pool(geometry: Geometry, x: jax.Array, forward_mode: bool) -> jax.Array:
    """The values, which are differentiable."""
    return select_values(geometry, x) if forward_mode else _values(geometry, x)


@partial(jax.jit, static_argnums=(0, 2, 3), inline=True)
def pool_with_argmax(
    geometry: Geometry, x: jax.Array, forward_mode: bool, channel_axis: int | None
) -> tuple[jax.Array, jax.Array]:
    """The values, which are differentiable, and the flat index of each winner; -1 where a window has no winner."""
    values, winners = (select if forward_mode else _select_with_vjp)(geometry, x)
    indices = flat_indices(x.shape, channel_axis)
    return values, gather(geometry, winners, indices + 1) - 1  # gather returns 0 where there is no winner


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _values(geometry: Geometry, x: jax.Array) -> jax.Array:
    return select_values(geometry, x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _select_with_vjp(geometry: Geometry, x: jax.Array) -> tuple[jax.Array, Winners]:
    return select(geometry, x)


def _select_fwd(geometry: Geometry, x: jax.Array) -> tuple[tuple[jax.Array, Winners], Winners]:
    values, winners = select(geometry, x)
    return (values, winners), winners


def _backward(geometry: Geometry, winners: Winners, ct: jax.Array) -> tuple[jax.Array | None]:
    if ct.dtype == jax.dtypes.float0:  # integers have no cotangent
        return (None,)
    return (route(geometry, winners, ct),)


_values.defvjp(select, _backward)
_select_with_vjp.defvjp(_select_fwd, lambda geometry, winners, cts: _backward(geometry, winners, cts[0]))
