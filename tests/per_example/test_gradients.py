"""Per-example gradients and their mean, compared with NumPy and plain optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared.regression import PARAMS, XS, YS, loss

import jpool


@pytest.fixture(autouse=True)
def promotion_as_usual():
    with jax.numpy_dtype_promotion("standard"):  # which optax's adam needs
        yield


def in_numpy(params):
    """The loss and the gradients of every example."""
    w, b, xs, ys = (np.asarray(a, np.float64) for a in (params["w"], params["b"], XS, YS))
    errors = xs @ w + b - ys
    return errors**2, {"w": 2 * errors[:, None] * xs, "b": 2 * errors}


def test_values_and_gradients_of_every_example():
    values, gradients = jpool.per_example_value_and_grad(loss)(PARAMS, XS, YS)
    expected_values, expected_gradients = in_numpy(PARAMS)
    np.testing.assert_array_equal(values, expected_values.astype(np.float32), strict=True)
    jax.tree.map(
        lambda g, e: np.testing.assert_array_equal(g, e.astype(np.float32), strict=True), gradients, expected_gradients
    )


def test_one_example_does_not_depend_on_the_others():
    def pooled_loss(w, image):
        return jpool.max_pool(image * w, (2, 2)).sum() ** 2

    images = jnp.asarray(np.random.default_rng(2).normal(size=(4, 5, 5, 1)), jnp.float32)
    f = jax.jit(jpool.per_example_value_and_grad(pooled_loss))
    _, gradients = f(jnp.float32(2), images)
    _, with_nan = f(jnp.float32(2), images.at[1:].set(jnp.nan))
    assert gradients[0] == with_nan[0]
    assert np.isnan(with_nan[1:]).all()


def test_aux_and_trees_in_the_batch():
    def loss_with_aux(params, example):
        error = params["w"] @ example["x"] + params["b"] - example["y"]
        return error**2, {"error": error, "twice": 2 * example["x"]}

    (values, aux), gradients = jpool.per_example_value_and_grad(loss_with_aux, has_aux=True)(PARAMS, {"x": XS, "y": YS})
    np.testing.assert_array_equal(values, in_numpy(PARAMS)[0].astype(np.float32))
    assert aux["error"].shape == (5,)
    np.testing.assert_array_equal(aux["twice"], 2 * XS)
    assert gradients["w"].shape == (5, 3)


def test_the_mean_of_the_gradients_is_the_gradient_of_the_mean():
    with jax.enable_x64(True):
        xs, ys = np.asarray(XS, np.float64), np.asarray(YS, np.float64)
        params = jax.tree.map(lambda a: np.asarray(a, np.float64), PARAMS)
        _, gradients = jpool.per_example_value_and_grad(loss)(params, xs, ys)
        mean, _ = jpool.mean_over_examples().update(gradients, optax.EmptyState(), params)
        of_the_mean = jax.grad(lambda p: jax.vmap(loss, (None, 0, 0))(p, xs, ys).mean())(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), mean, of_the_mean)


def test_mean_over_examples_first_in_a_chain_of_optax():
    optimizer = optax.chain(jpool.mean_over_examples(), optax.sgd(0.1, momentum=0.9))
    state, params = optimizer.init(PARAMS), PARAMS
    velocity, expected = (
        {"w": np.zeros(3), "b": 0.0},
        jax.tree.map(np.float64, {k: np.asarray(v) for k, v in PARAMS.items()}),
    )
    for _ in range(3):
        _, gradients = jpool.per_example_value_and_grad(loss)(params, XS, YS)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        _, expected_gradients = in_numpy(expected)
        velocity = {k: 0.9 * velocity[k] + expected_gradients[k].mean(0) for k in expected}
        expected = {k: expected[k] - 0.1 * velocity[k] for k in expected}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, expected)


def test_the_mean_of_bfloat16_gradients_is_bfloat16_and_adds_up_in_float32():
    gradients = {"w": jnp.ones((1000, 2), jnp.bfloat16)}
    mean, _ = jpool.mean_over_examples().update(gradients, optax.EmptyState())
    assert mean["w"].dtype == jnp.bfloat16
    assert mean["w"].tolist() == [1, 1]  # in bfloat16, 1000 ones add up to 256


def test_mean_over_examples_leaves_a_mean_unchanged():
    updates, _ = jpool.mean_over_examples().update(PARAMS, optax.EmptyState(), PARAMS)
    assert updates is PARAMS


@pytest.mark.parametrize(
    ("gradients", "params", "text"),
    [
        ({"w": jnp.ones((5, 3)), "b": jnp.float32(1)}, None, "every leaf with the same leading axis"),
        ({"w": jnp.ones((5, 3)), "b": jnp.ones(4)}, None, "every leaf with the same leading axis"),
        ({"w": jnp.ones((0, 3)), "b": jnp.ones(0)}, PARAMS, "the mean of no examples is undefined"),
        ({"w": jnp.ones((5, 4)), "b": jnp.ones(5)}, PARAMS, "must have the shapes of params after a leading axis"),
    ],
)
def test_updates_that_are_not_per_example_gradients_are_refused(gradients, params, text):
    with pytest.raises(ValueError, match=f"mean_over_examples: .*{text}"):
        jpool.mean_over_examples().update(gradients, optax.EmptyState(), params)


@pytest.mark.parametrize("batch", [(), (XS, YS[:4]), (XS, jnp.float32(1)), ({},)])
def test_arrays_that_are_not_a_batch_are_refused(batch):
    with pytest.raises(ValueError, match="per_example_value_and_grad: every array of the batch must have the examples"):
        jpool.per_example_value_and_grad(loss)(PARAMS, *batch)


def test_a_loss_that_is_not_a_function_is_refused():
    with pytest.raises(TypeError, match=r"per_example_value_and_grad: loss must be a function.*got 3"):
        jpool.per_example_value_and_grad(3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_the_mean_of_narrow_gradients_is_added_up_in_float32(dtype):
    gradients = jnp.ones((1000, 1)).astype(dtype)
    mean, _ = jpool.mean_over_examples().update(gradients, optax.EmptyState())
    np.testing.assert_array_equal(mean, jnp.ones(1).astype(dtype), strict=True)
