"""The integers of a pooling. No array of the user and no jax in this module.

`resolve` checks the arguments of one call (sizes, windows, strides, padding, dilation, the channel axis) and turns them
into one hashable `Geometry`, before any array is touched. `adaptive` makes that of an adaptive pooling, from checked
arguments. All later modules receive a `Geometry` and trust it.

The channel axis is an axis like the others, with a window of 1, so no later module needs to know which one it is.

A *tap* is one position of a window. Taps are numbered in row-major order, and the tap that holds the maximum is the
*winner* of the window.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jpool.checks import check_flag, is_int
from jpool.pooling.integers import arguments
from jpool.pooling.integers.arguments import Pad

DIRECT_TAPS = 9  # windows of up to this many taps are one step


class Axis(NamedTuple):
    """How windows meet one axis of the example: tap j of window o reads element `o * stride + j * dilation - low`.

    The windows of an adaptive pooling have different sizes; `tables` has their formula.
    """

    size: int  # elements of the input
    window: int  # taps of one window; if they are adaptive, of the longest
    stride: int  # elements from one window to the next; 0 if they are adaptive
    dilation: int  # elements from one tap to the next
    low: int  # padding before the first element; if it is negative, elements that are skipped
    output: int  # windows, or parts of adaptive windows
    parts: int = 0  # if windows are adaptive, into how many parts each is divided; every part is a window here

    @property
    def extent(self) -> int:
        """Elements from the first tap of a window to its last, both counted."""
        return (self.window - 1) * self.dilation + 1

    @property
    def reach(self) -> int:
        """Elements from the first tap of the first window to the last tap of the last, both counted."""
        return (self.output - 1) * self.stride + self.extent if self.output else 0

    @property
    def is_regular(self) -> bool:
        """Whether every window reads all its taps: none overhangs, and none is adaptive."""
        return not self.parts and self.low <= 0 and self.reach <= self.low + self.size

    @property
    def is_identity(self) -> bool:
        """Whether every element is its own window, as along the channel axis and the batch axis."""
        return self.window == self.stride == 1 and self.low == 0 and self.output == self.size and not self.parts

    @property
    def is_covered(self) -> bool:
        """Whether one window reads every element once."""
        return self.output == 1 and self.window == self.size and self.low == 0 and self.dilation == 1


class Geometry(NamedTuple):
    """One pooling of one example: an `Axis` for every array axis, including the channel axis, and the rule for ties."""

    axes: tuple[Axis, ...]
    ties: str = "first"  # one of plain.ties.RULES
    minimum: bool = False  # whether the smallest element of a window wins, instead of the largest
    one_step: bool = False  # whether a window is one step however large it is

    @property
    def example_shape(self) -> tuple[int, ...]:
        """The shape of x, and of its cotangent."""
        return tuple(axis.size for axis in self.axes)

    @property
    def values_shape(self) -> tuple[int, ...]:
        """The shape of the pooled values, of the winners, and of the cotangents of the values."""
        return tuple(axis.output for axis in self.axes)

    @property
    def is_adaptive(self) -> bool:
        """Whether windows along some axis have different sizes."""
        return any(axis.parts for axis in self.axes)

    @property
    def padded_pooled_sizes(self) -> tuple[int, ...]:
        """The sizes of the pooled axes, with all padding that windows read."""
        return tuple(max(axis.reach, axis.size) for axis in self.axes if not axis.is_identity)

    @property
    def pooled(self) -> tuple[int, ...]:
        """The axes along which a window is not simply its own element."""
        return tuple(i for i, axis in enumerate(self.axes) if not axis.is_identity)

    @property
    def taps(self) -> int:
        """How many taps one window has; their numbers are 0 .. taps - 1 in row-major order."""
        return math.prod(axis.window for axis in self.axes)

    @property
    def tap_strides(self) -> tuple[int, ...]:
        """By how much the numbers of neighbouring taps along each axis differ."""
        return tuple(math.prod(axis.window for axis in self.axes[i + 1 :]) for i in range(len(self.axes)))


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


def over_all_axes(
    shape: Sequence[int],
    window_shape: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    window_dilation: Sequence[int],
) -> Geometry | None:
    """A pooling with one entry of each argument per axis of the array, as `lax.reduce_window` has them.

    Batch and channels are axes like others, of any size. None if another axis has no known size, elements or windows,
    or if they are too many.
    """
    axes = []
    for size, window, stride, pad, dilation in zip(shape, window_shape, strides, padding, window_dilation, strict=True):
        if window == stride == 1 and pad == (0, 0):
            axes.append(identity(size))
        elif is_int(size) and size > 0:
            axes.append(_fit(size, window, stride, dilation, pad, False)[0])
        else:
            return None
    geometry = Geometry(tuple(axes))
    fits = geometry.taps <= arguments.MAX_TAPS and max(geometry.padded_pooled_sizes, default=0) <= arguments.MAX_INDICES
    return geometry if fits and all(axes[i].output > 0 for i in geometry.pooled) else None


def adaptive(sizes: Sequence[int], outputs: Sequence[int]) -> Geometry:
    """The pooling to `outputs` windows along each axis; window i of o reads from floor(i n/o) to ceil((i+1) n/o) - 1.

    Where all windows are adjacent and of one size, the axis is a regular one.
    """
    return Geometry(tuple(map(_adaptive_axis, sizes, outputs)))


def _adaptive_axis(size: int, output: int) -> Axis:
    if size == output:
        return identity(size)
    if size % output == 0:
        return Axis(size, size // output, size // output, 1, 0, output)
    common = math.gcd(size, output)
    window = (size // common + output // common - 2) // (output // common) + 1  # of the largest window
    return Axis(size, window, 0, 1, 0, output, parts=1)


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
    if output > 0:  # so that huge strides, dilation and padding do not make a huge array
        dilation, low = _close_together(size, (output - 1) * stride + 1, dilation, low, window)
        span = (window - 1) * dilation + 1
        stride, low = _close_together(size, span, stride, low, output)
    # A single window may have any stride. With its extent as the stride, windows share no element.
    return Axis(size, window, stride if output > 1 else span, dilation, low, output), padded


def _close_together(size: int, span: int, step: int, low: int, count: int) -> tuple[int, int]:
    """The smallest step, and its `low`, with which the same elements are read.

    The step is that from one window to the next (the stride) or from one tap to the next (the dilation); `count` is how
    many there are. Over the whole pooling, each of them reads a stretch of `span` elements. If the step is more than
    size + span, at most one of them reads elements, and it does not matter how much padding is between the others.
    """
    last = min(count - 1, (size - 1 + low) // step)  # the last that begins before the end of the input
    begin = max(last * step - low, -span)
    if count == 1:
        return 1, -begin
    nearer = size + span
    return (nearer, last * nearer - begin) if step > nearer else (step, low)
