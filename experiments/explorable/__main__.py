"""See it move: one HTML page, with all its numbers, that shows and lets you touch how a batch passes a max pooling.

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

import numpy as np

from experiments.common import command, machine
from experiments.explorable import numbers
from experiments.wrong_averages import AVERAGED

FOLDER = Path(__file__).parent
STEPS = command.Size("training steps", 1, 1_000)


def page(shown: numbers.Numbers, steps: int) -> str:
    """The HTML, with the script and the numbers inside."""
    likenesses = shown.likenesses.items()
    ways = [{"name": f"{way} {AVERAGED[way]}", "cosine": cosine, "norm": norm} for way, (cosine, norm) in likenesses]
    arrays = {
        name: base64.b64encode(value.astype(value.dtype.newbyteorder("<")).tobytes()).decode()
        for name, value in shown._asdict().items()
        if isinstance(value, np.ndarray) and name != "labels"
    }
    more = {"labels": shown.labels.tolist(), "noise": shown.noise, "rate": numbers.RATE, "ways": ways}
    texts = {"examples": len(shown.images), "step": shown.step, "steps": steps, "digits": f"{shown.digits:,}"}
    return fill(**texts, about=machine.versions(), data=json.dumps(arrays | more))


def fill(**texts: object) -> str:
    """The template with the script and these texts in it."""
    script = (FOLDER / "script.js").read_text(encoding="utf-8")
    template = string.Template((FOLDER / "template.html").read_text(encoding="utf-8"))
    return template.substitute(texts, script=script, rate=numbers.RATE)


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
