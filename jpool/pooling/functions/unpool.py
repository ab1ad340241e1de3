"""max_unpool: the transpose of reading an array at argmax, without a scatter.

With the geometry of the pooling, an index determines which tap of its window won, and unpooling is `route`.

Without it, which values an element receives is known only at run time. The usual program is a scatter, whose sums have
no fixed order on a GPU. Here every element reads the values that it may receive. They follow from argmax: along each
axis, a row of argmax is read by those coordinates that are between the smallest and the largest coordinate in it. For
the argmax of a pooling these are the windows that cover the element, whatever their geometry. Any other array of
indices works as well, but slower.
"""

import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.pooling.derivative.primitives import route
from jpool.pooling.functions.inputs import (
    as_concrete,
    channels_back,
    channels_last,
    check_unsharded,
    flat_indices,
    index_array,
    real_array,
    spatial_axes,
)
from jpool.pooling.functions.linear import Pair, apply
from jpool.pooling.integers import arguments
from jpool.pooling.integers.geometry import Geometry, resolve
from jpool.pooling.plain.arrays import to_accumulator
from jpool.pooling.plain.ties import RULES

Residuals = tuple[jax.Array, ...]
Sizes = tuple[int, ...]


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
    is then the backward pass of that pooling, one kernel without a loop. Without it the program finds at run time which
    values an element may receive, by searches and a loop whose length depends on argmax: 46 kernels on an H100, where
    the host waits for each iteration.

    ========================================  =========================================================================
    several values with one index             add up, as where windows overlap (torch keeps one of them, and its
                                              gradient does not match that)
    index -1                                  the value is skipped, and its gradient is 0
    an index outside the grid, or one that    an error if argmax is concrete; skipped like -1 if it is traced, under
    its window does not cover                 `jax.jit` and `jax.vmap`
    16-bit and 8-bit floats                   add up in float32 and are rounded once
    integers                                  add up and wrap around, as everywhere in JAX
    ========================================  =========================================================================

    Linear in values, and differentiable in both modes to any order: the gradient of values reads the cotangent at
    argmax. Deterministic: values with one index add up in a fixed order. No scatter.

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
    check_unsharded(name, "values", values, spatial_axes(values.ndim, channel_axis))
    options = {"strides": strides, "padding": padding, "window_dilation": window_dilation, "ceil_mode": ceil_mode}
    if window_shape is None:
        _check_no_geometry(name, options)
        return _unpool(sizes, channel_axis, values, indices)
    geometry = _geometry(name, indices.shape, sizes, window_shape, options, channel_axis)
    if (concrete := as_concrete(argmax, indices)) is not None:
        _check_covered(name, geometry, sizes, channel_axis, concrete.astype(np.int64))
    return _unpool_by_route(geometry, sizes, channel_axis, values, indices)


# --- with the geometry ---


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
    arguments.check_elements_fit(name, geometry.padded_shape)
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
    for j, i in enumerate(spatial_axes(argmax.ndim, channel_axis)):
        axis, along = geometry.axes[i], [-1 if k == i else 1 for k in range(argmax.ndim)]
        start = (np.arange(axis.output) * axis.stride - axis.low).astype(argmax.dtype).reshape(along)
        offset = (argmax // math.prod(sizes[j + 1 :])) % sizes[j] - start
        tap = offset // axis.dilation
        covered = covered & (offset == tap * axis.dilation) & (tap >= 0) & (tap < axis.window)
        number = number * axis.window + tap
    return number, covered


@partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _unpool_by_route(
    geometry: Geometry, sizes: Sizes, channel_axis: int | None, values: jax.Array, argmax: jax.Array
) -> jax.Array:
    taps, covered = _taps(geometry, sizes, channel_axis, argmax)
    winners = jnp.where(covered, taps, geometry.taps).astype(RULES[geometry.ties].winners_dtype(geometry))
    return route(geometry, (winners,), values)


# --- without it ---


def _check_no_geometry(name: str, options: dict[str, Any]) -> None:
    """Refuses a part of the geometry without window_shape."""
    for option, default in (("strides", None), ("padding", "VALID"), ("window_dilation", None), ("ceil_mode", False)):
        value = options[option]
        if value is not default and not (isinstance(value, str | bool) and value == default):
            raise ValueError(
                f"{name}: {option} is part of the geometry of the pooling, which needs window_shape; got "
                f"{option}={value!r} and window_shape=None. Give both, or neither."
            )


@partial(jax.jit, static_argnums=(0, 1), inline=True)
def _unpool(sizes: Sizes, channel_axis: int | None, values: jax.Array, argmax: jax.Array) -> jax.Array:
    values, argmax = (channels_last(array, channel_axis) for array in (values, argmax))
    return channels_back(apply(Pair(_put, _read, sizes, tuple(range(len(sizes)))), (argmax,), values), channel_axis)


def _read(sizes: Sizes, residuals: Residuals, t: jax.Array) -> jax.Array:
    """Reads t, of shape `(*sizes, channels)`, at argmax; 0 for -1."""
    (argmax,) = residuals
    count, channels = math.prod(sizes), argmax.shape[-1]
    if argmax.size == 0:
        return jnp.zeros(argmax.shape, t.dtype)
    index = argmax.reshape(-1, channels)
    read = jnp.take_along_axis(t.reshape(count, channels), index, axis=0, mode="clip")
    return jnp.where(index >= 0, read, jnp.zeros((), t.dtype)).reshape(argmax.shape)


def _put(sizes: Sizes, residuals: Residuals, values: jax.Array) -> jax.Array:
    """The transpose of `_read`: every element adds up the values that have its index."""
    (argmax,) = residuals
    shape = (*sizes, argmax.shape[-1])
    values_to_add = to_accumulator(values)
    if argmax.size == 0:
        return jnp.zeros(shape, values.dtype)
    rows = [_rows(argmax, axis, sizes) for axis in range(len(sizes))]
    iterations = [jnp.maximum(along.number.max(), 1) for along in rows]
    index = flat_indices(shape, -1)

    def add(iteration: jax.Array, total: jax.Array) -> jax.Array:
        value, its_index, exists = values_to_add, argmax, jnp.ones((), bool)
        for axis in reversed(range(len(sizes))):  # the last axis varies fastest: row-major order
            along, nth, iteration = rows[axis], iteration % iterations[axis], iteration // iterations[axis]
            row = jnp.minimum(along.first + nth, argmax.shape[axis] - 1)
            value, its_index = (jnp.take(array, row, axis, mode="clip") for array in (value, its_index))
            exists = exists & lax.broadcast_in_dim(nth < along.number, shape, [axis])
        return total + jnp.where(exists & (its_index == index), value, jnp.zeros((), value.dtype))

    # The first iteration is outside the loop: where windows do not overlap it is the only one.
    total = add(jnp.int32(0), jnp.zeros(shape, values_to_add.dtype))
    return lax.fori_loop(1, reduce(lax.mul, iterations), add, total).astype(values.dtype)


class Rows(NamedTuple):
    """For every coordinate along an axis of the grid, the rows along that axis of argmax that may contain it."""

    first: jax.Array
    number: jax.Array


def _rows(argmax: jax.Array, axis: int, sizes: Sizes) -> Rows:
    size, stride = sizes[axis], math.prod(sizes[axis + 1 :])
    coordinates, inside = (argmax // stride) % size, argmax >= 0
    others = tuple(i for i in range(argmax.ndim) if i != axis)
    smallest = jnp.where(inside, coordinates, size).min(others)
    largest = jnp.where(inside, coordinates, -1).max(others)
    # Made monotone: all rows before `first` end below the coordinate, all rows from `last` on start above it.
    coordinate = lax.iota(jnp.int32, size)
    first = jnp.searchsorted(lax.cummax(largest), coordinate, side="left").astype(jnp.int32)
    last = jnp.searchsorted(lax.cummin(smallest, reverse=True), coordinate, side="right").astype(jnp.int32)
    return Rows(first, jnp.maximum(last - first, 0))
