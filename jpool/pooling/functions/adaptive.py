"""Adaptive pooling: a given number of windows for an example of any size. Global pooling: one window."""

from collections.abc import Sequence
from functools import partial
from itertools import repeat
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.checks import check_flag
from jpool.pooling.derivative.vjp import pool, pool_with_argmax
from jpool.pooling.functions.inputs import check_unsharded, flat_indices, real_array
from jpool.pooling.functions.linear import Pair, apply
from jpool.pooling.functions.parts import Pass, passes, window_elements
from jpool.pooling.integers import arguments
from jpool.pooling.integers.geometry import Axis, Geometry
from jpool.pooling.plain.arrays import to_accumulator


def adaptive_max_pool(
    x: jax.Array | np.ndarray,
    output_shape: Sequence[int | None],
    *,
    channel_axis: int | None = -1,
    forward_mode: bool = False,
) -> jax.Array:
    """Pools ONE example to a given shape: along each axis, window i of o reads floor(i n/o) to ceil((i+1) n/o).

    These are the windows of torch and Keras; Equinox's differ. There may be more windows than elements. Winners, ties,
    NaN, dtypes and derivatives are as in `max_pool`: the first maximum of a window wins.

    Args:
      x: one example: `(*spatial, channels)`, `(channels, *spatial)` or `(*spatial,)`, depending on `channel_axis`, any
        real dtype.
      output_shape: the number of windows along each spatial axis: ints >= 1, or None to keep the size of the axis.
        An int is refused.
      channel_axis: -1 for channels last, 0 for channels first, None for no channels.
      forward_mode: whether to allow forward mode (`jax.jvp`, `jax.jacfwd`, `jax.linearize`) as well.

    Returns:
      The maxima, with the dtype and layout of x; the spatial shape is output_shape.

    Raises:
      TypeError: x is not an array of real numbers, or another argument is not of the type above (a traced one is not).
      ValueError: an argument has a wrong length or sign, x has a wrong rank (a batch without `jax.vmap`, say) or an
        empty spatial axis, or there are more than 2**24 windows along an axis that they do not divide evenly.

    Example:
      >>> import jax, jpool
      >>> import jax.numpy as jnp
      >>> x = jnp.array([3.0, 1.0, 4.0, 1.0, 5.0])  # windows 0 to 2, 1 to 4, 3 to 5
      >>> jpool.adaptive_max_pool(x, (3,), channel_axis=None)
      Array([3., 4., 5.], dtype=float32)
      >>> jax.grad(lambda x: jpool.adaptive_max_pool(x, (3,), channel_axis=None).sum())(x)
      Array([1., 0., 1., 0., 1.], dtype=float32)
    """
    x, outputs = _resolve("adaptive_max_pool", x, output_shape, channel_axis, forward_mode)
    return _pool(outputs, x, bool(forward_mode))


def adaptive_max_pool_with_argmax(
    x: jax.Array | np.ndarray,
    output_shape: Sequence[int | None],
    *,
    channel_axis: int | None = -1,
    forward_mode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Pools ONE example to a given shape, and returns the indices of the maxima as well.

    Args:
      x: one example, as for `adaptive_max_pool`.
      output_shape: the number of windows along each spatial axis: ints >= 1, or None to keep the size of the axis.
      channel_axis: -1 for channels last, 0 for channels first, None for no channels.
      forward_mode: whether to allow forward mode of the values as well.

    Returns:
      values: as `adaptive_max_pool`'s, with their derivative.
      argmax: int32, same shape: the flat row-major index of each winner in the spatial grid of its channel (torch's
        convention).

    Raises:
      TypeError: as `adaptive_max_pool`.
      ValueError: as `adaptive_max_pool`, or the spatial grid has more than 2**31 elements.

    Example:
      >>> import jpool
      >>> import jax.numpy as jnp
      >>> x = jnp.array([3.0, 1.0, 4.0, 1.0, 5.0])
      >>> jpool.adaptive_max_pool_with_argmax(x, (3,), channel_axis=None)
      (Array([3., 4., 5.], dtype=float32), Array([0, 2, 4], dtype=int32))
    """
    name = "adaptive_max_pool_with_argmax"
    x, outputs = _resolve(name, x, output_shape, channel_axis, forward_mode)
    arguments.check_indices_fit(name, "x", arguments.without_channels(x.shape, channel_axis))
    return _pool_with_argmax(outputs, x, bool(forward_mode), flat_indices(x.shape, channel_axis))


def global_max_pool(
    x: jax.Array | np.ndarray, *, keepdims: bool = False, channel_axis: int | None = -1, forward_mode: bool = False
) -> jax.Array:
    """Takes the maximum of every channel of ONE example.

    The rules are `max_pool`'s: the first maximum receives the whole cotangent, whereas `jnp.max` shares it among all.

    Args:
      x: one example of any rank: `(*spatial, channels)`, `(channels, *spatial)` or `(*spatial,)`, any real dtype. A
        batch looks like an example, also a batch (B, H, W) of maps without channels, and would silently be pooled as
        one: map over it, `jax.vmap(lambda x: jpool.global_max_pool(x, channel_axis=None))(maps)`.
      keepdims: whether the spatial axes stay, with size 1, as in torch's `AdaptiveMaxPool(1)` and ONNX's
        `GlobalMaxPool`; Keras drops them by default.
      channel_axis: -1 for channels last, 0 for channels first, None for no channels.
      forward_mode: whether to allow forward mode (`jax.jvp`, `jax.jacfwd`, `jax.linearize`) as well.

    Returns:
      The maxima, shape `(channels,)` or `()`.

    Raises:
      TypeError: x is not an array of real numbers, or an argument is not of the type above.
      ValueError: x has no spatial axis, or an empty one.

    Example:
      >>> import jpool
      >>> import jax.numpy as jnp
      >>> jpool.global_max_pool(jnp.arange(24.0).reshape(3, 4, 2))
      Array([22., 23.], dtype=float32)
    """
    x = real_array("global_max_pool", "x", x)
    check_flag("global_max_pool", "keepdims", keepdims)
    arguments.check_channel_axis("global_max_pool", channel_axis)
    rank = x.ndim - (channel_axis is not None)
    if rank < 1:
        raise ValueError(
            f"global_max_pool: x must have at least one spatial axis beside its channels; got shape {x.shape} and "
            f"channel_axis={channel_axis}. If it has no channels, use channel_axis=None."
        )
    x, outputs = _resolve("global_max_pool", x, (1,) * rank, channel_axis, forward_mode)
    values = _pool(outputs, x, bool(forward_mode))
    return values if keepdims else values.reshape(() if channel_axis is None else x.shape[channel_axis])


def _resolve(
    function: str, x: Any, output_shape: Any, channel_axis: Any, forward_mode: Any
) -> tuple[jax.Array, tuple[int, ...]]:
    """The arguments, checked: x as an array, and the number of windows along each of its axes."""
    x = real_array(function, "x", x)
    entries = output_shape if isinstance(output_shape, (tuple, list)) else ()
    without_none = tuple(1 if entry is None else entry for entry in entries) or output_shape
    outputs = arguments.sizes(function, "output_shape", without_none)
    arguments.check_channel_axis(function, channel_axis)
    check_flag(function, "forward_mode", forward_mode)
    sizes = arguments.spatial_sizes(function, x.shape, "output_shape", outputs, channel_axis)
    choices = zip(entries, sizes, outputs, strict=True)
    outputs = tuple(size if entry is None else output for entry, size, output in choices)
    every_axis = [*outputs]
    if channel_axis is not None:
        every_axis.insert(channel_axis % x.ndim, x.shape[channel_axis])
    arguments.check_windows(function, sizes, outputs)
    pooled = [i for i, output in enumerate(every_axis) if output != x.shape[i]]
    check_unsharded(function, "x", x, pooled)
    return x, tuple(every_axis)


@partial(jax.jit, static_argnums=(0, 2), inline=True)
def _pool(outputs: tuple[int, ...], x: jax.Array, forward_mode: bool) -> jax.Array:
    if (geometry := _regular(x.shape, outputs)) is not None:
        return pool(geometry, x, forward_mode)
    values = to_accumulator(x)  # so that what the parts send to one element adds up in float32 as well
    for one_pass in passes(x.shape, outputs):
        pieces = zip(one_pass.parts, _slices(one_pass, values), strict=True)
        values = _concatenate(one_pass, [pool(part.geometry, piece, forward_mode) for part, piece in pieces])
        # Without the barrier XLA:GPU fuses the backward passes of all axes into one kernel, which repeats all the work.
        values = lax.optimization_barrier(values)
    return values.astype(x.dtype)


@partial(jax.jit, static_argnums=(0, 2), inline=True)
def _pool_with_argmax(
    outputs: tuple[int, ...], x: jax.Array, forward_mode: bool, argmax: jax.Array
) -> tuple[jax.Array, jax.Array]:
    if (geometry := _regular(x.shape, outputs)) is not None:
        return pool_with_argmax(geometry, x, forward_mode, argmax)
    values = to_accumulator(x)
    for one_pass in passes(x.shape, outputs):
        pieces = zip(one_pass.parts, _slices(one_pass, values), _slices(one_pass, argmax), strict=True)
        pooled = [pool_with_argmax(part.geometry, piece, forward_mode, indices) for part, piece, indices in pieces]
        values, argmax = (_concatenate(one_pass, arrays) for arrays in zip(*pooled, strict=True))
    return values.astype(x.dtype), argmax


def _regular(sizes: tuple[int, ...], outputs: tuple[int, ...]) -> Geometry | None:
    """The whole as one pooling, if along each axis all windows are adjacent and of one size."""
    if any(output and size % output for size, output in zip(sizes, outputs, strict=True)):
        return None
    windows = [size // output if output else 1 for size, output in zip(sizes, outputs, strict=True)]
    return Geometry(tuple(Axis(*axis) for axis in zip(sizes, windows, windows, repeat(1), repeat(0), outputs)))


def _slices(one_pass: Pass, array: jax.Array) -> list[jax.Array]:
    """What each part pools."""
    shape, axis = array.shape, one_pass.axis
    grouped = array.reshape(*shape[:axis], one_pass.groups, shape[axis] // one_pass.groups, *shape[axis + 1 :])
    if one_pass.windows is not None:
        grouped = apply(Pair(_read_windows, _add_up, (axis + 1, *one_pass.windows), (axis + 1,)), (), grouped)
    return [lax.slice_in_dim(grouped, part.start, part.stop, axis=axis + 1) for part in one_pass.parts]


def _read_windows(static: tuple[int, int, int], _: Any, array: jax.Array) -> jax.Array:
    """Reads `window_elements` along an axis."""
    axis, *windows = static
    return jnp.take(array, window_elements(*windows), axis, mode="clip")


def _add_up(static: tuple[int, int, int], _: Any, ct: jax.Array) -> jax.Array:
    """The transpose of `_read_windows`: every element adds up what was read from it. No scatter."""
    axis, size, output = static
    elements = window_elements(size, output)
    order, count = np.argsort(elements, kind="stable"), np.bincount(elements, minlength=size)
    nth = np.arange(count.max())
    places = order[np.minimum((np.cumsum(count) - count)[:, None] + nth, len(order) - 1)]
    read = jnp.take(ct, places, axis, mode="clip")
    exists = lax.broadcast_in_dim(nth < count[:, None], read.shape, (axis, axis + 1))
    return jnp.where(exists, read, jnp.zeros((), ct.dtype)).sum(axis + 1, dtype=ct.dtype)


def _concatenate(one_pass: Pass, arrays: Sequence[jax.Array]) -> jax.Array:
    """The results of the parts as one array."""
    array, axis = lax.concatenate(arrays, one_pass.axis + 1), one_pass.axis
    return array.reshape(*array.shape[:axis], array.shape[axis] * array.shape[axis + 1], *array.shape[axis + 2 :])
