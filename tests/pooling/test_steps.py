"""The steps of a pooling: integers only. Every winner, followed back through the steps, is the element of its tap."""

from itertools import pairwise

import numpy as np
import pytest
from shared.cases import CASES
from shared.poolings import geometry, resolved

from jpool.pooling.cpu import ARRANGEMENT as CPU
from jpool.pooling.integers.geometry import Geometry
from jpool.pooling.plain.steps import Arrangement, steps

ARRANGEMENTS = {"cpu": CPU, "gpu": Arrangement()}


def element(walked_steps, output, winner):
    """Follows the winner of one output back through the steps, to the coordinates of its element in the example."""
    for step in reversed(walked_steps):
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
        coordinates = np.unravel_index(tap, [axis.window for axis in axes])
        output = [
            o * axis.stride + j * axis.dilation - axis.low for o, j, axis in zip(output, coordinates, axes, strict=True)
        ]
    assert winner == 0
    return tuple(int(coordinate) for coordinate in output)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("name", [name for name in CASES if name != "zero_channels"])
def test_every_winner_is_the_element_that_its_tap_reads(name, arrangement):
    whole = geometry(CASES[name])
    windows = [axis.window for axis in whole.axes]
    for output in ([0] * len(windows), [n - 1 for n in whole.values_shape]):
        for winner, tap in enumerate(np.ndindex(*windows)):
            read = [o * a.stride + j * a.dilation - a.low for o, j, a in zip(output, tap, whole.axes, strict=True)]
            assert element(steps(whole, ARRANGEMENTS[arrangement]), output, winner) == tuple(read)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("name", CASES)
def test_each_step_starts_from_the_result_of_the_step_before_it(name, arrangement):
    whole = geometry(CASES[name])
    all_steps = steps(whole, ARRANGEMENTS[arrangement])
    assert all_steps[0].geometry.example_shape == whole.example_shape
    assert all_steps[-1].geometry.values_shape == whole.values_shape
    assert all_steps[-1].no_winner == whole.taps
    for before, after in pairwise(all_steps):
        assert before.geometry.values_shape == after.geometry.example_shape
        assert before.no_winner == after.block


@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_small_windows_are_one_step_and_huge_windows_are_few(arrangement):
    counts = [len(steps(geometry(CASES[name]), arrangement)) for name in ("halves", "overlapping", "volume_large")]
    assert counts == [1, 1, 3]
    line = resolved((10**6,), (10**5,), channel_axis=None)
    assert len(steps(line, arrangement)) <= 9
    assert max(step.taps for step in steps(line, arrangement)) <= max(arrangement.direct_taps, arrangement.axis_taps)
    assert isinstance(line, Geometry)


def test_axes_that_one_window_covers_completely_are_one_reduction():
    image = resolved((40, 30, 5, 3), (40, 30, 2))
    assert [step.reduced_axes for step in steps(image, Arrangement())] == [(), (0, 1)]
    assert not any(step.reduced_axes for step in steps(image._replace(ties="split"), Arrangement()))


def test_masks_have_the_same_steps_on_every_platform():
    for case in CASES.values():
        split = geometry(case)._replace(ties="split")
        assert steps(split, CPU) == steps(split, Arrangement())
