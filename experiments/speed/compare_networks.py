"""What whole networks gain: complete training steps with the framework's pooling, with jpool's, and with slices.

jpool's is the framework's model as it is, under `jpool.replace_pooling`; only where the framework takes `x.max` over
whole axes, which is not replaced, `jpool.global_max_pool` is called instead. A strided slice in place of every pooling
is about the limit that a faster pooling could reach. The steps with the framework's pooling (Flax's or Equinox's, which
call lax) and with jpool's start from the same parameters and must end with the same ones, to 1e-4 of the largest update
on a CPU. They are then timed in turn, in one process. Temporary memory is what the compiled step needs besides
arguments and results.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import machine
from experiments.speed import options, timing
from experiments.speed.networks import NETWORKS, Network
from experiments.speed.poolings import BY
from experiments.speed.training_steps import batch_of, model_of, training_step

COMPILATIONS = 3  # of each step; the median counts
# The largest difference of the updated parameters, as a part of the largest update. GPUs and TPUs round the factors of
# matrix products and convolutions to 11 bits or fewer.
TOLERANCE, TOLERANCE_ON_ACCELERATORS = 1e-4, 5e-3
Row = dict[str, dict[str, float]]


def measure(name: str, network: Network, rounds: int) -> Row:
    """All figures of one network, by pooling."""
    steps, batch = {by: training_step(network, by) for by in BY}, batch_of(network)
    start = jax.jit(model_of(network, "framework").init)(jax.random.key(0))
    anew = [
        {by: timing.compile_anew(partial(step.lower, start, *batch)) for by, step in steps.items()}
        for _ in range(COMPILATIONS)
    ]
    programs = {by: program for by, (_, program) in anew[-1].items()}
    copy_of_start = partial(jax.tree.map, jnp.copy, start)
    check_equal(name, start, *(programs[by](copy_of_start(), *batch) for by in ("framework", "jpool")))

    states = {by: copy_of_start() for by in BY}

    def take(by: str) -> Any:
        states[by] = programs[by](states[by], *batch)
        return states[by]

    return {
        "step": timing.medians({by: partial(take, by) for by in BY}, rounds),
        "compile": {by: float(np.median([times[by][0] for times in anew])) for by in BY},
        "memory": {by: timing.temporary_mb(program) for by, program in programs.items()},
    }


def check_equal(name: str, start: Any, theirs: Any, ours: Any) -> None:
    """Raises AssertionError if two steps from the same parameters do not end with the same ones."""
    largest = lambda one, other: max(  # noqa: E731
        float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)
    )
    differs = largest(theirs[0], ours[0]) / largest(theirs[0], start[0])
    if not differs < (TOLERANCE if jax.default_backend() == "cpu" else TOLERANCE_ON_ACCELERATORS):
        raise AssertionError(f"{name}: the updated parameters differ by {differs:.0e} of the update")


def line(name: str, network: Network, row: Row) -> str:
    """A row of the table."""
    step, memory, compiled, ratios = row["step"], row["memory"], row["compile"], ratios_of(row)
    size = "x".join(map(str, network.shape)) + (f" ({network.reduced})" if network.reduced else "")
    cells = [name, network.source, size, f"{network.parameters:,}", f"{step['jpool']:,.1f}", f"{ratios['lax']:.2f}"]
    cells += [f"{ratios['free']:.2f}", f"{memory['framework'] / memory['jpool']:.2f}"]
    cells += [f"{compiled['framework'] / compiled['jpool']:.2f}"]
    return f"| {' | '.join(cells)} |"


HEAD = """\
| network | complete, as in | batch | parameters | jpool's step, ms | framework's / jpool's | the limit: framework's / free | temporary memory: framework's / jpool's | trace + compile: framework's / jpool's |
|---|---|---|---:|---:|---:|---:|---:|---:|"""  # noqa: E501


def ratios_of(row: Row) -> dict[str, float]:
    """The framework's step and its limit, as multiples."""
    step = row["step"]
    return {"lax": step["framework"] / step["jpool"], "free": step["framework"] / step["free"]}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    options.add_shapes(parser, NETWORKS)
    options.ROUNDS.add_to(parser, "rounds", 5)
    options.add_png(parser)


def run(chosen: argparse.Namespace) -> None:
    """Times the chosen networks and prints their table."""
    options.need("flax", "equinox")
    about = f"one training step, float32; {machine.versions('flax', 'equinox')}"
    print(f"{about}\n\n{HEAD}", flush=True)
    rows = {}
    for name in chosen.shapes:
        rows[name] = measure(name, NETWORKS[name], chosen.rounds)
        print(line(name, NETWORKS[name], rows[name]), flush=True)
    if chosen.png:
        ratios = {name: ratios_of(row) for name, row in rows.items()}
        options.draw(
            ratios, "a training step with the framework's pooling, as a multiple of jpool's", about, chosen.png
        )
