"""Exported programs of per-example gradients, statistics and training: for batches of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import jpool

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")
SGD = optax.sgd(0.125)  # its state holds EmptyState, which a program can only be serialized with if it is registered
RNG = np.random.default_rng(0)
export.register_namedtuple_serialization(optax.EmptyState, serialized_name="optax.EmptyState")


def whole_numbers(*shape):
    return jnp.asarray(RNG.integers(-2, 3, shape), jnp.float32)


PARAMS = {"w": whole_numbers(3, 3, 2, 3), "v": whole_numbers(12)}
XS, YS, WEIGHTS = whole_numbers(7, 6, 6, 2), whole_numbers(7), jnp.arange(7) % 3 != 1


def loss(params, x, y):
    pooled = jpool.max_pool(jax.lax.conv(x.transpose(2, 0, 1)[None], params["w"].T, (1, 1), "VALID")[0], (1, 2), 2)
    return (pooled.ravel()[:12] @ params["v"] - y) ** 2


def step(params, *batch, weights=None):
    return jpool.make_train_step(loss, SGD)(jpool.TrainState.create(params, SGD), *batch, weights=weights)


FUNCTIONS = {
    "per_example_value_and_grad": jpool.per_example_value_and_grad(loss),
    "gradient_statistics": jpool.gradient_statistics(loss),
    "step": step,
}
CALLS = [(name, weighted) for name in FUNCTIONS for weighted in (False, name != "per_example_value_and_grad")]


(SIZE,) = export.symbolic_shape("b")


def symbolic(array):
    return jax.ShapeDtypeStruct((SIZE, *array.shape[1:]), array.dtype)


@pytest.mark.parametrize(("name", "weighted"), dict.fromkeys(CALLS))
def test_a_program_for_a_batch_of_any_size_gives_the_same_results(name, weighted):
    f = jax.jit(FUNCTIONS[name])
    batch = (XS, YS)
    options = {"weights": WEIGHTS} if weighted else {}
    program = export.export(f)(PARAMS, *map(symbolic, batch), **jax.tree.map(symbolic, options))
    loaded = export.deserialize(program.serialize())
    for size in (2, 7):
        part = lambda array: array[:size]  # noqa: B023, E731
        arguments, named = (PARAMS, *map(part, batch)), jax.tree.map(part, options)
        actual, expected = loaded.call(*arguments, **named), f(*arguments, **named)
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        for leaf, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf, other, rtol=1e-6)  # means and norms are not whole numbers


def test_a_step_is_lowered_for_a_batch_of_any_size():
    state = jpool.TrainState.create(PARAMS, SGD)
    lowered = jpool.make_train_step(loss, SGD).lower(state, symbolic(XS), symbolic(YS), weights=symbolic(WEIGHTS))
    assert "tensor<?x6x6x2xf32>" in lowered.as_text()


@pytest.mark.parametrize("maker", [jpool.gradient_statistics, lambda loss, **o: jpool.make_train_step(loss, SGD, **o)])
def test_microbatches_of_a_batch_of_any_size_are_refused(maker):
    first = PARAMS if maker is jpool.gradient_statistics else jpool.TrainState.create(PARAMS, SGD)
    text = "microbatch_size must be None for a batch of symbolic size.*got microbatch_size=2 and a batch of b examples"
    with pytest.raises(ValueError, match=text):
        jax.jit(maker(loss, microbatch_size=2)).lower(first, symbolic(XS), symbolic(YS))
