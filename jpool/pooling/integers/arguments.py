"""The arguments that describe a pooling, checked one by one. No array and no jax in this module.

See `checks` for what every error text contains.
"""

import math
from typing import Any

from jpool.checks import is_int, shown

PADDING_WORDS = ("VALID", "SAME", "SAME_LOWER")
CHANNEL_AXES = (-1, 0, None)
MAX_TAPS = 2**32 - 2  # winners have at most 32 bits, and the rules for ties need two spare numbers
MAX_INDICES = 2**31  # an argmax is int32
MAX_WINDOWS = 2**24  # along an axis where they have different sizes: a program contains a table of them
MAX_ELEMENTS = 2**40  # of one array: a terabyte at least

Pad = str | tuple[int, int]  # along one axis


def sizes(function: str, argument: str, value: Any) -> tuple[int, ...]:
    """A tuple of ints >= 1, one per spatial axis."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(
            f"{function}: {argument} must be a tuple of ints >= 1, one per spatial axis; got {shown(value)}."
            + (f" For two spatial axes write ({value}, {value})." if is_int(value) else "")
        )
    if not value:
        raise ValueError(f"{function}: {argument} must have at least one spatial axis; got {value!r}.")
    return per_axis(function, argument, value, len(value))


def window_sizes(function: str, window_shape: Any) -> tuple[int, ...]:
    """The sizes of a window of at most MAX_TAPS taps."""
    checked = sizes(function, "window_shape", window_shape)
    if math.prod(checked) > MAX_TAPS:
        raise ValueError(f"{function}: window_shape must have at most {MAX_TAPS} taps in all; got {checked}.")
    return checked


def per_axis(function: str, argument: str, value: Any, rank: int) -> tuple[int, ...]:
    """An int >= 1 for every spatial axis, from one int for all axes or one for each."""
    given = value
    if is_int(value):
        value = (value,) * rank
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{function}: {argument} must be an int >= 1 or {rank} of them in a tuple; got {shown(value)}.")
    if len(value) != rank:
        raise ValueError(
            f"{function}: {argument} must have one entry per spatial axis, {rank} as in window_shape; got {value!r}."
        )
    for entry in value:
        if not is_int(entry):
            raise TypeError(f"{function}: {argument} must hold ints >= 1; got {shown(entry)} in {value!r}.")
        if entry < 1:
            raise ValueError(f"{function}: {argument} must hold ints >= 1; got {entry}{_within(given)}.")
    return tuple(int(entry) for entry in value)


def padding_per_axis(function: str, value: Any, rank: int) -> tuple[Pad, ...]:
    """One of PADDING_WORDS, or (low, high), for every spatial axis."""
    words = ", ".join(map(repr, PADDING_WORDS))
    expected = f"one of {words}, an int >= 0, or per spatial axis an int >= 0 or a pair (low, high) of them"
    if isinstance(value, str):
        if value.upper() not in PADDING_WORDS:
            raise ValueError(f"{function}: padding must be {expected}; got {value!r}.")
        return (value.upper(),) * rank
    given = value
    if is_int(value):
        value = (value,) * rank
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{function}: padding must be {expected}; got {shown(value)}.")
    if len(value) != rank:
        raise ValueError(
            f"{function}: padding must have one entry per spatial axis, {rank} as in window_shape; got {value!r}."
            + (f" For one axis write (({value[0]!r}, {value[1]!r}),)." if rank == 1 and len(value) == 2 else "")
        )
    pairs: list[Pad] = []
    for entry in value:
        pair = (entry, entry) if is_int(entry) else entry
        if not isinstance(pair, (tuple, list)) or not all(is_int(side) for side in pair):
            bad = next((side for side in pair if not is_int(side)), entry) if isinstance(pair, (tuple, list)) else entry
            raise TypeError(f"{function}: padding must be {expected}; got {shown(bad)} in {value!r}.")
        if len(pair) != 2 or min(pair) < 0:
            raise ValueError(f"{function}: padding must be {expected}; got {entry!r}{_within(given)}.")
        pairs.append((int(pair[0]), int(pair[1])))
    return tuple(pairs)


def _within(given: Any) -> str:
    """For the error text about an entry: what it is an entry of, unless one int was given for all axes."""
    return "" if is_int(given) else f" in {given!r}"


def check_channel_axis(function: str, value: Any) -> None:
    """One of CHANNEL_AXES."""
    expected = f"{function}: channel_axis must be -1 (channels last), 0 (channels first) or None (no channels); got "
    if value is not None and not is_int(value):
        raise TypeError(f"{expected}{shown(value)}.")
    if value not in CHANNEL_AXES:
        raise ValueError(f"{expected}{value}.")


def check_indices_fit(function: str, argument: str, spatial_shape: tuple[int, ...], channels: int = 1) -> None:
    """Refuses a spatial grid whose flat indices exceed int32."""
    if math.prod(spatial_shape) * channels > MAX_INDICES:
        and_channels = f" and {channels} channels" if channels > 1 else ""
        raise ValueError(
            f"{function}: {argument} must span at most 2**31 positions, because flat indices are int32; got spatial "
            f"shape {spatial_shape}{and_channels}. Process parts of it, and add the offset of each part to its indices."
        )


def check_elements_fit(function: str, padded_shape: tuple[int, ...]) -> None:
    """Refuses an example that padding makes larger than the memory of any device, or than int32 along an axis."""
    way_out = "Take less padding, smaller strides, or a smaller window_dilation."
    if math.prod(padded_shape) > MAX_ELEMENTS:
        raise ValueError(
            f"{function}: padding must make an array of at most 2**40 elements; got the padded shape {padded_shape}. "
            + way_out
        )
    if max(padded_shape, default=0) > MAX_INDICES:
        raise ValueError(
            f"{function}: padding must make at most 2**31 positions along an axis; got the padded shape "
            f"{padded_shape}. {way_out}"
        )


def check_adaptive_windows(function: str, sizes: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    """Refuses an adaptive pooling with too many windows, of different sizes or in all."""
    for i, (size, output) in enumerate(zip(sizes, outputs, strict=True)):
        if output > MAX_WINDOWS and size % output:
            raise ValueError(
                f"{function}: output_shape must have at most 2**24 windows along an axis that they do not divide; got "
                f"{output} along spatial axis {i} of size {size}. Pool to fewer windows, or repeat the result."
            )
    if math.prod(outputs) > MAX_ELEMENTS:
        raise ValueError(
            f"{function}: output_shape must have at most 2**40 windows in all; got {outputs}. Pool to fewer windows."
        )


def spatial_sizes(
    function: str,
    shape: tuple[int, ...],
    argument: str,
    sizes: tuple[int, ...],
    channel_axis: int | None,
    *,
    name: str = "x",
    call: tuple[str, str] | None = None,
    may_be_empty: bool = False,
) -> tuple[int, ...]:
    """The spatial part of the shape of ONE example, whose rank must match the sizes given for `argument`.

    The error text calls the array `name`, and shows how to map over a batch what `call` holds: a function of one
    example, and its arguments.
    """
    layout = {-1: "(*spatial, channels)", 0: "(channels, *spatial)", None: "(*spatial,)"}[channel_axis]
    rank = len(sizes) + (channel_axis is not None)
    if len(shape) != rank:
        of_example, batch = call or (f"lambda x: jpool.{function}(x, {sizes}, ...)", "(batch)")
        raise ValueError(
            f"{function}: {name} must be ONE example of shape {layout}, which has {rank} axes for {argument} {sizes} "
            f"and channel_axis={channel_axis}; got {len(shape)} axes, shape {shape}. "
            + _advice(len(shape) - rank, argument, sizes, channel_axis, of_example, batch)
        )
    spatial = without_channels(shape, channel_axis)
    for i, size in enumerate(spatial):
        if not is_int(size):
            raise ValueError(
                f"{function}: {name} must have spatial axes of known sizes; got {size} along spatial axis {i}, shape "
                f"{shape}. Export a program for each size; only batch and channels may be symbolic."
            )
    if 0 in spatial and not may_be_empty:
        raise ValueError(
            f"{function}: {name} must have at least one element along every spatial axis; got shape {shape}. Leave "
            "empty examples out."
        )
    return spatial


def _advice(
    additional: int, argument: str, sizes: tuple[int, ...], channel_axis: int | None, of_example: str, batch: str
) -> str:
    """What to do about an array with `additional` axes, or with fewer if that is negative."""
    if additional > 0:
        mapped = "jax.vmap(" * additional + of_example + ")" * additional
        many = {1: "For a batch use jax.vmap", 2: "With two batch axes use jax.vmap twice"}.get(
            additional, f"With {additional} batch axes use jax.vmap {additional} times"
        )
        more = {"spatial_shape": " spatial_shape leaves out batch and channels."}.get(argument, "")
        if channel_axis == -1:
            more += " If the channels come first (PyTorch, Equinox), add channel_axis=0."
        return f"{many}: {mapped}{batch}.{more}"
    entries = f"{argument} has one entry per spatial axis: leave "
    if channel_axis is None:
        return f"{entries}batch and channels out of it."
    if additional == -1 and 1 not in (sizes[0], sizes[-1]):
        return f"Without channels use channel_axis=None; with channels leave them out of {argument}."
    return f"{entries}the channels out of {argument}, and the batch too, or use channel_axis=None if there are none."


def without_channels(shape: tuple[int, ...], channel_axis: int | None) -> tuple[int, ...]:
    """The shape without its channel axis."""
    return {-1: shape[:-1], 0: shape[1:], None: shape}[channel_axis]


def spatial_axes(rank: int, channel_axis: int | None) -> list[int]:
    """The axes of an example of that rank, without its channel axis."""
    return [i for i in range(rank) if channel_axis is None or i != channel_axis % rank]
