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
from jpool.pooling.plain.steps import steps

pytestmark = pytest.mark.usefixtures("arrangement")

SOME_CASES = ["halves", "overlapping", "gaps", "only_padding", "dilated_same", "ceil", "five_by_five_strided",
              "long_strided", "volume_large"]  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(
    "name", [name for name in SOME_CASES if CASES[name].window in ((2, 2), (3, 3), (2, 1), (3, 2))]
)
def test_winners_of_one_step_are_row_major_tap_numbers(name, content):
    case = CASES[name]
    x = CONTENTS[content](np.random.default_rng(3), case.shape)
    _, (winners,) = jax.jit(lambda x: select(geometry(case), x))(x)
    np.testing.assert_array_equal(winners, winner_numbers(case, x))


@pytest.mark.parametrize("name", ["halves", "overlapping", "five_by_five", "taps_256", "long_strided", "volume_large"])
def test_each_step_saves_one_byte_for_each_of_its_values(name):
    pooling = geometry(CASES[name])
    _, winners = jax.eval_shape(lambda x: select(pooling, x), jnp.zeros(pooling.example_shape))
    assert [(w.shape, w.dtype) for w in winners] == [(step.values_shape, "uint8") for step in steps(pooling)]


@pytest.mark.parametrize(("size", "dtype"), [(255, "uint8"), (256, "uint16"), (66_000, "uint32")])
def test_a_reduction_saves_the_smallest_numbers_that_hold_every_tap(size, dtype):
    x = np.random.default_rng(0).permutation(size).astype(np.float32)
    pooling = geometry(CASES["line"]._replace(shape=(size,), window=(size,), arguments={"channel_axis": None}))
    values, (winners,) = jax.jit(lambda x: select(pooling, x))(x)
    assert (winners.dtype, winners.item(), values.item()) == (dtype, x.argmax(), x.max())


def test_enormous_windows():
    pooling = geometry(CASES["long_line"]._replace(shape=(66_000, 1), window=(65_536,), arguments={}))
    x = np.random.default_rng(0).permutation(66_000).astype(np.float32)[:, None]
    values, gradient = jax.jit(
        lambda x: (*(out := select(pooling, x))[:1], route(pooling, out[1], jnp.ones_like(out[0])))
    )(x)
    windows = np.lib.stride_tricks.sliding_window_view(x[:, 0], 65_536)
    np.testing.assert_array_equal(values[:, 0], windows.max(1))
    wins = np.bincount(np.arange(len(windows)) + windows.argmax(1), minlength=66_000)
    np.testing.assert_array_equal(gradient[:, 0], wins)


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
