"""What a run says while it trains, and what stops it: its reports, a wish to stop, numbers that are not finite."""

import math
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

from tqdm import tqdm

import jpool

SKIPS = 10  # steps in a row that may be skipped before a run is given up


class Epoch(NamedTuple):
    """What is reported of one pass over the training digits."""

    loss: float  # mean over the epoch, in nats
    accuracy: float  # on the held-out digits, 0 to 1
    step_ms: float  # mean time of a step, in milliseconds; the first epoch's includes compilation


class Progress:
    """A bar with loss and accuracy on a terminal, a line per epoch elsewhere, nothing where `silent`."""

    def __init__(self, epochs: int, steps: int, done: int, *, silent: bool) -> None:
        """Starts the clock of `epochs` epochs of `steps` steps each, of which some are done."""
        self.epochs, self.silent = epochs, silent
        quiet = silent or not sys.stdout.isatty()
        self.bar = tqdm(total=epochs * steps, initial=done, unit="step", file=sys.stdout, disable=quiet)

    def step(self, metrics: jpool.Metrics, reports: list[Epoch]) -> None:
        """Called after every step; reads the loss of every tenth only, because reading waits for the device."""
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
            print(f"{count}  {result}", flush=True)


class Interrupt:
    """Between `with` and its end, Ctrl-C and a polite kill only leave a wish; a second one stops at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.asked = 0  # the number of the signal
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Listens."""
        heard = [number for number in self.SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self.before = {number: signal.signal(number, self._ask) for number in heard}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """What a signal did before, it does again."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        self.__exit__(None, None, None)


class Finite:
    """Looks at every step's loss and gradient one step later, when reading them waits for nothing."""

    def __init__(self, skip: bool, first_step: int) -> None:
        """With `skip`, SKIPS steps in a row may be without a finite gradient, which the optimiser then leaves out."""
        self.allowed, self.step, self.bad = SKIPS if skip else 0, first_step, 0
        self.metrics: jpool.Metrics | None = None

    def follow(self, metrics: jpool.Metrics | None) -> str | None:
        """What is wrong with the step before, if anything is, and nothing more can be done; None takes the last."""
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
