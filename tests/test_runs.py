"""XLA:CPU's runs are the windows, none forgotten and none reading padding; reading in place or padding finds the same."""

import jax
import numpy as np
import oracle
import pytest
from cases import CASES, CONTENTS
from test_selection_and_routing import winner_numbers
from test_steps import geometry

from jpool.pooling.integers.geometry import Axis
from jpool.pooling import cpu
from jpool.pooling.cpu import backward, forward
from jpool.pooling.cpu.runs import MOST_EDGES, in_place, runs, selects_in_place

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
def test_every_window_reads_in_one_run_its_real_elements_and_no_others(size):
    for axis in (axis for axis in AXES if axis.size == size):
        read = []
        for run in runs(axis):
            for window in range(run.axis.output):
                places = [window * axis.stride + tap * axis.dilation - run.axis.low for tap in range(run.axis.window)]
                read.append([(run.first + tap, place) for tap, place in enumerate(places)])
        expected = [
            [
                (tap, place)
                for tap in range(axis.window)
                if 0 <= (place := window * axis.stride + tap * axis.dilation - axis.low) < size
            ]
            for window in range(axis.output)
        ]
        assert read == expected, axis


def test_windows_inside_are_one_run_however_many():
    axis = Axis(10**6, 3, 1, 1, 1, 10**6)
    assert [(run.axis.output, run.axis.window, run.first) for run in runs(axis)] == [
        (1, 2, 1),
        (10**6 - 2, 3, 0),
        (1, 2, 0),
    ]


def test_arrays_are_read_in_place_where_edges_are_few_and_not_on_the_last_axis():
    inside, edge = Axis(9, 3, 1, 1, 0, 7), Axis(9, 3, 1, 1, 1, 9)
    many = Axis(9, 5, 1, 1, 2, 9)
    assert MOST_EDGES == 3
    assert in_place([inside, inside])
    assert in_place([edge, edge, inside])
    assert not in_place([inside, edge])
    assert in_place([inside, edge], last=2)
    assert not in_place([inside, edge], last=1)
    assert not in_place([many, inside])


CHOSEN = {
    "halves": True,
    "overlapping": True,
    "resnet_stem": True,
    "no_channels_padded": True,
    "channels_first": True,  # nothing hangs over
    "inception": False,  # as many windows as elements: joining them would copy as much as padding does
    "default_strides": False,
    "uneven": False,
    "five_by_five_strided": False,  # more than one step
    "only_padding_strided": False,  # windows without a real element
    "ceil_high_padding": False,
}


def test_the_way_is_chosen_by_the_geometry_alone():
    assert {name: selects_in_place(geometry(CASES[name]), cpu.ARRANGEMENT) for name in CHOSEN} == CHOSEN


def examples(name):
    """An example of every content."""
    rng = np.random.default_rng(len(name))
    return np.stack([content(rng, CASES[name].shape) for content in CONTENTS.values()])


@pytest.mark.parametrize("name", CASES)
def test_padding_everything_finds_what_reading_in_place_finds(name, monkeypatch):
    case, whole, xs = CASES[name], geometry(CASES[name]), examples(name)
    pooled = [oracle.max_pool(x, case.window, **case.arguments) for x in xs]
    ct = np.random.default_rng(1).integers(-9, 10, (len(xs), *whole.values_shape)).astype(np.float32)
    monkeypatch.setattr(forward, "selects_in_place", lambda *_: False)
    monkeypatch.setattr(backward, "in_place", lambda axes: False)

    @jax.jit
    @jax.vmap
    def both(x, ct):
        values, winners = cpu.select(whole, x)
        return values, winners[0], cpu.route(whole, winners, ct)

    for values, winners, routed, x, (expected, homes), sent in zip(*both(xs, ct), xs, pooled, ct, strict=True):
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(winners, winner_numbers(case, x))
        np.testing.assert_array_equal(routed, oracle.route(x.shape, homes, sent).astype(np.float32))


@pytest.mark.parametrize("name", CASES)
def test_values_without_winners_are_the_same_to_the_bit(name):
    whole = geometry(CASES[name])
    values, alone = jax.jit(jax.vmap(lambda x: (cpu.select(whole, x)[0], cpu.largest(whole, x))))(examples(name))
    np.testing.assert_array_equal(np.asarray(alone).view(np.uint32), np.asarray(values).view(np.uint32), strict=True)
