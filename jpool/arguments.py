"""The arguments of the public functions, checked one by one. No array and no jax in this room.

Every function takes the same few kinds of argument, so each kind is checked in one place, and an error always names the
function and the argument, shows the value, and says what was expected and what to do.
"""

import math
from numbers import Integral
from typing import Any

PADDING_WORDS = ("VALID", "SAME", "SAME_LOWER")
CHANNEL_AXES = (-1, 0, None)
TIES = ("first", "last", "split", "none")
MOST_TAPS = 2**32 - 2  # winners have at most 32 bits, and two of their numbers are no tap's
MOST_TIED = 31  # taps that one mask of 32 bits can mark
MOST_POSITIONS = 2**31  # of a grid whose positions are int32

Pad = str | tuple[int, int]  # along one axis


def sizes(function: str, argument: str, value: Any) -> tuple[int, ...]:
    """A tuple of ints >= 1, whose length says how many axes are spatial."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(
            f"{function}: {argument} must be a tuple of ints >= 1, one per spatial axis; got {shown(value)}. "
            "An int is refused because it does not say how many axes are spatial: write (2, 2) for images."
        )
    if not value:
        raise ValueError(f"{function}: {argument} must have at least one spatial axis; got {value!r}.")
    return per_axis(function, argument, value, len(value))


def window(function: str, window_shape: Any) -> tuple[int, ...]:
    """The sizes of a window that winners can number."""
    checked = sizes(function, "window_shape", window_shape)
    if math.prod(checked) > MOST_TAPS:
        raise ValueError(f"{function}: window_shape must have at most {MOST_TAPS} taps in all; got {checked}.")
    return checked


def grid(function: str, argument: str, spatial_shape: tuple[int, ...], channels: int = 1) -> None:
    """Refuses a grid with more places than int32 has numbers."""
    if math.prod(spatial_shape) * channels > MOST_POSITIONS:
        among = f" and {channels} channels" if channels > 1 else ""
        raise ValueError(
            f"{function}: {argument} must have at most 2**31 elements, for their places are int32; got spatial shape "
            f"{spatial_shape}{among}. Pool parts of it, and add to the places of each where it begins."
        )


def per_axis(function: str, argument: str, value: Any, rank: int) -> tuple[int, ...]:
    """An int >= 1 for every spatial axis, from one int for all or from one for each."""
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
            raise ValueError(f"{function}: {argument} must hold ints >= 1; got {entry} in {value!r}.")
    return tuple(int(entry) for entry in value)


def count(function: str, argument: str, value: Any) -> int:
    """An int >= 1."""
    if not is_int(value):
        raise TypeError(f"{function}: {argument} must be an int >= 1; got {shown(value)}.")
    if value < 1:
        raise ValueError(f"{function}: {argument} must be an int >= 1; got {value}.")
    return int(value)


def padding(function: str, value: Any, rank: int) -> tuple[Pad, ...]:
    """One of PADDING_WORDS, or (low, high), for every spatial axis."""
    words = ", ".join(map(repr, PADDING_WORDS))
    expected = f"one of {words}, an int >= 0, or per spatial axis an int >= 0 or a pair (low, high) of them"
    if isinstance(value, str):
        if value.upper() not in PADDING_WORDS:
            raise ValueError(f"{function}: padding must be {expected}; got {value!r}.")
        return (value.upper(),) * rank
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
            raise ValueError(f"{function}: padding must be {expected}; got {entry!r} in {value!r}.")
        pairs.append((int(pair[0]), int(pair[1])))
    return tuple(pairs)


def flag(function: str, argument: str, value: Any) -> None:
    """True or False; NumPy's too."""
    if not (isinstance(value, bool) or type(value).__name__ == "bool"):  # numpy.bool_ calls itself bool from NumPy 2 on
        raise TypeError(f"{function}: {argument} must be True or False; got {shown(value)}.")


def word(function: str, argument: str, value: Any, words: tuple[str, ...], otherwise: str = "") -> None:
    """One of a few words; `otherwise` is the way out for who wants another."""
    expected = f"{function}: {argument} must be one of {', '.join(map(repr, words))}; got "
    if not isinstance(value, str):
        raise TypeError(f"{expected}{shown(value)}.")
    if value not in words:
        raise ValueError(f"{expected}{value!r}.{otherwise}")


def ties(function: str, value: Any, window: tuple[int, ...]) -> None:
    """One of TIES, for a window whose ties it can remember."""
    word(function, "ties", value, TIES)
    for side in window if value == "split" else ():
        if (prime := largest_prime(side)) > MOST_TIED:
            raise ValueError(
                f"{function}: ties='split' marks tied elements in masks of {MOST_TIED} bits, so every side of "
                f"window_shape must be a product of numbers up to {MOST_TIED}; got {window}, and {side} has the prime "
                f"factor {prime}. Take a neighbouring size, or another rule of ties."
            )


def largest_prime(number: int) -> int:
    """The largest prime factor of a number >= 1; 1 of 1."""
    largest, factor = 1, 2
    while factor * factor <= number:
        while number % factor == 0:
            largest, number = factor, number // factor
        factor += 1
    return max(largest, number)


def channel_axis(function: str, value: Any) -> None:
    """One of CHANNEL_AXES."""
    expected = f"{function}: channel_axis must be -1 (channels last), 0 (channels first) or None (no channels); got "
    if value is not None and not is_int(value):
        raise TypeError(f"{expected}{shown(value)}.")
    if value not in CHANNEL_AXES:
        raise ValueError(f"{expected}{value}.")


def example_shape(
    function: str,
    shape: tuple[int, ...],
    along: str,
    given: tuple[int, ...],
    axis: int | None,
    *,
    name: str = "x",
    call: str = "",
    empty: bool = False,
) -> tuple[int, ...]:
    """The spatial part of the shape of ONE example, whose rank the sizes `given` for the argument `along` must match.

    It must have elements, unless it may be `empty`.
    """
    layout = {-1: "(*spatial, channels)", 0: "(channels, *spatial)", None: "(*spatial,)"}[axis]
    rank = len(given) + (axis is not None)
    if len(shape) != rank:
        raise ValueError(
            f"{function}: {name} must be ONE example of shape {layout}, which has {rank} axes for {along} {given} and "
            f"channel_axis={axis}; got {len(shape)} axes, shape {shape}. "
            f"For a batch use jax.vmap: {call or f'jax.vmap(lambda x: jpool.{function}(x, {given}, ...))(batch)'}."
            + (" spatial_shape leaves out batch and channels." if along == "spatial_shape" else "")
        )
    spatial = spatial_part(shape, axis)
    if 0 in spatial and not empty:
        raise ValueError(
            f"{function}: {name} must have at least one element along every spatial axis; got shape {shape}."
        )
    return spatial


def spatial_part(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """The shape without its channel axis."""
    return {-1: shape[:-1], 0: shape[1:], None: shape}[axis]


def is_int(value: Any) -> bool:
    """NumPy's integers are Integral, its bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """The value and its type, for an error text; an array, traced ones above all, gets the way out beside it."""
    text = f"{value!r} of type {type(value).__name__}"
    if type(value).__module__ == "numpy":
        text += " (take Python's own numbers, tuples and words)"
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        text += " (it must be known before tracing: under jax.jit close over it, or name it in static_argnames)"
    return text
