"""Every named case, and random ones: all results of all functions equal the oracle's, because routing is exact."""

import itertools
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from shared import oracle
from shared.cases import CASES, CONTENTS, Case

import jpool
from jpool.pooling.plain.ties import RULES

MULTIPLE = 720720  # of every number up to 16: shares among up to 16 winners are whole numbers, and sums are exact
DEFAULT, *OTHERS = [(ties, minimum) for minimum in (False, True) for ties in RULES]
RULE_OF = dict(zip(CASES, itertools.cycle(OTHERS), strict=False))  # each case is pooled with one of the others in turn


def assert_same(actual, expected):
    """The same numbers, and zeros of the same sign."""
    np.testing.assert_array_equal(actual, expected, strict=True)
    np.testing.assert_array_equal(np.signbit(actual)[expected == 0], np.signbit(expected)[expected == 0])


def assert_equal(actual, expected, winners):
    """Equal; except that shares among more than 16 winners are rounded, and division on a GPU."""
    most = max(map(len, winners.ravel()), default=0)
    if most <= 16 and (most <= 1 or jax.default_backend() == "cpu"):
        np.testing.assert_array_equal(actual, expected.astype(np.float32), strict=True)
    else:
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=MULTIPLE * 1e-6)


def check(case, xs, ties, minimum):
    """Values, gradient and tangent; argmax, and unpooling, which is the derivative of pooling at an argmax."""
    arguments, axis = {"window_shape": case.window, **case.arguments}, case.arguments.get("channel_axis", -1)
    spatial = {-1: case.shape[:-1], 0: case.shape[1:], None: case.shape}[axis]
    windows, rng = oracle.windows(xs[0], **arguments), np.random.default_rng(0)
    ct, t = (MULTIPLE * rng.integers(-2, 3, (len(xs), *s)).astype(np.float32) for s in (windows.shape, case.shape))
    pool = partial(jpool.min_pool if minimum else jpool.max_pool, **arguments, ties=ties)

    @jax.jit
    @jax.vmap
    def everything(x, ct, t):
        all_values, backwards = zip(
            *(jax.vjp(partial(pool, forward_mode=mode), x) for mode in (False, True)), strict=True
        )
        of_jvp, tangent = jax.jvp(partial(pool, forward_mode=True), (x,), (t,))
        values, gradients, tangents, indices = [*all_values, of_jvp], [back(ct)[0] for back in backwards], [tangent], []
        if not minimum and ties in ("first", "last"):
            with_argmax, argmax = jpool.max_pool_with_argmax(x, **arguments, ties=ties)
            unpool = partial(jpool.max_unpool, argmax=argmax, spatial_shape=spatial)
            unpooled, read_at = jax.vjp(partial(unpool, **arguments), ct)
            values, gradients = [*values, pool(x), with_argmax], [*gradients, unpooled, unpool(ct, channel_axis=axis)]
            tangents, indices = [*tangents, read_at(t)[0]], [argmax]
        return values, gradients, tangents, indices

    values, gradients, tangents, indices = jax.device_get(everything(xs, ct, t))
    for i, x in enumerate(xs):
        expected, winners = oracle.pool(x, windows, ties, minimum)
        for actual in values:
            assert_same(actual[i], expected)
        for actual in gradients:
            assert_equal(actual[i], oracle.share(x.shape, winners, ct[i]), winners)
        for actual in tangents:
            assert_equal(actual[i], oracle.gather(winners, t[i]), winners)
        for argmax in indices:
            np.testing.assert_array_equal(argmax[i], oracle.flat(winners, x.shape, axis), strict=True)
    without_channels = {key: value for key, value in arguments.items() if key != "channel_axis"}
    pooled = {-1: windows.shape[:-1], 0: windows.shape[1:], None: windows.shape}[axis]
    assert jpool.pooled_shape(spatial, **without_channels) == pooled


@pytest.mark.parametrize("rule", ["default", "another"])
@pytest.mark.parametrize("name", CASES)
def test_every_case_with_every_content(name, rule, arrangement):
    (ties, minimum), case, rng = (
        DEFAULT if rule == "default" else RULE_OF[name],
        CASES[name],
        np.random.default_rng(len(name)),
    )
    xs = np.stack([content(rng, case.shape) for content in CONTENTS.values()])
    check(case, -xs if minimum else xs, ties, minimum)  # negated, the lowest becomes the highest


# --- random cases, drawn by hypothesis; without subnormal numbers, which XLA:CPU compares as zeros ---

LONGEST = {1: (60, 24), 2: (11, 10), 3: (5, 4)}  # by number of spatial axes: longest axis, longest window
NUMBERS = st.sampled_from([-np.inf, -np.inf, -1.5, -0.0, 0.0, 0.0, 2.0, 3.0, np.inf, np.nan])


@st.composite
def poolings(draw):
    """A case and an example."""
    rank = draw(st.integers(1, 3))
    longest, longest_window = LONGEST[rank]
    per_axis = lambda strategy: tuple(draw(strategy) for _ in range(rank))  # noqa: E731
    window, dilation = per_axis(st.just(1) | st.integers(1, longest_window)), per_axis(st.integers(1, 3))
    side = st.integers(0, 5)
    padding = draw(st.sampled_from(["VALID", "SAME", "SAME_LOWER"]) | st.tuples(*[st.tuples(side, side)] * rank) | side)
    spans = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
    sides = {
        int: lambda axis: 2 * padding,
        tuple: lambda axis: sum(padding[axis]),
        str: lambda axis: (padding != "VALID") * spans[axis],
    }
    shortest = [max(1, span - sides[type(padding)](axis)) for axis, span in enumerate(spans)]  # so that the window fits
    sizes = [draw(st.integers(size, max(size, longest))) for size in shortest]
    options = {
        "strides": draw(st.none() | st.integers(1, 5) | st.tuples(*[st.integers(1, 5)] * rank)), "padding": padding,
        "window_dilation": dilation, "ceil_mode": draw(st.booleans()), "channel_axis": draw(st.sampled_from([-1, 0, None])),
    }  # fmt: skip
    shape = {-1: (*sizes, 2), 0: (2, *sizes), None: tuple(sizes)}[options["channel_axis"]]
    x = draw(hnp.arrays(np.float32, shape, elements=NUMBERS | st.floats(-9, 9, width=32, allow_subnormal=False)))
    return Case("random", shape, window, options), x


@pytest.mark.exhaustive
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(poolings(), st.sampled_from([DEFAULT, *OTHERS]))
def test_random_cases(compiled_quickly, pooling, rule):
    case, x = pooling
    check(case, x[None], *rule)


# --- the cases are what they are named for ---


def test_these_cases_have_windows_of_padding_alone():
    x_of = {name: np.zeros(case.shape) for name, case in CASES.items()}
    winners = {
        name: oracle.pool(x, oracle.windows(x, CASES[name].window, **CASES[name].arguments))[1]
        for name, x in x_of.items()
    }
    assert {name for name in CASES if not all(winners[name].ravel())} == {
        "far_apart", "far_apart_dilated", "far_after", "only_padding", "only_padding_strided", "one_window_of_padding",
        "all_begin_in_padding", "one_row_strided", "one_row_padded", "long_only_padding", "ceil_low_padding",
        "ceil_high_padding", "dilated_hole",
    }  # fmt: skip


@pytest.mark.parametrize("content", ["tied", "special"])
def test_contents_have_the_property_that_they_are_named_for(content):
    x = CONTENTS[content](np.random.default_rng(0), (9, 9, 2))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1)).reshape(-1, 9)
    ties = (windows == np.max(windows, axis=1, keepdims=True)).sum(axis=1) > 1
    assert ties.mean() > 0.5 if content == "tied" else (np.isnan(windows).any(axis=1)).mean() > 0.5
