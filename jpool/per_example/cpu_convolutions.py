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

from jpool.jax_extensions import core


def with_fast_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; in a program for a CPU, its convolutions have channels last.

    It stays as it is if it has no convolution, or if JAX refuses the rewritten one: another version of JAX may have
    jaxprs that are unknown here.
    """

    def of_arrays(*arguments: Any) -> Any:
        jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        leaves, structure = jax.tree.leaves(arguments), jax.tree.structure(shape)
        try:
            fast, as_it_is = _rewritten(jaxpr), core.jaxpr_as_fun(jaxpr)
            if fast is not jaxpr:
                results = lax.platform_dependent(*leaves, cpu=core.jaxpr_as_fun(fast), default=as_it_is)
                return jax.tree.unflatten(structure, results)
        except Exception:  # any failure: slow is better than an error
            return function(*arguments)
        return jax.tree.unflatten(structure, as_it_is(*leaves))

    return of_arrays


def _rewritten(part: Any) -> Any:
    """A jaxpr, or another parameter of an equation, with every convolution in it rewritten; itself if it has none."""
    if isinstance(part, core.Jaxpr):
        equations = [_rewritten_equation(equation) for equation in part.eqns]
        changed = any(new is not old for new, old in zip(equations, part.eqns, strict=True))
        return part.replace(eqns=equations) if changed else part
    if isinstance(getattr(part, "jaxpr", None), core.Jaxpr):  # a closed jaxpr, which is another class in older versions
        jaxpr = _rewritten(part.jaxpr)
        return part.replace(jaxpr=jaxpr) if jaxpr is not part.jaxpr else part
    if type(part) is tuple:
        parts = tuple(map(_rewritten, part))
        return parts if any(new is not old for new, old in zip(parts, part, strict=True)) else part
    return part


def _rewritten_equation(equation: Any) -> Any:
    if equation.primitive is not lax.conv_general_dilated_p:
        params = {name: _rewritten(value) for name, value in equation.params.items()}
        changed = any(params[name] is not value for name, value in equation.params.items())
        return equation.replace(params=params) if changed else equation
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
