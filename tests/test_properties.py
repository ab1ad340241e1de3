"""Random geometries with ties, NaN and infinities: value and gradient equal the oracle's, whatever hypothesis thinks of.

Subnormal numbers are left out: XLA:CPU compares them as zeros, in this library as everywhere.
"""

import jax
import numpy as np
import oracle
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jpool

MOST = {1: (60, 24), 2: (9, 6), 3: (5, 3)}  # by number of spatial axes: longest axis, longest window


@st.composite
def poolings(draw):
    """An example and the arguments of a pooling that fits it."""
    rank = draw(st.integers(1, 3))
    longest, longest_window = MOST[rank]
    each = lambda strategy: tuple(draw(strategy) for _ in range(rank))  # noqa: E731
    window, dilation = each(st.integers(1, longest_window)), each(st.integers(1, 3))
    side = st.integers(0, 5)
    padding = draw(st.sampled_from(["VALID", "SAME", "SAME_LOWER"]) | st.tuples(*[st.tuples(side, side)] * rank) | side)
    sizes = []
    for axis in range(rank):
        span = (window[axis] - 1) * dilation[axis] + 1
        if isinstance(padding, str):
            around = 0 if padding == "VALID" else span
        else:
            around = 2 * padding if isinstance(padding, int) else sum(padding[axis])
        least = max(1, span - around)  # so that the window fits
        sizes.append(draw(st.integers(least, max(least, longest))))
    strides = draw(st.none() | st.integers(1, 5) | st.tuples(*[st.integers(1, 5)] * rank))
    channel_axis = draw(st.sampled_from([-1, 0, None]))
    shape = {-1: (*sizes, 2), 0: (2, *sizes), None: tuple(sizes)}[channel_axis]
    numbers = st.sampled_from([-np.inf, -np.inf, -1.5, -0.0, 0.0, 0.0, 2.0, 3.0, np.inf, np.nan])
    x = draw(hnp.arrays(np.float32, shape, elements=numbers | st.floats(-9, 9, width=32, allow_subnormal=False)))
    ceil_mode = draw(st.booleans())
    names = ("strides", "padding", "window_dilation", "ceil_mode", "channel_axis")
    return x, window, dict(zip(names, (strides, padding, dilation, ceil_mode, channel_axis), strict=True))


def both_passes(x, ct, window, arguments):
    """In one program, so that each geometry is compiled once."""

    @jax.jit
    def both(x, ct):
        values, backward = jax.vjp(lambda x: jpool.max_pool(x, window, **arguments), x)
        return values, backward(ct)[0]

    return both(x, ct)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(poolings())
def test_value_and_gradient_equal_the_oracle(pooling):
    x, window, arguments = pooling
    expected, winners = oracle.max_pool(x, window, **arguments)
    ct = np.arange(expected.size, dtype=np.float32).reshape(expected.shape) % 17 - 8  # whole numbers: sums are exact
    values, gradient = both_passes(x, ct, window, arguments)
    np.testing.assert_array_equal(values, expected, strict=True)
    np.testing.assert_array_equal(gradient, oracle.route(x.shape, winners, ct).astype(np.float32), strict=True)
    event(f"{len(window)} spatial axes, {'some' if None in winners.ravel().tolist() else 'no'} windows of padding")
