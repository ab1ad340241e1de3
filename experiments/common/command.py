"""What all experiments have in common: their options, the check of a claim, and the closing lines they print."""

import argparse
import contextlib
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from experiments.common import machine, style


class Size(NamedTuple):
    """An option that is a whole number: its help text, and the values with which the experiment works."""

    help: str
    least: int
    most: int

    def add_to(self, parser: argparse.ArgumentParser, name: str, default: int) -> None:
        """Adds the option."""
        about = f"{self.help}, between {self.least:,} and {self.most:,}"
        parser.add_argument(f"--{name}", type=between(self.least, self.most), default=default, help=about)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def experiment(
    file: str, about: str, measure: Callable[..., Any], picture: Callable[[Any], Figure], **sizes: Size
) -> Callable[..., Any]:
    """The `main` of an experiment: calls `measure`, which checks the claims, and draws its results to `out/NAME.png`.

    Args:
      file: the experiment's `__file__`; its stem is the experiment's name.
      about: its docstring, whose first line is shown as help.
      measure: `measure(seed, **sizes)` returns all results; raises AssertionError if a claim does not hold.
      picture: draws the figure of what `measure` returned.
      sizes: the help text and bounds of each other argument of `measure`, which is an int with a default.
    """
    name = Path(file).stem
    defaults = {option: inspect.signature(measure).parameters[option].default for option in sizes}

    def main(arguments: list[str] | None = None) -> Any:
        parser = parser_of(file, about)
        for option, size in sizes.items():
            size.add_to(parser, option, defaults[option])
        add_seed_and_out(parser, "picture")
        options = vars(parser.parse_args(arguments))
        path = make_directory(parser, options.pop("out")) / f"{name}.png"
        results = measure(**options)
        style.save(picture(results), path)
        print(f"picture: {path}\n{machine.versions()}")
        return results

    return main


def add_seed_and_out(parser: argparse.ArgumentParser, result: str) -> None:
    """Adds the options that every experiment has."""
    parser.add_argument("--seed", type=between(0, 2**32 - 1), default=0, help="random seed")
    parser.add_argument("--out", metavar="DIR", type=directory, default=Path("out"), help=f"directory for the {result}")


def parser_of(file: str, about: str | None) -> argparse.ArgumentParser:
    """The parser of the module in this file, with the first line of its docstring as help."""
    return argparse.ArgumentParser(
        prog=f"python -m experiments.{Path(file).stem}",
        description=(about or "").partition("\n")[0],
        formatter_class=HelpFormatter,
    )


def claim(text: str, holds: Any) -> None:
    """Prints a claim that holds; one that does not stops the experiment, because later results would mean nothing."""
    if not holds:
        raise AssertionError(f"does not hold: {text}")
    print(f"holds: {text}", flush=True)


def make_directory(parser: argparse.ArgumentParser, path: Path, option: str = "--out") -> Path:
    """Makes the directory early, so that an unwritable path is reported before anything is computed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # permission bits alone do not tell, for root or on a read-only disk
    except FileExistsError:
        parser.error(f"argument {option}: must be a directory; {path} is a file")
    except OSError as error:
        parser.error(f"argument {option}: {path} cannot be written: {error.strerror}")
    return path


def between(least: float, most: float) -> Callable[[str], Any]:
    """An argparse type: a number of the type of `least`."""

    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if least <= (value := type(least)(text)) <= most:
                return value
        raise argparse.ArgumentTypeError(f"must be between {least:,} and {most:,}; got {text}")

    return parse


def directory(text: str) -> Path:
    """An argparse type: the path of a directory. Path("") would be the current one."""
    if not text:
        raise argparse.ArgumentTypeError("must be a directory, such as '.'; got ''")
    return Path(text)
