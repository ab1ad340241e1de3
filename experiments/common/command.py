"""What all experiments have in common: their options, the check of a claim, and the closing lines they print."""

import argparse
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.common import style, timing


def experiment(
    file: str, about: str, measure: Callable[..., Any], picture: Callable[[Any], Figure], **sizes: str
) -> Callable[..., Any]:
    """The `main` of an experiment: calls `measure`, which checks the claims, and draws its results to `out/NAME.png`.

    Args:
      file: the experiment's `__file__`; its stem is the experiment's name.
      about: its docstring, whose first line is shown as help.
      measure: `measure(seed, **sizes)` returns all results; raises AssertionError if a claim does not hold.
      picture: draws the figure of what `measure` returned.
      sizes: the help text of each other argument of `measure`, which is an int or float with a default.
    """
    name = Path(file).stem
    defaults = {size: inspect.signature(measure).parameters[size].default for size in sizes}

    def main(arguments: list[str] | None = None) -> Any:
        parser = argparse.ArgumentParser(
            prog=f"python -m experiments.{name}",
            description=about.partition("\n")[0],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        for size, text in sizes.items():
            kind = type(defaults[size])
            parser.add_argument(f"--{size}", type=positive(kind), default=defaults[size], help=text)
        parser.add_argument("--seed", type=natural, default=0, help="random seed")
        parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out"), help="directory for the picture")
        options = vars(parser.parse_args(arguments))
        path = make_directory(parser, options.pop("out")) / f"{name}.png"
        results = measure(**options)
        style.save(picture(results), path)
        print(f"picture: {path}\n{timing.versions()}")
        return results

    return main


def claim(text: str, holds: Any) -> None:
    """Prints a claim that holds; one that does not stops the experiment, because later results would mean nothing."""
    if not holds:
        raise AssertionError(f"does not hold: {text}")
    print(f"holds: {text}", flush=True)


def make_directory(parser: argparse.ArgumentParser, path: Path) -> Path:
    """Makes the directory early, so that an unwritable path is reported before anything is computed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(str(error))
    return path


def positive(kind: type) -> Callable[[str], Any]:
    """An argparse type: a finite number above zero."""

    def parse_positive(text: str) -> Any:
        value = kind(text)
        if not (0 < value < math.inf):
            raise ValueError(text)
        return value

    parse_positive.__name__ = f"positive {kind.__name__}"  # argparse puts it in the error text
    return parse_positive


def natural(text: str) -> int:
    """An argparse type: an integer from 0 to 2**32 - 1, such as a seed."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must be between 0 and 2**32 - 1; got {text}")
    return value
