"""One short test per transformation of JAX, and tests of the compiled programs."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import oracle
from shared.cases import mostly_exhaustive
from shared.programs import FORBIDDEN, compiled_instructions, lowered_instructions

import jpool

pool = partial(jpool.max_pool, window_shape=(3, 2), strides=2, padding=1)


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).permutation(7 * 6 * 2).reshape(7, 6, 2), jnp.float32)


def loss(x):
    return (pool(x) ** 2).sum()


def expected_gradient(x):
    values, winners = oracle.max_pool(np.asarray(x), (3, 2), 2, 1)
    return oracle.route(x.shape, winners, 2 * values)


def test_jit(x):
    np.testing.assert_array_equal(jax.jit(pool)(x), pool(x))
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(x), expected_gradient(x))


def test_grad_of_jit(x):
    np.testing.assert_array_equal(jax.grad(jax.jit(loss))(x), expected_gradient(x))


@pytest.mark.parametrize(("in_axes", "out_axes"), [(0, 0), (1, 2), (-1, -1), (3, 0)])
def test_vmap_over_any_axis(x, in_axes, out_axes):
    batch = jnp.stack([x, -x, x[::-1]], in_axes)
    expected = jnp.stack([pool(x), pool(-x), pool(x[::-1])], out_axes)
    np.testing.assert_array_equal(jax.vmap(pool, in_axes, out_axes)(batch), expected)
    gradients = jax.vmap(jax.grad(loss), in_axes)(batch)
    np.testing.assert_array_equal(gradients, [expected_gradient(example) for example in (x, -x, x[::-1])])


def test_vmap_of_vmap_and_grad_of_vmap(x):
    batch = jnp.stack([jnp.stack([x, -x]), jnp.stack([x + 1, x[:, ::-1]])])
    gradient = jax.grad(lambda batch: jax.vmap(jax.vmap(loss))(batch).sum())(batch)
    np.testing.assert_array_equal(gradient, [[expected_gradient(example) for example in row] for row in batch])


def test_an_empty_batch(x):
    empty = jnp.zeros((0, *x.shape))
    assert jax.vmap(pool)(empty).shape == (0, *pool(x).shape)
    assert jax.vmap(jax.grad(loss))(empty).shape == empty.shape
    assert jax.jit(jax.grad(lambda batch: jax.vmap(loss)(batch).sum()))(empty).shape == empty.shape


def test_scan(x):
    _, gradients = jax.lax.scan(lambda carry, example: (carry, jax.grad(loss)(example)), 0, jnp.stack([x, -x]))
    np.testing.assert_array_equal(gradients, [expected_gradient(x), expected_gradient(-x)])
    total = jax.grad(lambda x: jax.lax.scan(lambda sum_, sign: (sum_ + loss(sign * x), 0), 0.0, jnp.ones(3))[0])(x)
    np.testing.assert_array_equal(total, 3 * expected_gradient(x))


def test_cond(x):
    either = jax.grad(lambda x, yes: jax.lax.cond(yes, loss, lambda x: 0 * x.sum(), x))
    np.testing.assert_array_equal(either(x, True), expected_gradient(x))
    np.testing.assert_array_equal(jax.jit(either)(x, False), np.zeros(x.shape))


def test_fori_loop(x):
    thrice = jax.lax.fori_loop(0, 3, lambda _, x: jpool.max_pool(x, (3, 3), padding="SAME"), x)
    np.testing.assert_array_equal(thrice, oracle.max_pool(x, (7, 7), padding="SAME")[0])


def test_remat(x):
    np.testing.assert_array_equal(jax.grad(jax.checkpoint(loss))(x), expected_gradient(x))
    np.testing.assert_array_equal(jax.jit(jax.grad(jax.checkpoint(loss)))(x), expected_gradient(x))


def second_derivative(x):
    """The Hessian of loss: on its diagonal, 2 for each window that the element wins."""
    _, winners = oracle.max_pool(np.asarray(x), (3, 2), 2, 1)
    wins = oracle.route(x.shape, winners, np.ones(winners.shape))
    return np.diag(2 * wins.ravel()).reshape(*x.shape, *x.shape)


@pytest.mark.parametrize("twice", [jax.hessian, lambda f: jax.jacrev(jax.grad(f)), lambda f: jax.jit(jax.hessian(f))])
@pytest.mark.parametrize("content", ["distinct", "tied", "lowest"])
def test_second_derivatives(x, twice, content):
    x = {"distinct": x, "tied": x % 3, "lowest": jnp.full_like(x, -jnp.inf)}[content][:4, :3]
    if content == "lowest":  # the square of infinity has none, so take a function that is linear in the values
        ct = jnp.asarray(np.random.default_rng(0).integers(1, 9, pool(x).shape), jnp.float32)
        derivative = twice(lambda s: (jnp.where(jnp.isinf(y := pool(s)), 0.0, y) * ct).sum())(x)
        np.testing.assert_array_equal(derivative, np.zeros(x.shape * 2))
    else:
        np.testing.assert_array_equal(twice(loss)(x), second_derivative(x))


@pytest.mark.parametrize("dtype", mostly_exhaustive(["float16", "bfloat16", "float64"], ["bfloat16"]))
@pytest.mark.parametrize("arguments", [{"window_shape": (2, 2), "padding": 1}, {"window_shape": (3, 4), "strides": 2}])
def test_second_derivatives_of_every_float_dtype(dtype, arguments):
    with jax.enable_x64(dtype == "float64"):
        pooled = partial(jpool.max_pool, **arguments)
        x = jnp.asarray(np.random.default_rng(0).permutation(30).reshape(5, 6, 1), jnp.dtype(dtype))
        hessian = jax.hessian(lambda x: (pooled(x) ** 2).sum() / 2)(x).reshape(30, 30)
        _, winners = oracle.max_pool(np.asarray(x, np.float64), **arguments)
        wins = oracle.route(x.shape, winners, np.ones(winners.shape))
        assert hessian.dtype == dtype
        np.testing.assert_array_equal(np.asarray(hessian, np.float64), np.diag(wins.ravel()))


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
def test_the_derivative_of_the_forward_rule_follows_the_winners(outer):
    """The tangent of a value is its winner's, at -inf beside padding, too."""
    x = jnp.full((3,), -jnp.inf)

    def gradient(x):  # of sum(values * scale) with respect to scale
        values, _ = jax.vjp(lambda x: jpool.max_pool(x, (3,), padding=1, channel_axis=None), x)
        return values

    np.testing.assert_array_equal(outer(gradient)(x), [[1, 0, 0], [1, 0, 0], [0, 1, 0]])


def test_grad_of_grad_under_vmap_and_jit(x):
    batch = jnp.stack([x, -x])
    curvature = jax.jit(jax.vmap(lambda x, v: jax.grad(lambda x: (jax.grad(loss)(x) * v).sum())(x)))
    v = jnp.ones_like(batch)
    expected = [second_derivative(example).reshape(x.size, x.size).sum(0).reshape(x.shape) for example in batch]
    np.testing.assert_array_equal(curvature(batch, v), expected)


# --- compiled programs ---

SHAPES = {
    "2x2/2": ((8, 8, 3), {"window_shape": (2, 2), "strides": 2}),
    "3x3/2 pad 1": ((9, 9, 3), {"window_shape": (3, 3), "strides": 2, "padding": 1}),
    "5x5 SAME": ((12, 12, 3), {"window_shape": (5, 5), "padding": "SAME"}),
    "31 dilated": ((99, 3), {"window_shape": (31,), "window_dilation": 2, "padding": 9}),
    "2x2x2/2": ((4, 4, 4, 3), {"window_shape": (2, 2, 2), "strides": 2}),
}


def both_passes(arguments):
    def both(x, ct):
        values, backward = jax.vjp(jax.vmap(partial(jpool.max_pool, **arguments)), x)
        return values, backward(ct)[0]

    return both


def shaped(name, dtype=jnp.float32):
    shape, arguments = SHAPES[name]
    x = jax.ShapeDtypeStruct((4, *shape), dtype)
    return both_passes(arguments), x, jax.eval_shape(jax.vmap(partial(jpool.max_pool, **arguments)), x)


@pytest.mark.parametrize("name", SHAPES)
def test_the_compiled_program_has_no_scatter_and_no_loop(name):
    instructions = compiled_instructions(*shaped(name))
    assert {"compare", "select"} <= instructions
    assert not instructions & FORBIDDEN


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_lowered_program_has_no_scatter_and_no_loop(name, platform):
    instructions = lowered_instructions(platform, *shaped(name))
    assert {"compare", "select"} <= instructions
    assert not instructions & FORBIDDEN


@pytest.mark.parametrize("name", ["2x2/2", "3x3/2 pad 1"])
def test_a_forward_pass_without_gradient_writes_no_winners(name):
    _, arguments = SHAPES[name]
    _, x, _ = shaped(name)
    program = jax.jit(jax.vmap(partial(jpool.max_pool, **arguments))).lower(x).compile().as_text()
    assert " u8[" not in program


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="tests a loop of XLA:CPU")
def test_values_and_winners_are_written_in_one_pass_over_x():
    both, x, ct = shaped("2x2/2")
    program = jax.jit(both).lower(x, ct).compile().as_text()
    entry = program[program.index("\nENTRY") :]
    (fusion_of_x,) = re.findall(r"%([\w.]+) = [^=]*fusion\(%x[\w.]*\)", entry)
    assert re.search(rf"%{re.escape(fusion_of_x)} = \(f32\[[^)]*u8\[", entry)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_x_is_not_copied_for_padding_or_for_conversion(dtype):
    arguments = {"window_shape": (3, 3), "strides": 2, "padding": 1}
    x = jax.ShapeDtypeStruct((2, 32, 32, 16), jnp.dtype(dtype))
    ct = jax.eval_shape(jax.vmap(partial(jpool.max_pool, **arguments)), x)
    memory = jax.jit(both_passes(arguments)).lower(x, ct).compile().memory_analysis()
    # Nothing else as large is copied, either; but 16-bit cotangents are converted, because they add up in float32.
    assert memory.temp_size_in_bytes < x.size * x.dtype.itemsize * (0.5 if dtype == "float32" else 1)


def test_a_derivative_outside_jit_compiles_two_programs(x, caplog):
    with jax.log_compiles(True):
        _, backward = jax.vjp(partial(jpool.max_pool, window_shape=(2, 3), padding="SAME"), x)
        backward(x)
    assert len([record for record in caplog.messages if record.startswith("Finished XLA compilation")]) == 2


def test_the_programs_of_lax_have_forbidden_instructions():
    def gradient(x):
        pooled = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 2), (1, 1), "VALID")  # noqa: E731
        return jax.grad(lambda x: pooled(x).sum())(x)

    x = jax.ShapeDtypeStruct((6, 6), jnp.float32)
    assert compiled_instructions(gradient, x) & FORBIDDEN
    assert lowered_instructions("cuda", gradient, x) & FORBIDDEN


def test_one_compilation_per_geometry_and_shape():
    traces = []

    @jax.jit
    def both(x):
        traces.append(x.shape)
        return jax.grad(lambda x: jpool.max_pool(x, (2, 2), padding=((1, 0), 0)).sum())(x)

    for _ in range(3):
        both(jnp.zeros((5, 5, 1)))
    assert len(traces) == 1
    from jpool.pooling.derivative.vjp import pool as jitted

    before = jitted._cache_size()
    for padding in (0, "VALID", ((0, 0), (0, 0)), np.int64(0)):  # four ways to write one geometry
        jpool.max_pool(jnp.zeros((5, 9, 1)), (2, 2), padding=padding)
    assert jitted._cache_size() == before + 1
