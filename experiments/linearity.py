"""Where the mean may be taken early: in front of the derivative always, within it only where nothing multiplies.

A derivative is linear in what it differentiates, so the gradient of the mean loss is the mean of the gradients. Within,
what goes back through a linear network is linear in the errors, so there the mean error goes back as well as the errors
do. But the gradient of a weight is the product of what came forward and what goes back, and the mean of products is the
product of means only where one of the two is the same for all examples: under a cost that is linear in the scores.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import jpool
from experiments import layers, lenet, shortcuts
from experiments.command import claim

LINEAR: layers.Network = (layers.flatten, layers.dense("hidden"), layers.dense("out"))
MLP: layers.Network = (layers.flatten, layers.dense("hidden"), layers.relu, layers.dense("out"))
WIDTHS: layers.Shapes = {"hidden": (784, 64), "out": (64, 10)}
NETWORKS: dict[str, tuple[layers.Network, layers.Shapes]] = {
    "linear network": (LINEAR, WIDTHS),
    "relu MLP": (MLP, WIDTHS),
    "LeNet": (lenet.NETWORK, lenet.NARROW),
}
COSTS: dict[str, layers.Cost] = {
    "linear cost": lambda scores, label: scores @ jnp.linspace(-1, 1, 10),
    "squared error": lambda scores, label: jnp.square(scores - jax.nn.one_hot(label, 10)).sum(),
}


def check_mean_loss(key: jax.Array, xs: jax.Array, labels: jax.Array) -> None:
    """In front of the derivative the mean is right, and needs no memory for the gradients of examples."""
    params = lenet.init(key)
    ways = (
        jpool.per_example_value_and_grad(lenet.loss),
        partial(shortcuts.right, lenet.NETWORK),
        partial(shortcuts.of_mean_loss, lenet.NETWORK),
    )
    every, right, mean = (jax.jit(way).lower(params, xs, labels).compile() for way in ways)
    error = relative_error(mean(params, xs, labels), right(params, xs, labels))
    claim(f"the gradient of the mean loss is the mean of the gradients, to {error:.0e}", error < 1e-5)
    held, merged, less = map(mebibytes, (every, right, mean))
    claim(f"in {less:.0f} MiB, where the gradients of {len(xs)} examples of LeNet fill {held:.0f}", less < held / 2)
    print(f"  ({merged:.0f} MiB for the mean of these, where XLA sees that only the mean is wanted)")


def where_exact(key: jax.Array, xs: jax.Array, labels: jax.Array) -> dict[str, tuple[float, float]]:
    """Relative errors of averaging errors, in the gradients of biases, which are what goes back, and of weights."""
    errors = {}
    for name, (network, shapes) in NETWORKS.items():
        for cost_name, cost in COSTS.items():
            ways = (partial(way, network, cost=cost) for way in (shortcuts.averaged_errors, shortcuts.right))
            wrong, right = (jax.jit(way)(layers.init(key, shapes), xs, labels) for way in ways)
            biases, weights = (
                relative_error(*([layer[kind] for layer in way.values()] for way in (wrong, right))) for kind in "bw"
            )
            text = f"averaging errors, {name}, {cost_name}: what goes back is wrong by {biases:.0e}, weights' gradients"
            exact = network is LINEAR, network is LINEAR and cost_name == "linear cost"
            claim(f"{text} by {weights:.0e}", (biases < 1e-5, weights < 1e-5) == exact and max(biases, weights) < 10)
            errors[f"{name}, {cost_name}"] = biases, weights
    return errors


def relative_error(found: Any, right: Any) -> float:
    """The norm of the difference, relative to the norm of what is right."""
    found, right = ravel_pytree(found)[0], ravel_pytree(right)[0]
    return float(jnp.linalg.norm(found - right) / jnp.linalg.norm(right))


def mebibytes(program: jax.stages.Compiled) -> float:
    """What a compiled program needs beside its arguments."""
    size: Any = program.memory_analysis()
    return (size.temp_size_in_bytes + size.output_size_in_bytes) / 2**20
