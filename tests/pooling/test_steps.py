"""The steps of a pooling: integers only. Every window reads its elements in their order, whatever its steps."""

from itertools import pairwise, product

import pytest
from shared.cases import CASES
from shared.poolings import geometry, resolved

from jpool.pooling.integers.geometry import Geometry, adaptive
from jpool.pooling.integers.tables import spans
from jpool.pooling.plain.steps import AXIS_TAPS, DIRECT_TAPS, is_reduction, steps
from jpool.pooling.plain.ties import RULES


def elements(all_steps, output):
    """The elements that a window reads, in the order in which they are compared."""
    if not all_steps:
        return [output]
    axes = all_steps[-1].axes
    along = []
    for o, axis in zip(output, axes, strict=True):
        start, first, last = (numbers[o] for numbers in spans(axis))
        along.append([int(start + tap * axis.dilation) for tap in range(first, last + 1)])
    return [element for block in product(*along) for element in elements(all_steps[:-1], block)]


def check(whole):
    """The same elements as in one step; each for the first time in row-major order."""
    for output in {
        (0,) * len(whole.axes),
        tuple(n - 1 for n in whole.values_shape),
        tuple(n // 2 for n in whole.values_shape),
    }:
        expected = elements((whole,), output)
        assert list(dict.fromkeys(elements(steps(whole), output))) == expected
        if not RULES[whole.ties].one_winner:
            assert len(elements(steps(whole), output)) == len(expected)  # none is read twice


@pytest.mark.parametrize("ties", ["first", "split"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "zero_channels"])
def test_a_window_in_steps_reads_its_elements_in_row_major_order(name, ties):
    whole = geometry(CASES[name])._replace(ties=ties)
    if ties == "split" and any(axis.window in (17, 23) for axis in whole.axes):
        whole = whole._replace(ties="none")
    check(whole)


@pytest.mark.parametrize(
    ("sizes", "outputs"), [((30, 7), (7, 3)), ((7, 5), (30, 9)), ((1000,), (3,)), ((101, 2), (9, 2)), ((4, 9), (3, 2))]
)
def test_an_adaptive_window_in_steps_reads_its_elements_in_row_major_order(sizes, outputs):
    check(adaptive(sizes, outputs))
    assert max(step.taps for step in steps(adaptive(sizes, outputs))) <= DIRECT_TAPS


@pytest.mark.parametrize("name", CASES)
def test_each_step_starts_from_the_result_of_the_step_before_it(name):
    whole = geometry(CASES[name])
    shapes = [(step.example_shape, step.values_shape) for step in steps(whole)]
    assert (shapes[0][0], shapes[-1][1]) == (whole.example_shape, whole.values_shape)
    assert all(values == example for (_, values), (example, _) in pairwise(shapes))


def test_small_windows_are_one_step_and_huge_windows_are_few():
    counts = [len(steps(geometry(CASES[name]))) for name in ("halves", "overlapping", "volume_large")]
    assert counts == [1, 1, 3]
    line = resolved((10**6,), (10**5,), channel_axis=None)
    assert len(steps(line)) <= 9
    assert max(step.taps for step in steps(line)) <= max(DIRECT_TAPS, AXIS_TAPS)
    assert isinstance(line, Geometry)
    assert steps(line._replace(one_step=True)) == (line._replace(one_step=True),)


def test_axes_that_one_window_covers_completely_are_one_reduction():
    image = resolved((40, 30, 5, 3), (40, 30, 2))
    assert [is_reduction(step) for step in steps(image)] == [False, True]
    assert not any(map(is_reduction, steps(image._replace(ties="split"))))
    assert not any(map(is_reduction, steps(image, reduces=False)))


def test_a_window_with_gaps_is_no_reduction():
    """Taps 0, 2, .. of 16 do not cover the elements between them."""
    pooling = resolved((16,), (16,), 1, ((0, 15),), window_dilation=2, channel_axis=None)
    assert not any(map(is_reduction, steps(pooling)))
