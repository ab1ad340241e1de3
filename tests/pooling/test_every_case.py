"""Every named case with every content: all results of all functions equal the oracle's, because routing is exact."""

import itertools
from functools import partial

import jax
import numpy as np
import pytest
from shared import oracle
from shared.cases import CASES, CONTENTS

import jpool
from jpool.pooling.plain.ties import RULES

MULTIPLE = 720720  # of every number up to 16: shares among up to 16 winners are whole numbers, and sums are exact
# Each case is pooled with the default rule, and with one of the others in turn.
OTHERS = itertools.cycle([*((ties, False) for ties in RULES if ties != "first"), *((ties, True) for ties in RULES)])
RULE_OF = dict(zip(CASES, OTHERS, strict=False))


def arrays(name, *, minimum=False):
    """Examples with every content, cotangents of their values and tangents, all on a leading axis."""
    case, rng = CASES[name], np.random.default_rng(len(name))
    xs = np.stack([content(rng, case.shape) for content in CONTENTS.values()])
    windows = oracle.windows(xs[0], case.window, **case.arguments)
    ct, t = (MULTIPLE * rng.integers(-2, 3, (len(xs), *shape)) for shape in (windows.shape, case.shape))
    return (-xs if minimum else xs), ct.astype(np.float32), t.astype(np.float32), windows


def assert_same(actual, expected):
    """The same numbers, and zeros of the same sign."""
    np.testing.assert_array_equal(actual, expected, strict=True)
    if expected.dtype == np.float32:
        np.testing.assert_array_equal(np.signbit(actual)[expected == 0], np.signbit(expected)[expected == 0])


def assert_equal(actual, expected, windows, winners):
    """Equal; except that shares among more than 16 winners are rounded, and division on a GPU."""
    most = max(map(len, winners.ravel()), default=0)
    if most <= 16 and (most <= 1 or jax.default_backend() == "cpu"):
        np.testing.assert_array_equal(actual, expected.astype(np.float32), strict=True)
    else:
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=MULTIPLE * 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_default_rule(name, arrangement):
    """Values, gradient, tangent, argmax, and unpooling, which is the derivative of pooling at an argmax."""
    case, (xs, ct, t, windows) = CASES[name], arrays(name)
    axis = case.arguments.get("channel_axis", -1)
    spatial = {-1: case.shape[:-1], 0: case.shape[1:], None: case.shape}[axis]
    pool = partial(jpool.max_pool, window_shape=case.window, **case.arguments)

    @jax.jit
    @jax.vmap
    def everything(x, ct, t):
        values, backward = jax.vjp(pool, x)
        of_forward_mode, tangent = jax.jvp(partial(pool, forward_mode=True), (x,), (t,))
        with_argmax, argmax = jpool.max_pool_with_argmax(x, case.window, **case.arguments)
        unpool = partial(jpool.max_unpool, argmax=argmax, spatial_shape=spatial, channel_axis=axis)
        of_geometry = {"window_shape": case.window, **case.arguments}
        unpooled, read_at = jax.vjp(partial(unpool, **of_geometry), ct)
        gradients = backward(ct)[0], unpooled, unpool(ct)
        return (values, pool(x), of_forward_mode, with_argmax), gradients, (tangent, read_at(t)[0]), argmax

    values, gradients, tangents, argmax = jax.device_get(everything(xs, ct, t))
    for i, x in enumerate(xs):
        expected, winners = oracle.pool(x, windows)
        for actual in values:
            assert_same(actual[i], expected)
        for actual in gradients:
            assert_equal(actual[i], oracle.share(x.shape, winners, ct[i]), windows, winners)
        for actual in tangents:
            assert_equal(actual[i], oracle.gather(winners, t[i]), windows, winners)
        np.testing.assert_array_equal(argmax[i], oracle.flat(winners, x.shape, axis), strict=True)
    assert jpool.pooled_shape(spatial, case.window, **without_channels(case)) == tuple(
        size for i, size in enumerate(expected.shape) if axis is None or i != axis % x.ndim
    )


def without_channels(case):
    return {key: value for key, value in case.arguments.items() if key != "channel_axis"}


@pytest.mark.parametrize("name", CASES)
def test_another_rule(name, arrangement):
    (ties, minimum), case = RULE_OF[name], CASES[name]
    xs, ct, t, windows = arrays(name, minimum=minimum)
    function = jpool.min_pool if minimum else jpool.max_pool
    pool = partial(function, window_shape=case.window, **case.arguments, ties=ties)

    @jax.jit
    @jax.vmap
    def everything(x, ct, t):
        values, backward = jax.vjp(partial(pool, forward_mode=True), x)
        return values, backward(ct)[0], jax.jvp(partial(pool, forward_mode=True), (x,), (t,))[1]

    values, gradients, tangents = jax.device_get(everything(xs, ct, t))
    for i, x in enumerate(xs):
        expected, winners = oracle.pool(x, windows, ties, minimum)
        assert_same(values[i], expected)
        assert_equal(gradients[i], oracle.share(x.shape, winners, ct[i]), windows, winners)
        assert_equal(tangents[i], oracle.gather(winners, t[i]), windows, winners)


# --- the cases are what they are named for ---


def test_these_cases_have_windows_of_padding_alone():
    empty = {name for name in CASES if not all(oracle.pool(np.zeros(CASES[name].shape), arrays(name)[3])[1].ravel())}
    assert empty == {
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
