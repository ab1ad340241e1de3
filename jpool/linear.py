"""A linear map that brings its own transpose. It knows nothing of pooling.

JAX derives the transpose of a linear map from its operations, the last one first. That of "read here" is "add there", a
scatter, and that of a loop without a known end does not exist. Where the transpose is known, as `route` is that of
`gather`, this is how JAX is told: `apply(pair, known, x)` can be differentiated in both modes, to any order, under
`jax.vmap` and `jax.jit`, and what reverse mode saves is `known`, nothing else.

`jax.custom_derivatives.linear_call` is the same but for `jax.vmap`. Hence a primitive, with its five rules.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Map = Callable[[Any, Any, jax.Array], jax.Array]


@dataclass(frozen=True)
class Pair:
    """A map `forward(static, known, x)`, linear in x, and its transpose, called alike with a cotangent for x."""

    forward: Map
    backward: Map
    static: Hashable
    lifted: tuple[tuple[int | None, ...], ...] = ()  # for every vmap around it, the axes of what is known

    @property
    def transpose(self) -> "Pair":
        """The same two, exchanged."""
        return replace(self, forward=self.backward, backward=self.forward)

    def __call__(self, *known_and_x: jax.Array) -> jax.Array:
        """The map itself, of every example there is."""

        def function(*known_and_x: jax.Array) -> jax.Array:
            *known, x = known_and_x
            return self.forward(self.static, tuple(known), x)

        for axes in self.lifted:
            function = jax.vmap(function, (*axes, 0))
        return function(*known_and_x)


def apply(pair: Pair, known: tuple[jax.Array, ...], x: jax.Array) -> jax.Array:
    """Calls `pair.forward(pair.static, known, x)`, and tells JAX the transpose; `known` has no derivative."""
    return _linear.bind(*known, x, pair=pair)


_linear = Primitive("linear_with_transpose")


@lru_cache(maxsize=1024)
def _type(*types: Any, pair: Pair) -> Any:
    return jax.make_jaxpr(pair)(*types).out_avals[0]


def _transposed(ct: Any, *known_and_x: Any, pair: Pair) -> list[Any]:
    *known, _ = known_and_x
    sent = ct if isinstance(ct, ad.Zero) else _linear.bind(*known, ct, pair=pair.transpose)
    return [*[None] * len(known), sent]


def _jvp(primals: Any, tangents: Any, *, pair: Pair) -> Any:
    out = _linear.bind(*primals, pair=pair)
    if isinstance(tangents[-1], ad.Zero):
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, _linear.bind(*primals[:-1], tangents[-1], pair=pair)


def _batched(arrays: Any, axes: Any, *, pair: Pair) -> tuple[jax.Array, int]:
    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    *known, x = (a if axis is None else jax.numpy.moveaxis(a, axis, 0) for a, axis in zip(arrays, axes, strict=True))
    if axes[-1] is None:  # of one x for all examples the transpose is a sum, which JAX knows
        x = jax.numpy.broadcast_to(x, (size, *x.shape))
    known_axes = tuple(None if axis is None else 0 for axis in axes[:-1])
    lifted = replace(pair, lifted=(*pair.lifted, known_axes))
    return _linear.bind(*known, x, pair=lifted), 0


_jitted = jax.jit(lambda pair, *arrays: pair(*arrays), static_argnums=0)
_linear.def_impl(lambda *arrays, pair: _jitted(pair, *arrays))
_linear.def_abstract_eval(_type)
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transposed
batching.primitive_batchers[_linear] = _batched
mlir.register_lowering(_linear, mlir.lower_fun(lambda *arrays, pair: pair(*arrays), multiple_results=False))
