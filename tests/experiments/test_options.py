"""Options with which an experiment cannot work are refused by name, in one sentence, before anything is measured."""

from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import batch_routing, caffe_parity, scaling, ties, two_inputs
from experiments.common import command

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")


@pytest.fixture
def _nothing_is_measured(monkeypatch, tmp_path):
    """Every experiment starts with one of these."""

    def measured(*_, **__):
        raise AssertionError("the experiment has started")

    for owner, name in ((jax.random, "key"), (np.random, "default_rng")):
        monkeypatch.setattr(owner, name, measured)
    monkeypatch.chdir(tmp_path)


REFUSED = [
    (two_inputs, "--examples 0", "argument --examples: must be between 1 and 10,000; got 0"),
    (batch_routing, "--examples 4001", "argument --examples: must be between 6 and 4,000; got 4001"),
    (caffe_parity, f"--steps {10**400}", "argument --steps: must be between 1 and 600; got 1000"),
    (ties, "--seeds 1e1000", "argument --seeds: must be between 1 and 100; got 1e1000"),
    (scaling, "--steps 3", "unrecognized arguments: --steps 3"),
    (scaling, "--seed -1", "argument --seed: must be between 0 and 4,294,967,295; got -1"),
    (two_inputs, "--out=", "argument --out: must be a directory, such as '.'; got ''"),
    (two_inputs, "--out file", "argument --out: must be a directory; file is a file"),
    (two_inputs, "--out file/out", "argument --out: file/out cannot be written: Not a directory"),
]


@pytest.mark.usefixtures("_nothing_is_measured")
@pytest.mark.parametrize(("experiment", "options", "text"), REFUSED)
def test_what_cannot_work_is_refused_by_name_before_anything_is_measured(experiment, options, text, capsys):
    Path("file").touch()
    with pytest.raises(SystemExit) as caught:
        experiment.main(options.split())
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"error: {text}" in printed.err.splitlines()[-1]
    assert sorted(map(str, Path().rglob("*"))) == ["file"]


@pytest.mark.usefixtures("_nothing_is_measured")
def test_a_directory_in_which_nothing_can_be_written_is_refused(capsys, monkeypatch):
    def denied(dir):  # noqa: A002
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(command.tempfile, "TemporaryFile", denied)  # root may write in any directory
    with pytest.raises(SystemExit):
        two_inputs.main(["--out", "there"])
    assert "error: argument --out: there cannot be written: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("experiment", "bounds"), [(two_inputs, "1 and 10,000 (default: 100)"), (ties, "1 and 100 (default: 5)")]
)
def test_the_help_states_the_bounds(experiment, bounds, capsys):
    with pytest.raises(SystemExit) as caught:
        experiment.main(["--help"])
    assert caught.value.code == 0
    assert f", between {bounds}" in " ".join(capsys.readouterr().out.split())


def test_as_many_inputs_are_compared_as_requested_though_some_are_near_the_diagonal(capsys, monkeypatch):
    monkeypatch.setattr(two_inputs, "GAP", 0.2)
    with jax.enable_x64(True):
        two_inputs.check_network("a network of four", 4, seed=0, examples=2)
    assert "a network of four, 2 examples, 37 weights" in capsys.readouterr().out
