"""max_pool inside a jitted model of Flax, Equinox and Haiku, and the lines of the pages that put it there.

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

pytestmark = pytest.mark.usefixtures("compiled_quickly")
IMAGES = np.random.default_rng(0).standard_normal((8, 12, 12, 1)).astype(np.float32)  # (batch, height, width, channels)
LABELS = np.arange(8) % 3
pool = partial(jpool.max_pool, window_shape=(2, 2), strides=2)


def check_that_it_learns(params, scores_of):
    """In jpool's training step, which differentiates the model for each example; the model may take a batch of one."""
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    optimizer = optax.chain(jpool.mean_over_examples(), optax.sgd(0.1, momentum=0.9))
    step = jpool.make_train_step(lambda params, x, y: cross_entropy(scores_of(params, x), y), optimizer)
    state, losses = jpool.TrainState.create(params, optimizer), []
    for _ in range(30):
        state, metrics = step(state, IMAGES, LABELS)
        losses.append(metrics.loss.item())
    assert losses[-1] < losses[0] / 2


def test_a_flax_nnx_module():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        """Takes a batch, channels last; its batch statistics are not trained."""

        def __init__(self, rngs):
            self.conv, self.norm = nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.dense = nnx.Linear(144, 3, rngs=rngs)

        def __call__(self, x):
            x = jax.vmap(pool)(nnx.relu(self.norm(self.conv(x))))  # instead of nnx.max_pool(.., (2, 2), (2, 2))
            return self.dense(x.reshape(len(x), -1))

    model = Net(nnx.Rngs(0))
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    check_that_it_learns(params, lambda params, x: nnx.merge(graphdef, params, rest, copy=True)(x[None])[0])


def test_an_equinox_module():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        """Takes one example, channels first, like the pooling."""

        conv: eqx.nn.Conv2d
        dense: eqx.nn.Linear

        def __init__(self, key):
            self.conv, self.dense = eqx.nn.Conv2d(1, 4, 3, padding=1, key=key), eqx.nn.Linear(144, 3, key=key)

        def __call__(self, x):
            x = pool(jax.nn.relu(self.conv(x)), channel_axis=0)  # instead of eqx.nn.MaxPool2d(2, 2)
            return self.dense(x.reshape(-1))

    params, static = eqx.partition(Net(jax.random.key(0)), eqx.is_inexact_array)
    check_that_it_learns(params, lambda params, x: eqx.combine(params, static)(jnp.moveaxis(x, -1, 0)))


def test_a_haiku_function():
    hk = pytest.importorskip("haiku")

    def net(x):
        """Takes a batch, channels last."""
        x = jax.vmap(pool)(jax.nn.relu(hk.Conv2D(4, 3)(x)))  # instead of hk.max_pool(.., (2, 2, 1), (2, 2, 1), "VALID")
        return hk.Linear(3)(hk.Flatten()(x))

    model = hk.without_apply_rng(hk.transform(net))
    params = model.init(jax.random.key(0), IMAGES)
    check_that_it_learns(params, lambda params, x: model.apply(params, x[None])[0])


ROOT = Path(__file__).parents[2]
SECTIONS = {"README.md": "## Drop it into your model", "jpool/README.md": "## One line for a batch"}
TEXT = "".join((ROOT / page).read_text().split(section)[1].split("\n## ")[0] for page, section in SECTIONS.items())
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and "jpool." in line]
LINES = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in ROWS]
SIZES = {"T": 2, "B": 3, "H": 8, "W": 6, "C": 4}


@pytest.mark.parametrize(("before", "shape", "after"), LINES, ids=[before.replace("`", "") for before, *_ in LINES])
def test_the_lines_of_the_pages_are_equal_bit_for_bit(before, shape, after):
    names = {"jax": jax, "jnp": jnp, "jpool": jpool, "partial": partial}
    code = re.search(r"`(.+)`", before)[1]
    for name, module in {"nnx": "flax.nnx", "linen": "flax.linen", "hk": "haiku", "eqx": "equinox"}.items():
        if f"{name}." in code + after:
            names[name] = pytest.importorskip(module)
    if "F." in code:
        pytest.importorskip("torch")
    sizes = [SIZES[letter] for letter in shape.strip("()").split(", ")]
    x = np.random.default_rng(0).permutation(np.prod(sizes)).reshape(sizes).astype(np.float32)  # without ties

    def results(code):
        """Values and gradient."""
        evaluate = lambda x: eval(code, names | {"x": x})  # noqa: E731
        function = evaluate(x) if code.startswith("eqx") else evaluate  # a layer

        def passes(x):
            values, backward = jax.vjp(function, x)
            return values, backward(1 + jnp.arange(values.size, dtype="float32").reshape(values.shape))[0]

        return jax.jit(passes)(x)

    theirs = in_torch(code, x) if "F." in code else results(code)
    for one, other in zip(theirs, results(after.strip("`")), strict=True):
        np.testing.assert_array_equal(one, other)


def in_torch(code, x):
    """Values and gradient of a call of PyTorch."""
    import torch

    x = torch.tensor(x, requires_grad=True)
    values = eval(code, {"F": torch.nn.functional, "x": x})
    values.backward(1 + torch.arange(values.numel(), dtype=torch.float32).reshape(values.shape))
    return values.detach(), x.grad


def test_there_are_lines_for_every_framework():
    assert len(LINES) == 9
