"""Adaptive pooling: as many windows as asked for, whatever the size. And global pooling, which asks for one."""

from collections.abc import Sequence
from functools import partial
from itertools import repeat
from typing import Any

import jax
import numpy as np

from jpool import arguments
from jpool.examples import places, real_array
from jpool.geometry import Axis, Geometry
from jpool.parts import joined, passes, slices
from jpool.pooling.backward import to_accumulator
from jpool.pooling.vjp import pool, pool_with_argmax


def adaptive_max_pool(
    x: jax.Array | np.ndarray,
    output_shape: Sequence[int],
    *,
    channel_axis: int | None = -1,
    forward_mode: bool = False,
) -> jax.Array:
    """Pools ONE example to a given shape: along each axis, window i of o reads floor(i n/o) to ceil((i+1) n/o).

    These are torch's and Keras's windows (Equinox's are others). They may be more than there are elements. Winners,
    ties, NaN, dtypes and derivatives are as in `max_pool`: the first maximum of a window wins it. Many windows of many
    distances, as 63 on 100 elements, take seconds to compile.

    Args:
      x: one example: `(*spatial, channels)`, `(channels, *spatial)` or `(*spatial,)`, as `channel_axis` says, any real
        dtype.
      output_shape: ints >= 1, the number of windows along each spatial axis. An int is refused.
      channel_axis: -1 for channels last, 0 for channels first, None for no channels.
      forward_mode: whether to allow forward mode (`jax.jvp`, `jax.jacfwd`, `jax.linearize`), too.

    Returns:
      The maxima, with the dtype and layout of x; the spatial shape is output_shape.

    Raises:
      TypeError: x is not an array of real numbers, or an argument is not of the type above (traced values included).
      ValueError: an argument has the wrong length or sign, x has the wrong rank (a batch without `jax.vmap`, say), or
        an empty spatial axis.

    Example:
      >>> import jax, jpool
      >>> import jax.numpy as jnp
      >>> x = jnp.array([3.0, 1.0, 4.0, 1.0, 5.0])  # windows 0 to 2, 1 to 4, 3 to 5
      >>> jpool.adaptive_max_pool(x, (3,), channel_axis=None)
      Array([3., 4., 5.], dtype=float32)
      >>> jax.grad(lambda x: jpool.adaptive_max_pool(x, (3,), channel_axis=None).sum())(x)
      Array([1., 0., 1., 0., 1.], dtype=float32)
    """
    x, outputs = _resolved("adaptive_max_pool", x, output_shape, channel_axis, forward_mode)
    return _pool(outputs, x, bool(forward_mode))


def adaptive_max_pool_with_argmax(
    x: jax.Array | np.ndarray,
    output_shape: Sequence[int],
    *,
    channel_axis: int | None = -1,
    forward_mode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Pools ONE example to a given shape, and says where the maxima were.

    Args:
      x: one example, as for `adaptive_max_pool`.
      output_shape: ints >= 1, the number of windows along each spatial axis.
      channel_axis: -1 for channels last, 0 for channels first, None for no channels.
      forward_mode: whether to allow forward mode of the values, too.

    Returns:
      values: as `adaptive_max_pool`'s, with their derivative.
      argmax: int32, same shape: the flat row-major position of each winner in the spatial grid of its channel (torch's
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
    function = "adaptive_max_pool_with_argmax"
    x, outputs = _resolved(function, x, output_shape, channel_axis, forward_mode)
    arguments.grid(function, "x", arguments.spatial_part(x.shape, channel_axis))
    return _pool_with_argmax(outputs, x, bool(forward_mode), places(x.shape, channel_axis))


def global_max_pool(
    x: jax.Array | np.ndarray, *, keepdims: bool = False, channel_axis: int | None = -1, forward_mode: bool = False
) -> jax.Array:
    """Takes the maximum of every channel of ONE example.

    The rules are `max_pool`'s: the first maximum takes the whole cotangent, where `jnp.max` shares it among all.

    Args:
      x: one example of any rank: `(*spatial, channels)`, `(channels, *spatial)` or `(*spatial,)`, any real dtype. A
        batch is not told from an example: lift with `jax.vmap`.
      keepdims: whether the spatial axes stay, with size 1, as in torch's `AdaptiveMaxPool(1)` and ONNX's
        `GlobalMaxPool`; Keras drops them by default.
      channel_axis: -1 for channels last, 0 for channels first, None for no channels.
      forward_mode: whether to allow forward mode (`jax.jvp`, `jax.jacfwd`, `jax.linearize`), too.

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
    arguments.flag("global_max_pool", "keepdims", keepdims)
    arguments.channel_axis("global_max_pool", channel_axis)
    rank = x.ndim - (channel_axis is not None)
    if rank < 1:
        raise ValueError(
            f"global_max_pool: x must have at least one spatial axis beside its channels; got shape {x.shape} and "
            f"channel_axis={channel_axis}. If it has no channels, say channel_axis=None."
        )
    x, outputs = _resolved("global_max_pool", x, (1,) * rank, channel_axis, forward_mode)
    values = _pool(outputs, x, bool(forward_mode))
    return values if keepdims else values.reshape(() if channel_axis is None else x.shape[channel_axis])


def _resolved(
    function: str, x: Any, output_shape: Any, channel_axis: Any, forward_mode: Any
) -> tuple[jax.Array, tuple[int, ...]]:
    """Everything checked: x as an array, and how many windows every one of its axes has."""
    x = real_array(function, "x", x)
    outputs = arguments.sizes(function, "output_shape", output_shape)
    arguments.channel_axis(function, channel_axis)
    arguments.flag(function, "forward_mode", forward_mode)
    arguments.example_shape(function, x.shape, "output_shape", outputs, channel_axis)
    along = list(outputs)
    if channel_axis is not None:
        along.insert(channel_axis % x.ndim, x.shape[channel_axis])
    return x, tuple(along)


@partial(jax.jit, static_argnums=(0, 2), inline=True)
def _pool(outputs: tuple[int, ...], x: jax.Array, forward_mode: bool) -> jax.Array:
    if (geometry := _regular(x.shape, outputs)) is not None:
        return pool(geometry, x, forward_mode)
    values = to_accumulator(x)  # what parts send to one element is then added up in float32, too
    for each in passes(x.shape, outputs):
        pieces = zip(each.parts, slices(each, values), strict=True)
        values = joined(each, [pool(part.geometry, piece, forward_mode) for part, piece in pieces])
        # Without the barrier XLA:GPU joins the backward passes along all axes in one kernel, which does all work again.
        values = jax.lax.optimization_barrier(values)
    return values.astype(x.dtype)


@partial(jax.jit, static_argnums=(0, 2), inline=True)
def _pool_with_argmax(
    outputs: tuple[int, ...], x: jax.Array, forward_mode: bool, argmax: jax.Array
) -> tuple[jax.Array, jax.Array]:
    if (geometry := _regular(x.shape, outputs)) is not None:
        return pool_with_argmax(geometry, x, forward_mode, argmax)
    values = to_accumulator(x)  # what parts send to one element is then added up in float32, too
    for each in passes(x.shape, outputs):
        pieces = zip(each.parts, slices(each, values), slices(each, argmax), strict=True)
        found = [pool_with_argmax(part.geometry, piece, forward_mode, where) for part, piece, where in pieces]
        values, argmax = (joined(each, arrays) for arrays in zip(*found, strict=True))
    return values.astype(x.dtype), argmax


def _regular(sizes: tuple[int, ...], outputs: tuple[int, ...]) -> Geometry | None:
    """All windows at once, if they have one size, side by side."""
    if any(output and size % output for size, output in zip(sizes, outputs, strict=True)):
        return None
    windows = [size // output if output else 1 for size, output in zip(sizes, outputs, strict=True)]
    return Geometry(tuple(Axis(*axis) for axis in zip(sizes, windows, windows, repeat(1), repeat(0), outputs)))
