"""What all experiments have in common: their options, how they state a claim, and what they say at the end."""

import argparse
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments import style, timing


def experiment(
    file: str, about: str, measure: Callable[..., Any], picture: Callable[[Any], Figure], **sizes: str
) -> Callable[..., Any]:
    """The `main` of an experiment: measures, which checks its claims, and draws what was found to `out/NAME.png`.

    Args:
      file: the experiment's `__file__`, from which it has its name.
      about: its docstring, shown as help.
      measure: `measure(seed, **sizes)`, everything that is found; raises AssertionError where a claim does not hold.
      picture: the figure of what `measure` returned.
      sizes: for each other argument of measure, an int or float with a default, what `--help` says of it.
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
        parser.add_argument("--seed", type=natural, default=0, help="of everything that is random")
        parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out"), help="where the picture goes")
        options = vars(parser.parse_args(arguments))
        path = make_directory(parser, options.pop("out")) / f"{name}.png"
        found = measure(**options)
        style.save(picture(found), path)
        print(f"picture: {path}\n{timing.versions()}")
        return found

    return main


def claim(text: str, holds: Any) -> None:
    """States what was found; where it does not hold, nothing that follows would mean anything."""
    if not holds:
        raise AssertionError(f"does not hold: {text}")
    print(f"holds: {text}", flush=True)


def make_directory(parser: argparse.ArgumentParser, path: Path) -> Path:
    """Makes it now, so that what cannot be written is known before anything is computed."""
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
    """An argparse type: a seed."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must be between 0 and 2**32 - 1; got {text}")
    return value
