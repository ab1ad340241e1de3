"""What devices send and hold in a training step and in gradient statistics, compiled for pods of TPUs and H100s.

    python -m experiments.pods v5e:16x16 1x4x8     prints the readings of each program as JSON

An all-reduce is the sum over devices of an array that every device then has. No pod is needed and nothing is timed: the
programs are only compiled, with the packages that `experiments.accelerators.compiled` names. The compilers run in a
separate process, because they look for hardware as soon as JAX is imported, and report that on stderr.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from matplotlib.axes import Axes

import jpool
from experiments.accelerators import compiled
from experiments.common import command, style
from experiments.common.command import claim
from experiments.digits import lenet

# Chips of TPUs by their layout; H100s as slices x hosts x devices. Two pods of each kind, to be compared.
PODS = ("v5e:2x2", "v5e:16x16", "v5p:2x2x1", "v5p:16x16x16", "1x1x8", "1x4x8")
EXAMPLES = 128  # on each device, all at once
MOVES = "all-gather|(?:ragged-)?all-to-all|collective-permute|collective-broadcast|reduce-scatter|send|recv"


class Reading(NamedTuple):
    """What was read from one compiled program."""

    pod: str
    devices: int
    program: str  # "step" or "statistics"
    all_reduces: int
    sent: int  # bytes that each device puts into them
    moves: int  # gathers and other transfers
    temporary: int  # bytes of a device's memory besides arguments and results

    @property
    def kind(self) -> str:
        """The kind of its devices."""
        return kind(self.pod)


def kind(pod: str) -> str:
    """The kind of a pod's devices, from the name of the pod."""
    generation, colon, _ = pod.partition(":")
    return f"TPU {generation}" if colon else "H100"


# --- in the compilers' process ---


def main(arguments: list[str] | None = None) -> None:
    """Prints the readings, and the pods without a compiler; then it ends with the reasons and an error."""
    parser = command.parser_of(__file__, __doc__)
    parser.add_argument("pods", nargs="+", metavar="POD", type=layout, help=f"such as {', '.join(PODS)}")
    readings, missing = [], {}
    for pod in parser.parse_args(arguments).pods:
        try:
            devices = compiled.devices("tpu" if ":" in pod else "cuda", pod)
        except RuntimeError as error:
            missing[pod] = str(error)
        else:
            readings += [read(pod, len(devices), *program) for program in programs(devices)]
    print(json.dumps({"readings": readings, "missing": missing}))
    if missing:
        sys.exit("\n".join(dict.fromkeys(missing.values())))


def layout(text: str) -> str:
    """An argparse type: the name of a pod."""
    number = "[1-9][0-9]*"
    if not re.fullmatch(rf"\w+:{number}x{number}(x{number})?|{number}x{number}x{number}", text):
        expected = "a layout of TPUs, such as v5e:2x2, or slices x hosts x devices of H100s, such as 1x1x8"
        raise argparse.ArgumentTypeError(f"must be {expected}; got {text}")
    return text


def programs(devices: list[Any]) -> Iterator[tuple[str, Any]]:
    """The compiled programs, by name."""
    mesh, optimizer = Mesh(np.array(devices), ("data",)), optax.sgd(0.01, momentum=0.9)
    state = jax.eval_shape(lambda key: jpool.TrainState.create(lenet.init(key), optimizer), jax.random.key(0))
    state, examples = placed(mesh, P(), state), len(devices) * EXAMPLES
    shapes = jax.ShapeDtypeStruct((examples, 28, 28), "float32"), jax.ShapeDtypeStruct((examples,), "int32")
    batch = placed(mesh, P("data"), shapes)
    step: Any = jpool.make_train_step(lenet.loss, optimizer, mesh=mesh)
    yield "step", step.lower(state, *batch).compile()
    statistics = jax.jit(jpool.gradient_statistics(lenet.loss, mesh=mesh))
    yield "statistics", statistics.lower(state.params, *batch).compile()


def placed(mesh: Mesh, spec: P, tree: Any) -> Any:
    """The same shapes, sharded over the mesh."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def read(pod: str, devices: int, name: str, program: Any) -> Reading:
    """Reads the text of a program and the memory that it reports."""
    text, memory = program.as_text(), program.memory_analysis()
    sent = all_reduces(text)
    return Reading(pod, devices, name, len(sent), sum(sent), moves(text), memory.temp_size_in_bytes)


def all_reduces(text: str) -> list[int]:
    """The bytes of each all-reduce; an asynchronous one is an all-reduce-start and an all-reduce-done."""
    results = re.findall(r" = (.*?) all-reduce(?:-done)?\(", text)
    return [compiled.size_of(result) for result in results]


def moves(text: str) -> int:
    """The number of transfers to other devices, except all-reduces."""
    return len(re.findall(rf" (?:{MOVES})(?:-start)?\(", text))


# --- in the calling process ---


def readings(pods: Sequence[str]) -> tuple[list[Reading], dict[str, str]]:
    """The readings of all pods, and the pods that were left out, each with the reason."""
    environment = os.environ | compiled.ENVIRONMENT | {"XLA_FLAGS": ""}  # these compilers may not know the flags
    print("\ncompiling for pods, which takes minutes if the compilers are installed ..", flush=True)
    command, top = [sys.executable, "-m", "experiments.pods", *pods], Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, cwd=top, capture_output=True, text=True)
    printed = json.loads((done.stdout.splitlines() or ["{}"])[-1])
    if not printed or (done.returncode and not printed["missing"]):
        raise RuntimeError(f"compiling for pods failed:\n{done.stderr[-2000:]}")
    return [Reading(*fields) for fields in printed["readings"]], printed["missing"]


def check(readings: list[Reading], parameters: int) -> None:
    """Checks what devices send, and that a device of a large pod holds no more than one of a small pod."""
    steps = [reading for reading in readings if reading.program == "step"]
    sizes = ", ".join(f"{size:,}" for size in sorted({step.devices for step in steps}))
    as_predicted = all((step.all_reduces, step.sent) == (1, 4 * (parameters + 2)) for step in steps)
    claim(f"compiled for {sizes} devices, a step has one all-reduce, of 4 ({parameters:,} + 2) bytes", as_predicted)
    claim("neither the step nor the statistics gather anything", not any(reading.moves for reading in readings))
    held = [[reading.temporary for reading in group] for group in of_a_kind(readings)]
    deviation = max(max(sizes) / min(sizes) - 1 for sizes in held)
    claim(f"a device needs the same temporary memory in small and large pods, to {deviation:.1%}", deviation < 0.03)


def of_a_kind(readings: list[Reading]) -> list[list[Reading]]:
    """Groups the readings of the same program for the same kind of device."""
    groups: dict[tuple[str, str], list[Reading]] = {}
    for reading in readings:
        groups.setdefault((reading.kind, reading.program), []).append(reading)
    return list(groups.values())


def print_readings(readings: list[Reading], missing: dict[str, str], parameters: int, predicted: float) -> None:
    """Prints the readings, the prediction, and the pods without a compiler."""
    if readings:
        print(f"\ncompiled, not timed: {EXAMPLES} examples on each device, all at once")
        print(f"predicted: an all-reduce of {4 * (parameters + 2) / 1e6:.3f} MB, {predicted / 2**20:.0f} MiB temporary")
        print("| devices | kind | pod | program | all-reduces | MB sent | gathers | temporary, MiB |")
        print("|---:|---|---|---|---:|---:|---:|---:|")
    for row in readings:
        start = f"| {row.devices:,} | {row.kind} | {row.pod} | {row.program} | {row.all_reduces}"
        print(f"{start} | {row.sent / 1e6:.3f} | {row.moves} | {row.temporary / 2**20:.2f} |")
    if missing:
        kinds, reason = dict.fromkeys(map(kind, missing)), next(iter(missing.values()))
        print(f"\nleft out: pods of {', '.join(kinds)}. {reason}")


def draw(axes: Axes, readings: list[Reading], predicted: float) -> None:
    """Draws the memory of a device by the size of its pod."""
    ticks = sorted({reading.devices for reading in readings})
    lines = dict(zip(dict.fromkeys(reading.kind for reading in readings), style.SERIES, strict=False))
    for group in of_a_kind(readings):
        first, step = group[0], group[0].program == "step"
        devices, held = [reading.devices for reading in group], [reading.temporary / 2**20 for reading in group]
        look = {"fillstyle": "full", "markersize": 6} if step else {"fillstyle": "none", "markersize": 11}
        axes.plot(devices, held, label=f"{first.kind}, {first.program}", **lines[first.kind] | look)
    axes.axhline(predicted / 2**20, color=style.GREY, linestyle=":")
    axes.annotate("predicted, with every example's gradient held", (ticks[0], predicted / 2**20 * 0.65))
    most = max(readings, key=lambda reading: (reading.all_reduces, reading.moves))
    sent = f"{most.all_reduces} all-reduce, of {most.sent / 1e6:.2f} MB, and {most.moves} gathers in each"
    xlabel = f"devices of the pod, {EXAMPLES} examples on each\n{sent}"
    style.tidy(axes, "compiled, not timed: temporary memory of a device (MiB)", xlabel=xlabel)
    axes.set(xscale="log", yscale="log", ylim=(0.4, predicted / 2**20 * 1.5))
    axes.set_xticks(ticks, labels=[f"{n:,}" for n in ticks])
    axes.set_yticks([1, 10, 100], labels=["1", "10", "100"])
    axes.minorticks_off()
    axes.legend(loc="lower right", fontsize="small")


if __name__ == "__main__":
    main()
