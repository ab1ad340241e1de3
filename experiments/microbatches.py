"""The cost of holding few per-example gradients at a time: gradient_statistics and the training step in microbatches.

    python -m experiments.microbatches

Caffe's LeNet and a network with more convolutions, with the convolution of `experiments.digits.convolution` and with
lax's, whose gradients a plain loop slows down 5 to 25 times on a CPU. Times are compared with those of the whole batch
at once in the same process; memory is what the compiled program reports to need besides its arguments and results.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

import jpool
from experiments.common import command, timing
from experiments.digits import layers, lenet
from experiments.digits.convolution import convolve, convolve_by_lax

BATCH = 120
SIZES = (None, 1, 2, 12, 50, 60)  # 50 does not divide BATCH
DEEP: layers.Shapes = {"conv1": (3, 3, 1, 16), "conv2": (3, 3, 16, 32), "conv3": (3, 3, 32, 32), "out": (800, 10)}
CONVOLUTIONS = {"": convolve, ", lax convolution": convolve_by_lax}


def deep(convolve: Any) -> layers.Network:
    """Three convolutions of 3 x 3, two poolings."""
    first, second, third = (layers.convolve(name, convolve) for name in ("conv1", "conv2", "conv3"))
    end = layers.flatten, layers.dense("out")
    return (layers.one_channel, first, layers.relu, second, layers.pool, layers.relu, third, layers.pool, *end)


NETWORKS: dict[str, tuple[Callable[..., layers.Network], layers.Shapes]] = {
    "LeNet": (partial(lenet.network, layers.pool), lenet.SHAPES),
    "3 convolutions": (deep, DEEP),
}


def programs(loss: layers.Loss, params: layers.Params, batch: Any, size: int | None) -> tuple[Any, float]:
    """The statistics and the step at one size of microbatch, and the MiB that the statistics need."""
    statistics = jpool.gradient_statistics(loss, microbatch_size=size)
    optimizer = optax.sgd(0.01, momentum=0.9)
    step = jpool.make_train_step(loss, optimizer, microbatch_size=size)
    state = [jpool.TrainState.create(params, optimizer)]

    def take() -> jpool.TrainState:
        state[0], _ = step(state[0], *batch)
        return state[0]

    compiled = jax.jit(statistics).lower(params, *batch).compile()
    needs: Any = compiled.memory_analysis()
    calls = {"statistics": lambda: compiled(params, *batch), "step": take}
    return calls, needs.temp_size_in_bytes / 2**20


def compare(network: layers.Network, shapes: layers.Shapes, rounds: int) -> list[str]:
    """The rows of one network."""
    key = jax.random.key(0)
    batch = jax.random.uniform(key, (BATCH, 28, 28)), jax.random.randint(key, (BATCH,), 0, 10)
    params, loss = layers.init(key, shapes), layers.loss(network)
    calls, needs, rows = dict[str, timing.Call](), dict[int | None, float](), []
    for size in SIZES:
        timed, needs[size] = programs(loss, params, batch, size)
        calls |= {f"{name} {size}": call for name, call in timed.items()}
    ms = timing.medians(calls, rounds)
    for size in SIZES:
        times = ((ms[f"{name} {size}"], ms[f"{name} None"]) for name in ("statistics", "step"))
        cells = [f"{part:.1f} | {part / whole:.2f}" for part, whole in times]
        rows.append(" | ".join([str(size or "all"), *cells, f"{needs[size]:.1f}"]))
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Times every variant and prints the table."""
    rounds = command.rounds_of(__file__, __doc__, 7, arguments)
    print(f"{BATCH} examples of 28x28; {timing.versions()}\n")
    print("| network | at a time | statistics, ms | relative to all | step, ms | relative to all | memory, MiB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, (make, shapes) in NETWORKS.items():
        for words, convolution in CONVOLUTIONS.items():
            for row in compare(make(convolution), shapes, rounds):
                print(f"| {name}{words} | {row} |", flush=True)


if __name__ == "__main__":
    main()
