"""The primitives select, route and gather: winners are tap numbers, and gather is the transpose of route."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import oracle
from shared.cases import CASES, CONTENTS
from shared.poolings import geometry, winner_numbers

from jpool.pooling.derivative.primitives import gather, route, select
from jpool.pooling.integers.geometry import Geometry
from jpool.pooling.plain.arrays import padding_value

pytestmark = pytest.mark.usefixtures("arrangement")

SOME_CASES = [
    "halves",
    "overlapping",
    "gaps",
    "only_padding",
    "dilated_same",
    "ceil",
    "five_by_five_strided",
    "long_strided",
    "volume_large",
]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", SOME_CASES)
def test_winners_are_row_major_tap_numbers(name, content):
    case = CASES[name]
    x = CONTENTS[content](np.random.default_rng(3), case.shape)
    _, (winners,) = jax.jit(lambda x: select(geometry(case), x))(x)
    np.testing.assert_array_equal(winners, winner_numbers(case, x))


@pytest.mark.parametrize(("name", "dtype"), [("five_by_five", "uint8"), ("taps_255", "uint8"), ("taps_256", "uint16")])
def test_winners_have_the_smallest_dtype_for_the_window(name, dtype):
    case = CASES[name]
    _, (winners,) = jax.eval_shape(lambda x: select(geometry(case), x), jnp.zeros(case.shape))
    assert winners.dtype == dtype


def test_winners_of_enormous_windows_are_uint32():
    pooling = geometry(CASES["long_line"]._replace(shape=(66_000, 1), window=(65_536,), arguments={}))
    x = np.random.default_rng(0).permutation(66_000).astype(np.float32)[:, None]
    values, (winners,) = jax.jit(lambda x: select(pooling, x))(x)
    assert winners.dtype == jnp.uint32
    windows = np.lib.stride_tricks.sliding_window_view(x[:, 0], 65_536)
    np.testing.assert_array_equal(winners[:, 0], windows.argmax(1))
    np.testing.assert_array_equal(values[:, 0], windows.max(1))
    wins = np.bincount(np.arange(len(windows)) + windows.argmax(1), minlength=66_000)
    np.testing.assert_array_equal(
        jax.jit(lambda winners, ct: route(pooling, (winners,), ct))(winners, jnp.ones_like(values))[:, 0], wins
    )


@pytest.mark.parametrize("name", SOME_CASES)
def test_gather_reads_the_winners_and_is_the_transpose_of_route(name):
    case, pooling, rng = CASES[name], geometry(CASES[name]), np.random.default_rng(4)
    xs = np.stack([content(rng, case.shape) for content in CONTENTS.values()])
    t, ct = (rng.integers(1, 10, (len(xs), *shape)).astype(np.float32) for shape in (case.shape, pooling.values_shape))

    @jax.jit
    @jax.vmap
    def both(x, t, ct):
        _, winners = select(pooling, x)
        return gather(pooling, winners, t), route(pooling, winners, ct)

    tangents, gradients = both(xs, t, ct)
    for i, x in enumerate(xs):
        _, positions = oracle.max_pool(x, case.window, **case.arguments)
        for output, position in np.ndenumerate(positions):
            assert tangents[i][output] == (0 if position is None else t[i][position])
        real = np.array([position is not None for position in positions.ravel()]).reshape(positions.shape)
        assert gradients[i].sum() == ct[i][real].sum()  # no cotangent is lost
    assert (tangents * ct).sum() == (t * gradients).sum()  # exact, because these are whole numbers


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("float32", -np.inf, np.inf), ("bfloat16", -np.inf, np.inf), ("float8_e5m2", -np.inf, np.inf),
        ("float8_e4m3fn", -448, 448), ("float8_e5m2fnuz", -57344, 57344),
        ("int8", -128, 127), ("uint16", 0, 65535), ("int4", -8, 7), ("bool", False, True),
    ],
)  # fmt: skip
def test_no_element_loses_to_padding(dtype, low, high):
    for minimum, value in ((False, low), (True, high)):
        padding = padding_value(Geometry((), minimum=minimum), jnp.dtype(dtype))
        assert padding.dtype == dtype
        assert padding == np.asarray(value).astype(jnp.dtype(dtype))
