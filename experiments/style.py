"""How every picture looks: plain axes, colours that print and that colour-blind readers can tell apart."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, RED, GREEN, PURPLE, BLACK, GREY = "#2e6fe4", "#e4572e", "#009e73", "#a45ab0", "#222222", "#8a8a8a"
# One after the other for the series of a plot. Lines differ in marker and dash as well, for paper without colour.
SERIES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "marker": "o", "linestyle": "-"},
    {"color": RED, "marker": "s", "linestyle": "--"},
    {"color": GREEN, "marker": "^", "linestyle": "-."},
    {"color": PURPLE, "marker": "D", "linestyle": (0, (6, 2))},
    {"color": BLACK, "marker": "v", "linestyle": ":"},
)
DPI = 100  # a figure of width 10 is shown 1,000 pixels wide
TITLE = 11  # points; all other letters have matplotlib's 10


def figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches of 100 pixels."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Axes, title: str = "", **labels: Any) -> None:
    """A plot: its title and labels, a faint grid, no box."""
    axes.set_title(title, fontsize=TITLE)
    axes.set(**labels)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def image(axes: Axes, values: np.ndarray, title: str = "", **options: Any) -> Any:
    """An array as an image: black is the largest, and there are no ticks."""
    axes.set_title(title, fontsize=TITLE)
    axes.set(xticks=[], yticks=[])
    return axes.imshow(values, **{"cmap": "gray_r", "interpolation": "nearest"} | options)


def windows(axes: Axes, size: int, count: int) -> None:
    """Lines around `count` windows a side over an image of `size` elements a side."""
    edges = np.linspace(0, size, count + 1) - 0.5
    axes.hlines(edges, -0.5, size - 0.5, color="#88888866", linewidth=0.6)
    axes.vlines(edges, -0.5, size - 0.5, color="#88888866", linewidth=0.6)


def save(picture: Figure, path: Path) -> None:
    """Writes it, small enough to be committed."""
    picture.savefig(path, dpi=DPI)
