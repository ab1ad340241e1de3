"""The pictures: how the main job learned, what one pooling layer did with one digit, and the benchmark's bars."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from experiments import layers, lenet, style
from experiments.data import Digits
from experiments.style import BLUE, RED


def learning_curve(history: Sequence[Any], path: Path) -> None:
    """Loss and accuracy by epoch; `history` holds `train_digits.Epoch`s."""
    epochs = np.arange(1, len(history) + 1)
    figure = style.figure(9, 3.2)
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [epoch.loss for epoch in history], "o-", color=BLUE, markersize=3)
    style.tidy(left, "loss on the training digits", xlabel="epoch", ylabel="mean cross entropy (nats)", yscale="log")
    right.plot(epochs, [100 * epoch.accuracy for epoch in history], "o-", color=RED, markersize=3)
    title = f"held-out digits: {history[-1].accuracy:.1%} at the end"
    style.tidy(right, title, xlabel="epoch", ylabel="read right (%)")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    style.save(figure, path)


class Trace(NamedTuple):
    """One channel of the first pooling layer, forward and backward."""

    maps: np.ndarray  # (24, 24) what the filter found
    pooled: np.ndarray  # (12, 12)
    won: np.ndarray  # (24, 24) whether the element won its window
    ct: np.ndarray  # (12, 12) cotangent of pooled
    routed: np.ndarray  # (24, 24) cotangent of maps


def trace(params: layers.Params, image: jax.Array, label: jax.Array) -> Trace:
    """Runs one digit through the network and back, and keeps the channel that the cotangents say most about."""
    maps = lenet.feature_maps(params, image)
    pooled, route = jax.vjp(layers.halve, maps)
    ct = jax.grad(lambda x: layers.cross_entropy(lenet.after_pool1(params, x), label))(pooled)
    (routed,), (won,) = route(ct), route(jnp.ones_like(ct))
    channel = int(jnp.abs(ct).sum((0, 1)).argmax())
    return Trace(*(np.asarray(part[..., channel]) for part in (maps, pooled, won, ct, routed)))


def hardest(params: layers.Params, digits: Digits) -> tuple[np.ndarray, int, int]:
    """The held-out digit with the largest loss, what it is and what it is read as: it has most to teach."""
    images, labels = digits.test_images[:1000], digits.test_labels[:1000]
    scores = jax.vmap(lenet.logits, (None, 0))(params, jnp.asarray(images) / 255.0)
    worst = int(jax.vmap(layers.cross_entropy)(scores, jnp.asarray(labels, int)).argmax())
    return images[worst], int(labels[worst]), int(scores[worst].argmax())


def routing(params: layers.Params, digits: Digits, path: Path) -> None:
    """Above, forward: input, feature map, pooled map with its winners. Below, backward: the cotangents on their way."""
    image, label, read = hardest(params, digits)
    seen = trace(params, jnp.asarray(image) / 255.0, jnp.asarray(label))
    figure = style.figure(11.5, 7.6)
    (top_left, top_middle, top_right), (bottom_left, bottom_middle, bottom_right) = figure.subplots(2, 3)

    style.image(top_left, image, f"1  input, 28 x 28: a {label}, read as a {read}")
    show(top_middle, seen.maps, "gray", "2  feature map of one filter, 24 x 24")
    rows, columns = np.nonzero(seen.won)
    top_middle.plot(columns, rows, ".", color=RED, markersize=4)
    show(top_right, seen.pooled, "gray", "3  pooled map, 12 x 12, with its winners")
    # An element of the feature map lies a quarter of a cell off the centre of its cell in the pooled map.
    top_right.plot(columns / 2 - 0.25, rows / 2 - 0.25, ".", color=RED, markersize=4)

    reach = np.abs(seen.ct).max()
    show(bottom_right, seen.ct, "RdBu", "4  cotangents that arrive at the pooled map", reach)
    show(bottom_middle, seen.routed, "RdBu", "5  where they went in the feature map", reach)
    bottom_left.axis("off")
    bottom_left.text(0.0, 1.0, explanation(seen), va="top", fontsize=10.5, linespacing=1.4, in_layout=False)
    style.save(figure, path)


def show(axes: Axes, values: np.ndarray, colours: str, title: str, reach: float | None = None) -> None:
    """An image with the pooling windows drawn over it."""
    style.image(axes, values, title, cmap=colours, vmin=None if reach is None else -reach, vmax=reach)
    style.windows(axes, len(values), 12)


def explanation(seen: Trace) -> str:
    """What the picture shows, in numbers."""
    received = np.count_nonzero(seen.routed)
    arrived, routed = math.fsum(seen.ct.flat), math.fsum(seen.routed.flat)  # exact, so that equal means equal
    return (
        "Forward (1, 2, 3): each 2 x 2 window keeps its\nlargest element, the winner (red).\n\n"
        "Backward (4, 5): each cotangent goes to the\nwinner of its window, whole and unchanged\n"
        "(blue: positive, red: negative).\n\n"
        f"{seen.ct.size} cotangents, {np.count_nonzero(seen.ct)} of them not zero;\n"
        f"{received} of {seen.routed.size} elements receive one,\nthe others exactly 0.\n\n"
        f"Sum that arrived: {arrived:+.9f}\nSum that was routed: {routed:+.9f}\n\n"
        "Another digit has other winners. Nothing is\naveraged here: only the gradients of the\n"
        "weights are, over the batch."
    )


def bars(times: dict[str, dict[str, float]], about: str, path: Path) -> None:
    """For each pool the time of every library as a multiple of jpool's."""
    others = {"lax": RED, "torch": BLUE}
    figure = style.figure(9, 0.62 * len(times) + 1.5)
    axes = figure.subplots()
    places = np.arange(len(times))
    for i, (library, colour) in enumerate(others.items()):
        found = [
            min((ms for name, ms in row.items() if name.startswith(library)), default=math.nan)
            for row in times.values()
        ]
        ratios = [ms / row["jpool"] for ms, row in zip(found, times.values(), strict=True)]
        drawn = axes.barh(places + 0.38 * i, ratios, 0.36, color=colour, label=library)
        texts = axes.bar_label(drawn, [f"{ms:.1f} ms" if ms == ms else "" for ms in found], padding=4, fontsize=8)
        for text in texts:
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.axvline(1, color="black", linewidth=1, label="jpool")
    axes.set_yticks(places + 0.19, [f"{name}\njpool: {row['jpool']:.2f} ms" for name, row in times.items()], fontsize=8)
    axes.set(xscale="log", xlim=(0.5, None), xlabel="time of forward + backward, as a multiple of jpool's")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(about, fontsize=8, loc="left")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    style.save(figure, path)
