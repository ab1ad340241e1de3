"""The rules for ties and min_pool, by hand. test_every_case compares every rule with the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import oracle
from shared.poolings import resolved

import jpool
from jpool.pooling.derivative.primitives import select
from jpool.pooling.plain.ties import RULES

pytestmark = pytest.mark.usefixtures("compiled_quickly")
inf, nan = np.inf, np.nan
BOTH = [jpool.max_pool, jpool.min_pool]


def both(pool, x, window, *arguments, cotangent=1, **options):
    """Values and gradient for equal cotangents, in one program."""

    @jax.jit
    def of_example(x):
        values, backward = jax.vjp(lambda x: pool(x, window, *arguments, **{"channel_axis": None, **options}), x)
        return values, backward(np.full(values.shape, cotangent, values.dtype))[0]

    return jax.device_get(of_example(x))


def float32(numbers):
    return np.array(numbers, np.float32)


GRADIENTS = {
    "first": [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
    "last": [[0, 0, 0], [0, 0, 0], [0, 0, 1]],
    "split": [[0.25, 0, 0], [0, 0.25, 0.25], [0, 0, 0.25]],
    "none": [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
}


@pytest.mark.parametrize("ties", RULES)
@pytest.mark.parametrize("pool", BOTH)
def test_each_rule_on_a_3x3_example(pool, ties):
    x = float32([[7, 0, 1], [2, 7, 7], [3, 4, 7]]) * (-1 if pool is jpool.min_pool else 1)
    np.testing.assert_array_equal(both(pool, x, (3, 3), ties=ties)[1], float32(GRADIENTS[ties]), strict=True)


@pytest.mark.parametrize("ties", RULES)
@pytest.mark.parametrize("pool", BOTH)
def test_the_first_nan_receives_the_whole_cotangent_except_under_none(pool, ties):
    values, gradient = both(pool, float32([inf, nan, nan]), (3,), ties=ties)
    assert np.isnan(values).all()
    assert gradient.tolist() == [0, 0 if ties == "none" else 1, 0]


@pytest.mark.parametrize("shape", [(6, 6), (4, 9)])
@pytest.mark.parametrize("pool", BOTH)
def test_split_has_the_gradient_of_jnp_max_and_jnp_min(pool, shape):
    x = float32(np.random.default_rng(0).integers(0, 4, shape))
    theirs = jax.grad(jnp.max if pool is jpool.max_pool else jnp.min)(x)
    np.testing.assert_array_equal(both(pool, x, shape, ties="split")[1], theirs, strict=True)


# --- what is saved between the passes ---


def saved(window, ties, *arguments):
    """The shapes and dtypes of what a pooling of 20 elements along each axis saves."""
    x = jax.ShapeDtypeStruct((20,) * len(window), np.float32)
    pool = lambda x: jpool.max_pool(x, window, *arguments, channel_axis=None, ties=ties)  # noqa: E731
    leaves = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(pool, x)[1], x))
    return [(leaf.shape, leaf.dtype) for leaf in leaves]


RESIDUALS = [
    ((2, 2), "last", "uint8"), ((2, 2), "none", "uint8"), ((3, 3), "last", "uint8"), ((3, 3), "none", "uint8"),
    ((2, 2), "split", "uint8"), ((7,), "split", "uint8"), ((8,), "split", "uint16"), ((3, 3), "split", "uint16"),
]  # fmt: skip


@pytest.mark.parametrize(("window", "ties", "dtype"), RESIDUALS)
def test_the_residual_is_one_number_or_one_mask_per_window(window, ties, dtype):
    assert saved(window, ties) == [(tuple(21 - side for side in window), dtype)]


def test_split_saves_one_mask_per_step_of_a_large_window():
    assert saved((5, 5), "split", 5) == [((20, 4), "uint8"), ((4, 4), "uint8")]


def test_a_tie_of_all_taps_is_not_mistaken_for_no_winner():
    """Values must not be lost where a mask, or the number for no winner, is the largest of its dtype."""
    # A prime number of taps is one step; 251 is the largest whose winners have 8 bits.
    for window, ties, winner in (((2, 2, 2), "split", 2**8 - 1), ((251,), "none", 251)):
        pooling = resolved(window, window, channel_axis=None)._replace(ties=ties)
        values, winners = jax.jit(select, static_argnums=0)(pooling, np.full(window, 3, np.float32))
        assert (values.item(), winners[0].item()) == (3, winner)


def test_an_element_in_two_overlapping_blocks_is_not_a_tie():
    """A window of 31 is four overlapping blocks of 10, and one maximum may be in two of them."""
    maxima = np.eye(31, dtype=np.float32)  # one in each place
    for ties in RULES:
        pool = lambda x, ties=ties: jpool.max_pool(x, (31,), channel_axis=None, ties=ties)[0]  # noqa: E731
        np.testing.assert_array_equal(jax.jit(jax.vmap(jax.grad(pool)))(maxima), maxima)


@pytest.mark.parametrize("side", [22, 31, 32, 49, 961])
def test_split_divides_a_window_into_its_factors(side):
    x = float32(np.random.default_rng(0).integers(0, 3, side + 3))
    _, winners = oracle.pool(x, oracle.windows(x, (side,), channel_axis=None), "split")
    _, gradient = both(jpool.max_pool, x, (side,), ties="split")
    np.testing.assert_allclose(gradient, oracle.share(x.shape, winners, np.ones(4)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("ties", ["none", "split"])
def test_a_long_step_of_16_bits_is_compiled_in_reasonable_time(ties):
    """Of 31 taps: without a barrier, XLA:CPU of jax 0.12.0.1 takes hours for the values alone."""
    x = np.random.default_rng(0).integers(-9, 9, 64).astype(jnp.bfloat16)
    pool = lambda x: jpool.max_pool(x, (31,), channel_axis=None, ties=ties)  # noqa: E731
    expected = np.lib.stride_tricks.sliding_window_view(x, 31).max(-1)
    np.testing.assert_array_equal(jax.jit(pool)(x), expected, strict=True)


def test_split_refuses_a_window_with_a_large_prime_factor():
    text = r"max_pool: ties='split' .*product of numbers up to 31; got \(2, 74\), and 74 has the prime factor 37\. Take"
    with pytest.raises(ValueError, match=text):
        jpool.max_pool(np.zeros((9, 99)), (2, 74), channel_axis=None, ties="split")


# --- min_pool ---


@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "uint8", "uint16", "uint32", "int4", "uint4"])
def test_min_pool_does_not_negate_integers(dtype):
    limits = jnp.iinfo(dtype) if dtype != "bool" else None
    low, high = (limits.min, limits.max) if limits else (False, True)
    x = np.array([[low, high, high], [high, high, high]], jnp.dtype(dtype))
    values = jpool.min_pool(x, (2, 2), padding=((0, 1), (0, 1)), channel_axis=None)
    assert values.dtype == dtype
    assert np.asarray(values).astype(np.int64).tolist() == [[low, high, high], [high, high, high]]
    with pytest.raises(TypeError):
        jax.grad(lambda x: jpool.min_pool(x, (2, 2), channel_axis=None).sum())(x)
