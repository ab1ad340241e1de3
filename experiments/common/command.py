"""What all experiments have in common: their options, the check of a claim, and the closing lines they print."""

import argparse
import inspect
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
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
        bounds = f"between {self.least:,} and {self.most:,}"

        def parse(text: str) -> int:
            value = int(text)
            if not self.least <= value <= self.most:
                raise argparse.ArgumentTypeError(f"must be {bounds}; got {text}")
            return value

        parse.__name__ = "int"  # argparse puts it in the error text
        about = f"{self.help}, {bounds} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=parse, default=default, help=about)


FLOATS = (2.0**-126, (2 - 2.0**-23) * 2.0**127)  # the least and the largest of float32
ROUNDS = Size("timing rounds per method", 1, 1_000)


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
        check_file(parser, path, "--out")
        results = measure(**options)
        style.save(picture(results), path)
        print(f"picture: {path}\n{machine.versions()}")
        return results

    return main


def add_seed_and_out(parser: argparse.ArgumentParser, result: str) -> None:
    """Adds the options that every experiment has."""
    parser.add_argument("--seed", type=natural, default=0, help="random seed")
    parser.add_argument("--out", metavar="DIR", type=directory, default=Path("out"), help=f"directory for the {result}")


def rounds_of(file: str, about: str | None, default: int, arguments: list[str] | None) -> int:
    """The rounds of a comparison without any other option."""
    parser = parser_of(file, about)
    ROUNDS.add_to(parser, "rounds", default)
    return parser.parse_args(arguments).rounds


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


def check_file(parser: argparse.ArgumentParser, path: Path, option: str) -> None:
    """Refuses a file that cannot be written, before anything is computed; keeps what it holds."""
    try:
        if not path.parent.is_dir():
            parser.error(f"argument {option}: {path} cannot be written: there is no directory {path.parent}")
        if path.is_char_device() or path.is_fifo():  # such as /dev/stdout; opening and closing a pipe would end it
            return
        is_new = not path.exists()
        path.open("ab").close()
        if is_new:
            path.resolve().unlink()
    except OSError as error:
        parser.error(f"argument {option}: {path} cannot be written: {error.strerror}")


def check_files(parser: argparse.ArgumentParser, json: Path | None, png: Path | None) -> None:
    """Checks the files of `--json` and `--png`."""
    if json:
        check_file(parser, json, "--json")
    if png:
        if png.suffix.lower() != ".png":  # matplotlib would choose another format, or another name
            parser.error(f"argument --png: must end in .png; got {png}")
        if png == json:
            parser.error(f"argument --png: must be another file than that of --json; got {png}")
        check_file(parser, png, "--png")


def add_shapes(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds the option that selects what to measure, by words of its name."""
    parser.add_argument(
        "--shapes", nargs="+", metavar="WORD", default=[""], help=f"only {what}s whose name contains a WORD"
    )


def chosen(parser: argparse.ArgumentParser, words: Sequence[str], names: Iterable[str], what: str) -> list[str]:
    """The names that contain one of the words of `--shapes`; every word must be in one."""
    names = list(names)
    selected = {word: [name for name in names if word.lower() in name.lower()] for word in words}
    for word, found in selected.items():
        if not found:
            such = "such a name" if len(words) == 1 else f"a name with {word!r}"
            parser.error(f"argument --shapes: no {what} has {such}; the names are {', '.join(names)}")
    return [name for name in names if any(name in found for found in selected.values())]


def positive(kind: type) -> Callable[[str], Any]:
    """An argparse type: a finite number above zero; a float is one that float32 holds."""

    def parse_positive(text: str) -> Any:
        value = kind(text)
        if not (0 < value < math.inf):
            raise ValueError(text)
        if kind is float and not FLOATS[0] <= value <= FLOATS[1]:
            raise argparse.ArgumentTypeError(f"must be between {FLOATS[0]:.2g} and {FLOATS[1]:.2g}; got {text}")
        return value

    parse_positive.__name__ = f"positive {kind.__name__}"  # argparse puts it in the error text
    return parse_positive


def natural(text: str) -> int:
    """An argparse type: an integer from 0 to 2**32 - 1, such as a seed."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must be between 0 and 2**32 - 1; got {text}")
    return value


def directory(text: str) -> Path:
    """An argparse type: the path of a directory. Path("") would be the current one."""
    if not text:
        raise argparse.ArgumentTypeError("must be a directory, such as '.'; got ''")
    return Path(text)
