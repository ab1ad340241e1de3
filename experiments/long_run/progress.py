"""The reports of a training run, and what stops it early: a signal, or numbers that are not finite."""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

from tqdm import tqdm

import jpool
from experiments.common import terminal

SKIPS = 10  # steps in a row that may be skipped before the run stops
TOGETHER = 1.0  # seconds; signals this soon after the first are counted as one


class Epoch(NamedTuple):
    """The report of one pass over the training digits."""

    loss: float  # mean over the epoch, in nats
    accuracy: float  # on the held-out digits, 0 to 1
    step_ms: float  # mean time of a step, in milliseconds; the first epoch's includes compilation


class Progress:
    """A bar with loss and accuracy on a terminal, a line per epoch elsewhere, nothing if `silent`."""

    def __init__(self, epochs: int, steps: int, done: int, *, silent: bool) -> None:
        """Starts the clock for `epochs` epochs of `steps` steps each; `done` steps have been taken."""
        self.epochs, self.silent = epochs, silent
        quiet = silent or not sys.stdout.isatty()
        self.bar = tqdm(total=epochs * steps, initial=done, unit="step", file=sys.stdout, disable=quiet)

    def step(self, metrics: jpool.Metrics, reports: list[Epoch]) -> None:
        """Called after every step; reads only every tenth loss, because reading waits for the device."""
        if not self.bar.disable and self.bar.n % 10 == 0:
            accuracy = f", test accuracy {reports[-1].accuracy:.3f}" if reports else ""
            self.bar.set_postfix_str(f"loss {metrics.loss:.3f}{accuracy}", refresh=False)
        self.bar.update()

    def epoch(self, reports: list[Epoch]) -> None:
        """Called after every epoch."""
        report = reports[-1]
        self.bar.set_postfix_str(f"loss {report.loss:.3f}, test accuracy {report.accuracy:.3f}")
        if self.bar.disable and not self.silent:
            count = f"epoch {len(reports):{len(str(self.epochs))}}/{self.epochs}"
            result = f"loss {report.loss:.4f}  test accuracy {report.accuracy:.3f}  {report.step_ms:.1f} ms/step"
            terminal.say(f"{count}  {result}")


class Interrupt:
    """Inside its `with` block a first signal is only recorded; a later one raises KeyboardInterrupt with its number."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill, a closed terminal

    def __init__(self) -> None:
        """No signal has arrived yet."""
        self.received = 0  # the number of the signal, 0 if none has arrived
        self.since = 0.0
        self.saving, self.at_once = False, 0
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Installs the handlers, except for signals that are ignored."""
        handled = [number for number in self.SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self.before = {number: signal.signal(number, self._record) for number in handled}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Restores the handlers from before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """A block that no signal interrupts."""
        self.saving = True
        try:
            yield
        finally:
            self.saving = False
        if self.at_once:
            raise KeyboardInterrupt(self.at_once)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self.since = number, time.monotonic()
        elif time.monotonic() - self.since > TOGETHER:
            self.at_once = number
            if not self.saving:
                raise KeyboardInterrupt(number)


class Finite:
    """Checks every step's loss and gradient one step later, when reading them no longer waits for the device."""

    def __init__(self, skip: bool, first_step: int) -> None:
        """With `skip`, up to SKIPS steps in a row may have no finite gradient; the optimiser skips them."""
        self.allowed, self.step, self.bad = SKIPS if skip else 0, first_step, 0
        self.metrics: jpool.Metrics | None = None

    def follow(self, metrics: jpool.Metrics | None) -> str | None:
        """What is wrong with the step before if the run must stop, else None; pass None after the last step."""
        before, self.metrics = self.metrics, metrics
        if before is None:
            return None
        self.step += 1
        loss, norm = float(before.loss), float(before.gradient_norm)
        self.bad = 0 if math.isfinite(loss) and math.isfinite(norm) else self.bad + 1
        if self.bad <= self.allowed:
            return None
        many = f", the last of {self.bad} in a row" if self.allowed else ""
        return f"the loss is {loss} and the norm of the gradient {norm} in step {self.step}{many}"
