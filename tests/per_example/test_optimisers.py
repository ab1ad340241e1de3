"""A training step with every optimiser of optax that can be made from a learning rate, compared with plain optax."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import jpool

pytestmark = [
    pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),  # of optax, about its functions
]
RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.standard_normal((3, 2)), jnp.float32), "b": jnp.array([0.25, -1.0])}
XS = jnp.asarray(RNG.integers(-3, 4, (4, 3)), jnp.float32)
YS = jnp.asarray(RNG.integers(-3, 4, (4, 2)), jnp.float32)
# These take another optimiser, or no learning rate.
COMPOSED = {
    "sam": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05)),
    "mechanize": lambda: optax.contrib.mechanize(optax.sgd(0.1)),
    "schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "reduce_on_plateau": lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)),
    "polyak_sgd": optax.polyak_sgd,
    "MultiSteps": lambda: optax.MultiSteps(optax.sgd(0.1), 2),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "multi_transform": lambda: optax.multi_transform(
        {"fast": optax.contrib.dog(), "slow": optax.sgd(0.01)}, {"w": "fast", "b": "slow"}
    ),
    "masked": lambda: optax.masked(optax.contrib.prodigy(0.1), {"w": True, "b": False}),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.contrib.dowg)(0.1),
    "after the mean": lambda: optax.chain(jpool.mean_over_examples(), optax.contrib.prodigy(0.1)),
    "a user's": lambda: optax.GradientTransformation(
        lambda params: (params, params),  # its state is the parameters, twice
        lambda updates, state, params: (
            jax.tree.map(lambda g, p, q: q - p - 0.1 * g, updates, params, state[0]),
            state,
        ),
    ),
}
NEEDS_THE_LOSS = {"lbfgs": "grad, value_fn", "sophia": "obj_fn"}
OTHERS = {"dpsgd"}  # needs per-example gradients


def from_a_learning_rate(module):
    for name, function in vars(module).items():
        if callable(function) and not inspect.isclass(function) and not name.startswith(("_", "scale_by")):
            try:
                parameters = inspect.signature(function).parameters
            except ValueError:  # a type
                continue
            required = [one.name for one in parameters.values() if one.default is one.empty]
            if "learning_rate" in parameters and set(required) <= {"learning_rate"} and name not in OTHERS:
                yield name, partial(function, learning_rate=0.1)


OPTIMISERS = {**dict(from_a_learning_rate(optax)), **dict(from_a_learning_rate(optax.contrib)), **COMPOSED}


def loss(params, x, y):
    return ((x @ params["w"] + params["b"] - y) ** 2).sum()


def mean_loss(params):
    return jax.vmap(loss, (None, 0, 0))(params, XS, YS).mean()


def update(optimizer, gradient, state, params, value):
    try:
        return optimizer.update(gradient, state, params, value=value)
    except TypeError:
        return optimizer.update(gradient, state, params)


def numbers(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_the_list_is_complete():
    known = {
        "adam",
        "adamw",
        "lamb",
        "nadam",
        "sgd",
        "yogi",
        "dog",
        "dowg",
        "prodigy",
        "momo",
        "muon",
        "sophia",
        "lbfgs",
    }
    assert known <= set(OPTIMISERS)
    assert len(OPTIMISERS) >= 50


@pytest.mark.parametrize("name", sorted(set(OPTIMISERS) - set(NEEDS_THE_LOSS)))
def test_three_steps_equal_those_of_plain_optax(name):
    optimizer = OPTIMISERS[name]()
    step, state = jpool.make_train_step(loss, optimizer), jpool.TrainState.create(PARAMS, optimizer)

    @jax.jit
    def plain(params, opt_state):
        value, gradient = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = update(optimizer, gradient, opt_state, params, value)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = PARAMS, optimizer.init(PARAMS)
    for _ in range(3):
        state, _ = step(state, XS, YS)
        params, opt_state = plain(params, opt_state)
    for actual, expected in zip(
        jax.tree.leaves(state), jax.tree.leaves((params, opt_state, jnp.int32(3))), strict=True
    ):
        np.testing.assert_allclose(numbers(actual), numbers(expected), rtol=1e-4, atol=1e-6)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(PARAMS))


@pytest.mark.parametrize("name", NEEDS_THE_LOSS)
def test_optimisers_that_evaluate_the_loss_are_refused_by_name_and_the_state_survives(name):
    optimizer = OPTIMISERS[name]()
    state = jpool.TrainState.create(PARAMS, optimizer)
    with pytest.raises(
        TypeError,
        match=f"make_train_step's step: optimizer must need no argument but value, the mean loss; got one that needs {NEEDS_THE_LOSS[name]}. ",
    ):
        jpool.make_train_step(loss, optimizer)(state, XS, YS)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", ["prodigy", "a user's", "sam"])
def test_a_state_that_holds_the_parameters_is_donated_on_a_mesh_too(name, kind):
    optimizer = OPTIMISERS[name]()
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(kind,))
    one, many = jpool.make_train_step(loss, optimizer), jpool.make_train_step(loss, optimizer, mesh=mesh)
    states = [jpool.TrainState.create(PARAMS, optimizer) for _ in range(2)]
    for _ in range(2):
        states = [step(state, XS, YS)[0] for step, state in zip((one, many), states, strict=True)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), states[0].params, states[1].params)


def test_the_mean_loss_is_what_an_optimiser_receives_as_value():
    received = optax.GradientTransformationExtraArgs(
        lambda params: jnp.zeros(()),
        lambda updates, state, params=None, *, value, **extra: (updates, value),
    )
    step, state = jpool.make_train_step(loss, received), jpool.TrainState.create(PARAMS, received)
    state, metrics = step(state, XS, YS, weights=jnp.array([1, 1, 0, 1]))
    assert state.opt_state == metrics.loss


def test_an_error_of_the_optimiser_itself_is_not_hidden():
    def update(updates, state, params=None, **extra):
        raise TypeError("must be real")

    broken = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(TypeError, match=r"^must be real"):
        jpool.make_train_step(loss, broken)(jpool.TrainState.create(PARAMS, broken), XS, YS)
