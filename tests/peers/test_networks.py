"""Training steps of public networks with either pooling: equal, measured and drawn by `experiments.models`."""

import json
import re

import jax
import numpy as np
import pytest

from experiments import models
from experiments.networks import networks

pytest.importorskip("flax.linen")
pytest.importorskip("equinox")
pytest.importorskip("haiku")
pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")


def test_the_experiment_compares_frameworks_prints_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "COMPILATIONS", 1)
    files = tmp_path / "models.json", tmp_path / "models.png"
    chosen = ["nnx", "Equinox", "Haiku", "SegNet"]
    models.main(["--shapes", *chosen, "--rounds", "1", "--json", str(files[0]), "--png", str(files[1])])
    printed = capsys.readouterr().out
    assert re.match(r"one training step, float32; .*jax \d", printed)
    rows = json.loads(files[0].read_text())["networks"]
    assert [name.split(", ")[-1] for name in rows] == chosen
    for name, row in rows.items():
        times = row["step_ms"]
        assert f"| {name} | {times['theirs']:,.1f} | {times['ours']:,.1f} | {times['ratio']:.2f} |" in printed
        assert times["ratio"] == times["theirs"] / times["ours"]
    mean = np.exp(np.mean([np.log(row["step_ms"]["ratio"]) for row in rows.values()]))
    assert f"step, theirs / jpool's: geometric mean {mean:.2f}" in printed
    assert files[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["SqueezeNet", "TextCNN", "PointNet", "SPPF", "clDice"])
def test_both_steps_end_with_the_same_parameters(name):
    """With ceil_mode, tokens, a global pooling, windows of stride 1, and min pooling."""
    steps = [networks.NETWORKS[name].step(ours, 1 if name != "PointNet" else 2) for ours in (False, True)]
    batch = models.batch_of(steps[0])
    start = jax.jit(steps[0].init)(jax.random.key(0))
    theirs, ours = (jax.jit(step.step)(start, *batch)[0] for step in steps)
    assert models.difference(start, theirs, ours) < models.TOLERANCE


def test_steps_that_end_with_other_parameters_are_an_error(monkeypatch):
    monkeypatch.setattr(models, "COMPILATIONS", 1)
    network = networks.NETWORKS["LeNet, Haiku"]
    same = network.build(True, (2, *network.shape[1:]))
    other = same._replace(step=lambda state, x, labels: same.step(state, -x, labels))
    wrong = network._replace(build=lambda ours, shape: same if ours else other, cpu_batch=2)
    with pytest.raises(AssertionError, match="LeNet: the updated parameters differ by"):
        models.measure("LeNet", wrong, 1)


def test_frameworks_that_are_missing_are_named(monkeypatch, capsys):
    monkeypatch.setattr(networks.importlib.util, "find_spec", lambda name: None if name != "flax" else name)
    with pytest.raises(SystemExit):
        models.main(["--shapes", "MNIST"])
    sentence = "error: needs equinox, of the extra `peers`: pip install -e '.[experiments,peers]'"
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert networks.missing_frameworks(["MNIST, Equinox", "LeNet, Haiku", "VGG"]) == "equinox, haiku"
