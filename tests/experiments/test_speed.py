"""The measurements of speed, on small arrays: they run, compare equal work, and refuse bad options by name."""

import re
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from shared.cases import mostly_exhaustive

import jpool
from experiments.digits import convolution, lenet
from experiments.speed import cases, in_torch, microbatches, options, pool, step, timing
from experiments.speed.__main__ import main

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")
ROOT = Path(__file__).parents[2]
SMALL = {
    "small": cases.Pool((2, 9, 9, 3), (3, 3), 2, 1),
    "line": cases.Pool((2, 16, 3), (4,), 4),
    "volume": cases.Pool((2, 4, 5, 6, 2), (2, 2, 2), 2),
}
NUMBER = r"[\d.]+"


@pytest.fixture(autouse=True)
def small_and_few(monkeypatch):
    monkeypatch.setattr(timing, "SHORTEST", 1e-6)
    monkeypatch.setattr(timing, "PAUSE", 0)
    monkeypatch.setattr(pool, "POOLS", SMALL)
    monkeypatch.setattr(cases, "IMAGES", (2, 12, 13, 3))
    monkeypatch.setattr(cases, "POOLED", (2, 6, 7, 3))


RUNS = {"--shapes LINE": ["line"], "--layout first --dtype bfloat16 --shapes small vol": ["small", "volume"]}


@pytest.mark.parametrize("given", mostly_exhaustive(RUNS, ["--shapes LINE"]))
def test_pools_are_compared_where_values_and_gradients_are_equal(given, capsys, tmp_path, monkeypatch):
    if "LINE" in given:
        monkeypatch.setattr(in_torch, "is_here", lambda: False)  # importing torch takes longer than all the rest
    main(["pool", "--rounds", "1", "--png", str(tmp_path / "p.png"), *given.split()])
    printed = capsys.readouterr().out
    assert re.findall(rf"^\| (\w+) \| \(.*?\) \| {NUMBER} \| {NUMBER} \| ", printed, re.MULTILINE) == RUNS[given]
    assert re.search(rf"^lax / jpool: median {NUMBER}, from {NUMBER} to {NUMBER}$", printed, re.MULTILINE)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_pool_with_another_result_is_not_timed(monkeypatch):
    right = SMALL["line"].functions()
    wrong = right | {"lax": lambda x: 2 * right["lax"](x)}
    monkeypatch.setattr(cases.Pool, "functions", lambda self, **_: wrong)
    monkeypatch.setattr(timing, "medians", lambda *_: pytest.fail("it is timed"))
    with pytest.raises(AssertionError):
        pool.measure(SMALL["line"], "float32", "last", 1)


@pytest.mark.exhaustive
def test_related_functions_are_compared_with_their_equivalents(capsys, monkeypatch):
    relatives = cases.relatives()
    monkeypatch.setattr(cases, "relatives", lambda: relatives)  # so that each is compiled once
    compared = {name: case for name, case in relatives.items() if len(case.functions) > 1}
    for name, case in compared.items():
        ours, *others = (jax.tree.leaves(jax.jit(one)(*cases.arrays_of(case))) for one in case.functions.values())
        if name != "min_pool":  # whose equivalent takes as long, and has other values
            for other in others:
                for a, b in zip(ours, other, strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=name)  # sums of values of equal indices
    main(["relatives", "--rounds", "1"])
    row = rf"^\| (.*?) \| {NUMBER} \| (.*?) \| {NUMBER} \| {NUMBER} \|$"
    rows = re.findall(row, capsys.readouterr().out, re.MULTILINE)
    assert {name for name, _ in rows} == set(relatives)
    assert ('ties="split"', "max_pool") in rows


@pytest.mark.exhaustive
def test_the_timed_training_steps_have_the_same_result(capsys, monkeypatch):
    monkeypatch.setattr(step, "BATCH", 6)
    batch, params = step.batch_of(6), lenet.init(jax.random.key(0))
    steps = step.steps()
    monkeypatch.setattr(step, "steps", lambda: steps)  # so that each is compiled once
    first, *others = (step.training(one, params, batch)().params for one in steps.values())
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), other, first)
    main(["step", "--rounds", "1"])
    assert re.search(r"^\| jpool \| \d+\.\d \| 1\.00 \|$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.exhaustive
def test_microbatches_are_compared_with_the_whole_batch(capsys, monkeypatch):
    monkeypatch.setattr(microbatches, "BATCH", 16)
    monkeypatch.setattr(microbatches, "SIZES", (None, 3))
    main(["microbatches", "--rounds", "1"])
    row = rf"^\| (\w+) \| {NUMBER} \| {NUMBER} \| {NUMBER} \| {NUMBER} \| ({NUMBER}) \|$"
    (whole, most), (three, less) = re.findall(row, capsys.readouterr().out, re.MULTILINE)
    assert (whole, three) == ("all", "3")
    assert float(less) < float(most) / 2


def test_timings_leave_out_warming_up(monkeypatch):
    now, calls = [0.0], []

    def call():
        calls.append(now[0])
        now[0] += 1.0 if len(calls) <= 4 else 0.002  # the first two rounds, for warming up, are slow

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    assert timing.medians({"call": call}, 3) == {"call": pytest.approx(2.0)}


def test_medians_lead_and_ranges_stand_beside_them():
    assert options.spread("lax / jpool", [160.0, 5.72, 10.3]) == "lax / jpool: median 10, from 5.7 to 160"


def test_the_convolution_of_one_example_has_the_values_and_gradients_of_lax():
    rng, shapes = np.random.default_rng(0), {"x": (4, 9, 8, 3), "w": (3, 2, 3, 5), "ct": (4, 7, 7, 5)}
    x, w, ct = (rng.integers(-3, 4, shape).astype(np.float32) for shape in shapes.values())  # so that sums are exact

    def passes(convolve, x, w, ct):
        values, backward = jax.vjp(convolve, x, w)
        return values, backward(ct)

    ways = (jax.vmap(partial(passes, one), (0, None, 0)) for one in (convolution.convolve, convolution.convolve_by_lax))
    ours, theirs = (jax.jit(way)(x, w, ct) for way in ways)
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), ours, theirs)


def test_experiments_use_only_what_jpool_exports():
    for path in (ROOT / "experiments").rglob("*.py"):
        source = path.read_text()
        assert not re.search(r"from jpool|import jpool\.", source), path.name
        assert set(re.findall(r"\bjpool\.(\w+)", source)) <= set(jpool.__all__), path.name
