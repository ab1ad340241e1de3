"""Ties in max_pool and min_pool: every rule on every case and content, compared with the oracle."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import oracle
from shared.cases import CASES, CONTENTS, EVERY_CASE, mostly_exhaustive
from shared.poolings import resolved

import jpool
from jpool.pooling.derivative.primitives import select
from jpool.pooling.plain.ties import RULES

pytestmark = pytest.mark.usefixtures("arrangement")

inf, nan = np.inf, np.nan
MULTIPLE = 720720  # of every number up to 16: shares among up to 16 winners are whole numbers


def pool_function(minimum):
    return jpool.min_pool if minimum else jpool.max_pool


def contents(name, minimum):
    """One example of each content; negated for the minimum, so that the lowest becomes the highest."""
    rng = np.random.default_rng(len(name))
    examples = [content(rng, CASES[name].shape) for content in CONTENTS.values()]
    return np.stack([-x if minimum else x for x in examples])


@pytest.mark.parametrize("minimum", mostly_exhaustive([False, True], [False]))
@pytest.mark.parametrize("name", EVERY_CASE)
def test_values_and_gradients_of_every_rule_equal_the_oracle(name, minimum):
    case = CASES[name]
    xs = contents(name, minimum)
    shape = oracle.windows(xs[0], case.window, **case.arguments).shape
    ct = (MULTIPLE * np.random.default_rng(1).integers(-2, 3, (len(xs), *shape))).astype(np.float32)

    @jax.jit
    def both(xs, ct):  # all rules in one program: each case is compiled once
        results = {}
        for ties in RULES:
            pool = lambda x, ties=ties: pool_function(minimum)(x, case.window, **case.arguments, ties=ties)  # noqa: E731
            values, backward = jax.vjp(jax.vmap(pool), xs)
            results[ties] = values, backward(ct)[0]
        return results

    results = both(xs, ct)
    for ties, i in itertools.product(RULES, range(len(xs))):
        expected, winners = oracle.pool(xs[i], oracle.windows(xs[i], case.window, **case.arguments), ties, minimum)
        values, gradient = (batch[i] for batch in results[ties])
        np.testing.assert_array_equal(values, expected, strict=True)
        shares = oracle.share(xs[i].shape, winners, ct[i])
        if max(map(len, winners.ravel()), default=0) <= 16 and (ties != "split" or jax.default_backend() == "cpu"):
            np.testing.assert_array_equal(gradient, shares.astype(np.float32), strict=True)
        else:  # shares and their sums are rounded, on a GPU also the division of whole numbers
            np.testing.assert_allclose(gradient, shares, rtol=1e-6, atol=MULTIPLE * 1e-6)


@pytest.mark.parametrize(
    ("ties", "gradient"),
    [
        ("first", [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ("last", [[0, 0, 0], [0, 0, 0], [0, 0, 1]]),
        ("split", [[0.25, 0, 0], [0, 0.25, 0.25], [0, 0, 0.25]]),
        ("none", [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
@pytest.mark.parametrize("pool", [jpool.max_pool, jpool.min_pool])
def test_each_rule_on_a_3x3_example(ties, gradient, pool):
    x = np.array([[7, 0, 1], [2, 7, 7], [3, 4, 7]], np.float32) * (-1 if pool is jpool.min_pool else 1)
    actual = jax.grad(lambda x: pool(x, (3, 3), channel_axis=None, ties=ties).sum())(x)
    np.testing.assert_array_equal(actual, np.array(gradient, np.float32), strict=True)


@pytest.mark.parametrize("ties", RULES)
def test_without_ties_every_rule_has_the_same_gradient(ties):
    x = CONTENTS["distinct"](np.random.default_rng(0), (9, 8, 2))
    arguments = {"window_shape": (3, 2), "strides": 2, "padding": 1}
    gradients = [
        jax.grad(lambda x, t=t: (jpool.max_pool(x, **arguments, ties=t) ** 2).sum())(x) for t in (ties, "first")
    ]
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize(
    ("ties", "gradient"), [("first", [0, 1, 0]), ("last", [0, 1, 0]), ("split", [0, 1, 0]), ("none", [0, 0, 0])]
)
@pytest.mark.parametrize("pool", [jpool.max_pool, jpool.min_pool])
def test_the_first_nan_receives_the_whole_cotangent_except_under_none(ties, gradient, pool):
    x = np.array([inf, nan, nan], np.float32)
    values, backward = jax.vjp(lambda x: pool(x, (3,), channel_axis=None, ties=ties), x)
    assert np.isnan(values).all()
    assert backward(jnp.ones(1))[0].tolist() == gradient


@pytest.mark.parametrize("shape", [(6, 6), (4, 9)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_split_has_the_gradient_of_jnp_max_and_jnp_min(shape, dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 4, shape), dtype)
    ours = jax.grad(lambda x: jpool.max_pool(x, shape, channel_axis=None, ties="split").sum())(x)
    np.testing.assert_array_equal(ours, jax.grad(jnp.max)(x), strict=True)
    ours = jax.grad(lambda x: jpool.min_pool(x, shape, channel_axis=None, ties="split").sum())(x)
    np.testing.assert_array_equal(ours, jax.grad(jnp.min)(x), strict=True)


@pytest.mark.parametrize("ties", ["first", "last", "split"])
@pytest.mark.parametrize("content", CONTENTS)
def test_the_gradient_sums_to_the_cotangents_except_under_none(ties, content):
    x = CONTENTS[content](np.random.default_rng(3), (8, 9, 2))
    arguments = {"window_shape": (3, 2), "strides": 2, "padding": 1}
    ct = np.full((*jpool.pooled_shape((8, 9), (3, 2), 2, 1), 2), 60, np.float32)
    (gradient,) = jax.vjp(lambda x: jpool.max_pool(x, **arguments, ties=ties), x)[1](ct)
    assert gradient.sum() == ct.sum()


# --- what is saved between the passes ---


@pytest.mark.parametrize(
    ("window", "ties", "bytes_per_window"),
    [
        ((2, 2), "last", 1), ((2, 2), "none", 1), ((3, 3), "last", 1), ((3, 3), "none", 1),
        ((2, 2), "split", 1), ((7,), "split", 1), ((8,), "split", 2), ((3, 3), "split", 2),
    ],
)  # fmt: skip
def test_the_residual_is_one_number_or_one_mask_per_window(window, ties, bytes_per_window):
    x = jnp.zeros((20,) * len(window))
    values, backward = jax.vjp(lambda x: jpool.max_pool(x, window, channel_axis=None, ties=ties), x)
    saved = [leaf for leaf in jax.tree.leaves(backward) if hasattr(leaf, "nbytes")]
    assert sum(leaf.nbytes for leaf in saved) == values.size * bytes_per_window


def test_split_saves_one_mask_per_step_of_a_large_window():
    x = jnp.zeros((20, 20))
    _, backward = jax.vjp(lambda x: jpool.max_pool(x, (5, 5), 5, channel_axis=None, ties="split"), x)
    saved = [leaf for leaf in jax.tree.leaves(backward) if hasattr(leaf, "nbytes")]
    assert [(leaf.shape, leaf.dtype) for leaf in saved] == [((20, 4), "uint8"), ((4, 4), "uint8")]


def test_a_tie_of_all_taps_is_not_mistaken_for_no_winner():
    """Values must not be lost where a mask, or the number for no winner, is the largest of its dtype."""
    x = jnp.full((2, 2, 2), 3.0)
    values, winners = select(geometry(x, (2, 2, 2), "split"), x)
    assert values.item() == 3
    assert winners[0].item() == 2**8 - 1
    x = jnp.full(509, 3.0)  # a prime number of taps: one step
    for taps in (127, 251, 509):
        values, (winners,) = jax.jit(select, static_argnums=0)(geometry(x[:taps], (taps,), "none"), x[:taps])
        assert values.item() == 3
        assert winners.item() == taps


def geometry(x, window, ties):
    return resolved(x.shape, window, channel_axis=None)._replace(ties=ties)


def test_an_element_in_two_overlapping_blocks_is_not_a_tie():
    """A window of 31 is four overlapping blocks of 10, and one maximum may be in two of them."""
    for position in range(31):
        x = jnp.zeros(31).at[position].set(1)
        for ties in RULES:
            gradient = jax.grad(lambda x, ties=ties: jpool.max_pool(x, (31,), channel_axis=None, ties=ties).sum())(x)
            np.testing.assert_array_equal(gradient, x)


@pytest.mark.parametrize("side", [10, 22, 31, 32, 36, 49, 62, 961])
def test_split_divides_a_window_into_its_factors(side):
    x = np.random.default_rng(0).integers(0, 3, side + 3).astype(np.float32)
    (gradient,) = jax.vjp(lambda x: jpool.max_pool(x, (side,), channel_axis=None, ties="split"), x)[1](jnp.ones(4))
    _, winners = oracle.pool(x, oracle.windows(x, (side,), channel_axis=None), "split")
    np.testing.assert_allclose(gradient, oracle.share(x.shape, winners, np.ones(4)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("ties", ["none", "split"])
def test_a_long_step_of_16_bits_is_compiled_in_reasonable_time(ties):
    """Of 31 taps: without a barrier, XLA:CPU of jax 0.12.0.1 takes hours for the values alone."""
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, 64), jnp.bfloat16)
    pool = lambda x: jpool.max_pool(x, (31,), channel_axis=None, ties=ties)  # noqa: E731
    expected = np.lib.stride_tricks.sliding_window_view(np.asarray(x), 31).max(-1)
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


@pytest.mark.parametrize("ties", RULES)
def test_min_pool_of_x_is_minus_max_pool_of_minus_x(ties):
    x = CONTENTS["tied"](np.random.default_rng(2), (8, 7, 2))
    arguments = {"window_shape": (3, 3), "strides": 2, "padding": 1, "ties": ties}
    minima, backward_of_min = jax.vjp(lambda x: jpool.min_pool(x, **arguments), x)
    maxima, backward_of_max = jax.vjp(lambda x: jpool.max_pool(x, **arguments), -x)
    np.testing.assert_array_equal(minima, -maxima)
    np.testing.assert_array_equal(backward_of_min(minima)[0], backward_of_max(minima)[0])


def test_in_min_pool_plus_infinity_beats_padding():
    values, backward = jax.vjp(
        lambda x: jpool.min_pool(x, (3,), padding="SAME", channel_axis=None), np.full(3, inf, "f")
    )
    assert values.tolist() == [inf] * 3
    assert backward(jnp.ones(3))[0].tolist() == [2, 1, 0]


def test_min_pool_of_an_all_padding_window_is_infinite_and_has_no_gradient():
    values, backward = jax.vjp(
        lambda x: jpool.min_pool(x, (2,), padding=2, channel_axis=None), np.array([3.0], np.float32)
    )
    assert values.tolist() == [inf, 3, 3, inf]
    assert backward(jnp.ones(4))[0].tolist() == [2]
