"""The tables of every axis, compared with the definition: which elements windows read, and which windows cover them."""

from itertools import product

import numpy as np
import pytest

from jpool.pooling.integers.geometry import Axis, adaptive
from jpool.pooling.integers.tables import all_padding, covers, reads, real_taps

REGULAR = [
    Axis(*numbers)
    for numbers in product((1, 2, 5, 12), (1, 2, 3, 5), (1, 2, 3, 4, 6), (1, 2, 3), (-1, 0, 1, 4, 9), (1, 2, 6))
]


def by_definition(axis):
    """For every window the element that each tap reads; None in the padding."""
    if not axis.parts:
        positions = [
            [o * axis.stride + j * axis.dilation - axis.low for j in range(axis.window)] for o in range(axis.output)
        ]
        return [[p if 0 <= p < axis.size else None for p in window] for window in positions]
    outputs, windows = axis.output // axis.parts, []
    for o in range(outputs):
        elements = range(int(np.floor(o * axis.size / outputs)), int(np.ceil((o + 1) * axis.size / outputs)))
        for block in range(axis.parts):
            part = elements[block * axis.window : (block + 1) * axis.window]
            windows.append([*part, *[None] * (axis.window - len(part))])
    return windows


def adaptive_axes():
    """Every size and number of windows up to 17, whole and in blocks."""
    for size, output in product(range(1, 18), range(1, 18)):
        (axis,) = adaptive((size,), (output,)).axes
        if axis.parts:
            yield axis
            for block in range(1, axis.window):
                count = -(-axis.window // block)
                yield axis._replace(window=block, output=output * count, parts=count)


AXES = {"regular": REGULAR, "adaptive": [*adaptive_axes()]}


@pytest.mark.parametrize("kind", AXES)
def test_a_tap_in_the_padding_is_replaced_by_the_nearest_real_tap_of_its_window(kind):
    for axis in AXES[kind]:
        for o, window in enumerate(by_definition(axis)):
            real = [j for j, element in enumerate(window) if element is not None]
            assert all_padding(axis)[o] == (not real)
            for j in range(axis.window) if real else ():
                nearest = min(max(j, real[0]), real[-1])
                table = reads(axis, j)
                assert (table.elements[o], table.taps[o]) == (window[nearest], nearest), (axis, o, j)


@pytest.mark.parametrize("kind", AXES)
def test_no_tap_reads_outside_the_axis_even_in_windows_of_padding_alone(kind):
    """The program promises that to XLA, which then does not check it."""
    for axis in AXES[kind]:
        elements = np.stack([reads(axis, j).elements for j in range(axis.window)])
        assert ((elements >= 0) & (elements < axis.size)).all(), axis


@pytest.mark.parametrize("kind", AXES)
def test_taps_that_no_window_reads_are_left_out(kind):
    for axis in AXES[kind]:
        used = {j for window in by_definition(axis) for j, element in enumerate(window) if element is not None}
        assert set(real_taps(axis)) == (used or {0}), axis


@pytest.mark.parametrize("kind", AXES)
def test_every_element_knows_the_windows_that_cover_it_in_their_order(kind):
    for axis in AXES[kind]:
        windows, tables = by_definition(axis), covers(axis)
        for element in range(axis.size):
            expected = [(o, j) for o, window in enumerate(windows) for j, read in enumerate(window) if read == element]
            found = [(c.windows[element], c.taps[element]) for c in tables if c.taps[element] >= 0]
            assert found == expected, (axis, element)
        assert all((c.windows >= 0).all() and (c.windows < axis.output).all() for c in tables)


def test_the_table_in_the_docstring():
    axis = Axis(5, 3, 2, 1, 1, 3)
    assert [reads(axis, j).elements.tolist() for j in range(3)] == [[0, 1, 3], [0, 2, 4], [1, 3, 4]]
    assert [reads(axis, j).taps.tolist() for j in range(3)] == [[1, 0, 0], [1, 1, 1], [2, 2, 1]]
    first, second = covers(axis)
    assert (first.windows.tolist(), first.taps.tolist()) == ([0, 0, 1, 1, 2], [1, 2, 1, 2, 1])
    assert [(w, t) for w, t in zip(second.windows, second.taps, strict=True) if t >= 0] == [(1, 0), (2, 0)]
    assert second.taps.tolist() == [-1, 0, -1, 0, -1]


@pytest.mark.parametrize(("size", "output"), [(30, 7), (7, 30), (5, 4000), (63, 100), (10**5, 61803), (999, 2**20)])
def test_the_longest_adaptive_window_is_known_without_a_table(size, output):
    (axis,) = adaptive((size,), (output,)).axes
    i = np.arange(output)
    assert axis.window == (-(-(i + 1) * size // output) - i * size // output).max()
