"""What stops a training run early: a signal, or numbers that are not finite."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill, a closed terminal
SKIPS = 10  # steps in a row that may be skipped before the run stops


class Stopped(Exception):  # noqa: N818  # not always an error
    """The run cannot begin or go on; the message is one sentence."""

    def __init__(self, sentence: str, status: int = 1) -> None:
        """Holds the exit status of the program, too."""
        super().__init__(sentence)
        self.status = status


@contextmanager
def signals_recorded() -> Iterator[list[int]]:
    """Inside its block signals are only put into the list, but a second Ctrl-C raises KeyboardInterrupt."""
    received: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:
        if number in received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    # A shell lets its background jobs ignore Ctrl-C, and nohup lets a program ignore SIGHUP.
    before = {number: signal.signal(number, record) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
