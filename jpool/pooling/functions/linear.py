"""A linear map with a user-defined transpose. Independent of pooling.

JAX transposes a linear map operation by operation. The transpose of "read here" is then "add there", a scatter, and a
loop without a static length has none. `apply(pair, residuals, x)` tells JAX the transpose instead. It can be
differentiated in both modes, to any order, under `jax.vmap` and `jax.jit`; reverse mode saves only the residuals.

`jax.custom_derivatives.linear_call` does the same, but not under `jax.vmap`. Hence a primitive.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from jpool.jax_extensions import (
    Primitive,
    bind,
    define_batching,
    define_eager,
    define_linear,
    define_lowering,
    plain_type,
    repeat_for_batch,
    result_type,
)

Map = Callable[[Any, Any, jax.Array], jax.Array]


@dataclass(frozen=True)
class Pair:
    """A map `forward(static, residuals, x)`, linear in x, and its transpose, called likewise with a cotangent for x.

    The residuals, x, and the result have the same axes; along those that are not in `changed_axes` they have the same
    sizes, and may be sharded.
    """

    forward: Map
    backward: Map
    static: Hashable
    changed_axes: tuple[int, ...]
    vmapped: tuple[tuple[int | None, ...], ...] = ()  # for every vmap around it, the batch axes of the residuals

    @property
    def transpose(self) -> "Pair":
        """The same two, exchanged."""
        return replace(self, forward=self.backward, backward=self.forward)

    def __call__(self, *residuals_and_x: jax.Array) -> jax.Array:
        """The map itself, of all examples."""

        def function(*residuals_and_x: jax.Array) -> jax.Array:
            *residuals, x = residuals_and_x
            return self.forward(self.static, tuple(residuals), x)

        for axes in self.vmapped:
            function = jax.vmap(function, (*axes, 0))
        return function(*residuals_and_x)


def apply(pair: Pair, residuals: tuple[jax.Array, ...], x: jax.Array) -> jax.Array:
    """`pair.forward(pair.static, residuals, x)`, with `pair.backward` as transpose. Residuals have no derivative."""
    return bind(_linear, *residuals, x, pair=pair)


_linear = Primitive("linear_with_transpose")


@lru_cache(maxsize=1024)
def _type(*types: Any, pair: Pair) -> Any:
    """The type of the result: sharded as the operands are, but replicated along the changed axes."""
    result = jax.make_jaxpr(pair)(*map(plain_type, types)).out_avals[0]
    batch, rank = len(pair.vmapped), len(result.shape)
    return result_type(types, result.shape, [i for i in range(rank) if i - batch not in pair.changed_axes])


def _batched(operands: Any, axes: Any, *, pair: Pair) -> tuple[jax.Array, int]:
    *residuals, x = (a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(operands, axes, strict=True))
    residual_axes = tuple(None if axis is None else 0 for axis in axes[:-1])
    if axes[-1] is None:  # one x for all examples: the transpose is a sum, which JAX derives from the broadcast
        x = repeat_for_batch(x, residuals[residual_axes.index(0)])
    return _linear.bind(*residuals, x, pair=replace(pair, vmapped=(*pair.vmapped, residual_axes))), 0


define_eager(_linear)
_linear.def_abstract_eval(_type)
define_linear(_linear, lambda pair: (_linear, {"pair": pair.transpose}))
define_batching(_linear, _batched)
define_lowering(_linear, lambda *operands, pair: pair(*operands), shardings=False)
