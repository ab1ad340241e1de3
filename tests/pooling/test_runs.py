"""The runs for XLA:CPU cover every window and read no padding; reading in place has the results of padding."""

import jax
import numpy as np
import pytest
from shared import oracle
from shared.cases import CASES, CONTENTS, EVERY_CASE
from shared.poolings import geometry

from jpool.pooling import cpu
from jpool.pooling.cpu import backward, forward
from jpool.pooling.cpu.runs import MAX_EDGES, reads_in_place, runs, selects_in_place
from jpool.pooling.integers.geometry import Axis, adaptive
from jpool.pooling.plain import all_steps

AXES = [
    Axis(size, window, stride, dilation, low, output)
    for size in (1, 2, 5, 12)
    for window in (1, 2, 3, 5)
    for stride in (1, 2, 3)
    for dilation in (1, 2)
    for low in (0, 1, 4)
    for output in (1, 2, 6)
]


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_each_window_is_in_one_run_and_reads_exactly_its_real_elements(size):
    for axis in (axis for axis in AXES if axis.size == size):
        read = []
        for run in runs(axis):
            for window in range(run.axis.output):
                taps = range(run.axis.window)
                coordinates = [window * run.axis.stride + tap * axis.dilation - run.axis.low for tap in taps]
                read.append([(run.first_tap + tap, coordinate) for tap, coordinate in enumerate(coordinates)])
        expected = [
            [
                (tap, coordinate)
                for tap in range(axis.window)
                if 0 <= (coordinate := window * axis.stride + tap * axis.dilation - axis.low) < size
            ]
            for window in range(axis.output)
        ]
        assert read == expected, axis


def test_all_windows_that_read_no_padding_are_one_run():
    axis = Axis(10**6, 3, 1, 1, 1, 10**6)
    assert [(run.axis.output, run.axis.window, run.first_tap) for run in runs(axis)] == [
        (1, 2, 1),
        (10**6 - 2, 3, 0),
        (1, 2, 0),
    ]


def test_adaptive_windows_of_one_size_and_distance_are_one_run():
    (axis,) = adaptive((30,), (7,)).axes
    assert [(-run.axis.low, run.axis.window, run.axis.output) for run in runs(axis)] == [
        (0, 5, 3),
        (12, 6, 1),
        (17, 5, 3),
    ]


def test_arrays_are_read_in_place_if_few_windows_overhang_and_none_on_the_last_axis():
    no_overhang, two_overhang = Axis(9, 3, 1, 1, 0, 7), Axis(9, 3, 1, 1, 1, 9)
    four_overhang = Axis(9, 5, 1, 1, 2, 9)
    assert MAX_EDGES == 3
    assert reads_in_place([no_overhang, no_overhang])
    assert reads_in_place([two_overhang, two_overhang, no_overhang])
    assert not reads_in_place([no_overhang, two_overhang])
    assert reads_in_place([no_overhang, two_overhang], last_axis_edges=2)
    assert not reads_in_place([no_overhang, two_overhang], last_axis_edges=1)
    assert not reads_in_place([four_overhang, no_overhang])


SELECTS_IN_PLACE = {
    "halves": True,
    "overlapping": True,
    "resnet_stem": True,
    "no_channels_padded": True,
    "channels_first": True,  # no window overhangs
    "inception": False,  # as many windows as elements: joining them would copy as much as padding does
    "default_strides": False,
    "uneven": False,
    "only_padding_strided": False,  # all-padding windows
    "ceil_high_padding": False,
}


def test_the_geometry_determines_whether_select_reads_in_place():
    assert {name: selects_in_place(geometry(CASES[name])) for name in SELECTS_IN_PLACE} == SELECTS_IN_PLACE


def examples(name):
    """One example of each content."""
    rng = np.random.default_rng(len(name))
    return np.stack([content(rng, CASES[name].shape) for content in CONTENTS.values()])


@pytest.mark.parametrize("name", EVERY_CASE)
def test_padding_everything_has_the_results_of_reading_in_place(name, monkeypatch):
    case, pooling, xs = CASES[name], geometry(CASES[name]), examples(name)
    expected_results = [oracle.max_pool(x, case.window, **case.arguments) for x in xs]
    ct = np.random.default_rng(1).integers(-9, 10, (len(xs), *pooling.values_shape)).astype(np.float32)
    monkeypatch.setattr(forward, "selects_in_place", lambda *_: False)
    monkeypatch.setattr(backward, "reads_in_place", lambda axes: False)

    @jax.jit
    @jax.vmap
    def both(x, ct):
        values, winners = all_steps.select(cpu.PLATFORM, pooling, x)
        return values, all_steps.route(cpu.PLATFORM, pooling, winners, ct)

    for i, (values, gradient) in enumerate(zip(*both(xs, ct), strict=True)):
        expected, positions = expected_results[i]
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(gradient, oracle.route(xs[i].shape, positions, ct[i]).astype(np.float32))


@pytest.mark.parametrize("name", EVERY_CASE)
def test_values_without_winners_are_the_same_bit_for_bit(name):
    pooling = geometry(CASES[name])

    @jax.jit
    @jax.vmap
    def both(x):
        return all_steps.select(cpu.PLATFORM, pooling, x)[0], forward.select_values(pooling, x)

    values, values_only = both(examples(name))
    np.testing.assert_array_equal(
        np.asarray(values_only).view(np.uint32), np.asarray(values).view(np.uint32), strict=True
    )
