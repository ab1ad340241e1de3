"""A batch in microbatches, one after the other in one program, so that only one of them is in memory.

    in_microbatches(function, size) :: batch -> (sums, per_example)   as   function :: batch -> (sums, per_example)

The loop is optax's. XLA:CPU brings a convolution into the layout of its fast routine, unless the convolution stands in
a loop (jax#12868): gradients of convolutions are 5 to 25 times as slow there. So they are brought into it here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.extend import core

SUMS_AND_ROWS = (optax.microbatching.AccumulationType.SUM, optax.microbatching.AccumulationType.CONCAT)


def in_microbatches(function: Callable[[Any], tuple[Any, Any]], size: int | None) -> Callable[[Any], tuple[Any, Any]]:
    """Applies function to `size` examples at a time, and to those that are left over at last: nothing is padded.

    What function returns first is added up, what it returns second has a row for every example.
    """

    def whole(batch: Any) -> tuple[Any, Any]:
        count = len(jax.tree.leaves(batch)[0])
        turn = min(size or count, count)
        looped = count - count % turn
        parts = [_loop(function, batch, looped, turn) if looped > turn else function(_between(batch, 0, turn))]
        if looped < count:
            parts.append(function(_between(batch, looped, count)))
        sums, rows = zip(*parts, strict=True)
        return jax.tree.map(lambda *each: sum(each[1:], each[0]), *sums), jax.tree.map(_joined, *rows)

    return whole


def _loop(function: Callable[[Any], tuple[Any, Any]], batch: Any, stop: int, turn: int) -> tuple[Any, Any]:
    """The examples before `stop`, dealt out by their places: given the batch itself, optax would copy it to deal."""

    def of_chosen(places: jax.Array) -> tuple[Any, Any]:
        return function(jax.tree.map(lambda leaf: leaf.at[places].get(mode="promise_in_bounds"), batch))

    return optax.microbatching.microbatch(with_plain_convolutions(of_chosen), 0, turn, SUMS_AND_ROWS)(jnp.arange(stop))


def with_plain_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its convolutions laid out as XLA:CPU's fast routine reads them; elsewhere as they are."""

    def laid_out(*arguments: Any) -> Any:
        jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = core.jaxpr_as_fun(_rewritten(jaxpr))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return laid_out


def _rewritten(part: Any) -> Any:
    """A jaxpr, or whatever else a parameter of a primitive may be, with every convolution in it exchanged."""
    if isinstance(part, core.Jaxpr):
        return part.replace(eqns=[_rewritten_equation(equation) for equation in part.eqns])
    if isinstance(getattr(part, "jaxpr", None), core.Jaxpr):  # closed, which is a kind of its own in older versions
        return part.replace(jaxpr=_rewritten(part.jaxpr))
    if type(part) is tuple:
        return tuple(map(_rewritten, part))
    return part


def _rewritten_equation(equation: Any) -> Any:
    if equation.primitive is not lax.conv_general_dilated_p:
        return equation.replace(params={name: _rewritten(value) for name, value in equation.params.items()})
    plain = jax.jit(partial(_convolve, **equation.params))
    (call,) = jax.make_jaxpr(plain)(*(variable.aval for variable in equation.invars)).eqns
    return call.replace(invars=equation.invars, outvars=equation.outvars)


def _convolve(x: jax.Array, kernel: jax.Array, *, dimension_numbers: Any, **options: Any) -> jax.Array:
    convolve = partial(lax.conv_general_dilated_p.bind, **options)
    as_given = partial(convolve, dimension_numbers=dimension_numbers)
    of_x, of_kernel, of_result = dimension_numbers

    def channels_last(x: jax.Array, kernel: jax.Array) -> jax.Array:
        last, spatial = x.ndim - 1, range(1, x.ndim - 1)
        numbers = lax.ConvDimensionNumbers((0, last, *spatial), (last, last - 1, *range(last - 1)), (0, last, *spatial))
        result = convolve(
            x.transpose(of_x[0], *of_x[2:], of_x[1]),
            kernel.transpose(*of_kernel[2:], of_kernel[1], of_kernel[0]),
            dimension_numbers=numbers,
        )
        order = (of_result[0], *of_result[2:], of_result[1])
        return result.transpose([order.index(axis) for axis in range(x.ndim)])

    return lax.platform_dependent(x, kernel, cpu=channels_last, default=as_given)


def _between(batch: Any, start: int, stop: int) -> Any:
    return jax.tree.map(lambda leaf: leaf if stop - start == len(leaf) else leaf[start:stop], batch)


def _joined(*rows: jax.Array) -> jax.Array:
    return jnp.concatenate(rows) if len(rows) > 1 else rows[0]
