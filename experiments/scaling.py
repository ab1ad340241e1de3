"""How does the training step scale to more devices, and what limits it?

    python -m experiments.scaling

Everything here is checked by one step on devices that a CPU simulates, or read from compiled programs; nothing is timed
and nothing predicted. A device holds the gradients of its own examples, 4 P bytes each for P parameters, as many as are
held at a time: so its memory limits the microbatch, not the batch. And it sends one all-reduce (a sum over devices that
every device then has) of 4 (P + 2) bytes, for the gradients, the loss and the number of examples, whatever the number
of devices. `tests/experiments/test_pods.py` reads the same from programs compiled for up to 4,096 chips. How long the
all-reduce takes depends on the network between the devices.
"""

import re
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure

import jpool
from experiments.common import command, style
from experiments.common.command import claim
from experiments.digits import lenet
from experiments.speed import compiled

SIMULATED, SHARED = (1, 2, 4, 8), 64  # devices, and the examples of the step that they share
EXAMPLES, MICROBATCH = (32, 128, 512), 32  # on one device, and how many of them at a time
PROGRAMS: tuple[tuple[str, int | None], ...] = ("statistics", None), ("statistics", MICROBATCH), ("step", None)
OPTIMIZER = optax.sgd(0.01, momentum=0.9)
TRANSFERS = "all-gather|(?:ragged-)?all-to-all|collective-permute|collective-broadcast|reduce-scatter|send|recv"


class Reading(NamedTuple):
    """What was read from one compiled program."""

    all_reduces: list[int]  # the bytes of each
    transfers: int  # other exchanges between devices, such as gathers
    memory: int  # bytes of a device, besides arguments and results


class Results(NamedTuple):
    """What the picture shows."""

    steps: dict[int, Reading]  # of SHARED examples, by number of devices
    memory: dict[tuple[str, int | None], list[int]]  # bytes for each of EXAMPLES, by program and microbatch size


def measure(seed: int) -> Results:
    """Takes one step on each number of devices, and reads the programs."""
    image_key, label_key, init_key = jax.random.split(jax.random.key(seed), 3)
    batch = jax.random.uniform(image_key, (SHARED, 28, 28)), jax.random.randint(label_key, (SHARED,), 0, 10)
    params, trained, steps = lenet.init(init_key), [], {}
    for devices in (jax.devices()[:count] for count in SIMULATED):
        step = compile_for("step", None, devices, SHARED)
        state, _ = step(*jax.device_put((jpool.TrainState.create(params, OPTIMIZER), *batch), step.input_shardings[0]))
        trained.append(ravel_pytree(jax.device_get(state.params))[0])
        steps[len(devices)] = read(step)
    parameters, off = trained[0].size, np.ptp(trained, axis=0).max()
    claim(f"a step on {', '.join(map(str, steps))} devices leaves the same parameters, to {off:.0e}", off < 1e-6)
    as_expected = all(reading[:2] == ([4 * (parameters + 2)], 0) for reading in steps.values())
    claim(f"a step has one all-reduce, of 4 ({parameters:,} + 2) bytes, and gathers nothing", as_expected)

    one = jax.devices()[:1]
    memory = {program: [read(compile_for(*program, one, count)).memory for count in EXAMPLES] for program in PROGRAMS}
    (fewest, _, most), (_, some, many), _ = memory.values()
    text = f"{MICROBATCH} at a time, statistics of {EXAMPLES[2]} examples need the same memory as of {EXAMPLES[1]}"
    claim(f"{text}, to {many / some - 1:.2%}", many < 1.01 * some)
    more = (most - fewest) / (EXAMPLES[2] - EXAMPLES[0]) / (4 * parameters)
    claim(f"and {more:.2f} times 4 P bytes more for each example held at a time", 1 <= more < 1.5)
    return Results(steps, memory)


def compile_for(name: str, size: int | None, devices: list[Any], examples: int) -> Any:
    """Compiles the training step or the statistics of its gradients, in microbatches of `size`, over the devices."""
    mesh = Mesh(np.array(devices), ("data",))

    def placed(tree: Any, *axis: str) -> Any:
        return jax.tree.map(lambda leaf: leaf.update(sharding=NamedSharding(mesh, PartitionSpec(*axis))), tree)

    state = jax.eval_shape(lambda key: jpool.TrainState.create(lenet.init(key), OPTIMIZER), jax.random.key(0))
    images, labels = jax.ShapeDtypeStruct((examples, 28, 28), "float32"), jax.ShapeDtypeStruct((examples,), "int32")
    state, batch = placed(state), placed((images, labels), "data")
    if name == "statistics":
        statistics = jax.jit(jpool.gradient_statistics(lenet.loss, microbatch_size=size, mesh=mesh))
        return statistics.lower(state.params, *batch).compile()
    step: Any = jpool.make_train_step(lenet.loss, OPTIMIZER, microbatch_size=size, mesh=mesh)
    return step.lower(state, *batch).compile()


def read(program: Any) -> Reading:
    """Reads the text of a compiled program and the memory that it reports."""
    text = program.as_text()
    results = re.findall(r" = (.*?) all-reduce(?:-done)?\(", text)  # an asynchronous one also has an all-reduce-start
    transfers = re.findall(rf" (?:{TRANSFERS})(?:-start)?\(", text)
    return Reading([*map(compiled.size_of, results)], len(transfers), program.memory_analysis().temp_size_in_bytes)


def picture(results: Results) -> Figure:
    """The memory of one device by its examples; what each of several devices holds and sends."""
    figure = style.figure(11, 4)
    figure.suptitle("Read from compiled programs; nothing is timed or predicted", fontsize=style.TITLE)
    left, right = figure.subplots(1, 2)
    for ((name, size), memory), line in zip(results.memory.items(), style.SERIES, strict=False):
        left.plot(EXAMPLES, np.array(memory) / 2**20, label=f"{name}, {size or 'all'} at once", **line)
    sizes = np.array([(step.memory, sum(step.all_reduces)) for step in results.steps.values()]) / 2**20
    right.plot(list(results.steps), sizes[:, 0], label="holds, besides arguments and results", **style.SERIES[0])
    right.plot(list(results.steps), sizes[:, 1], label="sends, in one all-reduce", **style.SERIES[1])
    style.tidy(left, "MiB that one device needs temporarily", xlabel="examples", xscale="log", yscale="log")
    style.ticks(left.yaxis, 10, 30, 100, 300, 1000)
    title = f"MiB of each device in a step of {SHARED} examples"
    style.tidy(right, title, xlabel="devices (simulated)", xscale="log", ylim=(0, None))
    for axes, at in ((left, EXAMPLES), (right, SIMULATED)):
        style.ticks(axes.xaxis, *at)
        axes.legend()
    return figure


main = command.experiment(__file__, __doc__, measure, picture)

if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # other plugins would only print warnings
    jax.config.update("jax_num_cpu_devices", max(SIMULATED))
    main()
