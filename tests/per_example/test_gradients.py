"""Per-example gradients and their mean, compared with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared.regression import PARAMS, XS, YS, assert_close, assert_equal, by_definition, loss

import jpool

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def test_every_example_has_its_loss_and_gradient_and_their_mean_is_the_gradient_of_the_mean_loss():
    def everything(params):
        values, gradients = jpool.per_example_value_and_grad(loss)(params, XS, YS)
        mean, _ = jpool.mean_over_examples().update(gradients, optax.EmptyState(), params)
        mean_loss = lambda params: jax.vmap(loss, (None, 0, 0))(params, XS, YS).mean()  # noqa: E731
        return (values, gradients), mean, jax.grad(mean_loss)(params)

    of_examples, mean, of_the_mean_loss = jax.jit(everything)(PARAMS)
    expected = by_definition(PARAMS)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((of_examples, mean)))
    assert_equal(of_examples, expected)
    assert_close(mean, jax.tree.map(lambda gradient: gradient.mean(0), expected[1]), 1e-6)
    assert_close(mean, of_the_mean_loss, 1e-6)


def test_one_example_does_not_depend_on_the_others():
    def pooled_loss(w, image):
        return jpool.max_pool(image * w, (2, 2)).sum() ** 2

    images = np.random.default_rng(2).normal(size=(4, 5, 5, 1)).astype(np.float32)
    with_nan = np.where(np.arange(4).reshape(4, 1, 1, 1) > 0, np.float32(np.nan), images)
    f = jax.jit(jpool.per_example_value_and_grad(pooled_loss))
    gradient, gradient_with_nan = (f(jnp.float32(2), xs)[1] for xs in (images, with_nan))
    assert gradient[0] == gradient_with_nan[0]
    assert np.isnan(gradient_with_nan[1:]).all()


def test_aux_and_trees_in_the_batch():
    def loss_with_aux(params, example):
        return loss(params, example["x"], example["y"]), {"twice": 2 * example["x"]}

    f = jpool.per_example_value_and_grad(loss_with_aux, has_aux=np.True_)
    (values, aux), gradients = f(PARAMS, {"x": XS, "y": YS})
    assert_equal((values, gradients, aux), (*by_definition(PARAMS), {"twice": 2 * XS}))


def test_mean_over_examples_leaves_a_mean_unchanged():
    updates, _ = jpool.mean_over_examples().update(PARAMS, optax.EmptyState(), PARAMS)
    assert updates is PARAMS


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_the_mean_of_narrow_gradients_keeps_their_dtype_and_is_added_up_in_float32(dtype):
    """In bfloat16, 1000 ones add up to 256."""
    ones = np.ones((1000, 1), dtype)
    mean, _ = jpool.mean_over_examples().update(jnp.asarray(ones), optax.EmptyState())
    np.testing.assert_array_equal(mean, ones[0], strict=True)


@pytest.mark.parametrize(("shapes", "params", "text"), [
    ({"w": (5, 3), "b": ()}, None, "every leaf with the same leading axis"),
    ({"w": (5, 3), "b": (4,)}, None, "every leaf with the same leading axis"),
    ({"w": (0, 3), "b": (0,)}, PARAMS, "the mean of no examples is undefined"),
    ({"w": (5, 4), "b": (5,)}, PARAMS, "must have the shapes of params after a leading axis"),
])  # fmt: skip
def test_updates_that_are_not_per_example_gradients_are_refused(shapes, params, text):
    gradients = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=f"mean_over_examples: .*{text}"):
        jpool.mean_over_examples().update(gradients, optax.EmptyState(), params)
