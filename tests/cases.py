"""Named poolings, each with the reason why it is here, and named contents to fill their examples with."""

from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """One call of max_pool but for the numbers in x."""

    why: str
    shape: tuple[int, ...]
    window: tuple[int, ...]
    arguments: dict[str, Any] = {}  # noqa: RUF012


CASES = {
    "halves": Case("the commonest pool: windows side by side", (6, 8, 3), (2, 2), {"strides": 2}),
    "default_strides": Case("strides=None is 1, not the window", (5, 6, 2), (2, 3)),
    "overlapping": Case("AlexNet: neighbours share elements", (9, 9, 2), (3, 3), {"strides": 2}),
    "resnet_stem": Case("overlap, stride and padding at once", (8, 7, 2), (3, 3), {"strides": 2, "padding": 1}),
    "no_channels_padded": Case(
        "edges along the last axis", (8, 11), (3, 3), {"strides": 2, "padding": 1, "channel_axis": None}
    ),
    "inception": Case("every element lies in nine windows", (6, 5, 2), (3, 3), {"padding": "SAME"}),
    "gaps": Case("stride above the window: some elements lie in no window", (11, 10, 2), (2, 1), {"strides": (4, 3)}),
    "left_over": Case("the last elements reach no whole window", (8, 9, 1), (3, 2), {"strides": (3, 4)}),
    "one_tap": Case("a window of one element", (4, 5, 2), (1, 1)),
    "one_tap_strided": Case("subsampling", (7, 5, 2), (1, 1), {"strides": (3, 2)}),
    "whole": Case("one window: a global pool", (5, 4, 3), (5, 4)),
    "one_element": Case("the smallest example there is", (1,), (1,), {"channel_axis": None}),
    "no_channels": Case("channel_axis=None", (7, 6), (2, 3), {"channel_axis": None, "strides": (2, 1)}),
    "channels_first": Case("channel_axis=0", (3, 7, 6), (2, 3), {"channel_axis": 0, "strides": (2, 1)}),
    "zero_channels": Case("nothing to pool, but a shape", (4, 4, 0), (2, 2)),
    "line": Case("1-D, WaveNet", (16, 2), (4,), {"strides": 4}),
    "volume": Case("3-D, U-Net", (4, 6, 5, 2), (2, 3, 2), {"strides": 2}),
    "four_axes": Case("4-D, beyond torch", (3, 4, 3, 4, 1), (2, 2, 2, 2), {"padding": ((1, 0), (0, 1), 0, 1)}),
    "same_even": Case(
        "an odd element of padding goes after", (5, 6, 1), (2, 4), {"strides": (1, 3), "padding": "SAME"}
    ),
    "same_lower": Case("... and before", (5, 6, 1), (2, 4), {"strides": (1, 3), "padding": "SAME_LOWER"}),
    "same_no_padding": Case("SAME that needs none", (6, 6, 1), (2, 2), {"strides": 2, "padding": "SAME"}),
    "uneven": Case("another amount on each side", (5, 4, 2), (3, 2), {"padding": ((0, 2), (1, 0)), "strides": (2, 1)}),
    "mixed_padding": Case("an int beside a pair", (5, 4, 2), (3, 2), {"padding": (1, (0, 1))}),
    "only_padding": Case("windows without a real element, on all sides", (3, 2, 2), (2, 2), {"padding": 3}),
    "only_padding_strided": Case(
        "the same, strided", (4, 3), (2, 3), {"padding": 5, "strides": 3, "channel_axis": None}
    ),
    "one_window_of_padding": Case(
        "a few windows, the first without a real element",
        (20,),
        (2,),
        {"strides": 4, "padding": ((2, 0),), "channel_axis": None},
    ),
    "all_begin_in_padding": Case(
        "low padding as long as the window, and no element before",
        (2, 1, 1, 1),
        (1, 1, 2),
        {"padding": (0, 0, (2, 0)), "channel_axis": 0},
    ),
    "dilated": Case("taps apart", (9, 8, 2), (3, 2), {"window_dilation": (2, 3)}),
    "dilated_same": Case(
        "lax counts the dilated window under SAME", (7, 8, 1), (3, 3), {"window_dilation": 2, "padding": "SAME"}
    ),
    "dilated_strided": Case(
        "dilation and stride share no divisor", (17, 2), (4,), {"window_dilation": 3, "strides": 2}
    ),
    "dilated_coarser": Case("stride a multiple of the dilation", (19, 1), (3,), {"window_dilation": 2, "strides": 4}),
    "dilated_hole": Case("both ends in padding, the middle real", (1, 1), (2,), {"window_dilation": 2, "padding": 1}),
    "ceil": Case("the last window hangs over", (6, 5, 2), (3, 2), {"strides": 2, "ceil_mode": True}),
    "ceil_dropped": Case(
        "it would start in the high padding", (4, 1), (2,), {"strides": 3, "padding": 1, "ceil_mode": True}
    ),
    "ceil_low_padding": Case(
        "it may start in the low padding", (1, 1), (2,), {"strides": 1, "padding": ((3, 0),), "ceil_mode": True}
    ),
    "ceil_high_padding": Case(
        "high padding of a window and more", (4, 1), (2,), {"strides": 2, "padding": ((0, 6),), "ceil_mode": True}
    ),
    "ceil_same": Case("no effect under SAME", (5, 5, 1), (2, 2), {"strides": 2, "padding": "SAME", "ceil_mode": True}),
    "ten_taps": Case("one tap above a single step", (4, 12, 2), (2, 5)),
    "five_by_five": Case("axis by axis", (9, 8, 2), (5, 5), {"padding": 2}),
    "five_by_five_strided": Case(
        "axis by axis, with stride", (14, 13, 2), (5, 5), {"strides": (3, 2), "padding": ((1, 2), 2)}
    ),
    "one_row_strided": Case(
        "an axis that only strides, before one in steps",
        (8, 14, 2),
        (1, 11),
        {"strides": (3, 2), "padding": ((1, 0), 2)},
    ),
    "one_row_padded": Case(
        "an axis that only hangs over, before two in steps",
        (3, 7, 8),
        (1, 4, 4),
        {"padding": (1, 1, 2), "strides": (1, 2, 3), "channel_axis": None},
    ),
    "one_column_once": Case("one column of windows in steps", (40, 5, 1), (10, 1), {"strides": (10, 5)}),
    "long_line": Case("blocks that overlap", (64, 1), (31,), {"padding": 15}),
    "long_strided": Case(
        "blocks, stride, dilation, uneven padding",
        (90, 2),
        (23,),
        {"strides": 7, "window_dilation": 3, "padding": ((9, 4),)},
    ),
    "long_only_padding": Case("blocks that hold nothing real", (5, 1), (9,), {"padding": ((20, 11),)}),
    "taps_255": Case("the most that uint8 winners can number", (18, 16), (17, 15), {"channel_axis": None}),
    "taps_256": Case("one more: uint16", (17, 18), (16, 16), {"channel_axis": None, "padding": 1}),
    "volume_large": Case(
        "three axes, each in steps", (6, 7, 6), (3, 4, 3), {"channel_axis": None, "strides": (1, 2, 1), "padding": 1}
    ),
}


def distinct(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """No two elements are equal."""
    return rng.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32) - 7


def tied(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Most windows have several maxima; both zeros are there."""
    return rng.choice(np.array([-0.0, 0.0, 1.0], np.float32), shape)


def special(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """NaN and both infinities among few numbers."""
    return rng.choice(np.array([-np.inf, -np.inf, -np.inf, -1.0, 2.0, np.inf, np.nan], np.float32), shape)


def lowest(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Every element is as low as padding."""
    return np.full(shape, -np.inf, np.float32)


CONTENTS = {"distinct": distinct, "tied": tied, "special": special, "lowest": lowest}
