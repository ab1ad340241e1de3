"""Processes that come twice, never, or to another program, or that die: one sentence each, and no abort from C++."""

import contextlib
import queue
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import test_run

from experiments.long_run import cluster, meeting
from experiments.long_run.meeting import MeetingError

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")
few, options, free_port = test_run.few, test_run.options, test_run.free_port
HOST = "127.0.0.1"


@contextlib.contextmanager
def process_0(port, processes, timeout=20):
    """Process 0 in a thread; yields the future of its partners."""
    with ThreadPoolExecutor(1) as pool:
        partners = pool.submit(meeting.gather, f"{HOST}:{port}", port, processes, timeout)
        yield partners
        with contextlib.suppress(MeetingError):
            close(partners.result())


def close(partners):
    for partner in partners.values():
        partner.close()


def join(port, number, processes, timeout=20):
    return meeting.join(HOST, port, processes, number, timeout)


# --- the meeting ---


def connect(port):
    """A connection to process 0, which may not listen yet."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection((HOST, port), timeout=20)


def arrive(port, number, processes):
    """A connection of a process that has come, and waits for the others."""
    connection = connect(port)
    connection.sendall(f"jpool process {number} of {processes}\n".encode())
    assert connection.recv(100) == b"wait\n"
    return connection


def test_processes_that_come_twice_or_with_another_number_of_processes_are_refused():
    port = free_port()
    with process_0(port, 3) as met:
        with pytest.raises(
            MeetingError, match=r"^--processes is 3 in process 0 and 4 in process 2; give all the same$"
        ):
            join(port, 2, 4)
        with arrive(port, 1, 3) as first:
            with pytest.raises(
                MeetingError, match=r"^--process-id 1 is taken by another process; give each process its "
            ):
                join(port, 1, 3)
            close(join(port, 2, 3))
            assert first.recv(100) == b"go\n"
            assert sorted(met.result()) == [1, 2]


def test_a_process_that_left_may_come_again():
    port = free_port()
    with process_0(port, 3) as met, ThreadPoolExecutor(2) as pool:
        arrive(port, 1, 3).close()
        again = [pool.submit(join, port, 2, 3)]
        time.sleep(0.1)  # process 2 comes first: the meeting must not end with process 1, which has left
        again.append(pool.submit(join, port, 1, 3))
        assert sorted(met.result()) == [1, 2]
        for joined in again:
            close(joined.result())


def test_process_0_names_those_that_did_not_come_and_the_others_notice_that_it_has_ended():
    port = free_port()
    with process_0(port, 3, timeout=1) as met:
        with pytest.raises(
            MeetingError, match=rf"process 0 at {HOST}:{port} has ended before all 3 processes were there"
        ):
            join(port, 1, 3)
        with pytest.raises(MeetingError, match=rf"not all processes came to {HOST}:{port} in 1 s; missing: 2"):
            met.result()


@pytest.mark.parametrize("says", [b"HTTP/1.0 400 Bad Request\r\n\r\n", b"\x00\x00\x12\x04\xff", b""])
def test_another_program_on_the_port_is_reported_by_both_sides(says, monkeypatch):
    monkeypatch.setattr(meeting, "ANSWER", 0.3)  # this program may say nothing at all
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]

        def answer():
            connection, _ = other.accept()
            connection.sendall(says)
            connection.recv(100)
            done.wait(20)
            connection.close()

        done = threading.Event()
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(
            MeetingError, match=rf"--coordinator {HOST}:{port}: the program that answers there is not proc"
        ):
            join(port, 1, 2)
        done.set()
        thread.join()
        sentence = r"process 0 cannot listen at this port \(Address already in use\); stop the program that has it"
        with pytest.raises(MeetingError, match=sentence):
            meeting.gather(f"{HOST}:{port}", port, 2, 1)


def test_other_programs_that_connect_to_process_0_are_ignored(monkeypatch):
    monkeypatch.setattr(meeting, "ANSWER", 1)
    port = free_port()
    with process_0(port, 2) as met:
        for says in (b"GET / HTTP/1.0\r\n\r\n", b"\xff\xfe\n", b"jpool process x of 2\n", b""):
            with connect(port) as connection:
                connection.sendall(says)
        close(join(port, 1, 2))
        assert sorted(met.result()) == [1]


# --- after it ---


@pytest.fixture
def watched(monkeypatch):
    """A watch of process 1, the other end of its connection, and the exit status of the program."""
    ended = queue.Queue()
    monkeypatch.setattr(meeting.os, "_exit", ended.put)
    monkeypatch.setattr(meeting, "GRACE", 0.2)
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(meeting, "KEEPALIVE", {})  # they are for TCP
    partner = meeting.Partner(ours)
    others = threading.enumerate()
    watch = meeting.Watch({1: partner})
    watch.advice = lambda: "last good checkpoint: DIR/40"
    yield watch, theirs, ended
    with contextlib.suppress(OSError):
        theirs.sendall(b"bye\n")
    theirs.close()
    for thread in {*threading.enumerate()} - {*others}:
        thread.join()
    partner.close()


ENDS = {
    b"": "process 1 has died or cannot be reached; last good checkpoint: DIR/40\n",
    b"failed\n": "process 1 has stopped and printed why; last good checkpoint: DIR/40\n",
    b"process 2 has died or cannot be reached\n": "process 2 has died or cannot be reached; last good checkpoint: DIR/40\n",
}


@pytest.mark.parametrize("says", ENDS)
def test_the_end_of_a_partner_ends_the_program_with_a_sentence(says, watched, capfd):
    _, theirs, ended = watched
    theirs.sendall(says)
    theirs.shutdown(socket.SHUT_WR)
    assert ended.get(timeout=20) == 1
    assert capfd.readouterr().err == ENDS[says]


def test_a_partner_that_says_bye_does_not(watched, capfd):
    _, theirs, ended = watched
    theirs.sendall(b"bye\n")
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(queue.Empty):
        ended.get(timeout=0.5)
    assert capfd.readouterr().err == ""


def test_a_process_that_fails_says_so_and_keeps_its_exit_status(watched, capfd, monkeypatch):
    watch, theirs, ended = watched
    monkeypatch.setattr(cluster, "watch", watch)
    with contextlib.suppress(Exception), cluster.together(watch.advice):  # os._exit returns in this test
        raise SystemExit("no space")
    assert theirs.recv(100).startswith(b"failed\n")
    assert ended.get(timeout=20) == 1
    assert capfd.readouterr().err == "no space\n"


def test_a_relay_stays_open_when_the_distant_end_closes():
    with socket.create_server((HOST, 0)) as distant:
        host, _, port = meeting.relay(HOST, distant.getsockname()[1]).rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as near:
            far, _ = distant.accept()
            with far:
                near.sendall(b"there")
                assert far.recv(100) == b"there"
                far.sendall(b"back")
                assert near.recv(100) == b"back"
            near.settimeout(0.5)
            with pytest.raises(TimeoutError):
                near.recv(100)


# --- whole programs ---


@pytest.mark.exhaustive
@pytest.mark.parametrize("victim", [0, 1])
def test_a_partner_killed_in_training_ends_the_other_at_once_with_a_sentence(victim, options, tmp_path):
    together = ["--processes", "2", "--coordinator", f"{HOST}:{free_port()}", "--checkpoint", str(tmp_path / "kept")]
    processes = [
        subprocess.Popen(
            [*test_run.MODULE, *options, "--epochs", "500", *together, "--process-id", str(i)],
            cwd=test_run.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        for line in processes[0].stdout:
            if line.startswith("epoch   2"):
                break
        processes[victim].send_signal(signal.SIGKILL)
        _, printed = processes[1 - victim].communicate(timeout=test_run.TIME_LIMIT)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[1 - victim].returncode == 1
    _, sentence = printed.splitlines()  # the first says that the process waits for the other
    good = f"last good checkpoint: {tmp_path / 'kept'}/"
    assert sentence.startswith(f"process {victim} has died or cannot be reached; {good}")
    assert sentence.endswith(" --resume")
