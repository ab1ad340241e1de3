"""Every convolution of a function with channels last, whatever its own layout. For two faults of XLA.

Under `jax.vmap`, the gradient of a convolution's weights is one convolution with a group for each example, whose axes
are in an unusual order. In a loop XLA:CPU does not use its fast routine for it (jax#12868): 5 to 25 times as slow. And
where a batch is split over devices and no mesh is given, XLA's partitioner reads its result wrongly: all examples
outside the first device get a wrong gradient, silently. With channels last, the usual order, neither happens. For one
device the compiled programs are the same, because XLA chooses the layout in memory itself.

It does not make XLA's partitioner right in every case: if other axes than that of the examples are split as well, by
way of the parameters for example, it may still be wrong. Only `mesh=` is always right.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jpool.checks import is_int
from jpool.jax_extensions import core, is_staging
from jpool.jaxprs import Rewriter, calling


def with_channels_last(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, whose convolutions have channels last in a program.

    Outside of one, operations run alone, on one device and in no loop, and the function stays as it is.
    """

    def of_arrays(*arguments: Any) -> Any:
        if not is_staging():
            return function(*arguments)
        jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = core.jaxpr_as_fun(_rewritten(jaxpr))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return of_arrays


def _with_channels_last(equation: Any, _: Any) -> Any:
    if equation.primitive is not lax.conv_general_dilated_p:
        return equation
    return calling(partial(_convolve_channels_last, **equation.params), equation)


_rewritten = Rewriter(_with_channels_last)


def _convolve_channels_last(x: jax.Array, kernel: jax.Array, *, dimension_numbers: Any, **options: Any) -> jax.Array:
    of_x, of_kernel, of_result = dimension_numbers
    last, spatial = x.ndim - 1, range(1, x.ndim - 1)
    numbers = lax.ConvDimensionNumbers((0, last, *spatial), (last, last - 1, *range(last - 1)), (0, last, *spatial))
    x = x.transpose(of_x[0], *of_x[2:], of_x[1])
    kernel = kernel.transpose(*of_kernel[2:], of_kernel[1], of_kernel[0])
    result = _convolve(x, kernel, dimension_numbers=numbers, **options)
    order = (of_result[0], *of_result[2:], of_result[1])
    return result.transpose([order.index(axis) for axis in range(x.ndim)])


def _convolve(
    x: jax.Array, kernel: jax.Array, *, feature_group_count: Any, batch_group_count: Any, **options: Any
) -> jax.Array:
    """One convolution; or, if the number of groups is symbolic, which XLA does not allow, a loop over them."""
    groups = feature_group_count * batch_group_count  # one of them is 1
    convolve = partial(lax.conv_general_dilated_p.bind, **options)
    if is_int(groups):
        return convolve(x, kernel, feature_group_count=feature_group_count, batch_group_count=batch_group_count)
    axis = -1 if batch_group_count == 1 else 0
    alone = partial(convolve, feature_group_count=1, batch_group_count=1)
    results = lax.map(lambda group: alone(*group), (_split(x, axis, groups), _split(kernel, -1, groups)))
    return jnp.moveaxis(results, 0, -2).reshape(*results.shape[1:-1], groups * results.shape[-1])


def _split(array: jax.Array, axis: int, groups: Any) -> jax.Array:
    """The groups along an axis, as a new first axis."""
    axis %= array.ndim
    size = array.shape[axis] // groups
    return jnp.moveaxis(array.reshape(*array.shape[:axis], groups, size, *array.shape[axis + 1 :]), axis, 0)
