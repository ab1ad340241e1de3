"""XLA's programs of pooling for an H100 and a TPU v5e, compiled on a machine without either; nothing is timed.

    python -m experiments.programs

For each pool of the benchmark and each function related to max_pool, the program is compiled and its text is read.
For the H100: the number of kernels, and the bytes that they read and write and their estimated time as multiples of the
lower bound, which is to read and write every input and result once at full bandwidth. The estimate of a kernel is the
larger of its bytes over bandwidth and its instructions over the issue rate. Branches count as taken, and a loop inside
a kernel, such as lax's over a window, counts once, so lax's estimate is too low. For the TPU: the compiler's estimate
in cycles. It leaves out reduce-window and select-and-scatter, so there is none for lax.

The compilers are packages; experiments/accelerators/compiled.py has the command that installs them.
"""

import argparse
import importlib.metadata
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.accelerators import compiled
from experiments.accelerators.questions import Question, questions
from experiments.common import command, style, timing
from experiments.networks.networks import NETWORKS, Network, missing_frameworks

KILO = 1000
CONVOLUTION = re.compile(r' %?([\w.\-]+) = [^\n]* (?:convolution\(|custom-call\([^\n]*"__cudnn\$conv)')
SCRATCH = re.compile(r" %?([\w.\-]+) = \([^\n=]*?(s8\[\d+\]\S*)\) custom-call\(")


def read(question: Question) -> dict[str, Any]:
    """All figures of one question, by contender."""
    figures: dict[str, Any] = {"least_bytes": question.lower_bound}
    for name, function in question.contenders.items():
        start = time.perf_counter()
        gpu = compiled.compile_for("cuda", function, *question.shapes)
        figures[name] = {
            "compile_s": time.perf_counter() - start,
            "kernels": len(gpu.kernels),
            "bytes": gpu.bytes / question.lower_bound,
            "time": gpu.seconds / (question.lower_bound / compiled.BANDWIDTH),
            "scatter": bool(gpu.count("scatter") + gpu.count("select-and-scatter")),
            "while": gpu.count("while"),
        }
    figures["jpool"]["tpu_cycles"] = compiled.compile_for("tpu", question.contenders["jpool"], *question.shapes).cycles
    return figures


def table(rows: dict[str, Any]) -> str:
    """A Markdown table: jpool's figures, and those of another contender where there is one."""
    lines = [
        "| program | kernels | bytes | time | lax, jnp.max: kernels | bytes | time | scatter | TPU, thousand cycles |",
        "|---|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for name, row in rows.items():
        us = row["jpool"]
        others = [row[library] for library in ("lax", "jnp.max") if library in row]
        theirs = "| | | |" if not others else "| {kernels} | {bytes:.2f} | {time:.2f} |".format(**others[0])
        scatter = "both" if us["scatter"] else "theirs" if others and others[0]["scatter"] else ""
        cycles = f"{us['tpu_cycles'] / KILO:,.0f}"
        lines.append(
            f"| {name} | {us['kernels']} | {us['bytes']:.2f} | {us['time']:.2f} {theirs} {scatter} | {cycles} |"
        )
    return "\n".join(lines)


def bytes_besides_convolutions(program: compiled.Program) -> int:
    """Bytes read and written by all kernels of a GPU program except convolutions, which are the same for any pooling.

    The scratch memory of a matrix product is not counted, because it is unknown how much of it is used.
    """
    convolutions = set(CONVOLUTION.findall(program.text))
    scratch = {name: compiled.size_of(type_) for name, type_ in SCRATCH.findall(program.text)}
    counted = [kernel for kernel in program.kernels if kernel.name not in convolutions]
    return sum(kernel.read + kernel.written - scratch.get(kernel.name, 0) for kernel in counted)


def compare(network: Network) -> dict[str, Any]:
    """One training step on an H100, with the framework's pooling and with jpool's."""
    figures: dict[str, Any] = {}
    for name, ours in (("theirs", False), ("ours", True)):
        step = network.step(ours)
        start = time.perf_counter()
        program = compiled.compile_for("cuda", step.step, *step.shapes)
        compile_s = time.perf_counter() - start
        moved = bytes_besides_convolutions(program)
        figures[name] = {"bytes": moved, "kernels": len(program.kernels), "compile_s": compile_s}
    return figures | {"ratio": figures["theirs"]["bytes"] / figures["ours"]["bytes"]}


def table_of_models(rows: dict[str, Any]) -> str:
    """A Markdown table, with the geometric mean."""
    lines = [
        "| training step | MB, theirs | ours | theirs / ours | kernels, theirs | ours |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        theirs, us = row["theirs"], row["ours"]
        megabytes = f"{theirs['bytes'] / 1e6:,.0f} | {us['bytes'] / 1e6:,.0f} | {row['ratio']:.2f}"
        lines.append(f"| {name} | {megabytes} | {theirs['kernels']} | {us['kernels']} |")
    mean = timing.geometric_mean(row["ratio"] for row in rows.values())
    return "\n".join([*lines, f"\nbytes of all kernels except convolutions, theirs / ours: geometric mean {mean:.2f}"])


def heading() -> str:
    """What was compiled, that it was not timed, and the versions of the compilers."""
    parts = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu", "jax-cuda12-pjrt")]
    return (
        f"compiled, not timed, for an H100 and a TPU v5e; bytes and time as multiples of the lower bound; "
        f"{', '.join(parts)}"
    )


def picture(rows: dict[str, Any], about: str) -> Any:
    """The estimated time of both passes on an H100, as a multiple of the lower bound."""
    shown = {name: row for name, row in rows.items() if "forward only" not in name and "without" not in name}
    figure = style.figure(9, 0.36 * len(shown) + 1.2)
    axes = figure.subplots()
    positions = np.arange(len(shown))
    series = {
        "jpool": style.BLUE,
        "lax, as Flax and others call it (its loops count once), or jnp.max": style.RED,
    }
    for i, (label, colour) in enumerate(series.items()):
        names = ("jpool",) if i == 0 else ("lax", "jnp.max")
        times = [
            next((row[library]["time"] for library in names if library in row), math.nan) for row in shown.values()
        ]
        bars = axes.barh(positions + 0.38 * i, times, 0.36, color=colour, label=label)
        axes.bar_label(bars, ["" if math.isnan(time_) else f"{time_:.2f}" for time_ in times], padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=1, label="lower bound: every byte once, at full bandwidth")
    axes.set_yticks(positions + 0.19, list(shown), fontsize=8)
    axes.set(xscale="log", xlim=(0.8, 10))
    axes.set_xticks([1, 2, 3, 4, 6, 8], labels=["1", "2", "3", "4", "6", "8"], minor=False)
    axes.set_xticks([], minor=True)
    style.tidy(axes, xlabel="estimated time on an H100, from the compiled program; not measured (lower is better)")
    axes.set_title(about.replace("; bytes", "\nbytes").replace("; jax", "\njax"), fontsize=8, loc="left")
    axes.invert_yaxis()
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.31), fontsize=8)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles every chosen program, prints the table, and writes the requested files."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, chosen = parse(given)
    if arguments is None:
        compiled.restart_for_compilers("experiments.programs", given)
    try:
        for platform in ("cuda", "tpu"):
            compiled.devices(platform)
    except RuntimeError as error:
        raise SystemExit(str(error)) from None
    print(heading(), flush=True)
    rows: dict[str, Any] = {}
    if options.models:
        rows = {name: compare(NETWORKS[name]) for name in tqdm(chosen, leave=False, disable=None)}
        print(table_of_models(rows))
    else:
        asked = {question.name: question for question in questions()}
        rows = {name: read(asked[name]) for name in tqdm(chosen, leave=False, disable=None)}
        print(table(rows))
        if options.png:
            style.save(picture(rows, heading()), options.png)
    if options.json:
        options.json.write_text(json.dumps({"about": heading(), "programs": rows}, indent=1))


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, checked, and the names of the programs that they select."""
    parser = argparse.ArgumentParser(prog="python -m experiments.programs", description=(__doc__ or "").split("\n")[0])
    one_of = parser.add_mutually_exclusive_group()  # training steps have no picture
    one_of.add_argument("--models", action="store_true", help="compile whole training steps (needs the extra `peers`)")
    command.add_shapes(parser, "program")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures to a file")
    one_of.add_argument("--png", metavar="FILE", type=Path, help="draw the estimated times")
    options = parser.parse_args(arguments)
    names = NETWORKS if options.models else (question.name for question in questions())
    chosen = command.chosen(parser, options.shapes, names, "program")
    if options.models and (missing := missing_frameworks(chosen)):
        parser.error(f"argument --models: needs {missing}, of the extra `peers`")
    command.check_files(parser, options.json, options.png)
    return options, chosen


if __name__ == "__main__":
    main()
