"""Values and gradients of every named case with every content equal the oracle's: routing is exact."""

import jax
import numpy as np
import pytest
from shared import oracle
from shared.cases import CASES, CONTENTS

import jpool

pytestmark = pytest.mark.usefixtures("arrangement")


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_the_oracle(name, content):
    case = CASES[name]
    rng = np.random.default_rng(len(name))
    x = CONTENTS[content](rng, case.shape)
    expected, winners = oracle.max_pool(x, case.window, **case.arguments)
    ct = rng.integers(-9, 10, expected.shape).astype(np.float32)  # whole numbers, so that sums are exact in any order
    values, backward = jax.vjp(lambda x: jpool.max_pool(x, case.window, **case.arguments), x)
    (gradient,) = backward(ct)
    assert values.dtype == gradient.dtype == x.dtype
    np.testing.assert_array_equal(values, expected, strict=True)
    np.testing.assert_array_equal(gradient, oracle.route(x.shape, winners, ct).astype(np.float32), strict=True)


def test_these_cases_have_all_padding_windows():
    with_all_padding_windows = set()
    for name, case in CASES.items():
        _, winners = oracle.max_pool(np.zeros(case.shape), case.window, **case.arguments)
        if None in winners.ravel().tolist():
            with_all_padding_windows.add(name)
    assert with_all_padding_windows == {
        "far_apart",
        "far_apart_dilated",
        "far_after",
        "only_padding",
        "only_padding_strided",
        "one_window_of_padding",
        "all_begin_in_padding",
        "one_row_strided",
        "one_row_padded",
        "long_only_padding",
        "ceil_low_padding",
        "ceil_high_padding",
        "dilated_hole",
    }


@pytest.mark.parametrize("content", ["tied", "special"])
def test_contents_have_the_property_that_they_are_named_for(content):
    x = CONTENTS[content](np.random.default_rng(0), (9, 9, 2))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1)).reshape(-1, 9)
    ties = (windows == np.max(windows, axis=1, keepdims=True)).sum(axis=1) > 1
    assert ties.mean() > 0.5 if content == "tied" else (np.isnan(windows).any(axis=1)).mean() > 0.5
