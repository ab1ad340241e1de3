"""Convolutions in a loop, arranged for XLA:CPU. Without this module everything works, only slower on a CPU.

XLA:CPU has a fast routine for convolutions with channels last, and changes the layout of other convolutions to use it,
but not inside a loop (jax#12868): gradients of convolutions are 5 to 25 times as slow there. So on a CPU the layout is
changed here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax

from jpool.jax_extensions import Jaxpr, jaxpr_as_fun


def with_fast_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; where a program for a CPU contains a convolution, with channels last.

    A function that cannot be rewritten stays as it is: another version of JAX may have jaxprs unknown to this module.
    """

    def of_arrays(*arguments: Any) -> Any:
        jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        leaves, structure = jax.tree.leaves(arguments), jax.tree.structure(shape)
        as_it_is = jaxpr_as_fun(jaxpr)
        try:
            results = lax.platform_dependent(*leaves, cpu=jaxpr_as_fun(_rewritten(jaxpr)), default=as_it_is)
        except Exception:  # whatever the reason: to be slower is no error
            results = as_it_is(*leaves)
        return jax.tree.unflatten(structure, results)

    return of_arrays


def _rewritten(part: Any) -> Any:
    """A jaxpr with every convolution in it rewritten, or any other parameter of an equation as it is."""
    if isinstance(part, Jaxpr):
        return part.replace(eqns=[_rewritten_equation(equation) for equation in part.eqns])
    if isinstance(getattr(part, "jaxpr", None), Jaxpr):  # a closed jaxpr, which is another class in older versions
        return part.replace(jaxpr=_rewritten(part.jaxpr))
    if type(part) is tuple:
        return tuple(map(_rewritten, part))
    return part


def _rewritten_equation(equation: Any) -> Any:
    if equation.primitive is not lax.conv_general_dilated_p:
        return equation.replace(params={name: _rewritten(value) for name, value in equation.params.items()})
    channels_last = jax.jit(partial(_convolve_channels_last, **equation.params))
    (call,) = jax.make_jaxpr(channels_last)(*(variable.aval for variable in equation.invars)).eqns
    return call.replace(invars=equation.invars, outvars=equation.outvars)


def _convolve_channels_last(x: jax.Array, kernel: jax.Array, *, dimension_numbers: Any, **options: Any) -> jax.Array:
    of_x, of_kernel, of_result = dimension_numbers
    last, spatial = x.ndim - 1, range(1, x.ndim - 1)
    numbers = lax.ConvDimensionNumbers((0, last, *spatial), (last, last - 1, *range(last - 1)), (0, last, *spatial))
    result = lax.conv_general_dilated_p.bind(
        x.transpose(of_x[0], *of_x[2:], of_x[1]),
        kernel.transpose(*of_kernel[2:], of_kernel[1], of_kernel[0]),
        dimension_numbers=numbers,
        **options,
    )
    order = (of_result[0], *of_result[2:], of_result[1])
    return result.transpose([order.index(axis) for axis in range(x.ndim)])
