"""A training step with every optimiser of optax that can be made from a learning rate, compared with plain optax."""

import inspect
from functools import partial
from types import FunctionType

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
XS, YS = RNG.integers(-3, 4, (4, 3)).astype(np.float32), RNG.integers(-3, 4, (4, 2)).astype(np.float32)
# These take another optimiser, or no learning rate.
COMPOSED = {
    "sam": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05)),
    "mechanize": lambda: optax.contrib.mechanize(optax.sgd(0.1)),
    "schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "reduce_on_plateau": lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)),
    "polyak_sgd": optax.polyak_sgd,
    "MultiSteps": lambda: optax.MultiSteps(optax.sgd(0.1), 2),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "multi_transform": lambda: optax.multi_transform({"fast": optax.contrib.dog(), "slow": optax.sgd(0.01)}, {"w": "fast", "b": "slow"}),
    "masked": lambda: optax.masked(optax.contrib.prodigy(0.1), {"w": True, "b": False}),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.contrib.dowg)(0.1),
    "after the mean": lambda: optax.chain(jpool.mean_over_examples(), optax.contrib.prodigy(0.1)),
    "a user's": lambda: optax.GradientTransformation(  # its state is the parameters, twice
        lambda params: (params, params),
        lambda gradient, state, params: (jax.tree.map(lambda g, p, q: q - p - 0.1 * g, gradient, params, state[0]), state),
    ),
}  # fmt: skip
NEEDS_THE_LOSS = {"lbfgs": "grad, value_fn", "sophia": "obj_fn"}


def from_a_learning_rate(module):
    """Its functions that need one and nothing else."""
    for name, function in vars(module).items():
        if isinstance(function, FunctionType | partial) and not name.startswith(("_", "scale_by", "dpsgd")):
            parameters = inspect.signature(function).parameters.values()
            required = {one.name for one in parameters if one.default is one.empty}
            if "learning_rate" in {one.name for one in parameters} and required <= {"learning_rate"}:
                yield name, partial(function, learning_rate=0.1)


OPTIMISERS = {**dict(from_a_learning_rate(optax)), **dict(from_a_learning_rate(optax.contrib)), **COMPOSED}


def loss(params, x, y):
    return ((x @ params["w"] + params.get("b", 0.0) - y) ** 2).sum()


def numbers(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def plain(optimizer, params, opt_state):
    """One step of optax alone."""
    mean_loss = lambda params: jax.vmap(loss, (None, 0, 0))(params, XS, YS).mean()  # noqa: E731
    value, gradient = jax.value_and_grad(mean_loss)(params)
    try:
        updates, opt_state = optimizer.update(gradient, opt_state, params, value=value)
    except TypeError:
        updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def assert_close(state, params, opt_state, name):
    expected = jax.tree.leaves((params, opt_state, np.int32(3)))
    for actual, other in zip(jax.tree.leaves(state), expected, strict=True):
        np.testing.assert_allclose(numbers(actual), numbers(other), rtol=1e-4, atol=1e-6, err_msg=name)


# Each differs from the others in kind, and some run on a mesh.
TYPICAL = {
    "noisy_sgd": None,  # its state has a random key
    "momo": None, "reduce_on_plateau": None,  # they need the loss; the second in a chain
    "adafactor": None,  # arrays of other shapes than the parameters
    "sam": AxisType.Explicit, "masked": AxisType.Auto, "schedule_free": None, "after the mean": None, "a user's": AxisType.Explicit,  # their states hold the parameters
    "MultiSteps": None,  # one update for two steps
    "multi_transform": None, "inject_hyperparams": None,
}  # fmt: skip


@pytest.mark.parametrize("name", TYPICAL)
def test_three_steps_equal_those_of_plain_optax(name):
    optimizer, kind = OPTIMISERS[name](), TYPICAL[name]
    mesh = kind and jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(kind,))
    step = jpool.make_train_step(loss, optimizer, mesh=mesh)
    state, expected = jpool.TrainState.create(PARAMS, optimizer), (PARAMS, optimizer.init(PARAMS))
    plain_step = jax.jit(partial(plain, optimizer))
    for _ in range(3):
        state, _ = step(state, XS, YS)
        expected = plain_step(*expected)
    assert_close(state, *expected, name)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(PARAMS))


@pytest.mark.exhaustive
def test_three_steps_of_all_others_equal_those_of_plain_optax():
    assert {"adam", "adamw", "lamb", "nadam", "sgd", "yogi", "dog", "dowg", "prodigy", "muon"} <= set(OPTIMISERS)
    assert len(OPTIMISERS) >= 50
    others = {name: OPTIMISERS[name]() for name in sorted(set(OPTIMISERS) - set(NEEDS_THE_LOSS) - set(TYPICAL))}
    params = {"w": PARAMS["w"]}  # of one array they compile faster
    states = {name: jpool.TrainState.create(params, optimizer) for name, optimizer in others.items()}
    expected = {name: (params, optimizer.init(params)) for name, optimizer in others.items()}

    @jax.jit
    def of_all(states, expected):
        steps = {name: jpool.make_train_step(loss, others[name])(state, XS, YS)[0] for name, state in states.items()}
        return steps, {name: plain(others[name], *pair) for name, pair in expected.items()}

    for _ in range(3):
        states, expected = of_all(states, expected)
    for name, state in states.items():
        assert_close(state, *expected[name], name)


@pytest.mark.parametrize("name", NEEDS_THE_LOSS)
def test_optimisers_that_evaluate_the_loss_are_refused_by_name_and_the_state_survives(name):
    optimizer = OPTIMISERS[name]()
    state = jpool.TrainState.create(PARAMS, optimizer)
    text = f"make_train_step's step: optimizer must need no argument but value, the mean loss; got one that needs {NEEDS_THE_LOSS[name]}. "
    with pytest.raises(TypeError, match=text):
        jpool.make_train_step(loss, optimizer)(state, XS, YS)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_the_mean_loss_is_what_an_optimiser_receives_as_value():
    keeps_value = lambda updates, state, params=None, *, value, **extra: (updates, value)  # noqa: E731
    received = optax.GradientTransformationExtraArgs(lambda params: np.float32(0), keeps_value)
    step, state = jpool.make_train_step(loss, received), jpool.TrainState.create(PARAMS, received)
    state, metrics = step(state, XS, YS, weights=[1, 1, 0, 1])
    assert state.opt_state == metrics.loss


def test_an_error_of_the_optimiser_itself_is_not_hidden():
    def update(updates, state, params=None, **extra):
        raise TypeError("must be real")

    broken = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(TypeError, match=r"^must be real"):
        jpool.make_train_step(loss, broken)(jpool.TrainState.create(PARAMS, broken), XS, YS)
