"""max_unpool: every value back at its place. The transpose of reading at those places, and told to JAX as such.

Where the geometry of the pooling is given, an index says which tap of its window won, and unpooling is `route`. Where
it is not, places are known only at run time, so this is usually a scatter, which adds in no fixed order on a GPU.
Turned around it reads: every place asks the few elements that can lie there. Which ones can, follows from the indices:
along each axis, those between the first and the last row of argmax that holds this coordinate or has it between its
lowest and its highest. For the argmax of a pooling these are the windows that cover the place, however they were laid
out; for any other array of indices it is right as well, and slower.
"""

import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool import arguments
from jpool.examples import channels_back, channels_last, index_array, places, real_array
from jpool.geometry import Geometry, resolve
from jpool.linear import Pair, apply
from jpool.pooling.backward import to_accumulator
from jpool.pooling.primitives import route
from jpool.pooling.ties import RULES

Arrays = tuple[jax.Array, ...]


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
    """Puts each value of ONE example back at its place, and zeros elsewhere.

    The exact transpose of reading an example at argmax. A batch is `jax.vmap`.

    Give the geometry of the pooling that argmax is from, window_shape and what follows it, wherever you have it: then
    unpooling is the backward pass of that pooling, one kernel without a loop. Without it the places that can lie in a
    window are found at run time, by searches and a loop whose length depends on argmax: 46 kernels on an H100, and
    the host waits for each turn of the loop.

    ========================================  =========================================================================
    several values at one place               add up, as where windows overlap (torch keeps one of them, and its
                                              gradient belongs to another function)
    -1                                        is skipped; so no value goes there, and its gradient is 0
    a place outside the grid, or one that     an error where argmax is known, skipped like -1 under `jax.jit` and
    its window does not cover                 `jax.vmap`, where it is not
    16-bit and 8-bit floats                   add up in float32 and are rounded once
    integers                                  add up and wrap around, as everywhere in JAX
    ========================================  =========================================================================

    Linear in values, and differentiable in both modes to any order: the gradient of values reads the cotangent at
    argmax. Deterministic: what meets at one place adds up in a fixed order. No scatter.

    Args:
      values: one example, `(*pooled, channels)`, `(channels, *pooled)` or `(*pooled,)`, any real dtype.
      argmax: integers of the same shape, the flat row-major place of each value in the spatial grid of its channel, or
        -1: what `max_pool_with_argmax` returns, or torch.
      spatial_shape: ints >= 1, the spatial shape of the result: that of the example that was pooled.
      window_shape: as for `max_pool_with_argmax`, and so are the others; None if the geometry is not known.
      strides: an int or one per spatial axis; None is 1 on every axis.
      padding: "VALID", "SAME", "SAME_LOWER", an int, or per spatial axis an int or a pair (low, high); >= 0.
      window_dilation: an int or one per spatial axis; None is 1.
      ceil_mode: rounds the number of windows up instead of down, by torch's and ONNX's rule.
      channel_axis: -1 for channels last, 0 for channels first, None for no channels.

    Returns:
      One example of that spatial shape, with the channels, layout and dtype of values.

    Raises:
      TypeError: values or argmax is not an array of numbers or integers, or an argument is not of the type above.
      ValueError: the shapes do not go together, the grid has more than 2**31 places, strides and the like are given
        without window_shape, or argmax is known and holds a place outside the grid or outside its window.

    Example:
      >>> import jpool
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 5.0, 2.0, 0.0], [3.0, 4.0, 2.0, 2.0]])
      >>> values, argmax = jpool.max_pool_with_argmax(x, (2, 2), 2, channel_axis=None)
      >>> jpool.max_unpool(values, argmax, x.shape, (2, 2), 2, channel_axis=None)
      Array([[0., 5., 2., 0.],
             [0., 0., 0., 0.]], dtype=float32)
    """
    sizes = arguments.sizes("max_unpool", "spatial_shape", spatial_shape)
    arguments.channel_axis("max_unpool", channel_axis)
    call = f"jax.vmap(lambda values, argmax: jpool.max_unpool(values, argmax, {sizes}, ...))(values, argmax)"
    given, argmax = argmax, index_array("max_unpool", call, argmax, sizes, channel_axis)
    values = real_array("max_unpool", "values", values)
    if values.shape != argmax.shape:
        raise ValueError(
            f"max_unpool: values must have the shape of argmax, {argmax.shape}, a place for every value; got "
            f"{values.shape}."
        )
    options = {"strides": strides, "padding": padding, "window_dilation": window_dilation, "ceil_mode": ceil_mode}
    if window_shape is None:
        _no_geometry(options)
        return _unpool(sizes, channel_axis, values, argmax)
    geometry = _geometry(argmax.shape, sizes, window_shape, options, channel_axis)
    if not isinstance(given, jax.core.Tracer):
        _check_covered(geometry, sizes, channel_axis, np.asarray(given).astype(np.int64))
    return _unpool_by_route(geometry, sizes, channel_axis, values, argmax)


def _no_geometry(options: dict[str, Any]) -> None:
    """Refuses a part of the geometry without the window."""
    for name, unset in (("strides", None), ("padding", "VALID"), ("window_dilation", None), ("ceil_mode", False)):
        if options[name] is not unset and options[name] != unset:
            raise ValueError(
                f"max_unpool: {name} belongs to the geometry of the pooling, which begins with window_shape; got "
                f"{name}={options[name]!r} and window_shape=None. Give both, or neither."
            )


def _geometry(
    shape: tuple[int, ...], sizes: tuple[int, ...], window_shape: Any, options: dict[str, Any], channel_axis: int | None
) -> Geometry:
    """The pooling whose values have that shape, or the error that says why it is another."""
    example = list(sizes)
    if channel_axis is not None:
        example.insert(channel_axis % len(shape), shape[channel_axis])
    name = "max_unpool"
    if len(arguments.window(name, window_shape)) != len(sizes):
        raise ValueError(
            f"{name}: window_shape must have {len(sizes)} entries, one for each axis of spatial_shape; got "
            f"{window_shape!r}."
        )
    geometry = resolve(name, tuple(example), window_shape, channel_axis=channel_axis, **options)
    if geometry.values_shape != shape:
        pooled = arguments.spatial_part(geometry.values_shape, channel_axis)
        raise ValueError(
            f"{name}: values and argmax must have the spatial shape that pooling {sizes} with these arguments gives, "
            f"{pooled}; got {arguments.spatial_part(shape, channel_axis)}. Give max_unpool the arguments that "
            "max_pool_with_argmax had."
        )
    return geometry


def _check_covered(geometry: Geometry, sizes: tuple[int, ...], channel_axis: int | None, argmax: np.ndarray) -> None:
    """Refuses a known place that its window does not cover."""
    _, covered = _taps(geometry, sizes, channel_axis, argmax)
    for where in map(tuple, np.argwhere(~covered & (argmax >= 0))[:1].tolist()):
        raise ValueError(
            f"max_unpool: argmax must hold places that their windows cover, or -1; got {argmax[where]} at index "
            f"{where}, where no tap of the window is. Give the geometry that argmax is from, or leave window_shape out."
        )


def _taps(geometry: Geometry, sizes: tuple[int, ...], channel_axis: int | None, argmax: Any) -> tuple[Any, Any]:
    """Which tap of its window lies at each place of a NumPy or JAX array, and whether one does."""
    number, covered = argmax * 0, argmax >= 0
    axes = [i for i in range(argmax.ndim) if channel_axis is None or i != channel_axis % argmax.ndim]
    for j, i in enumerate(axes):
        axis, along = geometry.axes[i], [-1 if k == i else 1 for k in range(argmax.ndim)]
        start = (np.arange(axis.output) * axis.stride - axis.low).astype(argmax.dtype).reshape(along)
        offset = (argmax // math.prod(sizes[j + 1 :])) % sizes[j] - start
        tap = offset // axis.dilation
        covered = covered & (offset == tap * axis.dilation) & (tap >= 0) & (tap < axis.window)
        number = number * axis.window + tap
    return number, covered


@partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _unpool_by_route(
    geometry: Geometry, sizes: tuple[int, ...], channel_axis: int | None, values: jax.Array, argmax: jax.Array
) -> jax.Array:
    taps, covered = _taps(geometry, sizes, channel_axis, argmax)
    winners = jnp.where(covered, taps, geometry.taps).astype(RULES[geometry.ties].winners_dtype(geometry))
    return route(geometry, (winners,), values)


@partial(jax.jit, static_argnums=(0, 1), inline=True)
def _unpool(sizes: tuple[int, ...], channel_axis: int | None, values: jax.Array, argmax: jax.Array) -> jax.Array:
    values, argmax = (channels_last(array, channel_axis) for array in (values, argmax))
    return channels_back(apply(Pair(_placed, _read, sizes), (argmax,), values), channel_axis)


def _read(sizes: tuple[int, ...], known: Arrays, t: jax.Array) -> jax.Array:
    """Reads t, of shape `(*sizes, channels)`, at argmax; 0 for no place."""
    (argmax,) = known
    count, channels = math.prod(sizes), argmax.shape[-1]
    if argmax.size == 0:
        return jnp.zeros(argmax.shape, t.dtype)
    at = argmax.reshape(-1, channels)
    read = jnp.take_along_axis(t.reshape(count, channels), at, axis=0, mode="clip")
    return jnp.where(at >= 0, read, jnp.zeros((), t.dtype)).reshape(argmax.shape)


def _placed(sizes: tuple[int, ...], known: Arrays, values: jax.Array) -> jax.Array:
    """The transpose of `_read`: every place adds up the values that lie there."""
    (argmax,) = known
    shape = (*sizes, argmax.shape[-1])
    sums = to_accumulator(values)
    if argmax.size == 0:
        return jnp.zeros(shape, values.dtype)
    asked = [_rows(argmax, axis, sizes) for axis in range(len(sizes))]
    most = [jnp.maximum(rows.number.max(), 1) for rows in asked]
    place = places(shape, -1)

    def add(turn: jax.Array, total: jax.Array) -> jax.Array:
        sent, at, exists = sums, argmax, jnp.ones((), bool)
        for axis in reversed(range(len(sizes))):  # the last axis turns fastest: row-major order
            rows, nth, turn = asked[axis], turn % most[axis], turn // most[axis]
            row = jnp.minimum(rows.first + nth, argmax.shape[axis] - 1)
            sent, at = (jnp.take(array, row, axis, mode="clip") for array in (sent, at))
            exists = exists & lax.broadcast_in_dim(nth < rows.number, shape, [axis])
        return total + jnp.where(exists & (at == place), sent, jnp.zeros((), sums.dtype))

    # The first turn stands outside the loop: where windows do not overlap it is the only one.
    once = add(jnp.int32(0), jnp.zeros(shape, sums.dtype))
    return lax.fori_loop(1, reduce(lax.mul, most), add, once).astype(values.dtype)


class Rows(NamedTuple):
    """For every coordinate along an axis of the grid, the rows along that axis of argmax that can hold it."""

    first: jax.Array
    number: jax.Array


def _rows(argmax: jax.Array, axis: int, sizes: tuple[int, ...]) -> Rows:
    size, apart = sizes[axis], math.prod(sizes[axis + 1 :])
    at, inside = (argmax // apart) % size, argmax >= 0
    others = tuple(i for i in range(argmax.ndim) if i != axis)
    least = jnp.where(inside, at, size).min(others)
    greatest = jnp.where(inside, at, -1).max(others)
    # Made monotone: rows before the first all end below the coordinate, rows from the last on all begin above it.
    coordinate = lax.iota(jnp.int32, size)
    first = jnp.searchsorted(lax.cummax(greatest), coordinate, side="left").astype(jnp.int32)
    last = jnp.searchsorted(lax.cummin(least, reverse=True), coordinate, side="right").astype(jnp.int32)
    return Rows(first, jnp.maximum(last - first, 0))
