"""Programs compiled for an H100 and a TPU without either: kernels and bytes, which the program determines; no times."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.speed import cases, compiled
from experiments.speed.__main__ import main

ROOT = Path(__file__).parents[2]
COMPILERS = all(importlib.util.find_spec(name) for name in ("libtpu", "jax_cuda12_plugin"))

TIMES = {  # at most, the estimated time as a multiple of the lower bound; for a TPU, thousand cycles
    "LeNet 2x2/2": (1.05, 148), "VGG 2x2/2": (1.05, 914), "ResNet 3x3/2 pad 1": (1.05, 3638),
    "Inception 3x3/1 pad 1": (1.15, 968), "SPPF 5x5/1 pad 2": (2.05, 342), "SPP 13x13/1 pad 6": (4.5, 714),
    "3-D U-Net 2x2x2/2": (1.05, 4782), "1-D 4/4": (1.05, 2063), "31x31/1 SAME": (5.8, 1900), "ResNet, bfloat16": (1.7, 2882),
    "ResNet, channels first": (1.05, 5412), "3x3/2, dilation 2": (1.5, 2793), "Inception 3x3/1 pad 1, forward only": (1.1, 308),
    "max_unpool with the geometry": (1.1, 720), "adaptive_max_pool 30x30 to 7x7": (2.0, 250),
}  # fmt: skip
EXPECTED = {  # kernels on the H100, and bytes as a multiple of the lower bound
    **dict.fromkeys(cases.every_case(), (2, 1.00)), "SPPF 5x5/1 pad 2, forward only": (2, 2.00),
    "SPPF 5x5/1 pad 2": (4, 2.00), "SPP 13x13/1 pad 6": (8, 4.30), "31x31/1 SAME": (12, 5.74),  # larger than 9 taps
    **dict.fromkeys(("VGG 2x2/2, forward only", "ResNet 3x3/2 pad 1, forward only", "Inception 3x3/1 pad 1, forward only",
                     "max_pool_with_argmax, forward", "forward_mode=True, tangent"), (1, 1.00)),
    "adaptive_max_pool 30x30 to 7x7": (4, 1.49), 'ties="split"': (3, 1.29),  # which saves a bit for each tap, 2 bytes
}  # fmt: skip
for like_others in ("AlexNet 3x3/2", 'ties="last"', 'ties="none"', "min_pool", "max_unpool without it"):
    del EXPECTED[like_others]  # the last is a scatter, whose bytes depend on argmax


@pytest.mark.skipif(not COMPILERS, reason="the compilers for accelerators are not installed")
def test_every_program_has_the_expected_kernels_and_bytes():
    """Without the barrier between winners and backward pass, LeNet's writes three masks: 1.10 of the lower bound."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
    command = [sys.executable, "-m", "experiments.speed", "programs", "--shapes", *EXPECTED]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.startswith("compiled, not timed, for an H100 and a TPU v5e")
    lines = [line for line in ran.stdout.splitlines() if line.startswith("| ")][1:]
    rows = {name: cells for name, *cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}
    assert [name for name, row in rows.items() if row[6] == "both"] == []  # have a scatter
    assert {name: (int(row[0]), float(row[1])) for name, row in rows.items()} == EXPECTED
    for name, (time, cycles) in TIMES.items():
        assert float(rows[name][2]) <= time, name
        assert int(rows[name][7].replace(",", "")) <= cycles, name
    for name in cases.POOLS.keys() & rows.keys():
        assert rows[name][6] == "theirs", name


def test_without_compilers_there_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr(compiled, "restart_for_compilers", lambda *_: None)
    monkeypatch.setattr(compiled.topologies, "get_topology_desc", {}.__getitem__)  # fails, as without the plugins
    compiled.devices.cache_clear()
    with pytest.raises(SystemExit, match=r"^The compilers for accelerators are packages\. Install them in an env"):
        main(["programs"])


# --- reading programs, which needs no compiler ---

TEXT = """HloModule jit_f

%fused (param_0: f32[8,4], param_1: u8[4]) -> f32[4] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %slice.1 = f32[1,4]{1,0} slice(%param_0), slice={[0:1], [0:4]}
  %slice.2 = f32[1,4]{1,0} slice(%param_0), slice={[3:4], [0:4]}
  %param_1 = u8[4]{0} parameter(1)
  ROOT %add.1 = f32[4]{0} add(%slice.1, %slice.2)
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = f32[4]{0} get-tuple-element(%p), index=1
  ROOT %copy.1 = f32[4]{0} copy(%x)
}

%condition (p: (s32[], f32[4])) -> pred[] {
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: f32[8,4], w: u8[4]) -> (f32[4], bf16[4]) {
  %a = f32[8,4]{1,0} parameter(0)
  %w = u8[4]{0} parameter(1)
  %loop_fusion.1 = f32[4]{0} fusion(%a, %w), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"321"}
  %while.1 = (s32[], f32[4]{0}) while(%loop_fusion.1), condition=%condition, body=%body
  %bitcast.1 = f32[4]{0} bitcast(%loop_fusion.1)
  %convert.1 = bf16[4]{0} convert(%bitcast.1)
  ROOT %tuple.1 = (f32[4]{0}, bf16[4]{0}) tuple(%bitcast.1, %convert.1)
}
"""


def test_kernels_are_read_with_slices_and_loops_and_without_what_moves_no_data():
    program = compiled.read_program(TEXT, {"loop_fusion_1": 3 * 10**10})
    assert [(kernel.operation, kernel.read, kernel.written, kernel.cycles) for kernel in program.kernels] == [
        ("fusion", 2 * 16 + 4, 16, 321), ("copy", 16, 16, 0), ("convert", 16, 8, 0),
    ]  # fmt: skip
    assert (program.bytes, program.cycles) == (36 + 16 + 32 + 24, 321)
    bounds = [3e10 / compiled.INSTRUCTIONS, *(size / compiled.BANDWIDTH for size in (32, 24))]
    assert [kernel.seconds for kernel in program.kernels] == pytest.approx(bounds)
    assert (program.count("while"), program.count("scatter")) == (1, 0)


def test_sizes_of_types():
    sizes = {"f32[2,3]{1,0}": 24, "(f32[2]{0}, u8[3]{0}, pred[5]{0})": 16, "bf16[3]": 6, "s32[]": 4, "f8e4m3fn[7]": 7,
             "s4[3]": 2, "f32[0,4]": 0, "token[]": 0}  # fmt: skip
    assert {type_: compiled.size_of(type_) for type_ in sizes} == sizes
