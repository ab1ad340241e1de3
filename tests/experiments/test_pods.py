"""Programs compiled for pods of up to 4,096 chips, without the chips: what devices send, and their memory."""

import importlib.util
import json
import subprocess

import jax
import pytest

from experiments import pods, scaling
from experiments.accelerators import compiled
from experiments.digits import lenet

PARAMETERS = scaling.count(jax.eval_shape(lenet.init, jax.random.key(0)))
NO_LIBTPU = "libtpu, the compiler for TPUs, is not installed"


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason=NO_LIBTPU)
@pytest.mark.parametrize(
    ("small", "large", "devices"), [("v5e:2x2", "v5e:16x16", 256), ("v5p:2x2x1", "v5p:16x16x16", 4096)]
)
def test_a_large_pod_has_one_all_reduce_and_the_memory_of_four_chips(small, large, devices, capsys):
    readings, missing = pods.readings((small, large))
    assert not missing
    assert [(row.devices, row.program) for row in readings] == [
        (4, "step"),
        (4, "statistics"),
        (devices, "step"),
        (devices, "statistics"),
    ]
    for row in readings:
        assert (row.all_reduces, row.sent, row.moves) == (1, 4 * (PARAMETERS + 2), 0)
    for of_small, of_large in zip(readings[:2], readings[2:], strict=True):
        assert of_large.temporary == pytest.approx(of_small.temporary, rel=0.03)
    pods.check(readings, PARAMETERS)
    assert capsys.readouterr().out.count("holds: ") == 3


# --- without compilers ---


@pytest.mark.exhaustive
def test_pods_without_a_compiler_are_left_out(capsys):
    readings, missing = pods.readings(("v0:2x2", "1x1x99999"))  # such pods do not exist, whatever is installed
    assert (readings, list(missing)) == ([], ["v0:2x2", "1x1x99999"])
    pods.print_readings(readings, missing, PARAMETERS, 1e8)
    printed = capsys.readouterr().out
    assert "\nleft out: pods of TPU v0, H100. " in printed
    assert "pip install" in printed
    assert "compiled, not timed" not in printed
    assert len(scaling.picture(results([])).axes) == 3


def test_the_process_of_the_compilers_reports_what_is_missing(capsys, monkeypatch):
    def no_devices(platform, topology):
        raise RuntimeError(f"no {platform} for {topology}")

    monkeypatch.setattr(compiled, "devices", no_devices)
    with pytest.raises(SystemExit, match=r"^no tpu for v5e:2x2\nno cuda for 1x1x8$"):  # which is an error for the shell
        pods.main(["v5e:2x2", "1x1x8"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"readings": [], "missing": {"v5e:2x2": "no tpu for v5e:2x2", "1x1x8": "no cuda for 1x1x8"}}


def test_a_compiler_that_fails_is_not_mistaken_for_a_missing_one(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Killed")
    monkeypatch.setattr(pods.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="compiling for pods failed:\nKilled"):
        pods.readings(("v5e:2x2",))


# --- reading programs ---

ONE = """
  %all-reduce.4 = (f32[20]{0:T(128)S(1)}, f32[]{:T(128)}, /*index=5*/bf16[8,5]{1,0:T(8,128)}) all-reduce(%a, %b, %c), channel_id=1
  %add.1 = f32[20]{0} add(%all-reduce.4, %x), metadata={op_name="all-gather"}"""
START_AND_DONE = """
  %all-reduce-start = ((f32[10]{0}), f32[10]{0}) all-reduce-start(%a), channel_id=1
  %all-reduce-done = f32[10]{0} all-reduce-done(%all-reduce-start)"""
GATHERS = """
  %all-gather = f32[10]{0} all-gather(%a), dimensions={0}
  %collective-permute-start = (f32[10]{0}, f32[10]{0}) collective-permute-start(%a)
  %collective-permute-done = f32[10]{0} collective-permute-done(%collective-permute-start)"""


def test_what_a_program_sends_is_read_from_its_text():
    assert pods.all_reduces(ONE) == [4 * 21 + 2 * 40]
    assert pods.all_reduces(START_AND_DONE) == [40]
    assert pods.all_reduces(ONE + START_AND_DONE) == [164, 40]
    assert (pods.moves(ONE + START_AND_DONE), pods.moves(GATHERS)) == (0, 2)


def reading(pod, devices, **other):
    predicted = pods.Reading(pod, devices, "step", 1, 4 * (PARAMETERS + 2), 0, 1000)
    return predicted._replace(**other)


def results(readings):
    model = scaling.Model(PARAMETERS, 128, 1e-4, 2e5, 2**34, 25e9, 5e-6)
    return scaling.Results({1: 1.0, 2: 2.0}, 8, model, 8192, readings)


@pytest.mark.parametrize("wrong", [{"all_reduces": 2}, {"sent": 4 * PARAMETERS}, {"moves": 1}, {"temporary": 1100}])
def test_a_pod_that_differs_from_the_prediction_is_detected(wrong):
    small = reading("v5e:2x2", 4)
    pods.check([small, reading("v5e:16x16", 256), reading("1x1x8", 8, temporary=5000)], PARAMETERS)
    with pytest.raises(AssertionError, match="does not hold"):
        pods.check([small, reading("v5e:16x16", 256, **wrong)], PARAMETERS)


def test_the_table_and_the_picture_say_that_nothing_was_timed(capsys):
    readings = [reading("v5e:2x2", 4), reading("v5e:16x16", 256)]
    pods.print_readings(readings, {}, PARAMETERS, 1e8)
    printed = capsys.readouterr().out
    assert "compiled, not timed" in printed
    assert "| 256 | TPU v5e | v5e:16x16 | step | 1 | 1.724 | 0 |" in printed
    assert "left out" not in printed
    *_, last = scaling.picture(results(readings)).axes
    assert last.get_title().startswith("compiled, not timed")
