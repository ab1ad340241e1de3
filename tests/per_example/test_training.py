"""A training step, compared with plain optax."""

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


@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.1, momentum=0.9), optax.adagrad(0.1), optax.rmsprop(0.01), optax.adam(0.1)]
)
@pytest.mark.parametrize("with_mean", [False, True])
def test_a_step_is_the_mean_gradient_and_one_update(optimizer, with_mean):
    chained = optax.chain(jpool.mean_over_examples(), optimizer) if with_mean else optimizer
    step, state = jpool.make_train_step(loss, chained), jpool.TrainState.create(PARAMS, chained)
    params, opt_state = PARAMS, optimizer.init(PARAMS)
    for count in range(3):
        state, metrics = step(state, XS, YS)
        losses, gradients = jpool.per_example_value_and_grad(loss)(params, XS, YS)
        mean = jax.tree.map(lambda g: g.mean(0), gradients)
        updates, opt_state = optimizer.update(mean, opt_state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(metrics.loss, losses.mean(), rtol=1e-6)
        np.testing.assert_allclose(metrics.gradient_norm, np.sqrt((mean["w"] ** 2).sum() + mean["b"] ** 2), rtol=1e-6)
        assert state.step == count + 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.params, params)


def test_the_state_is_donated_and_the_callers_parameters_are_not():
    step, state = jpool.make_train_step(loss, optax.sgd(0.1)), jpool.TrainState.create(PARAMS, optax.sgd(0.1))
    after, _ = step(state, XS, YS)
    assert state.params["w"].is_deleted()
    assert not PARAMS["w"].is_deleted()
    assert not after.params["w"].is_deleted()


def test_a_step_compiles_once_per_shape_of_the_batch():
    step, state = jpool.make_train_step(loss, optax.adam(0.1)), jpool.TrainState.create(PARAMS, optax.adam(0.1))
    for _ in range(4):
        state, _ = step(state, XS, YS)
    assert step._cache_size() == 1
    step(state, XS[:3], YS[:3])
    assert step._cache_size() == 2


def test_the_gradient_norm_of_16_bit_parameters_does_not_overflow():
    step = jpool.make_train_step(lambda w, x: (w * x).sum(), optax.sgd(0.1))
    state = jpool.TrainState.create(jnp.ones(4, jnp.float16), optax.sgd(0.1))
    _, metrics = step(state, jnp.full((2, 4), 200, jnp.float16))  # 4 * 200**2 is more than float16 holds
    assert metrics.gradient_norm == 400
    assert metrics.gradient_norm.dtype == jnp.float32


def test_the_number_of_steps_stays_at_its_largest_value():
    step, state = jpool.make_train_step(loss, optax.sgd(0.1)), jpool.TrainState.create(PARAMS, optax.sgd(0.1))
    assert step(state._replace(step=jnp.int32(2**31 - 1)), XS, YS)[0].step == 2**31 - 1


def test_an_array_of_the_state_may_be_in_it_twice_or_in_the_batch():
    """A buffer is donated once, and a donated one is not read."""
    keeps_params = optax.contrib.dog()  # in its state
    state = jax.device_put(jpool.TrainState.create(PARAMS, keeps_params), jax.devices()[0])
    expected, _ = jpool.make_train_step(loss, keeps_params)(jpool.TrainState.create(PARAMS, keeps_params), XS, YS)
    after, _ = jpool.make_train_step(loss, keeps_params)(state, XS, YS)
    jax.tree.map(np.testing.assert_array_equal, after, expected)
    for options in ({}, {"mesh": jax.make_mesh((2,), ("data",))}):
        step = jpool.make_train_step(lambda w, x: (w * x).sum(), optax.sgd(0.5), **options)
        state = jpool.TrainState.create(jnp.array([1.0, 3.0]), optax.sgd(0.5))
        assert step(state, state.params)[0].params.tolist() == [0, 2]


def test_a_model_without_parameters_has_statistics_and_a_step():
    xs = jnp.arange(4.0)
    for size in (None, 3):
        statistics = jpool.gradient_statistics(lambda params, x: x, microbatch_size=size)({}, xs)
        assert statistics.losses.tolist() == [0, 1, 2, 3]
        assert (statistics.squared_norms.tolist(), statistics.mean) == ([0] * 4, {})
        assert (statistics.noise_trace, statistics.signal) == (0, 0)
    step, state = jpool.make_train_step(lambda _, x: x, optax.sgd(0.1)), jpool.TrainState.create({}, optax.sgd(0.1))
    assert step(state, xs)[1].loss == 1.5


def test_an_empty_batch_is_refused_and_the_state_survives():
    step, state = jpool.make_train_step(loss, optax.sgd(0.1)), jpool.TrainState.create(PARAMS, optax.sgd(0.1))
    with pytest.raises(ValueError, match="the mean of no examples is undefined"):
        step(state, XS[:0], YS[:0])
    step(state, XS, YS)


def test_a_wrong_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"make_train_step: optimizer must be an optax optimiser.*got 0\.1"):
        jpool.make_train_step(loss, 0.1)
