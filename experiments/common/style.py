"""The style of every picture: plain axes, and colours that print well and that colour-blind readers can distinguish."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from PIL import Image

BLUE, RED, GREEN, PURPLE, BLACK, GREY = "#2e6fe4", "#e4572e", "#009e73", "#a45ab0", "#222222", "#8a8a8a"
WINNER = "#ffb000"  # the element that holds the maximum of its window; in none of the two maps below
SIGNED, FILTER = "RdBu", "PRGn"  # gradients and cotangents: red is negative, blue positive; filters: purple and green
# The series of a plot, in this order. Lines also differ in marker and dash, for prints without colour.
SERIES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "marker": "o", "linestyle": "-"},
    {"color": RED, "marker": "s", "linestyle": "--"},
    {"color": GREEN, "marker": "^", "linestyle": "-."},
    {"color": PURPLE, "marker": "D", "linestyle": (0, (4, 1.5, 1, 1.5, 1, 1.5))},
    {"color": BLACK, "marker": "v", "linestyle": ":"},
)
DPI = 200  # twice the width at which a page shows a picture, for screens of high density
TITLE = 11  # points; all other text has matplotlib's default of 10


def figure(width: float, height: float) -> Figure:
    """An empty figure; sizes are in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Axes, title: str = "", **labels: Any) -> None:
    """Sets the title and labels of a plot, with a faint grid and no box."""
    axes.set_title(title, fontsize=TITLE)
    axes.set(**labels)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def ticks(axis: Axis, *values: float) -> None:
    """Marks only these values, in plain numbers."""
    axis.set_ticks(values, labels=[f"{value:g}" for value in values])
    axis.set_ticks([], minor=True)


def bars(axes: Axes, names: Iterable[str], series: dict[str, tuple[Any, Any]], fmt: Any) -> None:
    """Draws horizontal bars from the top down: for each name one of every series, which has values and colours."""
    height = 0.8 / len(series)
    for i, (label, (values, colours)) in enumerate(series.items()):
        drawn = axes.barh(np.arange(len(values)) + i * height, values, 0.95 * height, color=colours, label=label)
        for text in axes.bar_label(drawn, fmt=fmt, padding=3):
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set_yticks(np.arange(len(values)) + 0.4 - height / 2, list(names))
    axes.invert_yaxis()


def image(axes: Axes, values: np.ndarray, title: str = "", **options: Any) -> Any:
    """Shows an array as an image without ticks; the largest value is black."""
    axes.set_title(title, fontsize=TITLE)
    axes.set(xticks=[], yticks=[])
    return axes.imshow(values, **{"cmap": "gray_r", "interpolation": "nearest"} | options)


def windows(axes: Axes, size: int, count: int) -> None:
    """Draws the borders of `count` x `count` windows over an image of `size` x `size` elements."""
    edges = np.linspace(0, size, count + 1) - 0.5
    axes.hlines(edges, -0.5, size - 0.5, color="#88888866", linewidth=0.6)
    axes.vlines(edges, -0.5, size - 0.5, color="#88888866", linewidth=0.6)


def save(picture: Figure, path: Path) -> None:
    """Writes a picture, in 256 colours, so that it is small enough to be committed."""
    with io.BytesIO() as whole:
        picture.savefig(whole, format="png", dpi=DPI)
        Image.open(whole).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)
