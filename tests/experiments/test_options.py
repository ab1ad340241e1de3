"""Options with which an experiment cannot work are refused by name, in one sentence, before anything is measured."""

import importlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from shared.cases import mostly_exhaustive

from experiments import programs, two_inputs
from experiments.accelerators import compiled
from experiments.common import command, timing

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")


def experiment(name):
    return importlib.import_module(f"experiments.{name}")


@pytest.fixture
def _nothing_is_measured(monkeypatch, tmp_path):
    """Every experiment starts with one of these."""

    def measured(*_, **__):
        raise AssertionError("the experiment has started")

    for name, *_ in REFUSED:
        experiment(name)  # what it imports may draw random numbers
    starts = (jax.random, "key"), (np.random, "default_rng"), (timing, "operations_per_ms"), (compiled, "devices")
    for owner, name in starts:
        monkeypatch.setattr(owner, name, measured)
    monkeypatch.chdir(tmp_path)


REFUSED = [
    ("two_inputs", "--side 1", "argument --side: must be between 2 and 100; got 1"),
    ("two_inputs", "--side 101", "argument --side: must be between 2 and 100; got 101"),
    ("two_inputs", "--side 1e1000", "argument --side: invalid int value: '1e1000'"),
    ("two_inputs", "--examples 10001", "argument --examples: must be between 1 and 10,000; got 10001"),
    ("batch_routing", "--examples 5", "argument --examples: must be between 6 and 4,000; got 5"),
    ("batch_routing", "--examples 999999", "argument --examples: must be between 6 and 4,000; got 999999"),
    ("wrong_averages", "--steps 1000000", "argument --steps: must be between 1 and 1,000; got 1000000"),
    ("caffe_parity", "--steps 601", "argument --steps: must be between 1 and 600; got 601"),
    ("optimisers", "--steps 1001", "argument --steps: must be between 1 and 1,000; got 1001"),
    ("ties", "--pixels 5", "argument --pixels: must be between 6 and 640; got 5"),
    ("ties", "--pixels 641", "argument --pixels: must be between 6 and 640; got 641"),
    ("ties", "--seeds 101", "argument --seeds: must be between 1 and 100; got 101"),
    ("ties", "--steps 10001", "argument --steps: must be between 1 and 10,000; got 10001"),
    ("noise_scale", "--draws 5", "argument --draws: must be a multiple of 640 between 640 and 64,000; got 5"),
    ("noise_scale", "--draws 641", "argument --draws: must be a multiple of 640 between 640 and 64,000; got 641"),
    ("noise_scale", "--points 1", "argument --points: must be between 2 and 1,001; got 1"),
    ("noise_scale", "--steps 1000000000000", "argument --steps: must be between 1 and 1,000; got 1000000000000"),
    ("scaling", "--rounds 1001", "argument --rounds: must be between 1 and 1,000; got 1001"),
    ("scaling", "--examples 129", "argument --examples: must be between 1 and 128; got 129"),
    ("scaling", f"--batch {10**400}", "argument --batch: must be between 1 and 1,000,000; got 1000"),
    ("scaling", "--total 1", "argument --total: must be a multiple of 4,096 between 4,096 and 4,096,000,000; got 1"),
    ("scaling", "--total 5000", "argument --total: must be a multiple of 4,096 between"),
    ("scaling", "--example 1e-300", "argument --example: must be between 1e-06 and 1,000,000; got 1e-300"),
    ("scaling", "--memory 0.2", "argument --memory: must be between 0.25 and 1,000,000; got 0.2"),
    ("scaling", "--memory 1e300", "argument --memory: must be between 0.25 and 1,000,000; got 1e300"),
    ("scaling", "--bandwidth nan", "argument --bandwidth: must be between 1e-06 and 1,000,000; got nan"),
    ("scaling", "--latency inf", "argument --latency: must be between 1e-06 and 1,000,000; got inf"),
    ("relatives", "--rounds 0", "argument --rounds: must be between 1 and 1,000; got 0"),
    ("training_step", "--rounds 1001", "argument --rounds: must be between 1 and 1,000; got 1001"),
    ("microbatches", "--rounds 1001", "argument --rounds: must be between 1 and 1,000; got 1001"),
    ("models", "--rounds 0", "argument --rounds: must be between 1 and 1,000; got 0"),
    ("models", "--shapes alexnot", "argument --shapes: no network has such a name; the names are MNIST, Flax, MNIST,"),
    ("models", "--shapes LeNet alexnot", "argument --shapes: no network has a name with 'alexnot'; the names are"),
    ("benchmark", "--rounds 1001", "argument --rounds: must be between 1 and 1,000; got 1001"),
    ("benchmark", "--threads 99999", f"argument --threads: must be between 1 and {timing.cores()}; got 99999"),
    ("benchmark", "--png directory.png", "argument --png: directory.png cannot be written: Is a directory"),
    ("benchmark", "--png file/b.png", "argument --png: file/b.png cannot be written: there is no directory file"),
    ("benchmark", "--png b.txt", "argument --png: must end in .png; got b.txt"),
    ("benchmark", "--png b.png --json b.png", "argument --png: must be another file than that of --json; got b.png"),
    ("benchmark", "--json directory.png", "argument --json: directory.png cannot be written: Is a directory"),
    ("programs", "--json directory.png", "argument --json: directory.png cannot be written: Is a directory"),
    ("programs", "--png b", "argument --png: must end in .png; got b"),
    ("programs", "--shapes alexnot", "argument --shapes: no program has such a name; the names are LeNet 2x2/2, VGG"),
    ("programs", "--models --png b.png", "argument --png: not allowed with argument --models"),
    ("pods", "", "the following arguments are required: POD"),
    ("pods", "0x0x0", "argument POD: must be a layout of TPUs, such as v5e:2x2, or slices x hosts x devices of H100s,"),
    (
        "pods",
        "v5e:0x2",
        "argument POD: must be a layout of TPUs, such as v5e:2x2, or slices x hosts x devices of H100s,",
    ),
    ("pods", "v5e", "argument POD: must be a layout of TPUs, such as v5e:2x2, or slices x hosts x devices of H100s,"),
    ("two_inputs", "--out=", "argument --out: must be a directory, such as '.'; got ''"),
    ("two_inputs", "--out file", "argument --out: must be a directory; file is a file"),
    ("two_inputs", "--out file/out", "argument --out: file/out cannot be written: Not a directory"),
    ("two_inputs", "--out drawn", "argument --out: drawn/two_inputs.png cannot be written: Is a directory"),
]


@pytest.mark.usefixtures("_nothing_is_measured")
@pytest.mark.parametrize(("name", "options", "text"), REFUSED)
def test_what_cannot_work_is_refused_by_name_before_anything_is_measured(name, options, text, capsys):
    Path("file").touch()
    Path("directory.png").mkdir()
    Path("drawn/two_inputs.png").mkdir(parents=True)
    with pytest.raises(SystemExit) as caught:
        experiment(name).main(options.split())
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"error: {text}" in printed.err.splitlines()[-1]
    assert sorted(map(str, Path().rglob("*"))) == ["directory.png", "drawn", "drawn/two_inputs.png", "file"]


@pytest.mark.usefixtures("_nothing_is_measured")
def test_a_directory_in_which_nothing_can_be_written_is_refused(capsys, monkeypatch):
    def denied(dir):  # noqa: A002
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(command.tempfile, "TemporaryFile", denied)  # root may write in any directory
    with pytest.raises(SystemExit):
        two_inputs.main(["--out", "there"])
    assert "error: argument --out: there cannot be written: Permission denied" in capsys.readouterr().err


@pytest.mark.usefixtures("_nothing_is_measured")
def test_training_steps_need_frameworks(capsys, monkeypatch):
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        programs.main(["--models"])
    assert "error: argument --models: needs flax, equinox, haiku, of the extra `peers`" in capsys.readouterr().err


def test_a_file_that_can_be_written_stays_as_it_is(tmp_path):
    parser = command.parser_of("x.py", None)
    (tmp_path / "old.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "new.json")
    for name in ("old.json", "new.json", "link.json"):
        command.check_file(parser, tmp_path / name, "--json")
    command.check_file(parser, Path("/dev/stdout"), "--json")
    assert (tmp_path / "old.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "old.json"]


@pytest.mark.parametrize("name", sorted({name for name, _, sentence in REFUSED if "between" in sentence}))
def test_the_help_states_the_bounds(name, capsys):
    with pytest.raises(SystemExit) as caught:
        experiment(name).main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    sentences = [sentence for refused, _, sentence in REFUSED if refused == name]
    for bounds in re.findall(r"must be (.*between \S+ and \S+);", "\n".join(sentences)):
        assert f", {bounds} (default: " in text


AT_THE_BOUNDS = [
    ("two_inputs", "--side 2 --examples 1"),
    ("two_inputs", "--side 100 --examples 10000 --seed 4294967295"),
    ("batch_routing", "--examples 4000"),
    ("ties", "--seeds 1 --steps 1 --pixels 6"),
    ("noise_scale", "--steps 1 --points 1001 --draws 640"),
    ("scaling", "--rounds 1 --examples 1 --batch 1 --total 4096 --example 1e-6 --memory .25 --bandwidth 1e-6 --latency 1e6"),
    ("scaling", "--rounds 1 --examples 1 --batch 1000000 --total 4096000000 --example 1e6 --memory 1e6 --bandwidth 1e6 --latency 1e-6"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), mostly_exhaustive(AT_THE_BOUNDS, AT_THE_BOUNDS[:1]))
def test_the_bounds_themselves_work(name, options, capsys, tmp_path):
    experiment(name).main([*options.split(), "--out", str(tmp_path)])
    assert "holds: " in capsys.readouterr().out
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_as_many_inputs_are_compared_as_requested_though_some_are_near_the_diagonal(capsys, monkeypatch):
    monkeypatch.setattr(two_inputs, "GAP", 0.2)
    with jax.enable_x64(True):
        two_inputs.check_network("a network of four", 4, seed=0, examples=2)
    assert "a network of four, 2 examples, 37 weights" in capsys.readouterr().out
