"""Who wins a tie, of the largest and of the smallest: every rule, on every case and content, against the oracle."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES, CONTENTS

import jpool
from jpool.pooling.integers.arguments import TIES
from jpool.pooling.derivative.primitives import select

pytestmark = pytest.mark.usefixtures("arrangement")

inf, nan = np.inf, np.nan
RULES = list(itertools.product(TIES, [False, True]))
ALL = 720720  # every number up to 16 divides it, so the shares of up to 16 are whole numbers


def pooled(least):
    return jpool.min_pool if least else jpool.max_pool


def contents(case, least):
    """Every content; what is as low as padding for the largest must be as high for the smallest."""
    rng = np.random.default_rng(case.why.count("e"))
    examples = [CONTENTS[name](rng, case.shape) for name in CONTENTS]
    return np.stack([-x if least else x for x in examples])


@pytest.mark.parametrize("least", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_of_every_rule_equal_the_oracle(name, least):
    case = CASES[name]
    xs = contents(case, least)
    shape = oracle.windows(xs[0], case.window, **case.arguments).shape
    ct = (ALL * np.random.default_rng(1).integers(-2, 3, (len(xs), *shape))).astype(np.float32)

    @jax.jit
    def both(xs, ct):  # all rules in one program: each case is compiled once
        found = {}
        for ties in TIES:
            pool = lambda x, ties=ties: pooled(least)(x, case.window, **case.arguments, ties=ties)  # noqa: E731
            values, backward = jax.vjp(jax.vmap(pool), xs)
            found[ties] = values, backward(ct)[0]
        return found

    found = both(xs, ct)
    for ties, i in itertools.product(TIES, range(len(xs))):
        expected, winners = oracle.pool(xs[i], oracle.windows(xs[i], case.window, **case.arguments), ties, least)
        values, gradient = (array[i] for array in found[ties])
        np.testing.assert_array_equal(values, expected, strict=True)
        shares = oracle.share(xs[i].shape, winners, ct[i])
        if max(map(len, winners.ravel()), default=0) <= 16:
            np.testing.assert_array_equal(gradient, shares.astype(np.float32), strict=True)
        else:  # shares are rounded, and their sums
            np.testing.assert_allclose(gradient, shares, rtol=1e-6, atol=ALL * 1e-6)


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
def test_a_picture_of_each_rule(ties, gradient, pool):
    x = np.array([[7, 0, 1], [2, 7, 7], [3, 4, 7]], np.float32) * (-1 if pool is jpool.min_pool else 1)
    got = jax.grad(lambda x: pool(x, (3, 3), channel_axis=None, ties=ties).sum())(x)
    np.testing.assert_array_equal(got, np.array(gradient, np.float32), strict=True)


@pytest.mark.parametrize("ties", TIES)
def test_a_window_without_a_tie_is_the_same_under_every_rule(ties):
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
def test_the_first_nan_takes_all_under_every_rule_but_none(ties, gradient, pool):
    x = np.array([inf, nan, nan], np.float32)
    values, backward = jax.vjp(lambda x: pool(x, (3,), channel_axis=None, ties=ties), x)
    assert np.isnan(values).all()
    assert backward(jnp.ones(1))[0].tolist() == gradient


@pytest.mark.parametrize("shape", [(6, 6), (4, 9)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_split_is_the_rule_of_jnp_max(shape, dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 4, shape), dtype)
    ours = jax.grad(lambda x: jpool.max_pool(x, shape, channel_axis=None, ties="split").sum())(x)
    np.testing.assert_array_equal(ours, jax.grad(jnp.max)(x), strict=True)
    ours = jax.grad(lambda x: jpool.min_pool(x, shape, channel_axis=None, ties="split").sum())(x)
    np.testing.assert_array_equal(ours, jax.grad(jnp.min)(x), strict=True)


@pytest.mark.parametrize("ties", ["first", "last", "split"])
@pytest.mark.parametrize("content", CONTENTS)
def test_the_gradient_is_conserved_but_by_none(ties, content):
    x = CONTENTS[content](np.random.default_rng(3), (8, 9, 2))
    arguments = {"window_shape": (3, 2), "strides": 2, "padding": 1}
    ct = np.full((*jpool.pooled_shape((8, 9), (3, 2), 2, 1), 2), 60, np.float32)
    (gradient,) = jax.vjp(lambda x: jpool.max_pool(x, **arguments, ties=ties), x)[1](ct)
    assert gradient.sum() == ct.sum()


# --- what is saved between the passes ---


@pytest.mark.parametrize(
    ("window", "ties", "bytes_each"),
    [
        ((2, 2), "last", 1), ((2, 2), "none", 1), ((15, 17), "last", 1), ((15, 17), "none", 2),
        ((2, 2), "split", 1), ((7,), "split", 1), ((8,), "split", 2), ((3, 3), "split", 2),
    ],
)  # fmt: skip
def test_the_residual_is_one_number_or_one_mask_for_each_window(window, ties, bytes_each):
    x = jnp.zeros((20,) * len(window))
    values, backward = jax.vjp(lambda x: jpool.max_pool(x, window, channel_axis=None, ties=ties), x)
    saved = [leaf for leaf in jax.tree.leaves(backward) if hasattr(leaf, "nbytes")]
    assert sum(leaf.nbytes for leaf in saved) == values.size * bytes_each


def test_large_windows_split_axis_by_axis_with_a_mask_for_each_step():
    x = jnp.zeros((20, 20))
    _, backward = jax.vjp(lambda x: jpool.max_pool(x, (5, 5), 5, channel_axis=None, ties="split"), x)
    saved = [leaf for leaf in jax.tree.leaves(backward) if hasattr(leaf, "nbytes")]
    assert [(leaf.shape, leaf.dtype) for leaf in saved] == [((20, 4), "uint8"), ((4, 4), "uint8")]


def test_a_tie_of_all_taps_is_not_taken_for_no_winner():
    """Where a mask, or the number for none, is the largest of its dtype, values must not be lost."""
    for window, ties in (((2, 2, 2), "split"), ((15, 17), "none")):
        x = jnp.full(window, 3.0)
        values, winners = select(geometry(x, window, ties), x)
        assert values.item() == 3
        assert winners[0].item() == (255 if ties == "none" else 2**8 - 1)


def geometry(x, window, ties):
    return jpool.geometry.resolve(
        "max_pool", x.shape, window, None, "VALID", window_dilation=None, ceil_mode=False, channel_axis=None, ties=ties
    )


def test_blocks_that_overlap_do_not_tie_with_themselves():
    """A window of 31 is four overlapping blocks of 10, so under "none" one maximum in two of them is met twice."""
    for at in range(31):
        x = jnp.zeros(31).at[at].set(1)
        for ties in TIES:
            gradient = jax.grad(lambda x, ties=ties: jpool.max_pool(x, (31,), channel_axis=None, ties=ties).sum())(x)
            np.testing.assert_array_equal(gradient, x)
        _, (winner,) = jax.jit(select, static_argnums=0)(geometry(x, (31,), "none"), x)
        assert winner.tolist() == [at]


@pytest.mark.parametrize("side", [10, 22, 31, 32, 36, 49, 62, 961])
def test_split_takes_windows_apart_into_factors(side):
    x = np.random.default_rng(0).integers(0, 3, side + 3).astype(np.float32)
    (gradient,) = jax.vjp(lambda x: jpool.max_pool(x, (side,), channel_axis=None, ties="split"), x)[1](jnp.ones(4))
    _, winners = oracle.pool(x, oracle.windows(x, (side,), channel_axis=None), "split")
    np.testing.assert_allclose(gradient, oracle.share(x.shape, winners, np.ones(4)), rtol=1e-6, atol=0)


def test_split_refuses_a_window_that_has_no_small_factors():
    text = r"max_pool: ties='split' .*product of numbers up to 31; got \(2, 74\), and 74 has the prime factor 37\. Take"
    with pytest.raises(ValueError, match=text):
        jpool.max_pool(np.zeros((9, 99)), (2, 74), channel_axis=None, ties="split")


# --- min_pool ---


@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "uint8", "uint16", "uint32", "int4", "uint4"])
def test_the_smallest_integers_are_found_without_negating(dtype):
    kind = jnp.iinfo(dtype) if dtype != "bool" else None
    low, high = (kind.min, kind.max) if kind else (False, True)
    x = np.array([[low, high, high], [high, high, high]], jnp.dtype(dtype))
    got = jpool.min_pool(x, (2, 2), padding=((0, 1), (0, 1)), channel_axis=None)
    assert got.dtype == dtype
    assert np.asarray(got).astype(np.int64).tolist() == [[low, high, high], [high, high, high]]
    with pytest.raises(TypeError):
        jax.grad(lambda x: jpool.min_pool(x, (2, 2), channel_axis=None).sum())(x)


@pytest.mark.parametrize("ties", TIES)
def test_the_smallest_of_x_is_minus_the_largest_of_minus_x(ties):
    x = CONTENTS["tied"](np.random.default_rng(2), (8, 7, 2))
    arguments = {"window_shape": (3, 3), "strides": 2, "padding": 1, "ties": ties}
    smallest, down = jax.vjp(lambda x: jpool.min_pool(x, **arguments), x)
    largest, up = jax.vjp(lambda x: jpool.max_pool(x, **arguments), -x)
    np.testing.assert_array_equal(smallest, -largest)
    np.testing.assert_array_equal(down(smallest)[0], up(smallest)[0])


def test_plus_infinity_beats_padding():
    values, backward = jax.vjp(
        lambda x: jpool.min_pool(x, (3,), padding="SAME", channel_axis=None), np.full(3, inf, "f")
    )
    assert values.tolist() == [inf] * 3
    assert backward(jnp.ones(3))[0].tolist() == [2, 1, 0]


def test_a_window_without_a_real_element_is_highest_and_passes_nothing():
    values, backward = jax.vjp(
        lambda x: jpool.min_pool(x, (2,), padding=2, channel_axis=None), np.array([3.0], np.float32)
    )
    assert values.tolist() == [inf, 3, 3, inf]
    assert backward(jnp.ones(4))[0].tolist() == [2]
