"""The answer, to try out: one HTML page, with all its numbers, that shows how a batch passes a max pooling and back.

    python -m experiments.explorable

The page needs no network and no other file. Its numbers are computed by jpool; the maxima, tie rules and means that
follow what the reader does are computed by `script.js`, and tests compare them with jpool's.
"""

import base64
import json
import string
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.common import command, machine
from experiments.digits import one_filter
from experiments.explorable import numbers

FOLDER = Path(__file__).parent
STEPS = command.Size("training steps", 1, 1_000)


def page(shown: numbers.Numbers, steps: int) -> str:
    """The HTML, with the script and the numbers inside."""
    arrays = {
        name: base64.b64encode(value.astype(value.dtype.newbyteorder("<")).tobytes()).decode()
        for name, value in shown._asdict().items()
    }
    data = json.dumps(arrays | {"sizes": numbers.SIZES})
    return fill(steps=steps, orders=f"{numbers.ORDERS:,}", about=machine.versions(), data=data)


def fill(**texts: object) -> str:
    """The template with the script and these texts in it."""
    script = (FOLDER / "script.js").read_text(encoding="utf-8")
    template = string.Template((FOLDER / "template.html").read_text(encoding="utf-8"))
    return template.substitute(texts, script=script, rate=one_filter.RATE)


def main(arguments: Sequence[str] | None = None) -> numbers.Numbers:
    """Computes the numbers and writes the page."""
    parser = command.parser_of(FOLDER.name, __doc__)
    STEPS.add_to(parser, "steps", 300)
    command.add_seed_and_out(parser, "page")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    path = command.make_directory(parser, options.out) / "explorable.html"
    shown = numbers.measure(options.seed, options.steps)
    path.write_text(page(shown, options.steps), encoding="utf-8")
    print(f"page: {path}, {path.stat().st_size / 1e3:.0f} kB\n{machine.versions()}")
    return shown


if __name__ == "__main__":
    main()
