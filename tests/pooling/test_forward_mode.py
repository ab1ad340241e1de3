"""forward_mode=True: every derivative of JAX, from the same winners; values and gradients are the same bit for bit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import oracle
from shared.cases import CASES, CONTENTS, EVERY_CASE, mostly_exhaustive

import jpool
from jpool.pooling.plain.ties import RULES

inf = np.inf


def bits(array):
    return np.asarray(array).view(f"uint{8 * array.dtype.itemsize}")


@pytest.mark.usefixtures("arrangement")
@pytest.mark.parametrize("name", EVERY_CASE)
def test_values_gradients_and_tangents_on_every_case(name):
    """Gradient, tangent and argmax agree on the winners, and the gradient is the default's bit for bit."""
    case, rng = CASES[name], np.random.default_rng(len(name))
    xs = np.stack([CONTENTS[content](rng, case.shape) for content in CONTENTS])
    t = rng.integers(-99, 100, xs.shape).astype(np.float32)
    windows = oracle.windows(xs[0], case.window, **case.arguments)
    ct = rng.standard_normal((len(xs), *windows.shape)).astype(np.float32)  # sums differ if their order does

    @jax.jit
    def all_modes(xs, t, ct):
        pool = partial(jpool.max_pool, window_shape=case.window, **case.arguments)
        values, tangent = jax.jvp(jax.vmap(partial(pool, forward_mode=True)), (xs,), (t,))
        reverse = [jax.vjp(jax.vmap(partial(pool, forward_mode=mode)), xs) for mode in (False, True)]
        gradients = [backward(ct)[0] for _, backward in reverse]
        _, argmax = jax.vmap(partial(jpool.max_pool_with_argmax, window_shape=case.window, **case.arguments))(xs)
        return [values, *(values for values, _ in reverse)], tangent, gradients, argmax

    (values, *others), tangent, gradients, argmax = all_modes(xs, t, ct)
    for other in others:
        np.testing.assert_array_equal(bits(other), bits(values))
    np.testing.assert_array_equal(bits(gradients[0]), bits(gradients[1]))
    for i, x in enumerate(xs):
        expected, winners = oracle.pool(x, windows)
        np.testing.assert_array_equal(values[i], expected)
        np.testing.assert_array_equal(tangent[i], oracle.gather(winners, t[i]).astype(np.float32))
        np.testing.assert_array_equal(argmax[i], oracle.flat(winners, x.shape, case.arguments.get("channel_axis", -1)))


@pytest.mark.usefixtures("arrangement")
@pytest.mark.parametrize("pool", [jpool.max_pool, jpool.min_pool])
@pytest.mark.parametrize("ties", RULES)
@pytest.mark.parametrize("window", [(3, 2), pytest.param((4, 5), marks=pytest.mark.exhaustive)])
def test_tangents_and_gradients_of_every_rule(ties, pool, window):
    rng = np.random.default_rng(0)
    arguments = {"window_shape": window, "strides": 2, "padding": 1, "ties": ties}
    x = (-1 if pool is jpool.min_pool else 1) * CONTENTS["special"](rng, (9, 8, 2))
    x = np.where(rng.random(x.shape) < 0.7, rng.integers(0, 2, x.shape), x).astype(np.float32)
    without_ties = {key: value for key, value in arguments.items() if key != "ties"}
    windows = oracle.windows(x, **without_ties)
    _, winners = oracle.pool(x, windows, ties, pool is jpool.min_pool)
    t, ct = (720720.0 * rng.integers(-2, 3, shape) for shape in (x.shape, winners.shape))
    function = partial(pool, **arguments, forward_mode=True)
    with jax.enable_x64(True):
        tangent = np.asarray(jax.jvp(function, (jnp.asarray(x, jnp.float64),), (t,))[1])
        gradient = np.asarray(jax.vjp(function, jnp.asarray(x, jnp.float64))[1](ct)[0])
    np.testing.assert_allclose(tangent, oracle.gather(winners, t), rtol=1e-15)
    np.testing.assert_array_equal(gradient, oracle.share(x.shape, winners, ct))
    np.testing.assert_allclose((tangent * ct).sum(), (t * gradient).sum(), rtol=1e-14)  # their maps are transposes


@pytest.mark.usefixtures("arrangement")
def test_the_tangent_of_an_all_infinite_window_is_that_of_its_first_real_element():
    x = jnp.full((3, 3), -inf)
    pool = partial(jpool.max_pool, window_shape=(3, 3), padding="SAME", channel_axis=None, forward_mode=True)
    t = jnp.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(jax.jvp(pool, (x,), (t,))[1], [[0, 0, 1], [0, 0, 1], [3, 3, 4]])
    np.testing.assert_array_equal(jax.jacfwd(pool)(x), jax.jacrev(pool)(x))


def test_tangents_of_elements_that_do_not_win_are_ignored_even_if_infinite():
    pool = partial(jpool.max_pool, window_shape=(2,), channel_axis=None, forward_mode=True)
    assert jax.jvp(pool, (jnp.array([1.0, 2, 0]),), (jnp.array([inf, 5, np.nan]),))[1].tolist() == [5, 5]


# --- every transformation, for every function with this argument ---

POOLS = {
    "max_pool": (partial(jpool.max_pool, window_shape=(3, 3), strides=2, padding=1), (7, 6, 2)),
    "min_pool": (partial(jpool.min_pool, window_shape=(2, 5), padding="SAME", ties="last"), (7, 6, 2)),
    "split": (partial(jpool.max_pool, window_shape=(4, 4), strides=3, ties="split"), (7, 7, 2)),
    "with_argmax": (lambda x, **mode: jpool.max_pool_with_argmax(x, (2, 2), **mode)[0], (5, 5, 2)),
    "adaptive_max_pool": (partial(jpool.adaptive_max_pool, output_shape=(3, 4)), (7, 6, 2)),
    "adaptive_with_argmax": (lambda x, **mode: jpool.adaptive_max_pool_with_argmax(x, (3, 4), **mode)[0], (7, 6, 2)),
    "global_max_pool": (jpool.global_max_pool, (5, 4, 2)),
}


@pytest.fixture(params=mostly_exhaustive(POOLS, ["max_pool", "adaptive_max_pool"]))
def both(request):
    """A function with and without forward mode, and an example."""
    function, shape = POOLS[request.param]
    x = jnp.asarray(np.random.default_rng(0).integers(0, 5, shape), jnp.float32)
    return partial(function, forward_mode=True), partial(function, forward_mode=False), x


def test_jacfwd_and_jacrev_equal_the_defaults_jacrev(both):
    pool, default, x = both
    expected = jax.jacrev(default)(x)
    assert np.abs(expected).sum() > 0
    np.testing.assert_array_equal(jax.jacrev(pool)(x), expected)
    np.testing.assert_array_equal(jax.jit(jax.jacfwd(pool))(x), expected)


def test_linearize(both):
    pool, _, x = both
    t = 720720 * (jnp.arange(float(x.size)) % 7).reshape(x.shape)  # means of up to 16 are whole numbers
    values, tangent = jax.jvp(pool, (x,), (t,))
    linearized_values, linear = jax.linearize(pool, x)
    np.testing.assert_array_equal(linearized_values, values)
    np.testing.assert_array_equal(linear(t), tangent)
    np.testing.assert_array_equal(jax.jit(linear)(t), tangent)


def test_every_combination_of_forward_and_reverse_mode(both):
    pool, default, x = both
    cube = lambda f: lambda x: (f(x) ** 3).sum()  # noqa: E731
    expected = jax.hessian(cube(default))(x)
    for outer in (jax.jacfwd, jax.jacrev):
        for inner in (jax.jacfwd, jax.jacrev):
            np.testing.assert_allclose(jax.jit(outer(inner(cube(pool))))(x), expected, rtol=1e-6)
    third = jax.jit(jax.jacfwd(jax.jacrev(jax.jacfwd(cube(pool)))))(x)
    assert third.shape == x.shape * 3


def test_vmap_of_derivatives_and_derivatives_of_vmap(both):
    pool, default, x = both
    xs = jnp.stack([x, -x, x[::-1]])
    ts = 720720 * (jnp.arange(float(xs.size)) % 7).reshape(xs.shape)  # means of up to 16 are whole numbers
    tangents = [jax.jvp(pool, (x,), (t,))[1] for x, t in zip(xs, ts, strict=True)]
    np.testing.assert_array_equal(jax.vmap(lambda x, t: jax.jvp(pool, (x,), (t,))[1])(xs, ts), jnp.stack(tangents))
    np.testing.assert_array_equal(jax.jvp(jax.vmap(pool), (xs,), (ts,))[1], jnp.stack(tangents))
    of_one_example = jax.vmap(lambda t: jax.jvp(pool, (x,), (t,))[1])(ts)  # one example, many tangents
    np.testing.assert_array_equal(of_one_example, jnp.stack([jax.jvp(pool, (x,), (t,))[1] for t in ts]))
    gradients = jax.vmap(jax.grad(lambda x: (pool(x) ** 2).sum()))(xs)
    np.testing.assert_array_equal(gradients, [jax.grad(lambda x: (default(x) ** 2).sum())(x) for x in xs])
    jacobians = jax.vmap(jax.jacfwd(pool), in_axes=-1, out_axes=1)(jnp.moveaxis(xs, 0, -1))
    np.testing.assert_array_equal(jacobians, jnp.stack([jax.jacrev(default)(x) for x in xs], axis=1))


def test_the_residual_is_as_large_as_the_defaults(both):
    def saved(function):
        _, backward = jax.vjp(function, x)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(backward) if hasattr(leaf, "nbytes"))

    pool, default, x = both
    assert 0 < saved(pool) == saved(default)
    assert 0 < saved(jax.jit(pool)) == saved(jax.jit(default))


def test_remat_scan_and_cond(both):
    pool, default, x = both
    expected = jax.jacrev(default)(x).sum(tuple(range(default(x).ndim)))
    for wrapped in (
        jax.checkpoint(pool),
        lambda x: jax.lax.cond(x[0, 0, 0] >= 0, pool, lambda x: 0 * pool(x), x),
        lambda x: jax.lax.scan(lambda carry, _: (carry, pool(x)), 0, None, length=1)[1],
    ):
        np.testing.assert_array_equal(jax.grad(lambda x, wrapped=wrapped: wrapped(x).sum())(x), expected)
        out, tangent = jax.jvp(wrapped, (x,), (jnp.ones_like(x),))
        np.testing.assert_array_equal(tangent.reshape(-1), np.ones(out.size))


def test_the_default_refuses_forward_mode_and_documents_it(both):
    _, default, x = both
    for forward in (
        lambda: jax.jvp(default, (x,), (x,)),
        lambda: jax.jacfwd(default)(x),
        lambda: jax.linearize(default, x)[1](x),
        lambda: jax.jacrev(jax.jacfwd(default))(x),
    ):
        with pytest.raises(TypeError, match="forward-mode"):
            forward()
    for word in ("jax.jvp", "jax.jacfwd", "jax.linearize", "forward_mode=True"):
        assert word in jpool.max_pool.__doc__


@pytest.mark.parametrize("dtype", mostly_exhaustive(["float16", "bfloat16", "float64", "float8_e5m2"], ["bfloat16"]))
@pytest.mark.parametrize("function", [POOLS["max_pool"][0], POOLS["adaptive_max_pool"][0], POOLS["min_pool"][0]])
def test_every_float_dtype(dtype, function):
    with jax.enable_x64(dtype == "float64"):
        x, t = (jnp.asarray(np.random.default_rng(i).integers(-4, 5, (7, 6, 2)), jnp.dtype(dtype)) for i in range(2))
        values, tangent = jax.jvp(partial(function, forward_mode=True), (x,), (t,))
        assert values.dtype == tangent.dtype == dtype
        ct = values
        default, with_forward_mode = (
            jax.vjp(partial(function, forward_mode=mode), x)[1](ct)[0] for mode in (False, True)
        )
        np.testing.assert_array_equal(bits(default), bits(with_forward_mode), strict=True)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_integers_have_no_tangent(dtype):
    x = jnp.asarray(np.arange(6) % 2, dtype)
    pool = partial(jpool.max_pool, window_shape=(2,), channel_axis=None, forward_mode=True)
    values, tangent = jax.jvp(pool, (x,), (np.zeros(6, jax.dtypes.float0),))
    assert values.tolist() == [1] * 5
    assert tangent.dtype == jax.dtypes.float0
    assert tangent.shape == (5,)


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_forward_mode_must_be_true_or_false(value):
    for function, shape in POOLS.values():
        with pytest.raises(TypeError, match=rf"\w+: forward_mode must be True or False; got {value!r} of type"):
            function(jnp.zeros(shape), forward_mode=value)
