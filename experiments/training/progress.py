"""What a training run reports: a bar on a terminal, and lines of text, from the main process only."""

import sys
from typing import Any, NamedTuple

import jax
from tqdm import tqdm


class Epoch(NamedTuple):
    """The report of one pass over the training digits."""

    loss: float  # mean over the epoch, in nats
    accuracy: float  # on the held-out digits, 0 to 1
    step_ms: float  # mean time of a step, in milliseconds; the first epoch's includes compilation

    def __str__(self) -> str:
        """The report as part of a line."""
        return f"loss {self.loss:.4f}  test accuracy {self.accuracy:.3f}  {self.step_ms:.1f} ms/step"


def bar(total: int, done: int) -> Any:
    """A progress bar of `total` steps, of which `done` have been taken."""
    # None: hidden unless standard output is a terminal.
    return tqdm(total=total, initial=done, unit="step", file=sys.stdout, disable=bool(jax.process_index()) or None)


def say(text: str) -> None:
    """Prints a line now, above the bar."""
    if jax.process_index() == 0:
        tqdm.write(text)
        sys.stdout.flush()
