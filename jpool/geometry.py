"""The integers of a pooling, decided in one place. No array of the user and no jax in this module.

Everything static about one call (sizes, windows, strides, padding, dilation, where the channels are, the rule for
ties) is resolved here into one frozen, hashable `Geometry`, before any array is touched. The modules that use it
receive a geometry that is known to be good.

The channel axis is an axis like the others, with a window of 1: no later module asks where the channels are.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jpool import arguments
from jpool.arguments import Pad


class Axis(NamedTuple):
    """How windows meet one axis of the example: tap j of window o reads element `o * stride + j * dilation - low`."""

    size: int  # elements of the input
    window: int  # taps of one window
    stride: int  # elements from one window to the next
    dilation: int  # elements from one tap to the next
    low: int  # padding before the first element
    output: int  # windows

    @property
    def extent(self) -> int:
        """Elements from the first tap of a window to its last, both counted."""
        return (self.window - 1) * self.dilation + 1

    @property
    def reach(self) -> int:
        """Elements from the first tap of the first window to the last tap of the last, both counted."""
        return (self.output - 1) * self.stride + self.extent if self.output else 0

    @property
    def overhangs(self) -> bool:
        """Whether some window reads padding, before the first element or after the last."""
        return not self.is_identity and (self.low > 0 or self.reach > self.low + self.size)

    @property
    def is_identity(self) -> bool:
        """Whether every element is a window by itself, as along the channels and the batch."""
        return self.window == self.stride == 1 and self.low == 0 and self.output == self.size

    def real_taps(self) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last tap of each window that are not in the padding; first > last where all are.

        One number for all windows where none overhangs.
        """
        if not self.overhangs:
            return np.zeros(1, int), np.full(1, self.window - 1)
        start = np.arange(self.output) * self.stride - self.low
        first = np.maximum(-(start // self.dilation), 0)
        return first, np.minimum((self.size - 1 - start) // self.dilation, self.window - 1)


class Geometry(NamedTuple):
    """One pooling of one example: an `Axis` for every array axis, the channels' among them, and the rule for ties."""

    axes: tuple[Axis, ...]
    ties: str = "first"  # one of arguments.TIES
    minimum: bool = False  # whether the smallest element of a window wins, instead of the largest

    @property
    def example_shape(self) -> tuple[int, ...]:
        """The shape of x, and of its cotangent."""
        return tuple(axis.size for axis in self.axes)

    @property
    def values_shape(self) -> tuple[int, ...]:
        """The shape of the pooled values, of the winners, and of the cotangents that come back."""
        return tuple(axis.output for axis in self.axes)

    @property
    def taps(self) -> int:
        """Elements of one window. Winners are numbered 0 .. taps - 1 in row-major order; `taps` is no winner."""
        return math.prod(axis.window for axis in self.axes)


def resolve(
    function: str,
    shape: tuple[int, ...],
    window_shape: Any,
    strides: Any,
    padding: Any,
    *,
    window_dilation: Any,
    ceil_mode: Any,
    channel_axis: Any,
    ties: Any = "first",
    minimum: bool = False,
) -> Geometry:
    """Turns the arguments of the public function called `function` into a `Geometry`, or says what is wrong with them.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument has a value, or a length, that no pooling can have.
    """
    window = arguments.window(function, window_shape)
    rank = len(window)
    stride = arguments.per_axis(function, "strides", 1 if strides is None else strides, rank)
    dilation = arguments.per_axis(function, "window_dilation", 1 if window_dilation is None else window_dilation, rank)
    pads = arguments.padding(function, padding, rank)
    arguments.flag(function, "ceil_mode", ceil_mode)
    arguments.channel_axis(function, channel_axis)
    arguments.ties(function, ties, window)
    sizes = arguments.example_shape(function, shape, "window_shape", window, channel_axis)
    axes = []
    for i, size in enumerate(sizes):
        axis, padded = _fit(size, window[i], stride[i], dilation[i], pads[i], ceil_mode)
        if padded < axis.extent:
            raise ValueError(
                f"{function}: window_shape {window} is larger than the padded input along spatial axis {i}: a window "
                f"spans {axis.extent} elements (window {axis.window}, dilation {axis.dilation}), the padded input has "
                f"{padded} (size {size}, padding {padding!r}). Take a smaller window or pad more."
            )
        axes.append(axis)
    return Geometry(with_channels(axes, shape, channel_axis), ties, minimum)


def pooled_shape(
    spatial_shape: Sequence[int],
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: str | int | Sequence[int | Sequence[int]] = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> tuple[int, ...]:
    """The number of windows along each spatial axis, before there is any array.

    Args:
      spatial_shape: ints >= 1, the sizes of the spatial axes of the example: without batch, without channels.
      window_shape: as for `max_pool`, and so are the others.
      strides: an int or one per spatial axis; None is 1 on every axis.
      padding: "VALID", "SAME", "SAME_LOWER", an int, or per spatial axis an int or a pair (low, high); >= 0.
      window_dilation: an int or one per spatial axis; None is 1.
      ceil_mode: rounds the number of windows up instead of down, by torch's and ONNX's rule.

    Returns:
      The spatial shape of the result of `max_pool` and of all others that take these arguments.

    Raises:
      TypeError: an argument is not of the type above.
      ValueError: an argument has the wrong length, sign or word, or a window is larger than the padded input.

    Example:
      >>> import jpool
      >>> jpool.pooled_shape((112, 112), (3, 3), 2)
      (55, 55)
      >>> jpool.pooled_shape((112, 112), (3, 3), 2, ceil_mode=True)
      (56, 56)
    """
    sizes = arguments.sizes("pooled_shape", "spatial_shape", spatial_shape)
    rank = len(arguments.window("pooled_shape", window_shape))
    if len(sizes) != rank:
        raise ValueError(f"pooled_shape: spatial_shape must have as many axes as window_shape, {rank}; got {sizes}.")
    return resolve(
        "pooled_shape",
        sizes,
        window_shape,
        strides,
        padding,
        window_dilation=window_dilation,
        ceil_mode=ceil_mode,
        channel_axis=None,
    ).values_shape


def with_channels(axes: list[Axis], shape: tuple[int, ...], channel_axis: int | None) -> tuple[Axis, ...]:
    """The spatial axes, and among them the channel axis of an array of that shape."""
    if channel_axis is None:
        return tuple(axes)
    channels = identity(shape[channel_axis])
    return (channels, *axes) if channel_axis == 0 else (*axes, channels)


def identity(size: int) -> Axis:
    """An axis along which every element is a window by itself."""
    return Axis(size, 1, 1, 1, 0, size)


def _fit(size: int, window: int, stride: int, dilation: int, pad: Pad, ceil_mode: bool) -> tuple[Axis, int]:
    """One axis, and the size of its padded input: by lax's rules for the words, by torch's for ceil_mode."""
    span = (window - 1) * dilation + 1
    if pad in ("SAME", "SAME_LOWER"):
        output = -(-size // stride)
        total = max((output - 1) * stride + span - size, 0)
        low = (total + 1) // 2 if pad == "SAME_LOWER" else total // 2
        padded = size + total
    else:
        low, high = pad if isinstance(pad, tuple) else (0, 0)
        padded = size + low + high
        output = (padded - span) // stride + 1
        if ceil_mode:
            output = -(-(padded - span) // stride) + 1
            if (output - 1) * stride >= size + low:  # the last window would start beyond the input
                output -= 1
    # One window has no next one, and its stride may be anything. At its own extent, it is the only one that covers
    # an element.
    return Axis(size, window, stride if output > 1 else span, dilation, low, output), padded
