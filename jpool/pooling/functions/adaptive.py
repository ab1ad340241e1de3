"""Adaptive pooling: a given number of windows for an example of any size. Global pooling: one window."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jpool.checks import check_flag
from jpool.pooling.derivative.vjp import pool, pool_with_argmax
from jpool.pooling.functions.inputs import check_unsharded, real_array
from jpool.pooling.integers import arguments
from jpool.pooling.integers.geometry import Geometry, adaptive


def adaptive_max_pool(
    x: jax.Array | np.ndarray,
    output_shape: Sequence[int | None],
    *,
    channel_axis: int | None = -1,
    forward_mode: bool = False,
) -> jax.Array:
    """Pools ONE example to a given shape: along each axis, window i of o reads floor(i n/o) to ceil((i+1) n/o) - 1.

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
        empty spatial axis, or there are more than 2**24 windows along an axis that they do not divide evenly, or
        more than 2**40 in all.

    Example:
      >>> import jax, jpool
      >>> import jax.numpy as jnp
      >>> x = jnp.array([3.0, 1.0, 4.0, 1.0, 5.0])  # windows of elements 0 to 1, 1 to 3, 3 to 4
      >>> jpool.adaptive_max_pool(x, (3,), channel_axis=None)
      Array([3., 4., 5.], dtype=float32)
      >>> jax.grad(lambda x: jpool.adaptive_max_pool(x, (3,), channel_axis=None).sum())(x)
      Array([1., 0., 1., 0., 1.], dtype=float32)
    """
    geometry, x = _resolve("adaptive_max_pool", x, output_shape, channel_axis, forward_mode)
    return pool(geometry, x, bool(forward_mode))


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
    geometry, x = _resolve(name, x, output_shape, channel_axis, forward_mode)
    arguments.check_indices_fit(name, "x", arguments.without_channels(x.shape, channel_axis))
    return pool_with_argmax(geometry, x, bool(forward_mode), channel_axis)


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
    geometry, x = _resolve("global_max_pool", x, (1,) * rank, channel_axis, forward_mode)
    values = pool(geometry, x, bool(forward_mode))
    return values if keepdims else values.reshape(() if channel_axis is None else x.shape[channel_axis])


def _resolve(
    function: str, x: Any, output_shape: Any, channel_axis: Any, forward_mode: Any
) -> tuple[Geometry, jax.Array]:
    """The arguments, checked: the geometry, and x as a JAX array."""
    x = real_array(function, "x", x)
    entries = output_shape if isinstance(output_shape, (tuple, list)) else ()
    without_none = tuple(1 if entry is None else entry for entry in entries) or output_shape
    outputs = arguments.sizes(function, "output_shape", without_none)
    arguments.check_channel_axis(function, channel_axis)
    check_flag(function, "forward_mode", forward_mode)
    sizes = arguments.spatial_sizes(function, x.shape, "output_shape", outputs, channel_axis)
    choices = zip(entries, sizes, outputs, strict=True)
    outputs = tuple(size if entry is None else output for entry, size, output in choices)
    arguments.check_adaptive_windows(function, sizes, outputs)
    every_axis = [*outputs]
    if channel_axis is not None:
        every_axis.insert(channel_axis % x.ndim, x.shape[channel_axis])
    geometry = adaptive(x.shape, every_axis)
    check_unsharded(function, "x", x, geometry.pooled)
    return geometry, x
