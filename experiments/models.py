"""What whole models gain: training steps of public networks, with their framework's pooling and with jpool's.

    python -m experiments.models

Both steps start from the same parameters and must end with the same ones. They are then timed in turn, in one process:
the step, and tracing and compiling it anew. Temporary memory is what the compiled step needs beside its arguments and
results. Needs the extra `peers`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.common import command, style, timing
from experiments.networks.networks import NETWORKS, Network, missing_frameworks
from experiments.networks.steps import Step

COMPILATIONS = 3  # of each step; the median counts
# The largest difference of the updated parameters, as a part of the largest update. GPUs and TPUs round the factors of
# matrix products and convolutions to 11 bits or fewer.
TOLERANCE = 1e-4
TOLERANCE_ON_ACCELERATORS = 5e-3
Row = dict[str, dict[str, float]]  # by figure: of the framework ("theirs"), of jpool ("ours"), and the ratio

FIGURES = {"step ms": "step_ms", "trace + compile ms": "compile_ms", "temporary MB": "temporary_mb"}


def batch_of(step: Step) -> tuple[jax.Array, jax.Array]:
    """A random batch: normal numbers or tokens, and labels."""
    key, other = jax.random.split(jax.random.key(1))
    is_text = step.x.dtype == jnp.int32
    x = jax.random.randint(key, step.x.shape, 0, 20_000) if is_text else jax.random.normal(key, step.x.shape)
    return x, jax.random.randint(other, step.labels.shape, 0, step.classes)


def difference(start: Any, theirs: Any, ours: Any) -> float:
    """The largest difference of two sets of updated parameters, as a part of the largest update."""
    largest = lambda one, other: max(  # noqa: E731
        float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )
    return largest(theirs, ours) / largest(theirs, start)


def measure(name: str, network: Network, rounds: int) -> Row:
    """All figures of one network; raises AssertionError if the two steps do not end with the same parameters."""
    examples = network.cpu_batch if jax.default_backend() == "cpu" else None
    steps = {"theirs": network.step(False, examples), "ours": network.step(True, examples)}
    lowering = {who: partial(jax.jit(step.step).lower, *step.shapes) for who, step in steps.items()}
    anew = [{who: timing.compile_anew(lower) for who, lower in lowering.items()} for _ in range(COMPILATIONS)]
    programs = {who: program for who, (_, program) in anew[-1].items()}
    states = {who: jax.jit(step.init)(jax.random.key(0)) for who, step in steps.items()}
    batch = batch_of(steps["ours"])
    differs = difference(states["ours"], *(program(states[who], *batch)[0] for who, program in programs.items()))
    if not differs < (TOLERANCE if jax.default_backend() == "cpu" else TOLERANCE_ON_ACCELERATORS):
        raise AssertionError(f"{name}: the updated parameters differ by {differs:.0e} of the update")
    calls: dict[str, timing.Call] = {who: partial(program, states[who], *batch) for who, program in programs.items()}
    row: Row = {
        "step_ms": timing.medians(calls, rounds),
        "compile_ms": {who: float(np.median([times[who][0] for times in anew])) for who in steps},
        "temporary_mb": {who: timing.temporary_mb(program) for who, program in programs.items()},
        "difference": {"of the update": differs},
    }
    for figure in FIGURES.values():
        row[figure]["ratio"] = row[figure]["theirs"] / row[figure]["ours"]
    return row


def table(rows: dict[str, Row]) -> str:
    """A Markdown table; a ratio above 1 is in favour of jpool."""
    heads = [f"{figure}: theirs | jpool's | ratio" for figure in FIGURES]
    lines = [f"| network | {' | '.join(heads)} |", f"|---|{'---:|' * 3 * len(FIGURES)}"]
    for name, row in rows.items():
        figures = [row[figure] for figure in FIGURES.values()]
        cells = [f"{figure['theirs']:,.1f} | {figure['ours']:,.1f} | {figure['ratio']:.2f}" for figure in figures]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def means(rows: dict[str, Row]) -> dict[str, float]:
    """The geometric mean of each ratio."""
    return {
        name: timing.geometric_mean(row[figure]["ratio"] for row in rows.values()) for name, figure in FIGURES.items()
    }


def picture(rows: dict[str, Row], about: str) -> Figure:
    """The ratios of the step and of trace + compile, a pair of bars for each network."""
    figure = style.figure(8, 0.34 * len(rows) + 1.5)
    axes = figure.subplots()
    positions = np.arange(len(rows))
    for i, (name, colour) in enumerate({"step ms": style.BLUE, "trace + compile ms": style.GREY}.items()):
        ratios = [row[FIGURES[name]]["ratio"] for row in rows.values()]
        label = f"{name.removesuffix(' ms')}, geometric mean {means(rows)[name]:.2f}"
        bars = axes.barh(positions + 0.4 * i, ratios, 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.axvline(1, color=style.BLACK, linewidth=1)
    axes.set_yticks(positions + 0.2, list(rows))
    axes.invert_yaxis()
    style.tidy(axes, xlabel="time with the framework's pooling / time with jpool's (higher is better for jpool)")
    figure.suptitle(f"Whole training steps; {about}", fontsize=8, x=0.01, ha="left")
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Times every chosen network, prints the table and the geometric means, and writes the requested files."""
    options, chosen = parse(sys.argv[1:] if arguments is None else arguments)
    about = timing.versions()
    print(f"one training step, float32; {about}\n", flush=True)
    rows = {name: measure(name, NETWORKS[name], options.rounds) for name in tqdm(chosen, leave=False, disable=None)}
    print(table(rows), end="\n\n")
    for name, mean in means(rows).items():
        print(f"{name.removesuffix(' ms')}, theirs / jpool's: geometric mean {mean:.2f}")
    largest = max(row["difference"]["of the update"] for row in rows.values())
    print(f"updated parameters: equal up to {largest:.0e} of the largest update")
    if options.json:
        options.json.write_text(json.dumps({"about": about, "rounds": options.rounds, "networks": rows}, indent=1))
    if options.png:
        style.save(picture(rows, about), options.png)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, checked, and the names of the networks that they select."""
    parser = command.parser_of(__file__, __doc__)
    command.add_shapes(parser, "network")
    command.ROUNDS.add_to(parser, "rounds", 5)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures to a file")
    parser.add_argument("--png", metavar="FILE", type=Path, help="draw the ratios as bars")
    options = parser.parse_args(arguments)
    chosen = command.chosen(parser, options.shapes, NETWORKS, "network")
    if missing := missing_frameworks(chosen):
        parser.error(f"needs {missing}, of the extra `peers`: pip install -e '.[experiments,peers]'")
    command.check_files(parser, options.json, options.png)
    return options, chosen


if __name__ == "__main__":
    main()
