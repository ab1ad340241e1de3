"""The pictures of the training program: its learning curve, and one digit forward and back through a pooling."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from experiments.common import style
from experiments.digits import layers, lenet
from experiments.digits.data import Digits


def learning_curve(history: Sequence[Any], path: Path) -> None:
    """Loss and accuracy by epoch; `history` holds `progress.Epoch`s."""
    epochs = np.arange(1, len(history) + 1)
    figure = style.figure(9, 3.2)
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [epoch.loss for epoch in history], "o-", color=style.BLUE, markersize=3)
    style.tidy(left, "loss on the training digits", xlabel="epoch", ylabel="mean cross entropy (nats)", yscale="log")
    right.plot(epochs, [100 * epoch.accuracy for epoch in history], "o-", color=style.RED, markersize=3)
    title = f"held-out digits: {history[-1].accuracy:.1%} at the end"
    style.tidy(right, title, xlabel="epoch", ylabel="accuracy (%)")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    style.save(figure, path)


class Trace(NamedTuple):
    """One channel of the first pooling layer, forward and backward; ct: cotangent, the gradient of the loss."""

    channel: int
    maps: np.ndarray  # (24, 24) the feature map
    pooled: np.ndarray  # (12, 12)
    won: np.ndarray  # (24, 24) 1 where the element won its window, else 0
    ct: np.ndarray  # (12, 12) cotangent of pooled
    routed: np.ndarray  # (24, 24) cotangent of maps


def trace(params: layers.Params, image: jax.Array, label: jax.Array) -> Trace:
    """Runs one digit through the network and back; keeps the channel with the largest sum of absolute cotangents."""
    parts = through_pooling(params, image, label)
    channel = int(jnp.abs(parts[3]).sum((0, 1)).argmax())
    return Trace(channel, *(np.asarray(part[..., channel]) for part in parts))


def through_pooling(params: layers.Params, image: jax.Array, label: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays of a `Trace`, with all channels on the last axis."""
    maps = lenet.feature_maps(params, image)
    pooled, route = jax.vjp(layers.halve, maps)
    ct = jax.grad(lambda x: layers.cross_entropy(lenet.after_pool1(params, x), label))(pooled)
    (routed,), (won,) = route(ct), route(jnp.ones_like(ct))
    return maps, pooled, won, ct, routed


def hardest(params: layers.Params, digits: Digits) -> tuple[np.ndarray, int, float]:
    """Of the first 1,000 held-out digits that are read correctly, the one with the largest loss; its label and loss."""
    images, labels = digits.test_images[:1000], jnp.asarray(digits.test_labels[:1000], int)
    scores = jax.vmap(lenet.logits, (None, 0))(params, jnp.asarray(images) / 255.0)
    losses = jax.vmap(layers.cross_entropy)(scores, labels)
    worst = int(jnp.where(scores.argmax(1) == labels, losses, -1).argmax())
    return images[worst], int(labels[worst]), float(losses[worst])


def routing(params: layers.Params, digits: Digits, path: Path) -> None:
    """Top, forward: input, feature map with its winners, pooled map. Bottom, backward: cotangents before and after."""
    image, label, loss = hardest(params, digits)
    traced = trace(params, jnp.asarray(image) / 255.0, jnp.asarray(label))
    figure = style.figure(9, 6.4)
    (top_left, top_middle, top_right), (bottom_left, bottom_middle, bottom_right) = figure.subplots(2, 3)

    low, high, limit = traced.maps.min(), traced.maps.max(), np.abs(traced.ct).max()
    style.image(top_left, image, f"1  input, 28 x 28: a {label}")
    show(top_middle, traced.maps, "gray_r", low, high, f"2  feature map, one of {lenet.SHAPES['conv1'][-1]}, 24 x 24")
    rows, columns = np.nonzero(traced.won)
    dots = {"color": style.WINNER, "markersize": 3.2, "markeredgecolor": "black", "markeredgewidth": 0.3}
    top_middle.plot(columns, rows, "o", **dots)
    show(top_right, traced.pooled, "gray_r", low, high, "3  pooled map, 12 x 12")
    show(bottom_right, traced.ct, style.SIGNED, -limit, limit, "4  cotangents of the pooled map")
    show(bottom_middle, traced.routed, style.SIGNED, -limit, limit, "5  cotangents of the feature map")
    bottom_left.axis("off")
    bottom_left.text(0.0, 1.0, explanation(traced, label, loss), va="top", fontsize=9, in_layout=False)
    style.save(figure, path)


def show(axes: Axes, values: np.ndarray, colours: str, low: float, high: float, title: str) -> None:
    """Shows an image with the pooling windows drawn over it; maps that share `low` and `high` share their colours."""
    style.image(axes, values, title, cmap=colours, vmin=low, vmax=high)
    style.windows(axes, len(values), 12)


def explanation(traced: Trace, label: int, loss: float) -> str:
    """The text in the picture, with its numbers."""
    received = np.count_nonzero(traced.routed)
    arrived, routed = math.fsum(traced.ct.flat), math.fsum(traced.routed.flat)  # exact, so equal sums print equally
    paragraphs = (
        f"The correctly classified digit with the largest loss, {loss:.2f}.",
        "Forward (1, 2, 3): each 2 x 2 window keeps its largest element, the winner (dot).",
        "Backward (4, 5): each cotangent goes to the winner of its window, whole and unchanged. "
        f"Blue is positive, red negative; the largest absolute value is {np.abs(traced.ct).max():.2g}.",
        f"{received} of {traced.routed.size} elements receive a cotangent, one in each window; the others exactly 0.",
        f"Sum of panel 4: {arrived:+.9f}\nSum of panel 5: {routed:+.9f}",
        "Nothing is averaged here; later, over the batch, only the gradients of weights are.",
    )
    return "\n\n".join("\n".join(textwrap.fill(line, 43) for line in text.split("\n")) for text in paragraphs)
