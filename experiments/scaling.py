"""How does the training step scale to more devices, and what limits it?

    python -m experiments.scaling --memory 16 --bandwidth 25 --latency 5

Measured: one step on 1, 2, 4 and 8 devices simulated by a CPU. They share its cores, so no more is computed at a time,
and the times show what splitting costs. Predicted for separate devices, with P parameters of 4 bytes, B examples on
each of n devices, m of them at a time, and an all-reduce (a sum over devices that every device then has):

    per-example gradients   4 P m bytes, for any B; 4 P B without microbatches
    microbatch that fits    m = (memory - 4 P (2 + s)) / (4 P + a): besides parameters and the sum of gradients there
                            are s optimiser slots (momentum 1, Adam 2), and a bytes for everything else of an example
    all-reduce              4 (P + 2) bytes: the sum of gradients, the number of examples and the loss; in a ring every
                            device sends and receives 2 (n - 1) / n of them, in 2 (n - 1) hops (a tree has 2 log2 n)
    its time                r = 2 (n - 1) / n * 4 (P + 2) / bandwidth + 2 (n - 1) * latency
    a step                  t = B c + r, with c the time of one example; nothing overlaps
    efficiency              B c / t, examples per second and device relative to one device

Weak scaling fixes B, the examples of a device; strong scaling fixes n B, those of a step. The all-reduce and the bytes
of per-example gradients are checked against the programs that XLA compiles, from which a is taken.

Compiled, not timed: the same step and the statistics of its gradients for pods of 4, 256 and 4,096 TPU chips and of 8
and 32 H100s (pods.py), if their compilers are installed. What they send and hold is compared with the prediction, which
is for XLA on a CPU; a compiler that sums gradients as they are computed need not hold those of every example.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

import jpool
from experiments import pods
from experiments.common import command, style, timing
from experiments.common.command import Size, claim
from experiments.digits import lenet
from experiments.long_run import cluster

SIMULATED = (1, 2, 4, 8)
CLUSTER = tuple(2**i for i in range(13))  # to 4,096
SLOTS = 1  # SGD with momentum
RANGE = 1e-6, 1_000_000  # of times and rates


class Model(NamedTuple):
    """What the formulas need, in bytes and seconds."""

    parameters: int  # their number
    per_device: int  # examples, B
    example: float  # seconds, c
    besides: float  # bytes of an example besides its gradient, a
    memory: float  # bytes of a device
    bandwidth: float  # bytes per second that a device sends while it receives
    latency: float  # seconds per hop

    def microbatch(self) -> int:
        """The largest number of examples at a time."""
        left = self.memory - 4 * self.parameters * (2 + SLOTS)
        return int(left / (4 * self.parameters + self.besides))

    def together(self, examples: int) -> float:
        """The bytes of this many examples at a time."""
        return examples * (4 * self.parameters + self.besides)

    def all_reduce(self, devices: int) -> float:
        """The time of an all-reduce in a ring."""
        hops = 2 * (devices - 1)
        return hops / devices * 4 * (self.parameters + 2) / self.bandwidth + hops * self.latency

    def efficiency(self, devices: int, per_device: float) -> float:
        """The share of a step in which a device computes."""
        compute = per_device * self.example
        return compute / (compute + self.all_reduce(devices))


class Results(NamedTuple):
    """Times on simulated devices, the model, and readings of programs for pods."""

    ms: dict[int, float]  # of a step, by devices
    examples: int  # of a step
    model: Model
    total: int  # examples of a predicted step, strong scaling
    pods: list[pods.Reading]


class Step:
    """A training step over this many devices, and the state that it trains."""

    def __init__(self, devices: int, params: Any, batch: Any) -> None:
        """Splits the batch and compiles the step."""
        optimizer = optax.sgd(0.01, momentum=0.9)
        mesh = cluster.mesh_of(jax.devices()[:devices])
        self.state = cluster.replicate(mesh, jpool.TrainState.create(params, optimizer))
        self.batch = cluster.split(mesh, batch)
        step: Any = jpool.make_train_step(lenet.loss, optimizer, mesh=mesh)
        self.program = step.lower(self.state, *self.batch).compile()

    def take(self) -> None:
        """One step, to its end."""
        self.state, _ = jax.block_until_ready(self.program(self.state, *self.batch))


def measure(
    seed: int,
    rounds: int = 7,
    examples: int = 8,
    batch: int = 128,
    total: int = 8192,
    example: float = 0.25,
    memory: float = 16.0,
    bandwidth: float = 25.0,
    latency: float = 5.0,
) -> Results:
    """Times the step, checks the formulas against compiled programs, and prints what they predict."""
    cluster.simulate_devices(max(SIMULATED))
    image_key, label_key, init_key = jax.random.split(jax.random.key(seed), 3)
    examples *= max(SIMULATED)
    data = jax.random.uniform(image_key, (examples, 28, 28)), jax.random.randint(label_key, (examples,), 0, 10)
    params = lenet.init(init_key)
    steps = {devices: Step(devices, params, data) for devices in SIMULATED if devices <= len(jax.devices())}
    check_equal(steps)
    check_step(steps[max(steps)].program.as_text(), count(params))
    check_memory(params)
    other_bytes = besides(params, memory * 2**30)
    ms = timing.medians({str(devices): step.take for devices, step in steps.items()}, rounds)
    model = Model(count(params), batch, example / 1e3, other_bytes, memory * 2**30, bandwidth * 1e9, latency / 1e6)
    results = Results({int(devices): time for devices, time in ms.items()}, examples, model, total, [])
    print_tables(results)
    readings, missing = pods.readings(pods.PODS)
    if readings:
        pods.check(readings, model.parameters)
    pods.print_readings(readings, missing, model.parameters, model.together(pods.EXAMPLES))
    return results._replace(pods=readings)


def count(params: Any) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def check_equal(steps: dict[int, Step]) -> None:
    """Takes one step on each number of devices, from the same state on the same examples, and compares the results."""
    for step in steps.values():
        step.take()
    one, *others = (jax.tree.leaves(jax.device_get(step.state.params)) for step in steps.values())
    off = max((np.abs(a - b).max() for other in others for a, b in zip(one, other, strict=True)), default=0.0)
    claim(f"a step on {', '.join(map(str, steps))} devices leaves the same parameters, to {off:.0e}", off < 1e-6)


def check_step(text: str, parameters: int) -> None:
    """Checks what the devices send to each other."""
    as_predicted = pods.all_reduces(text) == [4 * (parameters + 2)]
    claim(f"a step has one all-reduce, of 4 ({parameters:,} + 2) bytes", as_predicted)
    claim("and gathers nothing", pods.moves(text) == 0)


def check_memory(params: Any) -> None:
    """Checks the bytes of per-example gradients."""
    gradient, some, twice = 4 * count(params), batch_of(8), batch_of(16)
    per_example = compiled(jpool.per_example_value_and_grad(lenet.loss), params, *some)
    extra = per_example.output_size_in_bytes - 8 * (gradient + 4)  # the addresses of the results
    claim("8 per-example gradients and losses are 8 * 4 (P + 1) bytes", 0 <= extra < 1024)

    def held(size: int, batch: Any) -> int:
        statistics = jpool.gradient_statistics(lenet.loss, microbatch_size=size)
        return compiled(statistics, params, *batch).temp_size_in_bytes

    of_four = held(4, some)
    growth, more = held(4, twice) / of_four - 1, (of_four - held(2, some)) / 2
    claim(f"statistics of twice the examples take the same memory at a microbatch of 4, to {growth:.2%}", growth < 0.01)
    claim(f"and {more / gradient:.2f} times 4 P bytes more for each example at a time", 1 <= more / gradient < 1.5)


def besides(params: Any, memory: float) -> float:
    """Bytes that an example needs besides its gradient when memory is full; XLA lays out large arrays differently."""
    gradient = 4 * count(params)

    def full(size: int) -> float:
        need = compiled(jpool.gradient_statistics(lenet.loss), params, *batch_of(size))
        return need.temp_size_in_bytes + need.argument_size_in_bytes + need.output_size_in_bytes + SLOTS * gradient

    most = max(1, int(memory / gradient))  # by the gradients only
    per_example = (full(most) - (2 + SLOTS) * gradient) / most
    size = max(1, int((memory - (2 + SLOTS) * gradient) / per_example))
    need = full(size)
    claim(f"{size:,} examples at a time need {need / 2**30:.2f} of {memory / 2**30:g} GiB", need < 1.01 * memory)
    return per_example - gradient


def batch_of(examples: int) -> Any:
    """The shapes of a batch, which are enough to compile a program and to read how much memory it needs."""
    return jax.ShapeDtypeStruct((examples, 28, 28), "float32"), jax.ShapeDtypeStruct((examples,), "int32")


def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """The memory that a program reports to need; it is not run."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis()


def print_tables(results: Results) -> None:
    """Prints what was measured and what is predicted."""
    model = results.model
    print(f"\nmeasured: {results.examples} examples, on simulated devices that share {timing.cores()} cores")
    print("| devices | ms per step | relative to one device |\n|---:|---:|---:|")
    for devices, ms in results.ms.items():
        print(f"| {devices} | {ms:.1f} | {ms / results.ms[1]:.2f} |")
    print(f"\npredicted: devices of {words(model)}")
    whole = model.per_device * 4 * model.parameters / 2**20
    print(f"per-example gradients of {model.per_device} examples: {whole:,.0f} MiB on each device")
    print(f"the largest microbatch that fits {model.memory / 2**30:g} GiB: {model.microbatch():,} examples")
    print(f"| devices | all-reduce, ms | efficiency, {model.per_device} examples each | {results.total:,} in all |")
    print("|---:|---:|---:|---:|")
    for devices in CLUSTER:
        weak, strong = (model.efficiency(devices, size) for size in (model.per_device, results.total / devices))
        print(f"| {devices:,} | {model.all_reduce(devices) * 1e3:.3f} | {weak:.1%} | {strong:.1%} |")


def words(model: Model) -> str:
    """The assumptions."""
    speed = f"{model.bandwidth / 1e9:g} GB/s, {model.latency * 1e6:g} us a hop"
    return f"{speed}, {model.example * 1e3:g} ms an example"


def picture(results: Results) -> Figure:
    """Measured, predicted, and, where there are readings, compiled."""
    figure, model = style.figure(11, 7.4) if results.pods else style.figure(12, 3.7), results.model
    left, middle, right, *last = figure.subplots(2, 2).flat if results.pods else figure.subplots(1, 3)
    blue, red, *_ = style.SERIES
    bars = left.bar(list(map(str, results.ms)), list(results.ms.values()), color=blue["color"], width=0.6)
    left.bar_label(bars, fmt="%.1f")
    title = f"measured: devices that share {timing.cores()} cores"
    style.tidy(left, title, xlabel=f"devices, {results.examples} examples in all", ylabel="ms a step (lower is better)")

    per_device, total, at = model.per_device, results.total, np.array(CLUSTER)
    for label, sizes, line in (
        (f"{per_device} examples on each", np.full(len(at), per_device), blue),
        (f"{total:,} examples in all", total / at, red),
    ):
        parts = [100 * model.efficiency(*point) for point in zip(CLUSTER, sizes, strict=True)]
        middle.plot(CLUSTER, parts, label=label, **line)
    about = f"devices of {words(model)}"
    style.tidy(middle, "predicted efficiency", xlabel=about, ylabel="% of one device's", ylim=(0, 105))
    middle.set_xscale("log", base=2)
    middle.set_xticks(CLUSTER[::2], labels=[f"{n:,}" for n in CLUSTER[::2]])
    middle.legend(loc="lower left")

    examples = np.geomspace(1, 65536, 17)
    fixed, per_example = 4 * model.parameters * (2 + SLOTS), 4 * model.parameters + model.besides
    for label, together, line in (("all at once", examples, red), ("32 at a time", np.minimum(examples, 32), blue)):
        right.plot(examples, (fixed + per_example * together) / 2**30, label=label, **line)
    right.axhline(model.memory / 2**30, color=style.GREY, linestyle=":", label=f"{model.memory / 2**30:g} GiB")
    style.tidy(right, "predicted memory of a device (GiB)", xlabel="examples on it", xscale="log", yscale="log")
    right.legend(loc="upper left")
    for axes in last:
        pods.draw(axes, results.pods, model.together(pods.EXAMPLES))
    return figure


main = command.experiment(
    __file__,
    __doc__,
    measure,
    picture,
    rounds=command.ROUNDS,
    examples=Size("measured: examples on each device when 8 devices share a step", 1, 128),
    batch=Size("predicted: examples on each device", 1, 1_000_000),
    total=Size("predicted: examples of a step, for strong scaling", CLUSTER[-1], 10**6 * CLUSTER[-1], CLUSTER[-1]),
    example=Size("predicted: milliseconds that a device takes per example", *RANGE),
    memory=Size("predicted: memory of a device in GiB", 0.25, 1_000_000),
    bandwidth=Size("predicted: GB/s that a device sends while it receives as much", *RANGE),
    latency=Size("predicted: microseconds per hop from device to device", *RANGE),
)

if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # measurements are on the CPU; other plugins would only print warnings
    main()
