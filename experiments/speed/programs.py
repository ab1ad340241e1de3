"""XLA's programs of pooling for an H100 and a TPU v5e, compiled on a machine without either; nothing is timed.

For the H100: the number of kernels, and the bytes that they read and write and their estimated time as multiples of the
lower bound, which is to read and write every argument, result and winner once at full bandwidth. The estimate of a
kernel is the larger of its bytes over bandwidth and its instructions over the issue rate. Branches count as taken, and
a loop inside a kernel, such as lax's over a window, counts once, so lax's estimate is too low. For the TPU: the
compiler's estimate in cycles. It leaves out reduce-window and select-and-scatter, so there is none for lax.

The compilers are packages; experiments/speed/compiled.py has the command that installs them.
"""

import argparse
import importlib.metadata
import sys
from typing import Any

from experiments.speed import compiled, options
from experiments.speed.cases import Case, every_case

HEAD = """\
| program | kernels | bytes | time | lax, jnp.max: kernels | bytes | time | scatter | TPU, thousand cycles |
|---|---:|---:|---:|---:|---:|---:|---|---:|"""


def read(case: Case) -> dict[str, Any]:
    """All figures of one case, by contender."""
    figures: dict[str, Any] = {}
    for name in [name for name in ("jpool", "lax", "jnp.max") if name in case.functions]:
        gpu = compiled.compile_for("cuda", case.functions[name], *case.shapes)
        figures[name] = {
            "kernels": len(gpu.kernels),
            "bytes": gpu.bytes / case.least_bytes,
            "time": gpu.seconds / (case.least_bytes / compiled.BANDWIDTH),
            "scatter": bool(gpu.count("scatter") + gpu.count("select-and-scatter")),
        }
    figures["jpool"]["tpu_cycles"] = compiled.compile_for("tpu", case.functions["jpool"], *case.shapes).cycles
    return figures


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    ours, *others = row.values()
    cells = lambda one: "{kernels} | {bytes:.2f} | {time:.2f}".format(**one)  # noqa: E731
    theirs = cells(others[0]) if others else " | | "
    scatter = "both" if ours["scatter"] else "theirs" if others and others[0]["scatter"] else ""
    return f"| {name} | {cells(ours)} | {theirs} | {scatter} | {ours['tpu_cycles'] / 1000:,.0f} |"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    options.add_shapes(parser, every_case())


def run(chosen: argparse.Namespace) -> None:
    """Compiles every chosen program and prints the table."""
    compiled.restart_for_compilers("experiments.speed", sys.argv[1:])
    try:
        for platform in ("cuda", "tpu"):
            compiled.devices(platform)
    except RuntimeError as error:
        raise SystemExit(str(error)) from None
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu", "jax-cuda12-pjrt"))
    print(f"compiled, not timed, for an H100 and a TPU v5e; {versions}\n\n{HEAD}", flush=True)
    for name, case in every_case().items():
        if name in chosen.shapes:
            print(line(name, read(case)), flush=True)
