"""What a whole training step costs: Caffe's LeNet, batch 100, the mean of per-example gradients, SGD with momentum.

    python -m experiments.training_step

The step is timed with jpool's pooling or lax's, with the convolution of `experiments.digits.convolution` or lax's, and
with per-example gradients or the gradient of the mean loss, which is equal up to rounding; and with torch.func, if
torch is installed.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

import jpool
from experiments.common import command, timing
from experiments.digits import layers, lenet
from experiments.digits.convolution import convolve_by_lax

BATCH = 100


def lax_pool(x: jax.Array) -> jax.Array:
    """The function that Flax, Equinox and Haiku call."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (2, 2, 1), (2, 2, 1), "VALID")


def mean_step(loss: Callable[..., jax.Array], optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """A step with the gradient of the mean loss, without per-example gradients."""

    def step(state: jpool.TrainState, images: jax.Array, labels: jax.Array) -> tuple[jpool.TrainState, jax.Array]:
        mean = lambda params: jax.vmap(loss, (None, 0, 0))(params, images, labels).mean()  # noqa: E731
        value, gradient = jax.value_and_grad(mean)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return jpool.TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1), value

    return jax.jit(step, donate_argnums=0)


def steps(images: jax.Array, labels: jax.Array) -> dict[str, timing.Call]:
    """All variants; each trains a separate state, a step with every call."""
    optimizer = optax.sgd(0.01, momentum=0.9)
    ours, mixed, theirs = (
        layers.loss(network)
        for network in (
            lenet.NETWORK,
            lenet.network(convolve=convolve_by_lax),
            lenet.network(layers.fixed(lax_pool), convolve_by_lax),
        )
    )
    programs = {
        "jpool": jpool.make_train_step(ours, optimizer),
        "jpool, lax convolution": jpool.make_train_step(mixed, optimizer),
        "lax pooling, lax convolution": jpool.make_train_step(theirs, optimizer),
        "jpool, gradient of the mean": mean_step(ours, optimizer),
        "jpool, lax convolution, gradient of the mean": mean_step(mixed, optimizer),
    }

    def running(program: Callable[..., Any]) -> timing.Call:
        state = [jpool.TrainState.create(lenet.init(jax.random.key(0)), optimizer)]

        def run() -> jpool.TrainState:
            state[0], _ = program(state[0], images, labels)
            return state[0]

        return run

    return {name: running(program) for name, program in programs.items()}


def torch_step(images: jax.Array, labels: jax.Array) -> dict[str, timing.Call]:
    """The same step with `torch.func`: vmap of grad, the mean, momentum."""
    if not importlib.util.find_spec("torch"):
        return {}
    import torch
    from torch.nn import functional

    order = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}  # torch's weights have the outputs first
    leaves, tree = jax.tree.flatten(lenet.init(jax.random.key(0)))
    params = [torch.tensor(jax.device_get(leaf.transpose(order[leaf.ndim]))) for leaf in leaves]
    velocity = [torch.zeros_like(leaf) for leaf in params]
    x, y = torch.tensor(jax.device_get(images)), torch.tensor(jax.device_get(labels)).long()

    def loss(leaves: list[Any], image: Any, label: Any) -> Any:
        layers, h = jax.tree.unflatten(tree, leaves), image[None, None]
        for name in ("conv1", "conv2"):
            h = functional.max_pool2d(functional.conv2d(h, layers[name]["w"], layers[name]["b"]), 2)
        h = functional.relu(functional.linear(h.flatten(1), layers["dense1"]["w"], layers["dense1"]["b"]))
        return functional.cross_entropy(functional.linear(h, layers["dense2"]["w"], layers["dense2"]["b"]), label[None])

    per_example = torch.func.vmap(torch.func.grad_and_value(loss), (None, 0, 0))

    def step() -> None:
        gradients, _ = per_example(params, x, y)
        for leaf, moving, gradient in zip(params, velocity, gradients, strict=True):
            moving.mul_(0.9).add_(gradient.mean(0))
            leaf.sub_(moving, alpha=0.01)

    return {"torch.func": step}


def main(arguments: list[str] | None = None) -> None:
    """Times every variant and prints the table."""
    rounds = command.rounds_of(__file__, __doc__, 15, arguments)
    key = jax.random.key(1)
    images = jax.random.uniform(key, (BATCH, 28, 28))
    labels = jax.random.randint(key, (BATCH,), 0, 10)
    ms = timing.medians(steps(images, labels) | torch_step(images, labels), rounds)
    print(f"one step of LeNet, batch {BATCH}; {timing.versions()}\n")
    print("| step | ms | relative to jpool |\n|---|---:|---:|")
    for name, value in ms.items():
        print(f"| {name} | {value:.1f} | {value / ms['jpool']:.2f} |")


if __name__ == "__main__":
    main()
