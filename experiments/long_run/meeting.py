"""How the processes of a run meet, and how each learns that another one has died.

JAX's client and coordinator abort the program from C++, which Python cannot prevent, if a process comes twice or never,
if one dies, or if another program has the port. So the processes meet first over plain sockets:

    process 0 listens at the port of the coordinator; every other process connects and says which one it is
    process 0 answers "wait", or a sentence with which it refuses the other process
    when all are there it closes the port and says "go"; then all start JAX, whose coordinator has the same port

These connections stay open. A process that ends as planned says "bye"; one that fails says "failed" and prints why;
the end of the connection without either means that it has died, and process 0 tells the others. Each then prints a
sentence and ends its program from a thread, because a collective operation of JAX cannot be interrupted.
"""

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NoReturn

from jax.errors import JaxRuntimeError

HELLO = "jpool process {} of {}"
ANSWER = 10  # seconds for a line of another program
GRACE = 10  # seconds in which a process may end with its own sentence after another one has failed
RETRY = 0.2  # seconds between attempts to connect
KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # a machine without power says nothing


class MeetingError(Exception):
    """The processes cannot meet; the message is one sentence."""


class Partner:
    """The connection to another process, which sends and receives lines."""

    def __init__(self, connection: socket.socket) -> None:
        """Takes over the connection."""
        self.socket, self.lines = connection, connection.makefile("r", errors="replace")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # macOS lacks some
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, line: str) -> None:
        """Sends a line; one that has died does not receive it."""
        with suppress(OSError):
            self.socket.sendall(f"{line}\n".encode())

    def receive(self, seconds: float | None) -> str:
        """The next line, "" if there is none."""
        self.socket.settimeout(seconds)
        try:
            return self.lines.readline(1000).strip()
        except OSError:  # TimeoutError among them
            return ""

    def has_left(self) -> bool:
        """Whether the other side, which has nothing to say now, has closed the connection."""
        self.socket.settimeout(0)
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except OSError as error:
            return not isinstance(error, BlockingIOError)

    def close(self) -> None:
        """Closes the connection."""
        self.lines.close()
        self.socket.close()


def gather(coordinator: str, port: int, processes: int, timeout: float) -> dict[int, Partner]:
    """Process 0 waits for all others."""
    try:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=processes)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise MeetingError(
            f"--coordinator {coordinator}: process 0 cannot listen at this port ({reason}); stop the program that has "
            "it, which may be another process 0, or give another port"
        ) from error
    partners: dict[int, Partner] = {}
    until = time.monotonic() + timeout
    with listener:
        while len(present(partners)) < processes - 1:
            listener.settimeout(max(0.001, until - time.monotonic()))
            try:
                partner = Partner(listener.accept()[0])
            except TimeoutError as error:
                for partner in partners.values():
                    partner.close()
                missing = ", ".join(str(i) for i in range(1, processes) if i not in partners)
                raise MeetingError(
                    f"not all processes came to {coordinator} in {timeout} s; missing: {missing}"
                ) from error
            admit(partner, partners, processes)
    for partner in partners.values():
        partner.send("go")
    return partners


def present(partners: dict[int, Partner]) -> dict[int, Partner]:
    """Forgets the processes that have left; those that are still there."""
    for number in [number for number, partner in partners.items() if partner.has_left()]:
        partners.pop(number).close()
    return partners


def admit(partner: Partner, partners: dict[int, Partner], processes: int) -> None:
    """Reads who has connected and answers; other programs that connect are ignored."""
    hello = partner.receive(ANSWER / 4)
    numbers = [int(word) for word in hello.split() if word.isdecimal()]
    if len(numbers) != 2 or hello != HELLO.format(*numbers):
        partner.close()
        return
    number, theirs = numbers
    present(partners)
    if theirs != processes:
        partner.send(f"--processes is {processes} in process 0 and {theirs} in process {number}; give all the same")
        partner.close()
    elif number in partners:
        partner.send(f"--process-id {number} is taken by another process; give each process its own")
        partner.close()
    else:
        partners[number] = partner
        partner.send("wait")


def join(host: str, port: int, processes: int, number: int, timeout: float) -> dict[int, Partner]:
    """Every other process connects to process 0 and waits until all are there."""
    until = time.monotonic() + timeout
    address = f"{host}:{port}"
    while True:
        try:
            partner = Partner(socket.create_connection((host.strip("[]"), port), timeout=1))
            break
        except OSError as error:
            if time.monotonic() > until:
                raise MeetingError(
                    f"no process answers at {address} after {timeout} s ({error}); is process 0 running?"
                ) from error
            time.sleep(RETRY)
    partner.send(HELLO.format(number, processes))
    answer = partner.receive(ANSWER)
    if answer == "wait":
        answer = partner.receive(max(0, until - time.monotonic()) + ANSWER)
        if answer == "go":
            return {0: partner}
        partner.close()
        raise MeetingError(f"process 0 at {address} has ended before all {processes} processes were there")
    partner.close()
    if answer.startswith("--"):
        raise MeetingError(answer)
    raise MeetingError(
        f"--coordinator {address}: the program that answers there is not process 0 of a run that starts; it is another "
        "program, or a run that has started already"
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class Watch:
    """Ends the program with a sentence if a partner ends without "bye"."""

    def __init__(self, partners: dict[int, Partner]) -> None:
        """Starts a thread for each partner."""
        self.partners = partners
        self.advice: Callable[[], str] = lambda: "nothing is saved; start all processes again"
        self.one_at_a_time = threading.Lock()
        for number in partners:
            threading.Thread(target=self._watch, args=(number,), daemon=True).start()

    def send(self, line: str) -> None:
        """Sends a line to all partners."""
        for partner in self.partners.values():
            partner.send(line)

    def fail(self, error: BaseException) -> NoReturn:
        """Ends the program as an uncaught exception does, but without JAX's wait for the other processes at its end."""
        if not isinstance(error, SystemExit) or any(isinstance(cause, JaxRuntimeError) for cause in causes(error)):
            time.sleep(GRACE)  # probably a partner has died: then the watch says so and ends the program
        self.send("failed")
        status = error.code if isinstance(error, SystemExit) else 1
        with suppress(OSError):
            if not isinstance(error, SystemExit):
                traceback.print_exception(error)
            elif not isinstance(status, int):
                print(status, file=sys.stderr)
            sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)

    def _watch(self, number: int) -> None:
        line = self.partners[number].receive(None)
        if line == "bye":
            return
        with self.one_at_a_time:
            if line == "failed":  # perhaps this process fails in the same way, with a better sentence
                time.sleep(GRACE)
                line = f"process {number} has stopped and printed why"
            line = line or f"process {number} has died or cannot be reached"
            self.send(line)  # only process 0 knows all
            with suppress(OSError):
                print(f"{line}; {self.advice()}", file=sys.stderr, flush=True)
            os._exit(1)


def relay(host: str, port: int) -> str:
    """A local address that stands for a distant one and stays open if that closes, as JAX's client aborts otherwise."""
    listener = socket.create_server(("127.0.0.1", 0))

    def forward(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        # Neither is closed: the program ends, or the watch ends it.

    def serve() -> None:
        while True:
            near, _ = listener.accept()
            while True:
                try:
                    far = socket.create_connection((host.strip("[]"), port))
                    break
                except OSError:
                    time.sleep(RETRY)
            for pair in ((near, far), (far, near)):
                threading.Thread(target=forward, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"
