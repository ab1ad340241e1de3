"""select, route and gather by themselves: winners as numbers, and two linear maps that are each other's transpose."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES, CONTENTS
from test_steps import geometry

from jpool.pooling.integers.geometry import Geometry
from jpool.pooling.derivative.primitives import gather, route, select
from jpool.pooling.plain.ties import low_value

pytestmark = pytest.mark.usefixtures("arrangement")

FEW = [
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


def winner_numbers(case, x):
    """The oracle's winners as numbers of taps, row-major; the number of taps for none."""
    whole = geometry(case)
    _, winners = oracle.max_pool(x, case.window, **case.arguments)
    windows = [axis.window for axis in whole.axes]
    numbers = np.full(winners.shape, whole.taps)
    for output, winner in np.ndenumerate(winners):
        if winner is not None:
            tap = [
                (at - o * a.stride + a.low) // a.dilation for at, o, a in zip(winner, output, whole.axes, strict=True)
            ]
            numbers[output] = np.ravel_multi_index(tap, windows)
    return numbers


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", FEW)
def test_winners_are_the_row_major_numbers_of_taps(name, content):
    case = CASES[name]
    x = CONTENTS[content](np.random.default_rng(3), case.shape)
    _, (winners,) = jax.jit(lambda x: select(geometry(case), x))(x)
    np.testing.assert_array_equal(winners, winner_numbers(case, x))


@pytest.mark.parametrize(("name", "dtype"), [("five_by_five", "uint8"), ("taps_255", "uint8"), ("taps_256", "uint16")])
def test_winners_are_as_narrow_as_the_window_allows(name, dtype):
    case = CASES[name]
    _, (winners,) = select(geometry(case), jnp.zeros(case.shape))
    assert winners.dtype == dtype


def test_winners_of_enormous_windows_are_uint32():
    whole = geometry(CASES["long_line"]._replace(shape=(66_000, 1), window=(65_536,), arguments={}))
    x = np.random.default_rng(0).permutation(66_000).astype(np.float32)[:, None]
    values, (winners,) = jax.jit(lambda x: select(whole, x))(x)
    assert winners.dtype == jnp.uint32
    windows = np.lib.stride_tricks.sliding_window_view(x[:, 0], 65_536)
    np.testing.assert_array_equal(winners[:, 0], windows.argmax(1))
    np.testing.assert_array_equal(values[:, 0], windows.max(1))
    home = np.bincount(np.arange(len(windows)) + windows.argmax(1), minlength=66_000)
    np.testing.assert_array_equal(
        jax.jit(lambda winners, ct: route(whole, (winners,), ct))(winners, jnp.ones_like(values))[:, 0], home
    )


@pytest.mark.parametrize("name", FEW)
def test_gather_reads_the_winners_and_is_the_transpose_of_route(name):
    case, whole, rng = CASES[name], geometry(CASES[name]), np.random.default_rng(4)
    xs = np.stack([content(rng, case.shape) for content in CONTENTS.values()])
    t, ct = (rng.integers(1, 10, (len(xs), *shape)).astype(np.float32) for shape in (case.shape, whole.values_shape))

    @jax.jit
    @jax.vmap
    def both(x, t, ct):
        _, winners = select(whole, x)
        return gather(whole, winners, t), route(whole, winners, ct)

    read, routed = both(xs, t, ct)
    for i, x in enumerate(xs):
        _, homes = oracle.max_pool(x, case.window, **case.arguments)
        for output, home in np.ndenumerate(homes):
            assert read[i][output] == (0 if home is None else t[i][home])
        real = np.array([home is not None for home in homes.ravel()]).reshape(homes.shape)
        assert routed[i].sum() == ct[i][real].sum()  # the gradient is conserved
    assert (read * ct).sum() == (t * routed).sum()  # whole numbers: exact


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("float32", -np.inf, np.inf), ("bfloat16", -np.inf, np.inf), ("float8_e5m2", -np.inf, np.inf),
        ("float8_e4m3fn", -448, 448), ("float8_e5m2fnuz", -57344, 57344),
        ("int8", -128, 127), ("uint16", 0, 65535), ("int4", -8, 7), ("bool", False, True),
    ],
)  # fmt: skip
def test_padding_is_what_no_element_can_lose_to(dtype, low, high):
    for least, value in ((False, low), (True, high)):
        padding = low_value(Geometry((), minimum=least), jnp.dtype(dtype))
        assert padding.dtype == dtype
        assert padding == np.asarray(value).astype(jnp.dtype(dtype))
