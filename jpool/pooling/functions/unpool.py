"""max_unpool: the transpose of reading an array at argmax.

With the geometry of the pooling, an index determines which tap of its window won, and unpooling is `route` in one step,
for any argmax inside its windows. Without it, which values an element receives is known only at run time: a scatter,
JAX's own. So is a window of many taps, because one step would be a long program.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jpool.pooling.derivative.primitives import route
from jpool.pooling.functions.inputs import (
    as_concrete,
    check_same_devices,
    check_unsharded,
    index_array,
    inside,
    real_array,
)
from jpool.pooling.integers import arguments
from jpool.pooling.integers.geometry import Geometry, resolve
from jpool.pooling.plain.arrays import to_accumulator
from jpool.pooling.plain.ties import RULES

Sizes = tuple[int, ...]
MAX_STEP_TAPS = 64  # of a window that is one step; for larger ones the program would be long


def max_unpool(
    values: jax.Array | np.ndarray,
    argmax: jax.Array | np.ndarray,
    spatial_shape: Sequence[int],
    window_shape: Sequence[int] | None = None,
    strides: int | Sequence[int] | None = None,
    padding: str | int | Sequence[int | Sequence[int]] = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
    channel_axis: int | None = -1,
) -> jax.Array:
    """Puts each value of ONE example back where argmax found it, and zeros elsewhere.

    The exact transpose of reading an example at argmax. For a batch use `jax.vmap`.

    If you can, give the geometry of the pooling that argmax is from: window_shape and the arguments after it. Unpooling
    is then the backward pass of that pooling: every element reads the windows that cover it, values with one index add
    up in a fixed order, and nothing is scattered. Without it, and for windows of more than 64 taps, it is JAX's
    scatter-add: on a GPU, sums of several values at one index then have no fixed order, and may be rounded differently
    from run to run.

    ========================================  =========================================================================
    several values with one index             add up, as where windows overlap (torch keeps one of them, and its
                                              gradient does not match that)
    index -1                                  the value is skipped, and its gradient is 0
    an index outside the grid, or one that    an error if argmax is concrete; skipped like -1 if it is traced, under
    its window does not cover                 `jax.jit` and `jax.vmap`
    16-bit and 8-bit floats                   add up in float32 and are rounded once
    integers; bool                            add up and wrap around, as everywhere in JAX; True if any value is
    ========================================  =========================================================================

    Linear in values, and differentiable in both modes to any order: the gradient of values reads the cotangent at
    argmax.

    Args:
      values: one example, `(*pooled, channels)`, `(channels, *pooled)` or `(*pooled,)`, any real dtype.
      argmax: integers of the same shape, the flat row-major index of each value in the spatial grid of its channel, or
        -1: the argmax of `max_pool_with_argmax`, or torch's indices.
      spatial_shape: ints >= 1, the spatial shape of the result: that of the example that was pooled.
      window_shape: as for `max_pool_with_argmax`, like the arguments after it; None without a geometry.
      strides: an int or one per spatial axis; None is 1 on every axis.
      padding: "VALID", "SAME", "SAME_LOWER", an int, or per spatial axis an int or a pair (low, high); >= 0.
      window_dilation: an int or one per spatial axis; None is 1.
      ceil_mode: rounds the number of windows up instead of down, by torch's and ONNX's rule.
      channel_axis: -1 for channels last, 0 for channels first, None for no channels.

    Returns:
      One example of that spatial shape, with the channels, layout and dtype of values.

    Raises:
      TypeError: values is not an array of real numbers, argmax not one of integers, or an argument has another type.
      ValueError: the shapes do not match, the grid has more than 2**31 elements, another part of the geometry is given
        without window_shape, or a concrete argmax holds an index outside the grid or outside its window.

    Example:
      >>> import jpool
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 5.0, 2.0, 0.0], [3.0, 4.0, 2.0, 2.0]])
      >>> values, argmax = jpool.max_pool_with_argmax(x, (2, 2), 2, channel_axis=None)
      >>> jpool.max_unpool(values, argmax, x.shape, (2, 2), 2, channel_axis=None)
      Array([[0., 5., 2., 0.],
             [0., 0., 0., 0.]], dtype=float32)
    """
    name = "max_unpool"
    sizes = arguments.sizes(name, "spatial_shape", spatial_shape)
    arguments.check_channel_axis(name, channel_axis)
    call = f"lambda values, argmax: jpool.max_unpool(values, argmax, {sizes}, ...)", "(values, argmax)"
    indices = index_array(name, call, argmax, sizes, channel_axis)
    values = real_array(name, "values", values)
    if values.shape != indices.shape:
        raise ValueError(
            f"{name}: values must have the shape of argmax, {indices.shape}, one index for each value; got "
            f"{values.shape}."
        )
    check_same_devices(name, values=values, argmax=indices)
    check_unsharded(name, "values", values, arguments.spatial_axes(values.ndim, channel_axis))
    options = {"strides": strides, "padding": padding, "window_dilation": window_dilation, "ceil_mode": ceil_mode}
    geometry = None
    if window_shape is None:
        _check_no_geometry(name, options)
    else:
        geometry = _geometry(name, indices.shape, sizes, window_shape, options, channel_axis)
        if (concrete := as_concrete(argmax, indices)) is not None:
            _check_covered(name, geometry, sizes, channel_axis, concrete.astype(np.int64))
    return _unpool(geometry, sizes, channel_axis, values, indices)


@partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _unpool(
    geometry: Geometry | None, sizes: Sizes, channel_axis: int | None, values: jax.Array, argmax: jax.Array
) -> jax.Array:
    argmax = inside(argmax, sizes)
    numbers = to_accumulator(values) if values.dtype != np.bool_ else values.astype(jnp.int32)
    if geometry is not None:
        taps, covered = _taps(geometry, sizes, channel_axis, argmax)
        argmax = jnp.where(covered, argmax, -1)
        if geometry.taps <= MAX_STEP_TAPS:
            winners = jnp.where(covered, taps, geometry.taps).astype(RULES[geometry.ties].winners_dtype(geometry))
            return route(geometry._replace(one_step=True), (winners,), numbers).astype(values.dtype)
    return _scatter(sizes, channel_axis, numbers, argmax).astype(values.dtype)


def _scatter(sizes: Sizes, channel_axis: int | None, values: jax.Array, argmax: jax.Array) -> jax.Array:
    """JAX's scatter-add at flat indices, in each channel; -1 is skipped."""
    values = jnp.where(argmax < 0, jnp.zeros((), values.dtype), values)  # on an Explicit mesh: now sharded as argmax is
    argmax = argmax + jnp.zeros_like(values, jnp.int32)  # and argmax as values are

    def of_channel(values: jax.Array, argmax: jax.Array) -> jax.Array:
        index = jnp.maximum(argmax, 0)  # a value that is skipped is 0, and may be added anywhere
        zeros = jnp.zeros(math.prod(sizes), values.dtype)
        return zeros.at[index].add(values, mode="promise_in_bounds").reshape(sizes)

    if channel_axis is None:
        return of_channel(values, argmax)
    return jax.vmap(of_channel, channel_axis, channel_axis)(values, argmax)


def _geometry(
    name: str, shape: Sizes, sizes: Sizes, window_shape: Any, options: dict[str, Any], channel_axis: int | None
) -> Geometry:
    """The pooling, whose values must have the given shape."""
    example = list(sizes)
    if channel_axis is not None:
        example.insert(channel_axis % len(shape), shape[channel_axis])
    if len(arguments.window_sizes(name, window_shape)) != len(sizes):
        raise ValueError(
            f"{name}: window_shape must have {len(sizes)} entries, one for each axis of spatial_shape; got "
            f"{window_shape!r}."
        )
    geometry = resolve(name, tuple(example), window_shape, channel_axis=channel_axis, **options)
    if geometry.values_shape != shape:
        pooled = arguments.without_channels(geometry.values_shape, channel_axis)
        raise ValueError(
            f"{name}: values and argmax must have the spatial shape that pooling {sizes} with these arguments gives, "
            f"{pooled}; got {arguments.without_channels(shape, channel_axis)}. Give max_unpool the arguments that "
            "max_pool_with_argmax had."
        )
    arguments.check_elements_fit(name, geometry.padded_pooled_sizes)
    return geometry


def _check_covered(name: str, geometry: Geometry, sizes: Sizes, channel_axis: int | None, argmax: np.ndarray) -> None:
    """Refuses an index outside its window."""
    _, covered = _taps(geometry, sizes, channel_axis, argmax)
    for position in map(tuple, np.argwhere(~covered & (argmax >= 0))[:1].tolist()):
        raise ValueError(
            f"{name}: argmax must hold indices inside their windows, or -1; got {argmax[position]} at position "
            f"{position}, where the window has no tap. Give the geometry that argmax is from, or omit window_shape."
        )


def _taps(geometry: Geometry, sizes: Sizes, channel_axis: int | None, argmax: Any) -> tuple[Any, Any]:
    """The tap of its window at which each index is, and whether there is one. NumPy or JAX arrays."""
    number, covered = argmax * 0, argmax >= 0
    for j, i in enumerate(arguments.spatial_axes(argmax.ndim, channel_axis)):
        axis, along = geometry.axes[i], [-1 if k == i else 1 for k in range(argmax.ndim)]
        start = (np.arange(axis.output) * axis.stride - axis.low).astype(argmax.dtype).reshape(along)
        offset = (argmax // math.prod(sizes[j + 1 :])) % sizes[j] - start
        tap = offset // axis.dilation
        covered = covered & (offset == tap * axis.dilation) & (tap >= 0) & (tap < axis.window)
        number = number * axis.window + tap
    return number, covered


def _check_no_geometry(name: str, options: dict[str, Any]) -> None:
    """Refuses a part of the geometry without window_shape."""
    for option, value in options.items():
        is_default = {
            "padding": isinstance(value, str) and value.upper() == "VALID",
            "ceil_mode": isinstance(value, bool | np.bool_) and not value,
        }.get(option, value is None)
        if not is_default:
            raise ValueError(
                f"{name}: {option} is part of the geometry of the pooling, which needs window_shape; got "
                f"{option}={value!r} and window_shape=None. Give both, or neither."
            )
