"""Every transformation of JAX, one short test each; and all derivatives, with forward_mode=True as well."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import oracle

import jpool

pytestmark = pytest.mark.usefixtures("compiled_quickly")
inf = np.inf
ARGUMENTS = {"window_shape": (3, 2), "strides": 2, "padding": 1}
pool = partial(jpool.max_pool, **ARGUMENTS)
X = np.random.default_rng(0).permutation(7 * 6 * 2).reshape(7, 6, 2).astype(np.float32)
EXAMPLES = [X, -X, X[::-1]]


def loss(x):
    return (pool(x) ** 2).sum()


def derivatives_of_loss(x):
    """The gradient, 2 * value at each winner, and the diagonal of the Hessian, 2 for each window that an element wins."""
    values, winners = oracle.pool(x, oracle.windows(x, **ARGUMENTS))
    return oracle.share(x.shape, winners, 2 * values), oracle.share(x.shape, winners, np.full(values.shape, 2))


POOLED, GRADIENTS = ([of_each(x) for x in EXAMPLES] for of_each in (
    lambda x: oracle.pool(x, oracle.windows(x, **ARGUMENTS))[0], lambda x: derivatives_of_loss(x)[0]
))  # fmt: skip


def test_jit_and_grad_of_jit():
    np.testing.assert_array_equal(jax.jit(pool)(X), POOLED[0], strict=True)
    np.testing.assert_array_equal(jax.grad(jax.jit(loss))(X), GRADIENTS[0])


@pytest.mark.parametrize(("in_axes", "out_axes"), [(0, 0), (1, 2), (-1, -1), (3, 0)])
def test_vmap_over_any_axis(in_axes, out_axes):
    batch = np.stack(EXAMPLES, in_axes)
    both = lambda x: (pool(x), jax.grad(loss)(x))  # noqa: E731
    pooled, gradients = jax.jit(jax.vmap(both, in_axes, (out_axes, 0)))(batch)
    np.testing.assert_array_equal(pooled, np.stack(POOLED, out_axes))
    np.testing.assert_array_equal(gradients, GRADIENTS)


def test_vmap_of_vmap_and_grad_of_vmap():
    batch = np.stack([np.stack([X, -X]), np.stack([X[::-1], X])])
    gradient = jax.jit(jax.grad(lambda batch: jax.vmap(jax.vmap(loss))(batch).sum()))(batch)
    np.testing.assert_array_equal(gradient, [GRADIENTS[:2], [GRADIENTS[2], GRADIENTS[0]]])


def test_an_empty_batch():
    empty = np.zeros((0, *X.shape), np.float32)
    both = jax.jit(jax.vmap(lambda x: (pool(x), jax.grad(loss)(x))))
    assert [result.shape for result in both(empty)] == [(0, *POOLED[0].shape), empty.shape]


def test_loops_and_branches():
    @jax.jit
    def all_of_them(xs, yes):
        _, of_each = jax.lax.scan(lambda carry, x: (carry, jax.grad(loss)(x)), 0, xs)
        sum_of_three = lambda x: jax.lax.scan(lambda total, _: (total + loss(x), 0), 0.0, None, length=3)[0]  # noqa: E731
        either = jax.grad(lambda x: jax.lax.cond(yes, loss, lambda x: 0 * x.sum(), x))
        same = partial(jpool.max_pool, window_shape=(3, 3), padding="SAME")
        repeated = jax.lax.fori_loop(0, 3, lambda _, x: same(x), xs[0])
        return of_each, jax.grad(sum_of_three)(xs[0]), either(xs[0]), jax.grad(jax.checkpoint(loss))(xs[0]), repeated

    of_each, total, either, rematerialised, repeated = all_of_them(np.stack(EXAMPLES), True)
    np.testing.assert_array_equal(of_each, GRADIENTS)
    np.testing.assert_array_equal(total, 3 * GRADIENTS[0])
    np.testing.assert_array_equal(either, GRADIENTS[0])
    np.testing.assert_array_equal(rematerialised, GRADIENTS[0])
    np.testing.assert_array_equal(repeated, oracle.pool(X, oracle.windows(X, (7, 7), padding="SAME"))[0])
    assert not all_of_them(np.stack(EXAMPLES), False)[2].any()


# --- second derivatives, without forward mode ---


@pytest.mark.parametrize("twice", [jax.hessian, lambda f: jax.jacrev(jax.grad(f))])
def test_second_derivatives(twice):
    second = jax.jit(jax.vmap(twice(loss)))
    for xs in (np.stack(EXAMPLES), np.stack(EXAMPLES) % 3):  # without and with ties
        for actual, x in zip(second(xs), xs, strict=True):
            np.testing.assert_array_equal(
                np.asarray(actual).reshape(84, 84), np.diag(derivatives_of_loss(x)[1].ravel())
            )


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
def test_the_derivative_of_the_forward_rule_follows_the_winners(outer):
    """The tangent of a value is its winner's, at -inf beside padding, too."""
    x = np.full(3, -inf, np.float32)
    values = lambda x: jax.vjp(lambda x: jpool.max_pool(x, (3,), padding=1, channel_axis=None), x)[0]  # noqa: E731
    np.testing.assert_array_equal(jax.jit(outer(values))(x), [[1, 0, 0], [1, 0, 0], [0, 1, 0]])


# --- forward mode, for every function with this argument ---

POOLS = {
    "max_pool": (pool, (5, 4, 2)),
    "min_pool": (partial(jpool.min_pool, window_shape=(2, 5), padding="SAME", ties="last"), (5, 6, 1)),
    "split": (partial(jpool.max_pool, window_shape=(4, 4), strides=3, ties="split"), (7, 7, 1)),
    "with_argmax": (lambda x, **mode: jpool.max_pool_with_argmax(x, (2, 2), **mode)[0], (5, 5, 1)),
    "adaptive_max_pool": (partial(jpool.adaptive_max_pool, output_shape=(3, 4)), (5, 6, 2)),
    "adaptive_with_argmax": (lambda x, **mode: jpool.adaptive_max_pool_with_argmax(x, (3, 4), **mode)[0], (5, 6, 1)),
    "global_max_pool": (jpool.global_max_pool, (5, 4, 2)),
}
ALL_COMBINATIONS = {"max_pool", "split", "adaptive_max_pool"}


@pytest.mark.parametrize("name", POOLS)
def test_every_combination_of_forward_and_reverse_mode(name):
    """Jacobians, tangents and second derivatives are those of the default's reverse mode."""
    function, shape = POOLS[name]
    forward, default = partial(function, forward_mode=True), partial(function, forward_mode=False)
    x = np.random.default_rng(0).integers(0, 5, shape).astype(np.float32)
    xs, t = (
        np.stack([x, -x]),
        720720 * (np.arange(x.size, dtype=np.float32) % 7).reshape(shape),
    )  # means are whole numbers
    cube = lambda x: (forward(x) ** 3).sum()  # noqa: E731
    orders = [(a, b) for a in (jax.jacfwd, jax.jacrev) for b in (jax.jacfwd, jax.jacrev)]
    orders = orders if name in ALL_COMBINATIONS else orders[:1]

    @jax.jit
    def everything(xs, t):
        x, tangent = xs[0], lambda x, t: jax.jvp(forward, (x,), (t,))[1]
        jacobians = jax.jacrev(default)(x), jax.jacrev(forward)(x), jax.jacfwd(forward)(x)
        linear = jax.linearize(forward, x)[1]
        batched = jax.jvp(jax.vmap(forward), (xs,), (jnp.stack([t, t]),))[1]
        tangents = tangent(x, t), linear(t), batched[0], jax.vmap(tangent, (None, 0))(x, t[None])[0]
        hessian = jax.hessian(lambda x: (default(x) ** 3).sum())(x)
        return jacobians, tangents, hessian, [outer(inner(cube))(x) for outer, inner in orders]

    (jacobian, *jacobians), tangents, hessian, hessians = jax.device_get(everything(xs, t))
    assert np.abs(jacobian).sum() > 0
    for other in jacobians:
        np.testing.assert_array_equal(other, jacobian)
    for tangent in tangents:
        expected = jacobian.reshape(-1, x.size).astype(np.float64) @ t.ravel()
        np.testing.assert_allclose(tangent.ravel(), expected, rtol=1e-6 if name == "split" else 0)  # a third is rounded
    for other in hessians:
        np.testing.assert_allclose(other, hessian, rtol=1e-6)


def test_forward_mode_passes_through_loops_branches_and_remat():
    forward = partial(pool, forward_mode=True)
    wrapped = [
        jax.checkpoint(forward),
        lambda x: jax.lax.cond(x[0, 0, 0] >= 0, forward, lambda x: 0 * forward(x), x),
        lambda x: jax.lax.scan(lambda carry, _: (carry, forward(x)), 0, None, length=2)[1],
    ]
    tangents = jax.jit(lambda x: [jax.jvp(f, (x,), (jnp.ones_like(x),))[1] for f in wrapped])(X)
    assert all((np.asarray(tangent) == 1).all() for tangent in tangents)


@pytest.mark.parametrize("name", ["max_pool", "adaptive_max_pool"])
def test_the_residual_of_forward_mode_is_as_large_as_the_defaults(name):
    function, shape = POOLS[name]
    modes = [partial(function, forward_mode=mode) for mode in (False, True)]
    saved = [jax.tree.leaves(jax.vjp(f, np.zeros(shape, np.float32))[1]) for f in (*modes, *map(jax.jit, modes))]
    (size,) = {sum(leaf.nbytes for leaf in leaves if hasattr(leaf, "nbytes")) for leaves in saved}
    assert size > 0


@pytest.mark.parametrize("name", POOLS)
def test_the_default_refuses_forward_mode_and_the_argument_is_checked(name):
    function, shape = POOLS[name]
    x = np.zeros(shape, np.float32)
    for forward in (lambda: jax.jvp(function, (x,), (x,)), lambda: jax.jacrev(jax.jacfwd(function))(x)):
        with pytest.raises(TypeError, match="forward-mode"):
            forward()
    for value in (1, None, "yes"):
        with pytest.raises(TypeError, match=rf"\w+: forward_mode must be True or False; got {value!r} of type"):
            function(x, forward_mode=value)


def test_the_docstring_says_how_to_allow_forward_mode():
    for word in ("jax.jvp", "jax.jacfwd", "jax.linearize", "forward_mode=True"):
        assert word in jpool.max_pool.__doc__


def test_tangents_of_elements_that_do_not_win_are_ignored_even_if_infinite():
    forward = partial(jpool.max_pool, window_shape=(2,), channel_axis=None, forward_mode=True)
    x, t = np.array([[1, 2, 0], [inf, 5, np.nan]], np.float32)
    assert jax.jvp(forward, (x,), (t,))[1].tolist() == [5, 5]


def test_the_tangent_of_an_infinite_window_is_that_of_its_first_real_element():
    forward = partial(jpool.max_pool, window_shape=(3, 3), padding="SAME", channel_axis=None, forward_mode=True)
    x, t = np.full((3, 3), -inf, np.float32), np.arange(9, dtype=np.float32).reshape(3, 3)
    np.testing.assert_array_equal(jax.jvp(forward, (x,), (t,))[1], [[0, 0, 1], [0, 0, 1], [3, 3, 4]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float8_e5m2"])
def test_gradients_and_tangents_of_every_float_dtype(dtype):
    """With forward mode the gradient is the default's bit for bit."""
    with jax.enable_x64(dtype == "float64"):
        x, t = (np.random.default_rng(i).integers(-4, 5, (7, 6, 2)).astype(jnp.dtype(dtype)) for i in range(2))

        @jax.jit
        def both(x, t):
            values, tangent = jax.jvp(partial(pool, forward_mode=True), (x,), (t,))
            modes = (jax.vjp(partial(pool, forward_mode=mode), x)[1](values)[0] for mode in (False, True))
            return values, tangent, list(modes)

        values, tangent, (default, gradient) = jax.device_get(both(x, t))
    assert values.dtype == tangent.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(default.view("uint8"), gradient.view("uint8"))
    _, winners = oracle.pool(x.astype(float), oracle.windows(x, **ARGUMENTS))
    np.testing.assert_array_equal(tangent.astype(float), oracle.gather(winners, t.astype(float)))


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_integers_have_no_tangent(dtype):
    forward = partial(jpool.max_pool, window_shape=(2,), channel_axis=None, forward_mode=True)
    values, tangent = jax.jvp(forward, ((np.arange(6) % 2).astype(dtype),), (np.zeros(6, jax.dtypes.float0),))
    assert values.tolist() == [1] * 5
    assert (tangent.dtype, tangent.shape) == (jax.dtypes.float0, (5,))
