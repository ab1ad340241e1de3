"""The arrangements of the platforms, compared on this CPU, and the library without the one for XLA:CPU."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import oracle
from shared.cases import CASES, CONTENTS, EVERY_CASE
from shared.poolings import ARRANGEMENTS, geometry, resolved

from jpool.pooling.derivative import primitives
from jpool.pooling.plain.phases import PhaseGroup, phase_groups, taps_by_shift
from jpool.pooling.plain.steps import Arrangement, steps
from jpool.pooling.plain.ties import RULES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", EVERY_CASE)
def test_all_arrangements_have_the_same_results(name, compiled_quickly):
    """Bit for bit, sums included, because they are of whole numbers. Only this test compares the TPU's with the oracle."""
    case, pooling, rng = CASES[name], geometry(CASES[name]), np.random.default_rng(len(name))
    xs = np.stack([content(rng, case.shape) for content in CONTENTS.values()])
    ct, t = (rng.integers(-9, 10, (len(xs), *shape)).astype(np.float32) for shape in (pooling.values_shape, case.shape))

    @jax.jit
    def of_all_arrangements(xs, ct, t):
        def of_one_arrangement(operations, x, ct, t):
            values, winners = operations.select(pooling, x)
            return values, winners, operations.route(pooling, winners, ct), operations.gather(pooling, winners, t)

        return [
            jax.vmap(lambda *arrays, operations=operations: of_one_arrangement(operations, *arrays))(xs, ct, t)
            for operations in ARRANGEMENTS.values()
        ]

    first, *others = of_all_arrangements(xs, ct, t)
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b), strict=True), first, other)
    for x, ct_of_x, gradient in zip(xs, ct, first[2], strict=True):
        _, winners = oracle.max_pool(x, case.window, **case.arguments)
        np.testing.assert_array_equal(gradient, oracle.route(x.shape, winners, ct_of_x).astype(np.float32))


def bits(array):
    return np.asarray(array + 0 if array.dtype == np.float32 else array).view(f"uint{8 * array.dtype.itemsize}")


@pytest.mark.parametrize("ties", RULES)
def test_large_windows_of_every_rule_on_every_arrangement(ties, compiled_quickly):
    pooling = resolved((20, 23, 2), (20, 12), (1, 3), (0, 5))._replace(ties=ties)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 40, (20, 23, 2)), jnp.float32)
    ct = jnp.asarray(720720 * np.random.default_rng(1).integers(-9, 10, pooling.values_shape), jnp.float32)
    results = {}
    for name, operations in ARRANGEMENTS.items():
        values, winners = jax.jit(operations.select, static_argnums=0)(pooling, x)
        results[name] = values, winners, jax.jit(operations.route, static_argnums=0)(pooling, winners, ct)
    for name in ("gpu", "tpu"):
        jax.tree.map(np.testing.assert_array_equal, results[name], results["cpu"])


@pytest.mark.parametrize("ties", ["first", "last"])
@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "int8", "uint32"])
@pytest.mark.parametrize(
    ("shape", "window", "padding"),
    [((40, 3), (40,), 0), ((10, 12, 3), (10, 11), ((0, 0), (5, 5))), ((10, 2, 11, 3), (10, 1, 11), 0)],
)
def test_axes_that_one_window_covers(shape, window, padding, dtype, minimum, ties, compiled_quickly):
    """A reduction on every platform, on CPUs two; also after a step with padding. Zeros keep the sign of the winner."""
    pooling = resolved(shape, window, padding=padding)._replace(ties=ties, minimum=minimum)
    low, numbers = (np.inf if minimum else -np.inf), np.array([-np.inf, -1, -0.0, 0.0, 2, np.inf, np.nan])
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        low, numbers = (info.max if minimum else info.min), np.array([info.min, 0, 1, info.max])
    rng = np.random.default_rng(0)
    chosen = [rng.choice(numbers[rng.permutation(len(numbers))[: 1 + i % 4]], shape) for i in range(24)]
    xs = jnp.asarray(np.stack([*chosen, np.full(shape, low)])).astype(dtype)
    ct = jnp.asarray(rng.integers(-9, 10, (len(xs), *pooling.values_shape)), jnp.float32)

    def results(operations):
        def of_one(x, ct):
            values, winners = operations.select(pooling, x)
            return values, winners, operations.select_values(pooling, x) + 0, operations.route(pooling, winners, ct)

        return jax.jit(jax.vmap(of_one))(xs, ct)

    of_gpu, of_cpu = results(ARRANGEMENTS["gpu"]), results(ARRANGEMENTS["cpu"])
    as_bits = lambda array: np.asarray(array).view(f"uint{8 * array.dtype.itemsize}")  # noqa: E731
    is_nan = np.asarray(of_gpu[0] != of_gpu[0])  # a NaN may have other bits
    np.testing.assert_array_equal(np.where(is_nan, 0, as_bits(of_cpu[0])), np.where(is_nan, 0, as_bits(of_gpu[0])))
    wide = lambda array: np.asarray(array, "float64")  # noqa: E731 - in which NumPy knows that NaNs are equal
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(wide(a), wide(b)), of_cpu, of_gpu)


def test_the_arrangements_have_different_steps_and_phases():
    pooling = resolved((20, 23, 2), (20, 12), (1, 3), (0, 5))
    gpu_steps, cpu_steps = steps(pooling, Arrangement()), steps(pooling, Arrangement(axis_taps=8))
    assert [step.reduced_axes for step in gpu_steps] == [(), (0,)]
    assert [step.reduced_axes for step in cpu_steps] == [(), (), (0,)]
    stem = geometry(CASES["resnet_stem"])
    (step,) = steps(stem, Arrangement())
    assert len(list(phase_groups(step, Arrangement()))) == 1
    assert len(list(phase_groups(step, Arrangement(joint_phase_axes=1)))) == 2
    assert len(list(phase_groups(step, Arrangement(joint_phase_axes=0)))) == 4
    (step,) = steps(geometry(CASES["gaps"]), Arrangement())
    assert len(list(phase_groups(step, Arrangement()))) == 2  # of rows, 2 of 4 phases have a tap; of columns, 1 of 3


def test_a_large_table_that_is_computed_has_the_same_numbers():
    """Small tables by phase are written into the program; large ones are computed."""
    axes = [
        axis._replace(stride=axis.window)
        for axis in geometry(CASES["whole"]._replace(shape=(40, 30, 1), window=(40, 30))).axes
    ]
    group = PhaseGroup(axes, taps_by_shift(axes), {})
    ((_, taps),) = group.taps.items()
    for numbers in (taps, taps * 7 + 3):
        table = group.by_phase(numbers, np.dtype("uint16"))
        np.testing.assert_array_equal(np.asarray(table).ravel(), numbers.ravel())


CHECK_WITHOUT_CPU = """
import numpy as np, jax, jpool
from shared import oracle
from shared.cases import CASES, CONTENTS, EVERY_CASE
from jpool.pooling.derivative import primitives
assert "cpu" not in primitives.PLATFORMS and jpool.__file__.startswith({root!r})
for name in ("halves", "resnet_stem", "inception", "five_by_five_strided", "whole", "only_padding", "dilated_same", "long_line"):
    case, rng = CASES[name], np.random.default_rng(0)
    for content in CONTENTS.values():
        x = content(rng, case.shape)
        values, backward = jax.vjp(lambda x: jpool.max_pool(x, case.window, **case.arguments), x)
        expected, winners = oracle.max_pool(x, case.window, **case.arguments)
        ct = rng.integers(-9, 10, expected.shape).astype(np.float32)
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(backward(ct)[0], oracle.route(x.shape, winners, ct).astype(np.float32))
print("all equal")
"""


def test_the_library_works_without_the_arrangement_for_cpus(tmp_path):
    """Deletes the folder and the one line that imports it."""
    shutil.copytree(ROOT / "jpool", tmp_path / "jpool", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(tmp_path / "jpool/pooling/cpu")
    package = tmp_path / "jpool/pooling/__init__.py"
    lines = package.read_text().splitlines(keepends=True)
    kept = [line for line in lines if "import cpu" not in line]
    assert len(lines) - len(kept) == 1
    package.write_text("".join(kept))
    assert not re.search(r"pooling\.cpu", "".join(file.read_text() for file in (tmp_path / "jpool").rglob("*.py")))
    paths = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT / 'tests')!r}]\n"
    code = paths + CHECK_WITHOUT_CPU.format(root=str(tmp_path))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout == "all equal\n", ran.stderr


def test_a_platform_without_an_arrangement_uses_the_plain_algorithm():
    x = jax.ShapeDtypeStruct((9, 9, 2), np.float32)
    program = jax.jit(lambda x: primitives.select_values(geometry(CASES["overlapping"]), x)).trace(x)
    gpu, rocm = (program.lower(lowering_platforms=(platform,)).as_text() for platform in ("cuda", "rocm"))
    assert gpu == rocm != program.lower(lowering_platforms=("cpu",)).as_text()
