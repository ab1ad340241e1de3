"""What a whole training step costs: Caffe's LeNet, batch 100, the mean of per-example gradients, SGD with momentum.

The step is timed with jpool's pooling or lax's, with the convolution of `experiments.digits.convolution` or lax's, and
with per-example gradients or the gradient of the mean loss, which is equal up to rounding.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jpool
from experiments.common import machine
from experiments.digits import layers, lenet
from experiments.digits.convolution import convolve_by_lax
from experiments.speed import options, timing
from experiments.speed.cases import Pool

BATCH = 100
OPTIMIZER = optax.sgd(0.01, momentum=0.9)
Batch = tuple[jax.Array, jax.Array]
Step = Callable[..., tuple[jpool.TrainState, Any]]


def batch_of(examples: int) -> Batch:
    """Random images and labels."""
    key = jax.random.key(1)
    return jax.random.uniform(key, (examples, 28, 28)), jax.random.randint(key, (examples,), 0, 10)


def mean_step(loss: layers.Loss) -> Step:
    """A step with the gradient of the mean loss, without per-example gradients."""

    def step(state: jpool.TrainState, *batch: jax.Array) -> tuple[jpool.TrainState, jax.Array]:
        mean = lambda params: jax.vmap(loss, (None, 0, 0))(params, *batch).mean()  # noqa: E731
        value, gradient = jax.value_and_grad(mean)(state.params)
        updates, opt_state = OPTIMIZER.update(gradient, state.opt_state, state.params)
        return jpool.TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1), value

    return jax.jit(step, donate_argnums=0)


def training(step: Step, params: layers.Params, batch: Batch) -> timing.Call:
    """A call that takes the next step of a state of its own, and returns the new state."""
    state = jpool.TrainState.create(jax.tree.map(jnp.copy, params), OPTIMIZER)

    def take() -> jpool.TrainState:
        nonlocal state
        state, _ = step(state, *batch)
        return state

    return take


def steps() -> dict[str, Step]:
    """All variants."""
    lax_pool = Pool((1, 24, 24, 20), (2, 2), 2).functions()["lax"]
    by_lax = layers.fixed(lambda x: lax_pool(x[None])[0])
    mixed = layers.loss(lenet.network(convolve=convolve_by_lax))
    theirs = layers.loss(lenet.network(by_lax, convolve_by_lax))
    return {
        "jpool": jpool.make_train_step(lenet.loss, OPTIMIZER),
        "jpool, lax convolution": jpool.make_train_step(mixed, OPTIMIZER),
        "lax pooling, lax convolution": jpool.make_train_step(theirs, OPTIMIZER),
        "jpool, gradient of the mean": mean_step(lenet.loss),
        "jpool, lax convolution, gradient of the mean": mean_step(mixed),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    options.ROUNDS.add_to(parser, "rounds", 15)


def run(chosen: argparse.Namespace) -> None:
    """Times every variant and prints the table."""
    batch, params = batch_of(BATCH), lenet.init(jax.random.key(0))
    ms = timing.medians({name: training(step, params, batch) for name, step in steps().items()}, chosen.rounds)
    print(
        f"one step of LeNet, batch {BATCH}; {machine.versions()}\n\n| step | ms | relative to jpool |\n|---|---:|---:|"
    )
    for name, value in ms.items():
        print(f"| {name} | {value:.1f} | {value / ms['jpool']:.2f} |")
