"""Models of Flax nnx, Flax linen, Equinox and Haiku, written with their own poolings, train with `replace_pooling`.

Each has batch statistics, which a step changes. They are trained as they are, and with the loss replaced: scores and
statistics of the first step are equal, bit for bit, and after some steps everything is, up to rounding.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jpool

pytestmark = pytest.mark.usefixtures("compiled_quickly", "promotion_as_usual")
IMAGES = np.random.default_rng(0).standard_normal((8, 12, 12, 1)).astype(np.float32)  # (batch, height, width, channels)
LABELS = np.arange(8) % 3
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def cross_entropy(scores):
    return optax.softmax_cross_entropy_with_integer_labels(scores, LABELS).mean()


def check_training(train):
    """`train(transformed)` takes steps with a transformed loss, and returns their losses, the state, and a program."""
    losses, states, programs = zip(*map(train, (lambda function: function, jpool.replace_pooling)), strict=True)
    np.testing.assert_array_equal(losses[0][0], losses[1][0])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[1][-1] < 0.8 * losses[1][0]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), *states)
    assert ["select_and_scatter" in program for program in programs] == [True, False]


def steps_of(loss, params, statistics, count=10):
    """`loss(params, statistics) -> (loss, statistics)`, minimised by a jitted step."""

    @jax.jit
    def step(params, statistics, opt_state):
        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(params, statistics)
        updates, opt_state = OPTIMIZER.update(gradient, opt_state)
        return value, optax.apply_updates(params, updates), statistics, opt_state

    state, losses = (params, statistics, OPTIMIZER.init(params)), []
    program = step.lower(*state).as_text()
    for _ in range(count):
        value, *state = step(*state)
        losses.append(value.item())
    return losses, state, program


# --- Flax nnx ---


def of_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        """Counts its calls, beside batch statistics and a stream of random numbers."""

        def __init__(self, rngs):
            self.conv, self.norm = nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.dropout, self.dense = nnx.Dropout(0.1, rngs=rngs), nnx.Linear(144, 3, rngs=rngs)
            self.calls = nnx.Variable(jnp.array(0))

        def __call__(self, x):
            self.calls[...] += 1
            x = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
            return self.dense(self.dropout(x.reshape(len(x), -1)))

    return nnx, Net(nnx.Rngs(0))


def test_a_whole_flax_nnx_module():
    def train(transformed):
        nnx, model = of_nnx()
        optimizer, loss = (
            nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param),
            transformed(lambda model: cross_entropy(model(IMAGES))),
        )

        def step(model, optimizer):
            value, gradient = nnx.value_and_grad(loss)(model)
            optimizer.update(model, gradient)
            return value

        program = nnx.jit(step).lower(model, optimizer).as_text()
        take = nnx.jit(step)
        losses = [take(model, optimizer).item() for _ in range(10)]
        assert model.calls[...] == 10
        return losses, jax.tree.leaves(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))), program

    check_training(train)


def test_a_flax_nnx_module_split_and_merged():
    nnx, model = of_nnx()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest):
        model = nnx.merge(graphdef, params, rest, copy=True)
        return cross_entropy(model(IMAGES)), nnx.split(model, nnx.Param, ...)[2]

    def train(transformed):
        losses, (params_then, rest_then, _), program = steps_of(transformed(loss), params, rest)
        statistics = nnx.filter_state(rest_then, nnx.BatchStat)
        return losses, jax.tree.leaves((params_then, statistics)), program

    check_training(train)


def test_a_flax_nnx_module_that_is_replaced_itself_and_returned():
    (nnx, model), (_, other) = of_nnx(), of_nnx()
    np.testing.assert_array_equal(jpool.replace_pooling(model)(IMAGES), other(IMAGES))
    np.testing.assert_array_equal(model.norm.mean[...], other.norm.mean[...])
    of_model = jpool.replace_pooling(lambda model: (model(IMAGES), nnx.state(model, nnx.BatchStat), model))
    scores, statistics, same = of_model(model)
    np.testing.assert_array_equal(scores, other(IMAGES))
    np.testing.assert_array_equal(statistics["norm"]["mean"][...], other.norm.mean[...])
    assert same is model
    assert model.calls[...] == other.calls[...] == 2


def test_a_flax_nnx_module_of_a_surrounding_transformation_is_read():
    nnx, model = of_nnx()
    model = model.dense
    total = lambda model, scale: (model(scale * jnp.ones((1, 144))) + nnx.max_pool(jnp.ones((1, 3, 3)), (3,))[0]).sum()  # noqa: E731
    slope = lambda function: nnx.jit(lambda model: jax.grad(function, 1)(model, 2.0))(model)  # noqa: E731
    np.testing.assert_array_equal(slope(jpool.replace_pooling(total)), slope(total))


def test_a_flax_nnx_module_whose_structure_the_function_changes():
    nnx = pytest.importorskip("flax.nnx")

    def change(model):
        model.text, model.new = "changed", nnx.Variable(nnx.max_pool(model.kernel[...][None], (2,)))
        del model.bias
        return model

    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    assert jpool.replace_pooling(change)(model) is model
    assert (model.text, model.new.shape, hasattr(model, "bias")) == ("changed", (1, 2, 2), False)


def test_the_gradient_of_each_example_of_a_flax_nnx_module():
    nnx, model = of_nnx()
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, x, y):
        scores = nnx.merge(graphdef, params, rest, copy=True)(x[None])[0]
        return optax.softmax_cross_entropy_with_integer_labels(scores, y)

    theirs, ours = (
        jpool.per_example_value_and_grad(of)(params, IMAGES, LABELS) for of in (loss, jpool.replace_pooling(loss))
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), theirs, ours)


# --- the others ---


def test_a_flax_linen_module_with_mutable_batch_statistics():
    linen = pytest.importorskip("flax.linen")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            x = linen.BatchNorm(use_running_average=not train)(linen.Conv(4, (3, 3))(x))
            x = linen.max_pool(linen.relu(x), (3, 3), (2, 2), "SAME")
            return linen.Dense(3)(linen.Dropout(0.1, deterministic=not train)(x.reshape(len(x), -1)))

    variables = Net().init(jax.random.key(0), IMAGES, train=False)

    def train(transformed):
        apply = transformed(Net().apply)  # with keywords, a string and a key among its arguments

        def loss(params, statistics):
            keys = {"dropout": jax.random.key(1)}
            scores, new = apply(
                {"params": params, **statistics}, IMAGES, train=True, mutable=["batch_stats"], rngs=keys
            )
            return cross_entropy(scores), new

        return steps_of(loss, variables["params"], {"batch_stats": variables["batch_stats"]})

    check_training(train)


def test_an_equinox_module_with_state_and_its_filtered_gradient():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        """Takes one example, channels first; its batch statistics are a state of their own."""

        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        pool: eqx.nn.MaxPool2d
        dense: eqx.nn.Linear
        name: str

        def __init__(self, key):
            self.conv, self.dense = eqx.nn.Conv2d(1, 4, 3, padding=1, key=key), eqx.nn.Linear(144, 3, key=key)
            self.norm, self.pool, self.name = (
                eqx.nn.BatchNorm(4, "batch", mode="batch"),
                eqx.nn.MaxPool2d(3, 2, 1),
                "net",
            )

        def __call__(self, x, state):
            x, state = self.norm(self.conv(x), state)
            return self.dense(self.pool(jax.nn.relu(x)).reshape(-1)), state

    def loss(model, state):
        of_batch = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        scores, state = of_batch(np.moveaxis(IMAGES, -1, 1), state)
        return cross_entropy(scores), state

    def train(transformed):
        model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))

        @eqx.filter_jit
        def step(model, state, opt_state):
            (value, state), gradient = eqx.filter_value_and_grad(transformed(loss), has_aux=True)(model, state)
            updates, opt_state = OPTIMIZER.update(gradient, opt_state)
            return value, eqx.apply_updates(model, updates), state, opt_state

        now, losses = (model, state, OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))), []
        program = step.lower(*now).as_text()
        for _ in range(10):
            value, *now = step(*now)
            losses.append(value.item())
        return losses, [leaf for leaf in jax.tree.leaves(now) if eqx.is_array(leaf)], program

    check_training(train)


def test_a_haiku_function_with_state():
    hk = pytest.importorskip("haiku")

    def net(x):
        x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), is_training=True)
        return hk.Linear(3)(hk.Flatten()(hk.max_pool(jax.nn.relu(x), (3, 3, 1), (2, 2, 1), "SAME")))

    model = hk.without_apply_rng(hk.transform_with_state(net))

    def train(transformed):
        apply = transformed(model.apply)

        def loss(params, state):
            scores, state = apply(params, state, IMAGES)
            return cross_entropy(scores), state

        return steps_of(loss, *model.init(jax.random.key(0), IMAGES))

    check_training(train)
