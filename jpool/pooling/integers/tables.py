"""The table of a pooling: which element each tap of each window reads, and which windows cover each element.

Everything else follows from it: the forward pass uses `reads`, the backward pass `covers`. For 5 elements, window 3,
stride 2 and padding 1 on both sides there are three windows, around the elements 0, 2 and 4:

    reads       tap 0    tap 1    tap 2        covers                       element 0  1  2  3  4
    elements    0 1 3    0 2 4    1 3 4        the first window that covers it      0  0  1  1  2
    taps        1 0 0    1 1 1    2 2 1        ... and as which of its taps         1  2  1  2  1
    (of windows 0, 1, 2)                       the next one                         -  1  -  2  -
                                               ... and as which of its taps         -  0  -  0  -

Tap 0 of the first window is in the padding. It is replaced by the nearest real tap of its window, tap 1: the same
element under the same number. Reading an element of a window twice changes no maximum and no winner, so no value for
padding is needed, and no rule for ties has to know that there is padding. Windows of padding alone are `all_padding`.

Adaptive windows have a table as well: of n elements, window i of o reads floor(i n/o) to ceil((i+1) n/o) - 1. The
windows that cover element e are floor(e o/n) to ceil((e+1) o/n) - 1: the same formula, with n and o exchanged.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jpool.pooling.integers.geometry import Axis

CACHED = 32  # tables; each is as long as its axis


class Reads(NamedTuple):
    """What one tap of every window reads along an axis."""

    elements: np.ndarray
    taps: np.ndarray  # the number of the tap, or of the real tap that replaces it


class Covers(NamedTuple):
    """One of the windows that cover every element along an axis."""

    windows: np.ndarray  # any where there is none
    taps: np.ndarray  # which tap of that window the element is; -1 where there is none


@lru_cache(CACHED)
def spans(axis: Axis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The position of tap 0 of each window, its first and its last real tap; first > last if all are padding."""
    window = np.arange(axis.output)
    if axis.parts:
        outputs, part = axis.output // axis.parts, window % axis.parts * axis.window
        start = window // axis.parts * axis.size // outputs + part
        end = -(-(window // axis.parts + 1) * axis.size // outputs)
        return start, 0 * start, np.minimum(end - start, axis.window) - 1
    start = window * axis.stride - axis.low
    last = np.minimum((axis.size - 1 - start) // axis.dilation, axis.window - 1)
    return start, np.maximum(-(start // axis.dilation), 0), last


def all_padding(axis: Axis) -> np.ndarray:
    """Which windows read no element."""
    _, first, last = spans(axis)
    return first > last


@lru_cache(CACHED)
def real_taps(axis: Axis) -> tuple[int, ...]:
    """The taps with which some window reads an element; at least one."""
    if axis.is_regular:
        return tuple(range(axis.window))
    _, first, last = spans(axis)
    begins, ends = (np.bincount(taps[first <= last], minlength=axis.window + 1) for taps in (first, last + 1))
    return tuple(np.flatnonzero(np.cumsum(begins - ends)[: axis.window]).tolist()) or (0,)


def reads(axis: Axis, tap: int) -> Reads:
    """What this tap of every window reads."""
    start, first, last = spans(axis)
    taps = np.clip(tap, first, np.maximum(first, last))
    return Reads(np.clip(start + taps * axis.dilation, 0, axis.size - 1), np.where(first > last, 0, taps))


@lru_cache(CACHED)
def covers(axis: Axis) -> tuple[Covers, ...]:
    """For n = 0, 1, ..: the nth window that covers each element."""
    first, last, step = _covering(axis)
    count = int(((last - first) // step + 1).max(initial=0))
    return tuple(_nth_cover(axis, first + n * step, last) for n in range(count))


def _covering(axis: Axis) -> tuple[np.ndarray, np.ndarray, int]:
    """The first and the last window that covers each element, and the step from one to the next."""
    element = np.arange(axis.size)
    if axis.parts:
        outputs = axis.output // axis.parts
        return element * outputs // axis.size, -(-(element + 1) * outputs // axis.size) - 1, 1
    # Window o covers it if position - o * stride is one of 0, dilation, .., (window - 1) * dilation.
    position = element + axis.low
    first = np.maximum(-((axis.extent - 1 - position) // axis.stride), 0)
    last = np.minimum(position // axis.stride, axis.output - 1)
    common = math.gcd(axis.stride, axis.dilation)
    step = axis.dilation // common  # o modulo step is determined (by a modular inverse), position modulo common is 0
    solution = position // common % step * pow(axis.stride // common, -1, step) % step
    return first + (solution - first) % step, np.where(position % common == 0, last, -1), step


def _nth_cover(axis: Axis, window: np.ndarray, last: np.ndarray) -> Covers:
    exists, element = window <= last, np.arange(axis.size)
    if axis.parts:
        tap = element - window * axis.size // (axis.output // axis.parts)
        window, tap = window * axis.parts + tap // axis.window, tap % axis.window
    else:
        tap = (element + axis.low - window * axis.stride) // axis.dilation
    return Covers(np.clip(window, 0, max(axis.output - 1, 0)), np.where(exists, tap, -1))
