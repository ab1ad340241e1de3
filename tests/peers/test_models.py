"""max_pool inside a jitted model of Flax, Equinox and Haiku, and the lines of the README that put it there.

A pooling has no parameters, so jpool has no layer: the model calls the function instead, under `jax.vmap` if it takes a
batch.
"""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jpool

IMAGES = np.random.default_rng(0).standard_normal((8, 12, 12, 1)).astype(np.float32)  # (batch, height, width, channels)
LABELS = np.arange(8) % 3
pool = partial(jpool.max_pool, window_shape=(2, 2), strides=2)


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def check_that_it_learns(losses):
    assert losses[-1] < losses[0] / 2


def test_a_flax_nnx_module():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        """Takes a batch, channels last."""

        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
            self.dense = nnx.Linear(144, 3, rngs=rngs)

        def __call__(self, x):
            x = jax.vmap(pool)(nnx.relu(self.conv(x)))  # instead of nnx.max_pool(.., (2, 2), (2, 2))
            return self.dense(x.reshape(len(x), -1))

    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda model: cross_entropy(model(IMAGES)))(model)
        optimizer.update(model, gradients)
        return loss

    check_that_it_learns([step(model, optimizer).item() for _ in range(30)])


def test_an_equinox_module():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        """Takes one example, channels first, like the pooling."""

        conv: eqx.nn.Conv2d
        dense: eqx.nn.Linear

        def __init__(self, key):
            first, second = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(1, 4, 3, padding=1, key=first)
            self.dense = eqx.nn.Linear(144, 3, key=second)

        def __call__(self, x):
            x = pool(jax.nn.relu(self.conv(x)), channel_axis=0)  # instead of eqx.nn.MaxPool2d(2, 2)
            return self.dense(x.reshape(-1))

    model = Net(jax.random.key(0))
    optimizer = optax.sgd(0.1, momentum=0.9)
    opt_state = optimizer.init(eqx.filter(model, eqx.is_array))
    images = jnp.moveaxis(IMAGES, -1, 1)

    @eqx.filter_jit
    def step(model, opt_state):
        loss, gradients = eqx.filter_value_and_grad(lambda model: cross_entropy(jax.vmap(model)(images)))(model)
        updates, opt_state = optimizer.update(gradients, opt_state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), opt_state, loss

    losses = []
    for _ in range(30):
        model, opt_state, loss = step(model, opt_state)
        losses.append(loss.item())
    check_that_it_learns(losses)


def test_a_haiku_function():
    hk = pytest.importorskip("haiku")

    def net(x):
        """Takes a batch, channels last."""
        x = jax.vmap(pool)(jax.nn.relu(hk.Conv2D(4, 3)(x)))  # instead of hk.max_pool(.., (2, 2, 1), (2, 2, 1), "VALID")
        return hk.Linear(3)(hk.Flatten()(x))

    model = hk.without_apply_rng(hk.transform(net))
    params = model.init(jax.random.key(0), IMAGES)
    optimizer = optax.sgd(0.1, momentum=0.9)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state):
        loss, gradients = jax.value_and_grad(lambda params: cross_entropy(model.apply(params, IMAGES)))(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    losses = []
    for _ in range(30):
        params, opt_state, loss = step(params, opt_state)
        losses.append(loss.item())
    check_that_it_learns(losses)


def test_gradients_are_those_with_the_pooling_of_flax():
    nnx = pytest.importorskip("flax.nnx")

    def loss(pooling, kernel):
        x = jax.lax.conv_general_dilated(IMAGES, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (pooling(x) ** 2).sum()

    kernel = np.random.default_rng(1).standard_normal((3, 3, 1, 4)).astype(np.float32)
    ours = jax.jit(jax.grad(partial(loss, jax.vmap(pool))))(kernel)
    theirs = jax.jit(jax.grad(partial(loss, partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2)))))(kernel)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


README = (Path(__file__).parents[2] / "README.md").read_text().split("## Drop it into your model")[1].split("\n## ")[0]
ROWS = [line for line in README.splitlines() if line.startswith("| ") and "jpool." in line]
LINES = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in ROWS]
SIZES = {"T": 2, "B": 3, "H": 8, "W": 6, "C": 4}


@pytest.mark.parametrize(("before", "shape", "after"), LINES, ids=[before.replace("`", "") for before, *_ in LINES])
def test_the_lines_of_the_readme_are_equal_bit_for_bit(before, shape, after):
    names = {"jax": jax, "jnp": jnp, "jpool": jpool, "partial": partial}
    code = re.search(r"`(.+)`", before)[1]
    for name, module in {"nnx": "flax.nnx", "linen": "flax.linen", "hk": "haiku", "eqx": "equinox"}.items():
        if f"{name}." in code + after:
            names[name] = pytest.importorskip(module)
    if "F." in code:
        pytest.importorskip("torch")
    sizes = [SIZES[letter] for letter in shape.strip("()").split(", ")]
    x = jnp.asarray(np.random.default_rng(0).permutation(np.prod(sizes)).reshape(sizes), "float32")  # without ties

    def results(code):
        """Values and gradient."""
        evaluate = lambda x: eval(code, names | {"x": x})  # noqa: E731
        function = evaluate(x) if code.startswith("eqx") else evaluate  # a layer
        values, backward = jax.vjp(function, x)
        cotangents = 1 + jnp.arange(values.size, dtype="float32").reshape(values.shape)
        return values, backward(cotangents)[0]

    for theirs, ours in zip(
        in_torch(code, x) if "F." in code else results(code), results(after.strip("`")), strict=True
    ):
        np.testing.assert_array_equal(theirs, ours)


def in_torch(code, x):
    """Values and gradient of a call of PyTorch."""
    import torch

    x = torch.tensor(np.asarray(x), requires_grad=True)
    values = eval(code, {"F": torch.nn.functional, "x": x})
    values.backward(1 + torch.arange(values.numel(), dtype=torch.float32).reshape(values.shape))
    return values.detach(), x.grad


def test_there_are_lines_for_every_framework():
    assert len(LINES) == 9


def test_an_equinox_model_in_a_train_step():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.Sequential([eqx.nn.Linear(4, 6, key=jax.random.key(0)), eqx.nn.Lambda(jax.nn.relu)])
    params, static = eqx.partition(model, eqx.is_inexact_array)
    check_train_step(params, lambda params, x, y: ((eqx.combine(params, static)(x) - y) ** 2).sum())


def test_an_nnx_model_in_a_train_step():
    nnx = pytest.importorskip("flax.nnx")
    layers = nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.BatchNorm(6, rngs=nnx.Rngs(0)), nnx.relu
    model = nnx.Sequential(*layers)
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    check_train_step(
        params, lambda params, x, y: ((nnx.merge(graphdef, params, rest, copy=True)(x[None])[0] - y) ** 2).sum()
    )


def check_train_step(params, loss):
    optimizer = optax.chain(jpool.mean_over_examples(), optax.sgd(0.01))
    step, state = jpool.make_train_step(loss, optimizer), jpool.TrainState.create(params, optimizer)
    xs, ys = jax.random.normal(jax.random.key(1), (5, 4)), jnp.ones((5, 6))
    losses = []
    for _ in range(3):
        state, metrics = step(state, xs, ys)
        losses.append(metrics.loss.item())
    assert losses == sorted(losses, reverse=True)
