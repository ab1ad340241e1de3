"""Programs compiled for pods of up to 4,096 chips, without the chips: what devices send, and their memory."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments.digits import lenet
from experiments.speed import compiled

PARAMETERS = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lenet.init, jax.random.key(0))))
EXAMPLES = 128  # on each device, all at once
PODS = [  # chips of a TPU by their layout, H100s as slices x hosts x devices; and how many a small and a large pod have
    ("tpu", "libtpu", {"v5p:2x2x1": 4, "v5p:16x16x16": 4096}),
    ("cuda", "jax_cuda12_plugin", {"1x1x8": 8, "1x4x8": 32}),
]
READ = """
import json, sys
from experiments import scaling
from experiments.speed import compiled
for pod in sys.argv[3:]:
    devices = compiled.devices(sys.argv[1], pod)
    program = scaling.compile_for("step", None, devices, len(devices) * int(sys.argv[2]))
    print(json.dumps([len(devices), *scaling.read(program)]))
"""


@pytest.mark.parametrize(("platform", "compiler", "pods"), PODS, ids=["v5p", "H100"])
def test_a_large_pod_has_one_all_reduce_and_the_memory_of_a_small_one(platform, compiler, pods):
    if importlib.util.find_spec(compiler) is None:
        pytest.skip(f"{compiler}, a compiler for accelerators, is not installed")
    # A process of its own: the compilers look for hardware as soon as JAX is imported, and may not know XLA_FLAGS.
    done = subprocess.run(
        [sys.executable, "-c", READ, platform, str(EXAMPLES), *pods],
        env=os.environ | compiled.ENVIRONMENT | {"XLA_FLAGS": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    small, large = (json.loads(line) for line in done.stdout.splitlines())
    assert [small[0], large[0]] == list(pods.values())
    assert small[1:3] == large[1:3] == [[4 * (PARAMETERS + 2)], 0]  # one all-reduce, no other transfers
    assert large[3] == pytest.approx(small[3], rel=0.03)
