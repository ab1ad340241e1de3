"""Named poolings, each with the reason for it, and named contents for their examples."""

from collections.abc import Container, Iterable
from typing import Any, NamedTuple

import numpy as np
import pytest


class Case(NamedTuple):
    """One call of max_pool, without the numbers in x."""

    why: str
    shape: tuple[int, ...]
    window: tuple[int, ...]
    arguments: dict[str, Any] = {}  # noqa: RUF012


CASES = {
    "halves": Case("the most common pool: windows share no element", (6, 8, 3), (2, 2), {"strides": 2}),
    "default_strides": Case("strides=None is 1, not the window's size", (5, 6, 2), (2, 3)),
    "overlapping": Case("AlexNet: neighbouring windows share elements", (9, 9, 2), (3, 3), {"strides": 2}),
    "resnet_stem": Case("overlap, stride and padding together", (8, 7, 2), (3, 3), {"strides": 2, "padding": 1}),
    "no_channels_padded": Case("windows overhang along the last axis", (8, 11), (3, 3), {"strides": 2, "padding": 1, "channel_axis": None}),
    "inception": Case("up to nine windows cover an element", (6, 5, 2), (3, 3), {"padding": "SAME"}),
    "gaps": Case("stride larger than the window: some elements are in no window", (11, 10, 2), (2, 1), {"strides": (4, 3)}),
    "left_over": Case("the last elements are too few for another window", (8, 9, 1), (3, 2), {"strides": (3, 4)}),
    "one_tap": Case("a window of one element", (4, 5, 2), (1, 1)),
    "one_tap_strided": Case("subsampling", (7, 5, 2), (1, 1), {"strides": (3, 2)}),
    "whole": Case("one window: a global pool", (5, 4, 3), (5, 4)),
    "one_element": Case("the smallest possible example", (1,), (1,), {"channel_axis": None}),
    "no_channels": Case("channel_axis=None", (7, 6), (2, 3), {"channel_axis": None, "strides": (2, 1)}),
    "channels_first": Case("channel_axis=0", (3, 7, 6), (2, 3), {"channel_axis": 0, "strides": (2, 1)}),
    "zero_channels": Case("an empty result, which still has a shape", (4, 4, 0), (2, 2)),
    "line": Case("1-D: audio", (16, 2), (4,), {"strides": 4}),
    "volume": Case("3-D, U-Net", (4, 6, 5, 2), (2, 3, 2), {"strides": 2}),
    "four_axes": Case("4-D, which torch does not support", (3, 4, 3, 4, 1), (2, 2, 2, 2), {"padding": ((1, 0), (0, 1), 0, 1)}),
    "same_even": Case("an odd element of padding is put after the input", (5, 6, 1), (2, 4), {"strides": (1, 3), "padding": "SAME"}),
    "same_lower": Case("an odd element of padding is put before the input", (5, 6, 1), (2, 4), {"strides": (1, 3), "padding": "SAME_LOWER"}),
    "same_no_padding": Case("SAME where no padding is needed", (6, 6, 1), (2, 2), {"strides": 2, "padding": "SAME"}),
    "uneven": Case("a different amount on each side", (5, 4, 2), (3, 2), {"padding": ((0, 2), (1, 0)), "strides": (2, 1)}),
    "mixed_padding": Case("an int for one axis, a pair for the other", (5, 4, 2), (3, 2), {"padding": (1, (0, 1))}),
    "far_apart": Case("huge strides and padding: one window reads elements", (5, 6, 2), (2, 3), {"strides": 2**20, "padding": 2**20}),
    "far_apart_dilated": Case("windows that begin at -10, -2 and 6", (6, 3), (3, 1), {"strides": (8, 2**40), "padding": ((10, 9), (2**40, 2**40)), "window_dilation": 2, "channel_axis": None}),
    "far_after": Case("every window is after the input, but one", (4, 2), (2,), {"strides": 2**31, "padding": ((0, 2**33),)}),
    "only_padding": Case("all-padding windows on all sides", (3, 2, 2), (2, 2), {"padding": 3}),
    "only_padding_strided": Case("all-padding windows, strided", (4, 3), (2, 3), {"padding": 5, "strides": 3, "channel_axis": None}),
    "one_window_of_padding": Case("a few windows, the first all padding", (20,), (2,), {"strides": 4, "padding": ((2, 0),), "channel_axis": None}),
    "all_begin_in_padding": Case("low padding as long as the window: every window starts in it", (2, 1, 1, 1), (1, 1, 2), {"padding": (0, 0, (2, 0)), "channel_axis": 0}),
    "dilated": Case("gaps between the taps", (9, 8, 2), (3, 2), {"window_dilation": (2, 3)}),
    "dilated_same": Case("SAME pads for the dilated window, as in lax", (7, 8, 1), (3, 3), {"window_dilation": 2, "padding": "SAME"}),
    "dilated_strided": Case("dilation and stride have no common divisor", (17, 2), (4,), {"window_dilation": 3, "strides": 2}),
    "dilated_coarser": Case("the stride is a multiple of the dilation", (19, 1), (3,), {"window_dilation": 2, "strides": 4}),
    "dilated_hole": Case("both taps are padding, the only element is between them", (1, 1), (2,), {"window_dilation": 2, "padding": 1}),
    "ceil": Case("the last window overhangs the input", (6, 5, 2), (3, 2), {"strides": 2, "ceil_mode": True}),
    "ceil_dropped": Case("a last window that would start in the high padding is dropped", (4, 1), (2,), {"strides": 3, "padding": 1, "ceil_mode": True}),
    "ceil_low_padding": Case("the last window may start in the low padding", (1, 1), (2,), {"strides": 1, "padding": ((3, 0),), "ceil_mode": True}),
    "ceil_high_padding": Case("high padding longer than the window", (4, 1), (2,), {"strides": 2, "padding": ((0, 6),), "ceil_mode": True}),
    "ceil_smaller": Case("one window that overhangs an input smaller than it", (2, 2), (3, 3), {"strides": 2, "ceil_mode": True, "channel_axis": None}),
    "ceil_smaller_dilated": Case("... along one axis, with dilation and padding", (8, 4, 1), (3, 3), {"strides": (1, 2), "padding": (1, 0), "window_dilation": 2, "ceil_mode": True}),
    "ceil_same": Case("ceil_mode has no effect under SAME", (5, 5, 1), (2, 2), {"strides": 2, "padding": "SAME", "ceil_mode": True}),
    "ten_taps": Case("one tap too many for a single step", (4, 12, 2), (2, 5)),
    "five_by_five": Case("pooled axis by axis", (9, 8, 2), (5, 5), {"padding": 2}),
    "five_by_five_strided": Case("pooled axis by axis, with stride", (14, 13, 2), (5, 5), {"strides": (3, 2), "padding": ((1, 2), 2)}),
    "one_row_strided": Case("an axis that only strides, before one pooled in steps", (8, 14, 2), (1, 11), {"strides": (3, 2), "padding": ((1, 0), 2)}),
    "one_row_padded": Case("an axis that is only padded, before two pooled in steps", (3, 7, 8), (1, 4, 4), {"padding": (1, 1, 2), "strides": (1, 2, 3), "channel_axis": None}),
    "one_column_once": Case("one column of windows, pooled in steps", (40, 5, 1), (10, 1), {"strides": (10, 5)}),
    "long_line": Case("overlapping blocks", (64, 1), (31,), {"padding": 15}),
    "long_strided": Case("blocks with stride, dilation and uneven padding", (90, 2), (23,), {"strides": 7, "window_dilation": 3, "padding": ((9, 4),)}),
    "long_only_padding": Case("all-padding blocks", (5, 1), (9,), {"padding": ((20, 11),)}),
    "taps_255": Case("the largest window that has uint8 winners", (18, 16), (17, 15), {"channel_axis": None}),
    "taps_256": Case("one tap more: uint16 winners", (17, 18), (16, 16), {"channel_axis": None, "padding": 1}),
    "taps_64": Case("the largest window that max_unpool pools in one step; along every axis an element is in no window", (10, 6, 6, 6), (4, 4, 2, 2), {"channel_axis": None, "strides": (5, 5, 3, 3)}),
    "volume_large": Case("three axes, each pooled in steps", (6, 7, 6), (3, 4, 3), {"channel_axis": None, "strides": (1, 2, 1), "padding": 1}),
}  # fmt: skip


def mostly_exhaustive(values: Iterable[Any], quick: Container[Any]) -> list[Any]:
    """Parameters of a test: all values, of which only the quick ones run without `-m exhaustive`."""
    marked = pytest.mark.exhaustive
    return [
        value if value in quick else pytest.param(*(value if isinstance(value, tuple) else [value]), marks=marked)
        for value in values
    ]


def distinct(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """No two elements are equal."""
    return rng.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32) - 7


def tied(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Most windows have several maxima; zeros have both signs."""
    return rng.choice(np.array([-0.0, 0.0, 1.0], np.float32), shape)


def special(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """NaN and both infinities among a few numbers."""
    return rng.choice(np.array([-np.inf, -np.inf, -np.inf, -1.0, 2.0, np.inf, np.nan], np.float32), shape)


def lowest(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Every element is -inf, the value of padding."""
    return np.full(shape, -np.inf, np.float32)


CONTENTS = {"distinct": distinct, "tied": tied, "special": special, "lowest": lowest}
