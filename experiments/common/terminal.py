"""What a program prints, when its output is a closed pipe, a full disk or a terminal that knows no accents."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress


class OutputError(Exception):
    """Standard output cannot be written; the message is one sentence."""


def prepare() -> None:
    """Lets characters that the terminal does not know be printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Prints a line now.

    Raises:
      OutputError: it cannot be written.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        discard()
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error


def discard() -> None:
    """Sends all further output nowhere; otherwise Python tries again to write the rest when it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stdout.flush()


def run(main: Callable[[], None]) -> None:
    """Runs a program; Ctrl-C at any time, even several times, is no traceback."""
    try:
        main()
    except KeyboardInterrupt:
        with suppress(OSError):
            print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the end of the interpreter is left
