"""A step and the statistics of a batch compiled for pods of TPUs and H100s that are not there: what they send and hold.

    python -m experiments.pods v5e:16x16 1x4x8     what was read off each program, as JSON

Nothing runs on them, so nothing is timed. The compilers are packages, `experiments.compiled` says which. They work in
a process of their own: they look for hardware as soon as JAX is imported, and write of it to stderr.
"""

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
from experiments import compiled, lenet, style
from experiments.command import claim

# Chips of TPUs by their places; H100s as slices x hosts x devices. Two of each kind, to be compared.
PODS = ("v5e:2x2", "v5e:16x16", "v5p:2x2x1", "v5p:16x16x16", "1x1x8", "1x4x8")
EXAMPLES = 128  # on each device, all at once
MOVES = "all-gather|(?:ragged-)?all-to-all|collective-permute|collective-broadcast|reduce-scatter|send|recv"


class Reading(NamedTuple):
    """What one compiled program says."""

    pod: str
    devices: int
    program: str  # "step" or "statistics"
    all_reduces: int
    sent: int  # bytes that go into them, of each device
    moves: int  # gathers and the like
    temporary: int  # bytes of a device's memory beside arguments and results

    @property
    def kind(self) -> str:
        """Of its devices."""
        return kind(self.pod)


def kind(pod: str) -> str:
    """Of its devices, by the name of the pod."""
    generation, colon, _ = pod.partition(":")
    return f"TPU {generation}" if colon else "H100"


# --- in the process of the compilers ---


def main(pods: list[str]) -> None:
    """Prints what was read, and the pods that there was no compiler for, each with the reason."""
    readings, missing = [], {}
    for pod in pods:
        try:
            devices = compiled.devices("tpu" if ":" in pod else "cuda", pod)
        except RuntimeError as error:
            missing[pod] = str(error)
        else:
            readings += [read(pod, len(devices), *program) for program in programs(devices)]
    print(json.dumps({"readings": readings, "missing": missing}))


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
    """The same shapes, as they lie on the mesh."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def read(pod: str, devices: int, name: str, program: Any) -> Reading:
    """Off the text of a program, and what it says of its memory."""
    text, memory = program.as_text(), program.memory_analysis()
    sent = all_reduces(text)
    return Reading(pod, devices, name, len(sent), sum(sent), moves(text), memory.temp_size_in_bytes)


def all_reduces(text: str) -> list[int]:
    """The bytes of each; one that begins and ends apart is an all-reduce-start and an all-reduce-done."""
    results = re.findall(r" = (.*?) all-reduce(?:-done)?\(", text)
    return [compiled.size_of(result) for result in results]


def moves(text: str) -> int:
    """How often anything goes to other devices but for a sum."""
    return len(re.findall(rf" (?:{MOVES})(?:-start)?\(", text))


# --- in the process that asks ---


def readings(pods: Sequence[str]) -> tuple[list[Reading], dict[str, str]]:
    """Of every pod; and the pods that were left out, each with the reason."""
    environment = os.environ | compiled.ENVIRONMENT | {"XLA_FLAGS": ""}  # which may ask for what no compiler here knows
    print("\ncompiling for pods, which takes minutes where the compilers are installed ..", flush=True)
    command, top = [sys.executable, "-m", "experiments.pods", *pods], Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, cwd=top, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"compiling for pods failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return [Reading(*each) for each in found["readings"]], found["missing"]


def check(found: list[Reading], parameters: int) -> None:
    """What they send, and that a device of a large pod holds no more than one of a small pod."""
    steps = [each for each in found if each.program == "step"]
    sizes = ", ".join(f"{size:,}" for size in sorted({each.devices for each in steps}))
    one = all((each.all_reduces, each.sent) == (1, 4 * (parameters + 2)) for each in steps)
    claim(f"compiled for {sizes} devices, a step has one all-reduce, of 4 ({parameters:,} + 2) bytes", one)
    claim("and no gather of anything, nor have the statistics", not any(each.moves for each in found))
    held = [[each.temporary for each in alike] for alike in of_a_kind(found)]
    off = max(max(each) / min(each) - 1 for each in held)
    claim(f"a device needs the same temporary memory in small and large pods, to {off:.1%}", off < 0.03)


def of_a_kind(found: list[Reading]) -> list[list[Reading]]:
    """Together what is the same program for the same devices."""
    groups: dict[tuple[str, str], list[Reading]] = {}
    for each in found:
        groups.setdefault((each.kind, each.program), []).append(each)
    return list(groups.values())


def tell(found: list[Reading], missing: dict[str, str], parameters: int, predicted: float) -> None:
    """The table beside what is predicted, and what there is no compiler for."""
    if found:
        print(f"\ncompiled, not timed: {EXAMPLES} examples on each device, all at once")
        print(f"predicted: an all-reduce of {4 * (parameters + 2) / 1e6:.3f} MB, {predicted / 2**20:.0f} MiB temporary")
        print("| devices | of | pod | program | all-reduces | of MB | gathers | temporary, MiB |")
        print("|---:|---|---|---|---:|---:|---:|---:|")
    for each in found:
        start = f"| {each.devices:,} | {each.kind} | {each.pod} | {each.program} | {each.all_reduces}"
        print(f"{start} | {each.sent / 1e6:.3f} | {each.moves} | {each.temporary / 2**20:.2f} |")
    if missing:
        kinds, reason = dict.fromkeys(map(kind, missing)), next(iter(missing.values()))
        print(f"\nleft out: pods of {', '.join(kinds)}. {reason}")


def draw(axes: Axes, found: list[Reading], predicted: float) -> None:
    """The memory of a device by the size of its pod."""
    ticks = sorted({each.devices for each in found})
    lines = dict(zip(dict.fromkeys(each.kind for each in found), style.SERIES, strict=False))
    for alike in of_a_kind(found):
        first, step = alike[0], alike[0].program == "step"
        devices, held = [each.devices for each in alike], [each.temporary / 2**20 for each in alike]
        look = {"fillstyle": "full", "markersize": 6} if step else {"fillstyle": "none", "markersize": 11}
        axes.plot(devices, held, label=f"{first.kind}, {first.program}", **lines[first.kind] | look)
    axes.axhline(predicted / 2**20, color=style.GREY, linestyle=":")
    axes.annotate("predicted, with every example's gradient held", (ticks[0], predicted / 2**20 * 0.65))
    most = max(found, key=lambda each: (each.all_reduces, each.moves))
    sent = f"{most.all_reduces} all-reduce, of {most.sent / 1e6:.2f} MB, and {most.moves} gathers in each"
    xlabel = f"devices of the pod, {EXAMPLES} examples on each\n{sent}"
    style.tidy(axes, "compiled, not timed: temporary memory of a device (MiB)", xlabel=xlabel)
    axes.set(xscale="log", yscale="log", ylim=(0.4, predicted / 2**20 * 1.5))
    axes.set_xticks(ticks, labels=[f"{n:,}" for n in ticks])
    axes.set_yticks([1, 10, 100], labels=["1", "10", "100"])
    axes.minorticks_off()
    axes.legend(loc="lower right", fontsize="small")


if __name__ == "__main__":
    main(sys.argv[1:])
