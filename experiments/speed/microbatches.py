"""The cost of holding few per-example gradients at a time: gradient_statistics and the training step in microbatches.

Caffe's LeNet with lax's convolution, whose gradients a plain loop slows down 5 to 25 times on a CPU. Times are compared
with those of the whole batch at once; memory is what the compiled statistics need besides arguments and results.
"""

import argparse
from functools import partial

import jax

import jpool
from experiments.common import machine
from experiments.digits import layers, lenet
from experiments.digits.convolution import convolve_by_lax
from experiments.speed import options, timing
from experiments.speed.step import OPTIMIZER, batch_of, training

BATCH = 120
SIZES = (None, 1, 2, 12, 50, 60)  # 50 does not divide BATCH


def rows(rounds: int) -> list[str]:
    """A row for each size of microbatch."""
    batch, params = batch_of(BATCH), lenet.init(jax.random.key(0))
    loss = layers.loss(lenet.network(convolve=convolve_by_lax))
    statistics, steps, needs = dict[str, timing.Call](), dict[str, timing.Call](), dict[str, float]()
    for size in SIZES:
        name = str(size or "all")
        program = jax.jit(jpool.gradient_statistics(loss, microbatch_size=size)).lower(params, *batch).compile()
        statistics[name], needs[name] = partial(program, params, *batch), timing.temporary_mb(program)
        steps[name] = training(jpool.make_train_step(loss, OPTIMIZER, microbatch_size=size), params, batch)
    times = [timing.medians(calls, rounds) for calls in (statistics, steps)]
    cells = {name: [f"{ms[name]:.1f} | {ms[name] / ms['all']:.2f}" for ms in times] for name in needs}
    return [f"{name} | {' | '.join(cells[name])} | {needs[name]:.1f}" for name in needs]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    options.ROUNDS.add_to(parser, "rounds", 7)


def run(chosen: argparse.Namespace) -> None:
    """Times every size and prints the table."""
    print(f"LeNet, {BATCH} examples; {machine.versions()}\n")
    print("| at a time | statistics, ms | relative to all | step, ms | relative to all | memory, MB |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows(chosen.rounds):
        print(f"| {row} |", flush=True)
