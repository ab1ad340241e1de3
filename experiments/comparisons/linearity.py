"""Where the mean may be taken early: always before differentiation, inside it only where nothing is multiplied.

Differentiation is linear, so the gradient of the mean loss is the mean of the gradients. The backward pass of a linear
network is linear in the errors, so propagating the mean error gives the mean of the propagated errors. But the gradient
of a weight is the product of an activation and an error, and the mean of products is in general the product of means
only if one of the two is the same for all examples, as the errors are under a loss that is linear in the scores.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import jpool
from experiments.common.command import claim
from experiments.comparisons import shortcuts
from experiments.digits import layers, lenet

LINEAR: layers.Network = (layers.flatten, layers.dense("hidden"), layers.dense("out"))
MLP: layers.Network = (layers.flatten, layers.dense("hidden"), layers.relu, layers.dense("out"))
WIDTHS: layers.Shapes = {"hidden": (784, 64), "out": (64, 10)}
NETWORKS: dict[str, tuple[layers.Network, layers.Shapes]] = {
    "linear network": (LINEAR, WIDTHS),
    "relu MLP": (MLP, WIDTHS),
    "LeNet": (lenet.NETWORK, lenet.NARROW),
}
COSTS: dict[str, layers.Cost] = {
    "linear loss": lambda scores, label: scores @ jnp.linspace(-1, 1, 10),
    "squared error": lambda scores, label: jnp.square(scores - jax.nn.one_hot(label, 10)).sum(),
}


def check_mean_loss(key: jax.Array, xs: jax.Array, labels: jax.Array) -> None:
    """The mean of the losses gives the right gradient, and needs no memory for per-example gradients."""
    params = lenet.init(key)
    ways: list[Any] = [partial(way, lenet.NETWORK) for way in (shortcuts.right, shortcuts.of_mean_loss)]
    ways.insert(0, jpool.per_example_value_and_grad(lenet.loss))
    per_example, right, mean = (jax.jit(way).lower(params, xs, labels).compile() for way in ways)
    error = relative_error(mean(params, xs, labels), right(params, xs, labels))
    claim(f"the gradient of the mean loss is the mean of the gradients, to {error:.0e}", error < 1e-5)
    held, merged, needed = map(mebibytes, (per_example, right, mean))
    claim(f"it takes {needed:.0f} MiB; the gradients of {len(xs)} examples of LeNet take {held:.0f}", needed < held / 2)
    print(f"  ({merged:.0f} MiB for the mean of these, if XLA sees that only the mean is used)")


def check_averaged_errors(key: jax.Array, xs: jax.Array, labels: jax.Array) -> None:
    """Relative errors caused by averaging errors: in the gradients of biases (the propagated errors) and of weights."""
    for name, (network, shapes) in NETWORKS.items():
        for cost_name, cost in COSTS.items():
            ways = (partial(way, network, cost=cost) for way in (shortcuts.averaged_errors, shortcuts.right))
            wrong, right = (jax.jit(way)(layers.init(key, shapes), xs, labels).values() for way in ways)
            biases, weights = (
                relative_error([layer[kind] for layer in wrong], [layer[kind] for layer in right]) for kind in "bw"
            )
            text = f"averaging errors, {name}, {cost_name}: the error sent back is wrong by {biases:.0e}"
            exact = network is LINEAR, network is LINEAR and cost_name == "linear loss"
            holds = (biases < 1e-5, weights < 1e-5) == exact and max(biases, weights) < 10
            claim(f"{text}, weight gradients by {weights:.0e}", holds)


def relative_error(gradient: Any, right: Any) -> float:
    """The norm of the difference, relative to the norm of `right`."""
    gradient, right = ravel_pytree(gradient)[0], ravel_pytree(right)[0]
    return float(jnp.linalg.norm(gradient - right) / jnp.linalg.norm(right))


def mebibytes(program: jax.stages.Compiled) -> float:
    """The memory that a compiled program needs besides its arguments."""
    size: Any = program.memory_analysis()
    return (size.temp_size_in_bytes + size.output_size_in_bytes) / 2**20
