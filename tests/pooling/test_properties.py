"""Random geometries with ties, NaN and infinities, drawn by hypothesis: all results equal the oracle's.

Subnormal numbers are left out, because XLA:CPU compares them as zeros.
"""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from shared import oracle

import jpool

pytestmark = pytest.mark.usefixtures("compiled_quickly")

LONGEST = {1: (60, 24), 2: (11, 10), 3: (5, 4)}  # by number of spatial axes: longest axis, longest window


@st.composite
def poolings(draw):
    """An example, and the arguments of a pooling for it."""
    rank = draw(st.integers(1, 3))
    longest, longest_window = LONGEST[rank]
    per_axis = lambda strategy: tuple(draw(strategy) for _ in range(rank))  # noqa: E731
    window, dilation = per_axis(st.just(1) | st.integers(1, longest_window)), per_axis(st.integers(1, 3))
    side = st.integers(0, 5)
    padding = draw(st.sampled_from(["VALID", "SAME", "SAME_LOWER"]) | st.tuples(*[st.tuples(side, side)] * rank) | side)
    sizes = []
    for axis in range(rank):
        span = (window[axis] - 1) * dilation[axis] + 1
        if isinstance(padding, str):
            padded = 0 if padding == "VALID" else span
        else:
            padded = 2 * padding if isinstance(padding, int) else sum(padding[axis])
        shortest = max(1, span - padded)  # so that the window fits
        sizes.append(draw(st.integers(shortest, max(shortest, longest))))
    strides = draw(st.none() | st.integers(1, 5) | st.tuples(*[st.integers(1, 5)] * rank))
    channel_axis = draw(st.sampled_from([-1, 0, None]))
    shape = {-1: (*sizes, 2), 0: (2, *sizes), None: tuple(sizes)}[channel_axis]
    numbers = st.sampled_from([-np.inf, -np.inf, -1.5, -0.0, 0.0, 0.0, 2.0, 3.0, np.inf, np.nan])
    x = draw(hnp.arrays(np.float32, shape, elements=numbers | st.floats(-9, 9, width=32, allow_subnormal=False)))
    ceil_mode = draw(st.booleans())
    names = ("strides", "padding", "window_dilation", "ceil_mode", "channel_axis")
    return x, window, dict(zip(names, (strides, padding, dilation, ceil_mode, channel_axis), strict=True))


RULES = ("first", "first", "last", "split", "none")


@pytest.mark.exhaustive
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(poolings(), st.sampled_from(RULES), st.booleans())
def test_values_gradients_tangents_and_argmax_equal_the_oracle(pooling, ties, minimum):
    x, window, arguments = pooling
    arguments_with_rule = {**arguments, "window_shape": window, "ties": ties}
    pool = partial(jpool.min_pool if minimum else jpool.max_pool, **arguments_with_rule)
    windows = oracle.windows(x, window, **arguments)
    expected, winners = oracle.pool(x, windows, ties, minimum)
    ct = 720720 * (
        np.arange(expected.size, dtype=np.float32).reshape(expected.shape) % 5 - 2
    )  # shares are whole numbers
    t = 720720 * (np.arange(x.size, dtype=np.float32).reshape(x.shape) % 7 - 3)

    @jax.jit
    def all_results(x, ct, t):  # in one program, so that each geometry is compiled once
        values, backward = jax.vjp(pool, x)
        results = [values, backward(ct)[0], jax.jvp(partial(pool, forward_mode=True), (x,), (t,))[1]]
        if not minimum and ties in ("first", "last"):
            results += jpool.max_pool_with_argmax(x, **arguments_with_rule)
        return results

    values, gradient, tangent, *with_argmax = all_results(x, ct, t)
    np.testing.assert_array_equal(values, expected, strict=True)
    rounded = max(map(len, winners.ravel()), default=0) > 16
    compare = partial(np.testing.assert_allclose, rtol=1e-6, atol=4) if rounded else np.testing.assert_array_equal
    compare(gradient, oracle.share(x.shape, winners, ct).astype(np.float32))
    compare(tangent, oracle.gather(winners, t).astype(np.float32))
    if with_argmax:
        np.testing.assert_array_equal(with_argmax[0], expected)
        np.testing.assert_array_equal(
            with_argmax[1], oracle.flat(winners, x.shape, arguments["channel_axis"]), strict=True
        )
    event(f"{len(window)} spatial axes, {ties}")
    event(
        "some all-padding windows"
        if any(not any(inside(position, x) for position in positions) for positions in windows.flat)
        else "no all-padding window"
    )


def inside(position, x):
    return all(0 <= coordinate < size for coordinate, size in zip(position, x.shape, strict=True))
