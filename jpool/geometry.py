"""The integers of a pooling, decided in one place. No array and no jax in this room.

Everything static about one call (sizes, windows, strides, padding, dilation, which axis holds the channels) is resolved
here into one frozen, hashable `Geometry`, and every error that a static argument can have is raised here, before any
array is touched. The rooms above receive a geometry that is known to be good.

The channel axis is an axis like the others, with a window of 1: no later room asks where the channels are.
"""

import math
from numbers import Integral
from typing import Any, NamedTuple

PADDING_WORDS = ("VALID", "SAME", "SAME_LOWER")
CHANNEL_AXES = (-1, 0, None)
MOST_TAPS = 2**32 - 1  # winners have at most 32 bits, and one number is kept for "none"


Pad = str | tuple[int, int]  # along one axis


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
        return self.low > 0 or self.reach > self.low + self.size


class Geometry(NamedTuple):
    """One pooling of one example: an `Axis` for every array axis, the channel axis among them."""

    axes: tuple[Axis, ...]

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
        """Elements of one window. Winners are numbered 0 .. taps - 1 in row-major order; `taps` itself says "none"."""
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
) -> Geometry:
    """Turns the arguments of the public function called `function` into a `Geometry`, or says what is wrong with them.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument has a value, or a length, that no pooling can have.
    """
    window = _window(function, window_shape)
    rank = len(window)
    stride = _per_axis(function, "strides", 1 if strides is None else strides, rank)
    dilation = _per_axis(function, "window_dilation", 1 if window_dilation is None else window_dilation, rank)
    pads = _padding(function, padding, rank)
    if not _is_bool(ceil_mode):
        raise TypeError(f"{function}: ceil_mode must be True or False; got {_shown(ceil_mode)}.")
    _check_channel_axis(function, channel_axis)
    _check_shape(function, shape, window, channel_axis)
    sizes = list(shape)
    channels = None if channel_axis is None else sizes.pop(channel_axis)
    axes = []
    for i, size in enumerate(sizes):
        axis, padded = _fit(size, window[i], stride[i], dilation[i], pads[i], ceil_mode)
        if padded < axis.extent:
            raise ValueError(
                f"{function}: window_shape {window} is larger than the padded input along spatial axis {i}: a window "
                f"spans {axis.extent} elements (window {axis.window}, dilation {axis.dilation}), the padded input has "
                f"{padded} (size {size}, padding {padding!r}); x has shape {shape}. Take a smaller window or pad more."
            )
        axes.append(axis)
    if channels is not None:
        axes.insert(channel_axis % len(shape), Axis(channels, 1, 1, 1, 0, channels))
    return Geometry(tuple(axes))


def _fit(size: int, window: int, stride: int, dilation: int, pad: Pad, ceil_mode: bool) -> tuple[Axis, int]:
    """One axis, and the size of its padded input: by lax's rules for the words, by torch's for ceil_mode."""
    span = (window - 1) * dilation + 1
    if pad in ("SAME", "SAME_LOWER"):
        output = -(-size // stride)
        total = max((output - 1) * stride + span - size, 0)
        low = (total + 1) // 2 if pad == "SAME_LOWER" else total // 2
        return Axis(size, window, stride, dilation, low, output), size + total
    low, high = pad if isinstance(pad, tuple) else (0, 0)
    padded = size + low + high
    output = (padded - span) // stride + 1
    if ceil_mode:
        output = -(-(padded - span) // stride) + 1
        if (output - 1) * stride >= size + low:  # the last window would start beyond the input
            output -= 1
    return Axis(size, window, stride, dilation, low, output), padded


def _window(function: str, window_shape: Any) -> tuple[int, ...]:
    if not isinstance(window_shape, (tuple, list)):
        raise TypeError(
            f"{function}: window_shape must be a tuple of ints >= 1, one per spatial axis; got {_shown(window_shape)}. "
            "An int is refused because it does not say how many axes are spatial: write (2, 2) for images."
        )
    if not window_shape:
        raise ValueError(f"{function}: window_shape must have at least one spatial axis; got {window_shape!r}.")
    window = _per_axis(function, "window_shape", window_shape, len(window_shape))
    if math.prod(window) > MOST_TAPS:
        raise ValueError(f"{function}: window_shape must have at most {MOST_TAPS} taps in all; got {window}.")
    return window


def _per_axis(function: str, argument: str, value: Any, rank: int) -> tuple[int, ...]:
    """An int >= 1 for every spatial axis, from one int for all or from one for each."""
    if _is_int(value):
        value = (value,) * rank
    if not isinstance(value, (tuple, list)):
        raise TypeError(
            f"{function}: {argument} must be an int >= 1 or {rank} of them in a tuple; got {_shown(value)}."
        )
    if len(value) != rank:
        raise ValueError(
            f"{function}: {argument} must have one entry per spatial axis, {rank} as in window_shape; got {value!r}."
        )
    for entry in value:
        if not _is_int(entry):
            raise TypeError(f"{function}: {argument} must hold ints >= 1; got {_shown(entry)} in {value!r}.")
        if entry < 1:
            raise ValueError(f"{function}: {argument} must hold ints >= 1; got {entry} in {value!r}.")
    return tuple(int(entry) for entry in value)


def _padding(function: str, value: Any, rank: int) -> tuple[Pad, ...]:
    """One of PADDING_WORDS, or (low, high), for every spatial axis."""
    words = ", ".join(map(repr, PADDING_WORDS))
    expected = f"one of {words}, an int >= 0, or per spatial axis an int >= 0 or a pair (low, high) of them"
    if isinstance(value, str):
        if value.upper() not in PADDING_WORDS:
            raise ValueError(f"{function}: padding must be {expected}; got {value!r}.")
        return (value.upper(),) * rank
    if _is_int(value):
        value = (value,) * rank
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{function}: padding must be {expected}; got {_shown(value)}.")
    if len(value) != rank:
        raise ValueError(
            f"{function}: padding must have one entry per spatial axis, {rank} as in window_shape; got {value!r}."
            + (f" For one axis write (({value[0]!r}, {value[1]!r}),)." if rank == 1 and len(value) == 2 else "")
        )
    pairs: list[Pad] = []
    for entry in value:
        pair = (entry, entry) if _is_int(entry) else entry
        if not isinstance(pair, (tuple, list)) or not all(_is_int(side) for side in pair):
            raise TypeError(f"{function}: padding must be {expected}; got {_shown(entry)} in {value!r}.")
        if len(pair) != 2 or min(pair) < 0:
            raise ValueError(f"{function}: padding must be {expected}; got {entry!r} in {value!r}.")
        pairs.append((int(pair[0]), int(pair[1])))
    return tuple(pairs)


def _check_channel_axis(function: str, channel_axis: Any) -> None:
    expected = f"{function}: channel_axis must be -1 (channels last), 0 (channels first) or None (no channels); got "
    if channel_axis is not None and not _is_int(channel_axis):
        raise TypeError(expected + f"{_shown(channel_axis)}.")
    if channel_axis not in CHANNEL_AXES:
        raise ValueError(expected + f"{channel_axis}.")


def _check_shape(function: str, shape: tuple[int, ...], window: tuple[int, ...], channel_axis: int | None) -> None:
    layout = {-1: "(*spatial, channels)", 0: "(channels, *spatial)", None: "(*spatial,)"}[channel_axis]
    rank = len(window) + (channel_axis is not None)
    if len(shape) != rank:
        raise ValueError(
            f"{function}: x must be ONE example of shape {layout}, which has {rank} axes for window_shape {window} and "
            f"channel_axis={channel_axis}; got {len(shape)} axes, shape {shape}. "
            f"For a batch use jax.vmap: jax.vmap(lambda x: jpool.{function}(x, {window}))(batch)."
        )
    spatial = shape[1:] if channel_axis == 0 else shape[: len(window)]
    if 0 in spatial:
        raise ValueError(f"{function}: x must have at least one element along every spatial axis; got shape {shape}.")


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ == "bool"  # numpy.bool_ calls itself bool from NumPy 2 on


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)  # NumPy's integers are Integral, its bool is not


def _shown(value: Any) -> str:
    """The value and its type, for an error text; an array, traced ones above all, gets the way out beside it."""
    shown = f"{value!r} of type {type(value).__name__}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        shown += " (it must be known before tracing: under jax.jit close over it, or name it in static_argnames)"
    return shown
