"""Complete networks with either pooling: as many parameters as published, equal steps, and a table of the figures."""

import re

import jax
import numpy as np
import pytest

from experiments.speed import compare_networks, options, poolings, timing, training_steps
from experiments.speed.__main__ import main
from experiments.speed.networks import NETWORKS

pytest.importorskip("flax.linen")
pytest.importorskip("equinox")
pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_published_number_of_parameters(name):
    model = training_steps.model_of(NETWORKS[name], "jpool")
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == NETWORKS[name].parameters


@pytest.mark.parametrize("name", ["MNIST", "M5", "TextCNN"])
def test_both_steps_end_with_the_same_parameters(name):
    """Of Flax and Equinox, with windows in an image, along a line, and of whole axes."""
    network = NETWORKS[name]._replace(shape=(2, *NETWORKS[name].shape[1:]))
    batch = training_steps.batch_of(network)
    start = jax.jit(training_steps.model_of(network, "framework").init)(jax.random.key(0))
    theirs, ours = (
        training_steps.training_step(network, by)(jax.tree.map(jax.numpy.copy, start), *batch)
        for by in ("framework", "jpool")
    )
    compare_networks.check_equal(name, start, theirs, ours)
    wrong = jax.tree.map(lambda leaf: 1.01 * leaf, ours)
    with pytest.raises(AssertionError, match=rf"{name}: the updated parameters differ by"):
        compare_networks.check_equal(name, start, theirs, wrong)


@pytest.mark.parametrize(
    ("size", "side", "stride", "padding"), [(8, 2, 2, 0), (9, 3, 2, 0), (8, 3, 2, 1), (8, 5, 1, 2)]
)
def test_free_pooling_reads_as_many_elements_as_the_others_return_values(size, side, stride, padding):
    x = np.arange(2.0 * size * size * 3, dtype=np.float32).reshape(2, size, size, 3)
    framework, free = (poolings.max_pool(by, x, side, stride, padding) for by in ("framework", "free"))
    np.testing.assert_array_equal(free, x[:, ::stride, ::stride][:, : framework.shape[1], : framework.shape[2]])
    assert poolings.global_max_pool("free", x).tolist() == x[:, 0, 0].tolist()


def test_the_table_has_ratio_limit_and_memory_of_each_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare_networks, "COMPILATIONS", 1)
    monkeypatch.setattr(timing, "SHORTEST", 1e-6)
    main(["networks", "--shapes", "LeNet", "--rounds", "1", "--png", str(tmp_path / "n.png")])
    printed = capsys.readouterr().out
    assert re.match(r"one training step, float32; .*jax \d", printed)
    cells = r" \| ".join([r"64x28x28x1", "431,080", *[r"[\d.]+"] * 5])
    assert re.search(rf"^\| LeNet \| Caffe, example \| {cells} \|$", printed, re.MULTILINE)
    assert (tmp_path / "n.png").read_bytes().startswith(b"\x89PNG")


def test_frameworks_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None if name != "flax" else name)
    with pytest.raises(SystemExit, match=r"^needs equinox, of the extra `peers`: pip install -e "):
        main(["networks"])
