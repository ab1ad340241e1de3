"""Each example has its maximum at a different pixel: how can one step use them all?

Three digits go through one filter and a max pooling. Whatever its winners, each digit gives ONE gradient of the filter,
of the filter's shape: the sum, over its winners, of the patch of pixels that the filter saw there times the winner's
cotangent. The mean of these gradients makes the step. `jax.grad` of the mean loss is the same mean.

Where a patch is blank paper, all its pixels are 0: its winner adds exactly nothing to the gradient, and is not drawn.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

import jpool
from experiments.common import command, style
from experiments.common.command import Size, claim
from experiments.digits import one_filter


class Answer(NamedTuple):
    """What the picture shows, of three digits."""

    digits: np.ndarray  # (3, 28, 28) from 0 to 1
    maps: np.ndarray  # (3, 24, 24)
    rows: np.ndarray  # (3, 12, 12) of the winners in the maps, and so of the tops of their patches
    columns: np.ndarray  # (3, 12, 12)
    inked: np.ndarray  # (3, 12, 12) whether the patch of the winner is not blank
    most: np.ndarray  # (3,) the winner that adds most, as an index into 144
    cotangents: np.ndarray  # (3, 12, 12) of the winners
    gradients: np.ndarray  # (3, 5, 5)
    mean: np.ndarray  # (5, 5)
    before: np.ndarray  # (5, 5) the filter
    after: np.ndarray  # (5, 5) the filter after the step
    limit: float  # of the colours of the gradients


def measure(seed: int, steps: int = 300) -> Answer:
    """Trains the network, and follows three digits to their gradients, the mean of these, and the step."""
    every = one_filter.measure(seed, steps)
    examples = every._replace(**{name: getattr(every, name)[every.chosen] for name in one_filter.OF_EXAMPLES})
    digits, gradients = examples.images / np.float32(255), examples.gradients
    norms = np.linalg.norm(gradients, axis=(1, 2))
    spoken = ", ".join(f"a {one} {norm:.2f}" for one, norm in zip(examples.labels, norms, strict=True))
    claim(f"the gradients of the filter have similar norms: {spoken}", norms.max() < 2 * norms.min())
    rows, columns, inked, most = check_sums(examples, digits)
    mean = gradients.mean(0)
    after = check_step(examples, digits, mean)
    return Answer(
        digits, examples.maps, rows, columns, inked, most, examples.cotangents, gradients, mean, every.filter, after,
        every.limit,
    )  # fmt: skip


def check_sums(examples: one_filter.Numbers, digits: np.ndarray) -> tuple[np.ndarray, ...]:
    """Adds up the gradients from the winners: their rows, their columns, whether they see ink, and who adds most."""
    rows, columns = 2 * np.indices((12, 12))[:, None] + np.divmod(examples.winners, 2)
    patches = np.lib.stride_tricks.sliding_window_view(digits, (5, 5), (1, 2))  # (3, 24, 24, 5, 5), at every position
    patches = patches[np.arange(len(digits))[:, None, None], rows, columns]  # (3, 12, 12, 5, 5), at the winners
    inked, terms = patches.any((-2, -1)), patches * examples.cotangents[..., None, None]
    sums, counts = terms.sum((1, 2), where=inked[..., None, None]), ", ".join(map(str, inked.sum((1, 2))))
    text = f"each gradient is the sum of patch times cotangent over the winners that see ink, {counts} of 144"
    claim(
        f"{text}; the others add exactly 0",
        np.allclose(sums, examples.gradients, atol=1e-5) and not terms[~inked].any(),
    )
    differ = (examples.winners != examples.winners[0]).any(0).mean()
    text = (
        f"all gradients are 5x5, although the three digits do not have the same winner in {differ:.0%} of the windows"
    )
    claim(text, examples.gradients.shape == (3, 5, 5) and differ > 0.3)
    return rows, columns, inked, np.linalg.norm(terms, axis=(-2, -1)).reshape(len(digits), -1).argmax(1)


def check_step(examples: one_filter.Numbers, digits: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The filter after the step; the mean gradient and the step are compared with those of the mean loss and jpool."""
    params, xs, labels = one_filter.params(examples), jnp.asarray(digits), jnp.asarray(examples.labels, int)
    of_mean = jax.grad(lambda params: jax.vmap(one_filter.loss, (None, 0, 0))(params, xs, labels).mean())(params)
    error = abs(of_mean["filter"]["w"][..., 0, 0] - mean).max()
    claim(f"the mean of the three is jax.grad of their mean loss, to {error:.0e}", error < 1e-5)
    step = jpool.make_train_step(one_filter.loss, one_filter.OPTIMIZER)
    state, _ = step(jpool.TrainState.create(params, one_filter.OPTIMIZER), xs, labels)
    after = examples.filter - one_filter.RATE * mean
    error = abs(state.params["filter"]["w"][..., 0, 0] - after).max()
    claim(f"the step is minus {one_filter.RATE} times this mean, to {error:.0e}", error < 1e-6)
    return after


def picture(answer: Answer) -> Figure:
    """From left to right: a digit in each row, its map with winners, its gradient; then their mean and the step."""
    figure = style.figure(11, 6.4)
    figure.set_layout_engine("constrained", wspace=0.08, hspace=0.1)  # room for arrows
    panels = figure.subplot_mosaic(
        [["digit 0", "map 0", "gradient 0", ".", "before"],
         ["digit 1", "map 1", "gradient 1", "mean", "after"],
         ["digit 2", "map 2", "gradient 2", "text", "text"]],
    )  # fmt: skip
    for i in range(one_filter.SHOWN):
        show(figure, answer, i, *(panels[f"{name} {i}"] for name in ("digit", "map", "gradient")))
        arrow(figure, panels[f"gradient {i}"], panels["mean"])
    panels["digit 0"].set_title("a digit; green: one\nwinner and its patch", fontsize=style.TITLE)
    panels["map 0"].set_title("its feature map, 2x2\nwindows; dots: winners", fontsize=style.TITLE)
    panels["gradient 0"].set_title("its gradient: sum of all\ncotangent x patch", fontsize=style.TITLE)
    grid(panels["mean"], answer.mean, style.SIGNED, answer.limit)
    panels["mean"].text(2, -0.7, "mean of the three", ha="center", fontsize=style.TITLE, in_layout=False)
    limit = float(abs(np.array([answer.before, answer.after])).max())
    grid(panels["before"], answer.before, style.FILTER, limit)
    panels["before"].set_title("the filter before", fontsize=style.TITLE)
    grid(panels["after"], answer.after, style.FILTER, limit)
    text = f"the filter after:\nbefore - {one_filter.RATE} x mean"  # below the panel
    panels["after"].text(2, 4.7, text, ha="center", va="top", fontsize=style.TITLE, in_layout=False)
    arrow(figure, panels["mean"], panels["after"])
    arrow(figure, panels["before"], panels["after"], down=True)
    text = (
        f"Gradients and mean: red -{answer.limit:.2f}, white 0, blue {answer.limit:.2f}.\n"
        f"Filters: purple below 0, white 0, green {limit:.2f}. Rounded.\n"
        "Pixels: white 0, black 1. Winners on blank paper\nare not drawn: their patch is 0, they add nothing."
    )
    panels["text"].axis("off")
    panels["text"].text(0.5, 0.24, text, ha="center", va="center", linespacing=1.4, in_layout=False)
    return figure


def show(figure: Figure, answer: Answer, i: int, digit: Axes, feature_map: Axes, gradient: Axes) -> None:
    """One row: a digit, its feature map with the winners that see ink, its gradient; and one winner with its patch."""
    style.image(digit, answer.digits[i])
    style.image(feature_map, answer.maps[i])
    style.windows(feature_map, 24, 12)
    rows, columns = answer.rows[i][answer.inked[i]], answer.columns[i][answer.inked[i]]
    feature_map.plot(columns, rows, "o", color=style.WINNER, markersize=3.2, mec="black", mew=0.3)
    row, column = answer.rows[i].flat[answer.most[i]], answer.columns[i].flat[answer.most[i]]
    frame(digit, row, column, 5)
    frame(feature_map, row, column, 1)
    text = f"cotangent: {answer.cotangents[i].flat[answer.most[i]]:.2f}"
    digit.text(0.5, 0.5, text, fontsize=9, va="top", color="#00614a")
    grid(gradient, answer.gradients[i], style.SIGNED, answer.limit)
    arrow(figure, digit, feature_map)
    arrow(figure, feature_map, gradient)


def frame(axes: Axes, row: int, column: int, size: int) -> None:
    """Draws the border of `size` x `size` elements from this one."""
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), size, size, fill=False, edgecolor=style.GREEN, linewidth=2.5))


def grid(axes: Axes, values: np.ndarray, colours: str, limit: float) -> None:
    """Shows 5x5 numbers with their colours."""
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:.2f}".replace("-0.00", "0.00")
        ink = "white" if abs(value) > 0.6 * limit else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    style.image(axes, values, cmap=colours, vmin=-limit, vmax=limit)


def arrow(figure: Figure, start: Axes, end: Axes, down: bool = False) -> None:
    """Draws an arrow to the right, or down, between the edges of two panels."""
    out, into = ((0.5, 0), (0.5, 1)) if down else ((1, 0.5), (0, 0.5))
    drawn = ConnectionPatch(
        out, into, start.transAxes, end.transAxes, arrowstyle="-|>", mutation_scale=14, shrinkA=2, shrinkB=2, color="k"
    )
    drawn.set_in_layout(False)
    figure.add_artist(drawn)


main = command.experiment(__file__, __doc__, measure, picture, steps=Size("steps of the training", 1, 10_000))

if __name__ == "__main__":
    main()
