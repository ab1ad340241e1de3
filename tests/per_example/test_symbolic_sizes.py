"""Exported programs of per-example gradients, statistics and training: for batches of any size."""

import jax
import numpy as np
import optax
import pytest
from jax import export, lax
from shared.regression import MAKERS, SGD

import jpool

pytestmark = pytest.mark.usefixtures("compiled_quickly")
RNG = np.random.default_rng(0)
# The state of SGD holds it, and a program can only be serialized with what is registered.
export.register_namedtuple_serialization(optax.EmptyState, serialized_name="optax.EmptyState")


def whole_numbers(*shape):
    return RNG.integers(-2, 3, shape).astype(np.float32)


PARAMS = {"one group": whole_numbers(3, 2, 2, 4), "two groups": whole_numbers(2, 3, 2, 2), "v": whole_numbers(4)}
XS, YS, WEIGHTS = whole_numbers(5, 6, 6, 2), whole_numbers(5), np.arange(5) % 3 != 1
(SIZE,) = export.symbolic_shape("b")


def loss(params, x, y):
    """XLA has no convolution with a symbolic number of groups, which the gradients of weights would need."""
    w, v, numbers = params["one group"], params["two groups"], ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(x[None], w, (1, 2), "SAME", rhs_dilation=(2, 1), dimension_numbers=numbers)
    x = lax.conv_general_dilated(x, v, (1, 1), "SAME", feature_group_count=2, dimension_numbers=numbers)
    return (jpool.max_pool(x[0], (2, 3), strides=2).sum((0, 1)) @ params["v"][:2] - y) ** 2


def everything(params, xs, ys, weights):
    step, state = jpool.make_train_step(loss, SGD), jpool.TrainState.create(params, SGD)
    statistics = jpool.gradient_statistics(loss)
    return {
        "gradients": jpool.per_example_value_and_grad(loss)(params, xs, ys),
        "statistics": (statistics(params, xs, ys), statistics(params, xs, ys, weights=weights)),
        "steps": (step(state, xs, ys), step(state, xs, ys, weights=weights)),
    }


def symbolic(array):
    return jax.ShapeDtypeStruct((SIZE, *array.shape[1:]), array.dtype)


def test_a_program_for_a_batch_of_any_size_gives_the_same_results():
    program = export.export(jax.jit(everything))(PARAMS, *map(symbolic, (XS, YS, WEIGHTS)))
    loaded = export.deserialize(program.serialize())
    actual, expected = (jax.jit(f)(PARAMS, XS, YS, WEIGHTS) for f in (loaded.call, everything))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    np.testing.assert_array_equal(actual["gradients"][1]["one group"], expected["gradients"][1]["one group"])
    for leaf, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-6)  # means and norms are not whole numbers


def test_a_step_is_lowered_for_a_batch_of_any_size():
    state = jpool.TrainState.create(PARAMS, SGD)
    lowered = jpool.make_train_step(loss, SGD).lower(state, symbolic(XS), symbolic(YS), weights=symbolic(WEIGHTS))
    assert "tensor<?x6x6x2xf32>" in lowered.as_text()


@pytest.mark.parametrize("name", ["gradient_statistics", "make_train_step"])
def test_microbatches_of_a_batch_of_any_size_are_refused(name):
    first = PARAMS if name == "gradient_statistics" else jpool.TrainState.create(PARAMS, SGD)
    text = "microbatch_size must be None for a batch of symbolic size.*got microbatch_size=2 and a batch of b examples"
    with pytest.raises(ValueError, match=text):
        jax.jit(MAKERS[name](loss, microbatch_size=2)).lower(first, symbolic(XS), symbolic(YS))
