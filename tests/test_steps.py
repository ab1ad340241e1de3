"""The steps, together, are the window: pure integers, checked by following every number to its element."""

from itertools import pairwise

import numpy as np
import pytest
from cases import CASES

from jpool.pooling.integers.geometry import Geometry, resolve
from jpool.pooling.cpu import ARRANGEMENT as CPU
from jpool.pooling.integers.steps import Arrangement, steps

ARRANGEMENTS = {"cpu": CPU, "gpu": Arrangement()}


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
            if (0 if t == 0 else (t - 1) * step.block_stride + step.block)
            <= winner
            < t * step.block_stride + step.block
        ]
        winner -= tap * step.block_stride
        place = np.unravel_index(tap, [axis.window for axis in axes])
        output = [
            o * axis.stride + j * axis.dilation - axis.low for o, j, axis in zip(output, place, axes, strict=True)
        ]
    assert winner == 0
    return tuple(int(at) for at in output)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("name", [name for name in CASES if name != "zero_channels"])
def test_every_winner_leads_to_the_element_that_its_tap_reads(name, arrangement):
    whole = geometry(CASES[name])
    windows = [axis.window for axis in whole.axes]
    for output in ([0] * len(windows), [n - 1 for n in whole.values_shape]):
        for winner, tap in enumerate(np.ndindex(*windows)):
            read = [o * a.stride + j * a.dilation - a.low for o, j, a in zip(output, tap, whole.axes, strict=True)]
            assert element(steps(whole, ARRANGEMENTS[arrangement]), output, winner) == tuple(read)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("name", CASES)
def test_each_step_begins_where_the_one_before_it_ends(name, arrangement):
    whole = geometry(CASES[name])
    walk = steps(whole, ARRANGEMENTS[arrangement])
    assert walk[0].geometry.example_shape == whole.example_shape
    assert walk[-1].geometry.values_shape == whole.values_shape
    assert walk[-1].no_winner == whole.taps
    for before, after in pairwise(walk):
        assert before.geometry.values_shape == after.geometry.example_shape
        assert before.no_winner == after.block


@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_small_windows_are_one_step_and_huge_ones_few(arrangement):
    few = [len(steps(geometry(CASES[name]), arrangement)) for name in ("halves", "overlapping", "volume_large")]
    assert few == [1, 1, 3]
    options = {"window_dilation": 1, "ceil_mode": False, "channel_axis": None}
    line = resolve("max_pool", (10**6,), (10**5,), 1, "VALID", **options)
    assert len(steps(line, arrangement)) <= 9
    assert max(step.taps for step in steps(line, arrangement)) <= max(arrangement.direct_taps, arrangement.axis_taps)
    assert isinstance(line, Geometry)


def test_axes_that_one_window_covers_whole_are_one_reduction_but_on_a_cpu():
    image = resolve(
        "max_pool", (40, 30, 5, 3), (40, 30, 2), 1, "VALID", window_dilation=1, ceil_mode=False, channel_axis=-1
    )
    assert [step.reduced for step in steps(image, Arrangement())] == [(), (0, 1)]
    assert not any(step.reduced for step in steps(image, CPU))
    assert not any(step.reduced for step in steps(image._replace(ties="split"), Arrangement()))


def test_masks_are_of_the_same_steps_on_every_platform():
    for case in CASES.values():
        split = geometry(case)._replace(ties="split")
        assert steps(split, CPU) == steps(split, Arrangement())
