"""max_pool_with_argmax, and convert_argmax for the numbering of other libraries."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.checks import check_word, positive_int
from jpool.pooling.derivative.vjp import pool_with_argmax
from jpool.pooling.functions.inputs import index_array, inside, resolve_pooling
from jpool.pooling.integers import arguments
from jpool.pooling.plain.ties import RULES

NUMBERINGS = ("tensorflow", "onnx", "onnx_column_major")


def max_pool_with_argmax(
    x: jax.Array | np.ndarray,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: str | int | Sequence[int | Sequence[int]] = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
    channel_axis: int | None = -1,
    ties: str = "first",
    forward_mode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Takes the maximum of every window of ONE example, and returns its index as well.

    The arguments, the values and their derivative are `max_pool`'s. The index is that of the element that receives the
    cotangent.

    Args:
      x: one example, as for `max_pool`.
      window_shape: ints >= 1, one per spatial axis.
      strides: an int or one per spatial axis; None is 1 on every axis.
      padding: "VALID", "SAME", "SAME_LOWER", an int, or per spatial axis an int or a pair (low, high); >= 0.
      window_dilation: an int or one per spatial axis; None is 1.
      ceil_mode: rounds the number of windows up instead of down, by torch's and ONNX's rule.
      channel_axis: -1 for channels last, 0 for channels first, None for no channels.
      ties: "first" or "last"; under the other rules of `max_pool` a window can have no winner or several.
      forward_mode: whether to allow forward mode of the values as well.

    Returns:
      values: as `max_pool`'s.
      argmax: int32, same shape: the flat row-major index of each winner in the spatial grid of its channel,
        y * width + x for an image, padding not counted (torch's convention). -1 for a window with no real element.
        `convert_argmax` converts it to TensorFlow's and ONNX's numbering, `max_unpool` takes it.

    Raises:
      TypeError: x is not an array of real numbers, or another argument is not of the type above (a traced one is not).
      ValueError: an argument, or the rank of x, is invalid, or the spatial grid has more than
        2**31 elements.

    Example:
      >>> import jpool
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 5.0, 2.0, 0.0], [3.0, 4.0, 2.0, 2.0]])
      >>> jpool.max_pool_with_argmax(x, (2, 2), 2, channel_axis=None)
      (Array([[5., 2.]], dtype=float32), Array([[1, 2]], dtype=int32))
    """
    name = "max_pool_with_argmax"
    one_winner = tuple(word for word, rule in RULES.items() if rule.one_winner)
    advice = (
        f" A window has one argmax: with ties={ties!r} use max_pool." if isinstance(ties, str) and ties in RULES else ""
    )
    check_word(name, "ties", ties, one_winner, advice)
    geometry, x = resolve_pooling(
        name, x, window_shape, strides, padding, window_dilation, ceil_mode, channel_axis, ties, forward_mode
    )
    arguments.check_indices_fit(name, "x", arguments.without_channels(x.shape, channel_axis))
    return pool_with_argmax(geometry, x, bool(forward_mode), channel_axis)


def convert_argmax(
    argmax: jax.Array | np.ndarray,
    spatial_shape: Sequence[int],
    channels: int,
    *,
    to: str,
    channel_axis: int | None = -1,
) -> jax.Array:
    """Converts an argmax of ONE example to the numbering of another library.

    ======================  =====================================  =================================================
    `to`                    index of (y, x) in channel c           what a batch adds for example n
    ======================  =====================================  =================================================
    "tensorflow"            (y * width + x) * channels + c         n * height * width * channels, with
                                                                   `include_batch_in_index=True`
    "onnx"                  (c * height + y) * width + x           n * channels * height * width
    "onnx_column_major"     (c * width + x) * height + y           n * channels * height * width
                            (`storage_order=1`)
    ======================  =====================================  =================================================

    Likewise with any number of spatial axes. Add the term of the batch where n is available, and not to -1:

        n = jnp.arange(len(argmax))[:, None, None, None] * (height * width * channels)
        jnp.where(converted < 0, -1, converted + n)

    Args:
      argmax: integers, from `max_pool_with_argmax` and with its layout. -1 stays -1. An index outside the grid is an
        error, or becomes -1 if argmax is traced, under `jax.jit` and `jax.vmap`.
      spatial_shape: ints >= 1, the spatial shape of the example that was pooled, not of argmax.
      channels: its number of channels, >= 1; 1 for `channel_axis=None`.
      to: one of the words above.
      channel_axis: -1 for channels last, 0 for channels first, None for no channels.

    Returns:
      int32, the shape and layout of argmax.

    Raises:
      TypeError: argmax is not an array of integers, or an argument is not of the type above.
      ValueError: the shapes do not match, the word is unknown, indices exceed int32, or a concrete argmax holds an
        index outside the grid.

    Example:
      >>> import jpool
      >>> import jax.numpy as jnp
      >>> x = jnp.arange(24.0).reshape(3, 4, 2)  # height, width, channels
      >>> _, argmax = jpool.max_pool_with_argmax(x, (3, 4))
      >>> argmax
      Array([[[11, 11]]], dtype=int32)
      >>> jpool.convert_argmax(argmax, (3, 4), 2, to="tensorflow")
      Array([[[22, 23]]], dtype=int32)
    """
    sizes = arguments.sizes("convert_argmax", "spatial_shape", spatial_shape)
    arguments.check_channel_axis("convert_argmax", channel_axis)
    check_word("convert_argmax", "to", to, NUMBERINGS)
    count = positive_int("convert_argmax", "channels", channels)
    call = f"lambda argmax: jpool.convert_argmax(argmax, {sizes}, {count}, to={to!r})", "(batch)"
    argmax = index_array("convert_argmax", call, argmax, sizes, channel_axis)
    actual = 1 if channel_axis is None else argmax.shape[channel_axis]
    if count != actual:
        raise ValueError(
            f"convert_argmax: channels must be the number of channels of argmax, {actual} for shape {argmax.shape} and "
            f"channel_axis={channel_axis}; got {count}."
        )
    arguments.check_indices_fit("convert_argmax", "spatial_shape", sizes, count)
    return _convert(sizes, count, to, channel_axis, argmax)


@partial(jax.jit, static_argnums=(0, 1, 2, 3), inline=True)
def _convert(sizes: tuple[int, ...], count: int, to: str, channel_axis: int | None, argmax: jax.Array) -> jax.Array:
    argmax = inside(argmax, sizes)
    channel = 0 if channel_axis is None else lax.broadcasted_iota(jnp.int32, argmax.shape, channel_axis % argmax.ndim)
    coordinates = jnp.unravel_index(jnp.maximum(argmax, 0), sizes)
    order, shape = {
        "tensorflow": ((*coordinates, channel), (*sizes, count)),
        "onnx": ((channel, *coordinates), (count, *sizes)),
        "onnx_column_major": ((channel, *reversed(coordinates)), (count, *reversed(sizes))),
    }[to]
    converted = jnp.zeros_like(argmax)
    for coordinate, size in zip(order, shape, strict=True):
        converted = converted * size + coordinate
    return jnp.where(argmax < 0, -1, converted)
