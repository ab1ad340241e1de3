"""What the measurements of speed share: options, the check for other libraries, the picture."""

import argparse
import importlib.util
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import command, style

ROUNDS = command.Size("timing rounds per method", 1, 1_000)
Ratios = dict[str, dict[str, float]]  # by row, by library: its time as a multiple of jpool's
LOOKS: dict[str, dict[str, Any]] = {  # one for a library, in all pictures
    "lax": {"color": style.RED, "marker": "o", "label": "lax, which Flax, Equinox and Haiku call"},
    "torch": {"color": style.BLUE, "marker": "s", "label": "torch"},
    "free": {
        "color": style.GREY,
        "marker": "|",
        "markeredgewidth": 2.5,
        "label": "the limit: a strided slice in place of every pooling",
    },
}


def add_shapes(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Adds the option that selects what to measure, by words of its name; it becomes the list of the names."""
    names = list(names)

    class Choose(argparse.Action):
        def __call__(self, _: object, chosen: argparse.Namespace, words: object, option: str | None = None) -> None:
            assert isinstance(words, list)
            found = {word: [name for name in names if word.lower() in name.lower()] for word in words}
            for word, those in found.items():
                if not those:
                    parser.error(f"argument --shapes: no name contains {word!r}; the names are {', '.join(names)}")
            chosen.shapes = [name for name in names if any(name in those for those in found.values())]

    about = "only those whose name contains a WORD"
    parser.add_argument("--shapes", nargs="+", metavar="WORD", action=Choose, default=names, help=about)


def add_png(parser: argparse.ArgumentParser) -> None:
    """Adds the option for a picture."""

    def png(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() != ".png":  # matplotlib would choose another format, or another name
            raise argparse.ArgumentTypeError(f"must end in .png; got {text}")
        if not path.absolute().parent.is_dir():
            raise argparse.ArgumentTypeError(f"there is no directory {path.parent}; got {text}")
        return path

    parser.add_argument("--png", metavar="FILE", type=png, help="draw the ratios")


def need(*packages: str) -> None:
    """Ends the program if a package is not installed."""
    if missing := [name for name in packages if not importlib.util.find_spec(name)]:
        raise SystemExit(f"needs {', '.join(missing)}, of the extra `peers`: pip install -e '.[experiments,peers]'")


def spread(name: str, ratios: Sequence[float]) -> str:
    """The median and the range of some ratios."""
    median, low, high = (
        f"{ratio:.{1 if ratio < 10 else 0}f}" for ratio in (np.median(ratios), *map(float, (min(ratios), max(ratios))))
    )
    return f"{name}: median {median}, from {low} to {high}"


def draw(rows: Ratios, xlabel: str, about: str, path: Path) -> None:
    """Draws a dot for each ratio, on a logarithmic axis with a line at 1."""
    figure = style.figure(9, 0.32 * len(rows) + 1.7)
    axes = figure.subplots()
    for library in dict.fromkeys(library for row in rows.values() for library in row):
        ratios = [row.get(library, math.nan) for row in rows.values()]
        size = 16 if library == "free" else 7
        axes.plot(ratios, range(len(rows)), linestyle="", markersize=size, **LOOKS[library])
    axes.axvline(1, color=style.BLACK, linewidth=1, zorder=0)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    style.tidy(axes, xlabel=f"{xlabel}; to the right of 1, jpool is faster", xscale="log")
    axes.set_title(about.replace("; ", "\n"), fontsize=8, loc="left")
    low, high = axes.get_xlim()
    at = (0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100, 200) if high > 4 else (0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 3)
    style.ticks(axes.xaxis, *(tick for tick in at if low <= tick <= high))
    figure.legend(loc="outside lower left", ncols=len(LOOKS), frameon=False)
    style.save(figure, path)
