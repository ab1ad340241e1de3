"""The integers of a pooling. No array of the user and no jax in this module.

`resolve` turns everything static about one call (sizes, windows, strides, padding, dilation, the channel axis) into one
hashable `Geometry`, before any array is touched. All later modules receive a `Geometry` and trust it.

The channel axis is an axis like the others, with a window of 1, so no later module needs to know which one it is.

A *tap* is one position of a window. Taps are numbered in row-major order, and the number of the tap that holds the
maximum is the *winner* of the window.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from jpool.checks import check_flag
from jpool.pooling.integers import arguments
from jpool.pooling.integers.arguments import Pad


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
        """Whether every element is its own window, as along the channel axis and the batch axis."""
        return self.window == self.stride == 1 and self.low == 0 and self.output == self.size

    def real_taps(self) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last tap of each window outside the padding; first > last in an all-padding window.

        If no window overhangs, one entry for all windows.
        """
        if not self.overhangs:
            return np.zeros(1, int), np.full(1, self.window - 1)
        start = np.arange(self.output) * self.stride - self.low
        first = np.maximum(-(start // self.dilation), 0)
        return first, np.minimum((self.size - 1 - start) // self.dilation, self.window - 1)


class Geometry(NamedTuple):
    """One pooling of one example: an `Axis` for every array axis, including the channel axis, and the rule for ties."""

    axes: tuple[Axis, ...]
    ties: str = "first"  # one of plain.ties.RULES
    minimum: bool = False  # whether the smallest element of a window wins, instead of the largest

    @property
    def example_shape(self) -> tuple[int, ...]:
        """The shape of x, and of its cotangent."""
        return tuple(axis.size for axis in self.axes)

    @property
    def values_shape(self) -> tuple[int, ...]:
        """The shape of the pooled values, of the winners, and of the cotangents of the values."""
        return tuple(axis.output for axis in self.axes)

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """The shape of x with all padding that windows read; without axes on which every element is its own window."""
        return tuple(max(axis.reach, axis.size) for axis in self.axes if not axis.is_identity)

    @property
    def taps(self) -> int:
        """Taps of one window, numbered 0 .. taps - 1 in row-major order; `taps` means no winner."""
        return math.prod(axis.window for axis in self.axes)


class Step(NamedTuple):
    """One of the small poolings that a large one is divided into. Its taps are elements, or blocks of elements.

    Tap j of the step is the block of taps `j * block_stride` to `j * block_stride + block - 1` of the whole window.
    With block = 1 it is a single element.
    """

    geometry: Geometry
    block_stride: int
    block: int
    reduced_axes: tuple[int, ...] = ()  # the axes, if this step is a reduction along them

    @property
    def taps(self) -> int:
        """How many elements or blocks it compares."""
        return self.geometry.taps

    @property
    def no_winner(self) -> int:
        """The number after the last tap of the last block."""
        return (self.taps - 1) * self.block_stride + self.block


def resolve(
    function: str,
    shape: tuple[int, ...],
    window_shape: Any,
    strides: Any,
    padding: Any,
    window_dilation: Any,
    ceil_mode: Any,
    channel_axis: Any,
) -> Geometry:
    """Turns the arguments of the public function named `function` into a `Geometry`, or raises an error that names one.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument has a wrong value or length, or a window is larger than the padded input.
    """
    window = arguments.window_sizes(function, window_shape)
    rank = len(window)
    stride = arguments.per_axis(function, "strides", 1 if strides is None else strides, rank)
    dilation = arguments.per_axis(function, "window_dilation", 1 if window_dilation is None else window_dilation, rank)
    pads = arguments.padding_per_axis(function, padding, rank)
    check_flag(function, "ceil_mode", ceil_mode)
    arguments.check_channel_axis(function, channel_axis)
    sizes = arguments.spatial_sizes(function, shape, "window_shape", window, channel_axis)
    axes = []
    for i, size in enumerate(sizes):
        axis, padded = _fit(size, window[i], stride[i], dilation[i], pads[i], ceil_mode)
        if axis.output < 1:
            raise ValueError(
                f"{function}: window_shape {window} is larger than the padded input along spatial axis {i}: a window "
                f"spans {axis.extent} elements (window {axis.window}, dilation {axis.dilation}), the padded input has "
                f"{padded} (size {size}, padding {padding!r}). Take a smaller window or pad more."
            )
        axes.append(axis)
    if channel_axis is not None:
        axes.insert(channel_axis % len(shape), identity(shape[channel_axis]))
    return Geometry(tuple(axes))


def identity(size: int) -> Axis:
    """An axis along which every element is its own window."""
    return Axis(size, 1, 1, 1, 0, size)


def _fit(size: int, window: int, stride: int, dilation: int, pad: Pad, ceil_mode: bool) -> tuple[Axis, int]:
    """One axis, and the size of its padded input: lax's rules for "SAME" and "SAME_LOWER", torch's for ceil_mode."""
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
    stride, low = _nearer(size, span, stride, low, output)
    # A single window may have any stride. With its extent as the stride, windows share no element.
    return Axis(size, window, stride if output > 1 else span, dilation, low, output), padded


def _nearer(size: int, span: int, stride: int, low: int, output: int) -> tuple[int, int]:
    """The smallest stride, and its `low`, at which every window reads the same elements.

    If windows are farther apart than size + span, at most one reads elements, and it does not matter how much padding
    is between the others. So huge strides and padding do not make a huge array.
    """
    last = min(output - 1, (size - 1 + low) // stride)  # the last window that begins before the end of the input
    begin = max(last * stride - low, -span)
    nearer = size + span
    return (nearer, last * nearer - begin) if stride > nearer or output == 1 else (stride, low)
