"""A linear map with a user-defined transpose: every transformation, and what reverse mode saves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared.cases import mostly_exhaustive

import jpool
from jpool.pooling.functions.linear import Pair, apply

CALLS = []


def read(scale, residuals, x):
    (indices,) = residuals
    return x[indices] * scale


def add(scale, residuals, ct):
    (indices,) = residuals
    CALLS.append("add")
    return jnp.zeros(4, ct.dtype).at[indices].add(ct * scale)


PAIR = Pair(read, add, 2, (0,))
INDICES = jnp.array([1, 1, 3])
MATRIX = np.array([[0, 2, 0, 0], [0, 2, 0, 0], [0, 0, 0, 2]], np.float32)
X = jnp.arange(1.0, 5)


def f(x, indices=INDICES):
    return apply(PAIR, (indices,), x)


def cube(x):
    return (f(x) ** 3).sum()


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_values_and_both_jacobians(wrap):
    np.testing.assert_array_equal(wrap(f)(X), MATRIX @ X)
    np.testing.assert_array_equal(jax.jacfwd(wrap(f))(X), MATRIX)
    np.testing.assert_array_equal(jax.jacrev(wrap(f))(X), MATRIX)


def test_the_given_transpose_is_used_and_its_transpose_is_the_map():
    CALLS.clear()
    transpose = jax.linear_transpose(f, X)
    np.testing.assert_array_equal(transpose(jnp.ones(3))[0], MATRIX.T @ np.ones(3))
    assert CALLS
    (twice,) = jax.linear_transpose(lambda ct: transpose(ct)[0], jnp.ones(3))(X)
    np.testing.assert_array_equal(twice, MATRIX @ X)
    assert PAIR.transpose.transpose == PAIR


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_second_derivatives(outer, inner):
    expected = 6 * MATRIX.T @ np.diag(MATRIX @ X) @ MATRIX
    np.testing.assert_array_equal(outer(inner(cube))(X), expected)


@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (0, 0), (1, 1)])
def test_vmap_over_x_residuals_or_both(in_axes):
    xs, indices_batch = jnp.stack([X, -X]), jnp.stack([INDICES, INDICES[::-1]])
    arguments = [
        {0: array, 1: array.T, None: array[0]}[axis] for array, axis in zip((xs, indices_batch), in_axes, strict=True)
    ]
    examples = [
        (xs[i if in_axes[0] is not None else 0], indices_batch[i if in_axes[1] is not None else 0]) for i in range(2)
    ]
    np.testing.assert_array_equal(jax.vmap(f, in_axes)(*arguments), [f(x, indices) for x, indices in examples])
    loss = lambda x, indices: (f(x, indices) ** 2).sum()  # noqa: E731
    gradients = jax.jit(jax.vmap(jax.grad(loss), in_axes))(*arguments)
    np.testing.assert_array_equal(gradients, [jax.grad(loss)(x, indices) for x, indices in examples])
    total = jax.grad(lambda x: jax.vmap(loss, in_axes)(x, arguments[1]).sum())(arguments[0])
    summed = sum(jax.grad(loss)(x, indices) for x, indices in examples) if in_axes[0] is None else None
    if summed is not None:  # one x for the whole batch: its gradient is a sum
        np.testing.assert_array_equal(total, summed)


def test_vmap_of_vmap_and_of_jvp():
    xs = jnp.stack([jnp.stack([X, -X, 2 * X]), jnp.stack([X + 1, X, X])])
    np.testing.assert_array_equal(jax.vmap(jax.vmap(f))(xs), [[f(x) for x in row] for row in xs])
    tangents = jax.vmap(lambda x: jax.jvp(f, (X,), (x,))[1])(xs[0])
    np.testing.assert_array_equal(tangents, [MATRIX @ x for x in xs[0]])


def test_reverse_mode_saves_only_the_residuals():
    _, backward = jax.vjp(f, X)
    saved = [leaf for leaf in jax.tree.leaves(backward) if hasattr(leaf, "nbytes")]
    assert [(leaf.dtype, leaf.shape) for leaf in saved] == [(INDICES.dtype, INDICES.shape)]


def test_a_constant_has_no_tangent():
    assert jax.jvp(lambda t: t * f(X).sum(), (1.0,), (1.0,))[1] == f(X).sum()
    assert jax.jvp(lambda x: f(x), (jnp.arange(4),), (np.zeros(4, jax.dtypes.float0),))[1].dtype == jax.dtypes.float0


POOLS = {
    "linear": f,
    "max_pool": lambda x: jpool.max_pool(x, (2,), channel_axis=None),
    "forward_mode": lambda x: jpool.max_pool(x, (2,), channel_axis=None, forward_mode=True),
    "split": lambda x: jpool.max_pool(x, (2,), channel_axis=None, ties="split", forward_mode=True),
    "with_argmax": lambda x: jpool.max_pool_with_argmax(x, (2,), channel_axis=None, forward_mode=True)[0],
    "adaptive": lambda x: jpool.adaptive_max_pool(x, (3,), channel_axis=None, forward_mode=True),
    "unpool": lambda x: jpool.max_unpool(
        *jpool.max_pool_with_argmax(x, (2,), channel_axis=None), (4,), channel_axis=None
    ),
}


@pytest.mark.parametrize("name", mostly_exhaustive(POOLS, ["linear", "max_pool"]))
def test_values_and_derivatives_inside_shard_map(name):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    cubed = lambda x: (POOLS[name](x) ** 3).sum()  # noqa: E731
    xs = jnp.stack([X, -X])
    for function in (POOLS[name], jax.grad(cubed), jax.hessian(cubed)):
        sharded = jax.shard_map(jax.vmap(function), mesh=mesh, in_specs=spec, out_specs=spec)
        np.testing.assert_array_equal(jax.jit(sharded)(xs), jax.vmap(function)(xs))


def test_one_trace_per_shape():
    CALLS.clear()
    step = jax.jit(jax.grad(cube))
    for _ in range(3):
        step(X)
    before = len(CALLS)
    step(X + 1)
    assert len(CALLS) == before
