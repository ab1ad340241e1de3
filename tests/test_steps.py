"""The steps, together, are the window: pure integers, checked by following every number to its element."""

from itertools import pairwise

import numpy as np
import pytest
from cases import CASES

from jpool.geometry import Geometry, resolve
from jpool.steps import DIRECT_TAPS, steps


def geometry(case):
    options = {"window_dilation": None, "ceil_mode": False, "channel_axis": -1, "padding": "VALID", "strides": None}
    options |= case.arguments
    return resolve("max_pool", case.shape, case.window, options.pop("strides"), options.pop("padding"), **options)


def element(walk, output, winner):
    """Follows the winner of one output back through the steps: the element, in coordinates of the example."""
    for step in reversed(walk):
        axes = step.geometry.axes
        taps = np.arange(step.geometry.taps)
        (tap,) = [
            t
            for t in taps
            if (0 if t == 0 else (t - 1) * step.apart + step.block) <= winner < t * step.apart + step.block
        ]
        winner -= tap * step.apart
        place = np.unravel_index(tap, [axis.window for axis in axes])
        output = [
            o * axis.stride + j * axis.dilation - axis.low for o, j, axis in zip(output, place, axes, strict=True)
        ]
    assert winner == 0
    return tuple(int(at) for at in output)


@pytest.mark.parametrize("name", [name for name in CASES if name != "zero_channels"])
def test_every_winner_leads_to_the_element_that_its_tap_reads(name):
    whole = geometry(CASES[name])
    windows = [axis.window for axis in whole.axes]
    for output in ([0] * len(windows), [n - 1 for n in whole.values_shape]):
        for winner, tap in enumerate(np.ndindex(*windows)):
            read = [o * a.stride + j * a.dilation - a.low for o, j, a in zip(output, tap, whole.axes, strict=True)]
            assert element(steps(whole), output, winner) == tuple(read)


@pytest.mark.parametrize("name", CASES)
def test_each_step_begins_where_the_one_before_it_ends(name):
    whole = geometry(CASES[name])
    walk = steps(whole)
    assert walk[0].geometry.example_shape == whole.example_shape
    assert walk[-1].geometry.values_shape == whole.values_shape
    assert walk[-1].none == whole.taps
    for before, after in pairwise(walk):
        assert before.geometry.values_shape == after.geometry.example_shape
        assert before.none == after.block


def test_small_windows_are_one_step_and_huge_ones_few():
    assert [len(steps(geometry(CASES[name]))) for name in ("halves", "overlapping", "volume_large")] == [1, 1, 3]
    options = {"window_dilation": 1, "ceil_mode": False, "channel_axis": None}
    line = resolve("max_pool", (10**6,), (10**5,), 1, "VALID", **options)
    assert len(steps(line)) <= 9
    assert max(step.geometry.taps for step in steps(line)) <= DIRECT_TAPS
    assert isinstance(line, Geometry)
