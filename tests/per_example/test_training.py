"""A training step, compared with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared.regression import PARAMS, XS, YS, assert_close, by_definition, loss

import jpool

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")
MOMENTUM = optax.chain(jpool.mean_over_examples(), optax.sgd(0.1, momentum=0.9))
STEP = jpool.make_train_step(loss, MOMENTUM)


def test_three_steps_are_those_of_numpy_with_one_program_and_donated_states():
    expected = {name: np.asarray(leaf, np.float64) for name, leaf in PARAMS.items()}
    velocity = {"w": np.zeros(3), "b": 0.0}
    by_hand, opt_state, state = PARAMS, MOMENTUM.init(PARAMS), jpool.TrainState.create(PARAMS, MOMENTUM)
    for count in range(3):
        losses, gradients = by_definition(expected)
        mean = {name: gradient.mean(0) for name, gradient in gradients.items()}
        velocity = {name: 0.9 * velocity[name] + mean[name] for name in mean}
        expected = {name: expected[name] - 0.1 * velocity[name] for name in mean}

        before = state
        state, metrics = STEP(before, XS, YS)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        assert_close(metrics.loss, losses.mean(), 1e-6)
        assert_close(metrics.gradient_norm, np.sqrt((mean["w"] ** 2).sum() + mean["b"] ** 2), 1e-6)
        assert state.step == count + 1

        _, gradients = jpool.per_example_value_and_grad(loss)(by_hand, XS, YS)
        updates, opt_state = MOMENTUM.update(gradients, opt_state, by_hand)
        by_hand = optax.apply_updates(by_hand, updates)
    assert_close(state.params, expected, 1e-5)
    assert_close(by_hand, expected, 1e-5)  # the chain, called with the gradients of single examples
    assert STEP._cache_size() == 1
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(PARAMS))  # the caller's
    STEP(state, XS[:3], YS[:3])
    assert STEP._cache_size() == 2


def test_the_number_of_steps_stays_at_its_largest_value():
    state = jpool.TrainState.create(PARAMS, MOMENTUM)._replace(step=jnp.int32(2**31 - 1))
    assert STEP(state, XS, YS)[0].step == 2**31 - 1


def test_the_gradient_norm_of_16_bit_parameters_does_not_overflow():
    step = jpool.make_train_step(lambda w, x: (w * x).sum(), optax.sgd(0.1))
    state = jpool.TrainState.create(np.ones(4, np.float16), optax.sgd(0.1))
    _, metrics = step(state, np.full((2, 4), 200, np.float16))  # 4 * 200**2 is more than float16 holds
    assert metrics.gradient_norm == 400
    assert metrics.gradient_norm.dtype == jnp.float32


@pytest.mark.parametrize("devices", [None, 2])
def test_an_array_of_the_state_may_be_in_it_twice_and_in_the_batch(devices):
    """A buffer is donated once, and a donated one is not read."""
    mesh = devices and jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
    keeps = optax.GradientTransformation(lambda params: params, lambda g, state, params=None: (-0.5 * g, state))
    w = jnp.array([1.0, 3.0])
    step = jpool.make_train_step(lambda w, x: (w * x).sum(), keeps, mesh=mesh)
    after, _ = step(jpool.TrainState(w, w, jnp.int32(0)), w)
    assert (after.params.tolist(), after.opt_state.tolist()) == ([0, 2], [1, 3])


def test_a_model_without_parameters_has_statistics_and_a_step():
    xs = np.arange(4, dtype=np.float32)
    statistics = jpool.gradient_statistics(lambda params, x: x, microbatch_size=3)({}, xs)
    assert statistics.losses.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(statistics.squared_norms, np.zeros(4, np.float32), strict=True)
    assert statistics.mean == {}
    assert (statistics.noise_trace, statistics.signal) == (0, 0)
    step, state = jpool.make_train_step(lambda _, x: x, optax.sgd(0.1)), jpool.TrainState.create({}, optax.sgd(0.1))
    assert step(state, xs)[1].loss == 1.5
