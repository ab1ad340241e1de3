"""The arrangements of the platforms, compared on this CPU, and the library without the one for XLA:CPU."""

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import oracle
from shared.cases import CASES, CONTENTS, EVERY_CASE
from shared.poolings import ARRANGEMENTS, geometry, resolved

from jpool.pooling.derivative import primitives
from jpool.pooling.integers.geometry import adaptive
from jpool.pooling.plain import all_steps
from jpool.pooling.plain.ties import RULES
from jpool.pooling.slices import by_phase, taps_by_shift

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", EVERY_CASE)
def test_all_arrangements_have_the_same_results(name, compiled_quickly):
    """Bit for bit, sums included, because they are of whole numbers. Only this test compares the TPU's with the oracle."""
    case, pooling, rng = CASES[name], geometry(CASES[name]), np.random.default_rng(len(name))
    xs = np.stack([content(rng, case.shape) for content in CONTENTS.values()])
    ct, t = (rng.integers(-9, 10, (len(xs), *shape)).astype(np.float32) for shape in (pooling.values_shape, case.shape))

    @jax.jit
    def of_all_arrangements(xs, ct, t):
        return [
            jax.vmap(lambda *arrays, platform=platform: results(platform, pooling, *arrays))(xs, ct, t)
            for platform in ARRANGEMENTS.values()
        ]

    first, *others = of_all_arrangements(xs, ct, t)
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b), strict=True), first, other)
    for x, ct_of_x, gradient in zip(xs, ct, first[2], strict=True):
        _, winners = oracle.max_pool(x, case.window, **case.arguments)
        np.testing.assert_array_equal(gradient, oracle.route(x.shape, winners, ct_of_x).astype(np.float32))


def results(platform, pooling, x, ct, t):
    values, winners = all_steps.select(platform, pooling, x)
    cotangent = all_steps.route(platform, pooling, winners, ct)
    return values, winners, cotangent, all_steps.gather(platform, pooling, winners, t)


@pytest.mark.parametrize(
    ("sizes", "outputs"),
    [((30, 2), (7, 2)), ((7,), (30,)), ((9, 13), (4, 5)), ((100, 3), (33, 3)), ((5, 7), (3, 40)), ((2,), (101,))],
)
def test_adaptive_windows_have_the_same_results_on_every_arrangement(sizes, outputs, compiled_quickly):
    pooling, rng = adaptive(sizes, outputs), np.random.default_rng(0)
    xs = np.stack([content(rng, sizes) for content in CONTENTS.values()])
    ct, t = (rng.integers(-9, 10, (len(xs), *shape)).astype(np.float32) for shape in (outputs, sizes))
    first, *others = [
        jax.jit(jax.vmap(lambda *arrays, platform=platform: results(platform, pooling, *arrays)))(xs, ct, t)
        for platform in ARRANGEMENTS.values()
    ]
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b), strict=True), first, other)


def bits(array):
    return np.asarray(array + 0 if array.dtype == np.float32 else array).view(f"uint{8 * array.dtype.itemsize}")


@pytest.mark.parametrize("ties", RULES)
def test_large_windows_of_every_rule_on_every_arrangement(ties, compiled_quickly):
    pooling = resolved((20, 23, 2), (20, 12), (1, 3), (0, 5))._replace(ties=ties)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 40, (20, 23, 2)), jnp.float32)
    ct = jnp.asarray(720720 * np.random.default_rng(1).integers(-9, 10, pooling.values_shape), jnp.float32)
    t = jnp.zeros(pooling.example_shape)
    first, *others = [jax.jit(partial(results, platform, pooling))(x, ct, t) for platform in ARRANGEMENTS.values()]
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)


@pytest.mark.parametrize("platform", ARRANGEMENTS)
@pytest.mark.parametrize("window", [4, 9, 31])
def test_cotangents_of_16_bits_add_up_in_float32_on_every_arrangement(platform, window, compiled_quickly):
    """Added in bfloat16, 256 + 1 is 256."""
    pooling = resolved((2 * window - 1,), (window,), channel_axis=None)
    x = jnp.zeros(2 * window - 1, jnp.bfloat16).at[window - 1].set(1)  # the winner of all windows
    ct = jnp.ones(window, jnp.bfloat16).at[0].set(256)
    _, winners = all_steps.select(ARRANGEMENTS[platform], pooling, x)
    gradient = all_steps.route(ARRANGEMENTS[platform], pooling, winners, ct)
    expected = jnp.zeros_like(x).at[window - 1].set(256 + window - 1)
    np.testing.assert_array_equal(gradient, expected, strict=True)


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

    def of_platform(platform):
        def of_one(x, ct):
            values, winners = all_steps.select(platform, pooling, x)
            values_only = platform.select_values(pooling, x) if platform.select_values else values
            return values, winners, values_only + 0, all_steps.route(platform, pooling, winners, ct)

        return jax.jit(jax.vmap(of_one))(xs, ct)

    of_gpu, of_cpu = of_platform(ARRANGEMENTS["gpu"]), of_platform(ARRANGEMENTS["cpu"])
    as_bits = lambda array: np.asarray(array).view(f"uint{8 * array.dtype.itemsize}")  # noqa: E731
    is_nan = np.asarray(of_gpu[0] != of_gpu[0])  # a NaN may have other bits
    np.testing.assert_array_equal(np.where(is_nan, 0, as_bits(of_cpu[0])), np.where(is_nan, 0, as_bits(of_gpu[0])))
    wide = lambda array: np.asarray(array, "float64")  # noqa: E731 - in which NumPy knows that NaNs are equal
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(wide(a), wide(b)), of_cpu, of_gpu)


def test_a_large_table_that_is_computed_has_the_same_numbers():
    """Small tables by phase are written into the program; large ones are computed."""
    pooling = geometry(CASES["whole"]._replace(shape=(40, 30, 1), window=(40, 30)))
    ((_, numbers),) = taps_by_shift(pooling).items()
    for table in (numbers, numbers * 7 + 3, numbers[::-1].copy()):
        np.testing.assert_array_equal(np.asarray(by_phase(pooling, table, (1, 40, 1, 30, 1, 1))).ravel(), table.ravel())


CHECK = """
import numpy as np, jax, jpool
from shared import oracle
from shared.cases import CASES, CONTENTS, EVERY_CASE
assert jpool.__file__.startswith({root!r})
for name in ("resnet_stem", "five_by_five_strided"):
    case, rng = CASES[name], np.random.default_rng(0)
    for content in CONTENTS.values():
        x = content(rng, case.shape)
        values, backward = jax.vjp(lambda x: jpool.max_pool(x, case.window, **case.arguments), x)
        expected, winners = oracle.max_pool(x, case.window, **case.arguments)
        ct = rng.integers(-9, 10, expected.shape).astype(np.float32)
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(backward(ct)[0], oracle.route(x.shape, winners, ct).astype(np.float32))
both = jax.value_and_grad(lambda x: jpool.max_pool(x, (3, 3), 2).sum())
for platform in ("cpu", "cuda", "tpu"):
    jax.export.export(jax.jit(both), platforms=[platform])(jax.ShapeDtypeStruct((9, 9, 2), np.float32))
print("all equal")
"""


@pytest.mark.parametrize("folder", ["cpu", "gpu", "tpu"])
def test_the_library_works_without_the_folder_of_a_platform(folder, tmp_path):
    """Deletes the folder and the one line that imports it."""
    shutil.copytree(ROOT / "jpool", tmp_path / "jpool", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(tmp_path / "jpool/pooling" / folder)
    package = tmp_path / "jpool/pooling/__init__.py"
    lines = package.read_text().splitlines(keepends=True)
    kept = [line for line in lines if f"import {folder}" not in line]
    assert len(lines) - len(kept) == 1
    package.write_text("".join(kept))
    assert not re.search(
        rf"pooling\.{folder}", "".join(file.read_text() for file in (tmp_path / "jpool").rglob("*.py"))
    )
    paths = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT / 'tests')!r}]\n"
    code = paths + CHECK.format(root=str(tmp_path))
    code = code.replace("from shared", "import jax.export\nfrom shared", 1)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout == "all equal\n", ran.stderr


def test_the_arrangement_of_each_platform_takes_effect_and_another_can_be_defined():
    x = jax.ShapeDtypeStruct((9, 9, 2), np.float32)
    pooling = geometry(CASES["overlapping"])

    def lowered(platform):
        function = jax.jit(lambda x, ct: primitives.route(pooling, primitives.select(pooling, x)[1], ct))
        return (
            function.trace(x, jax.ShapeDtypeStruct(pooling.values_shape, np.float32))
            .lower(lowering_platforms=(platform,))
            .as_text()
        )

    before = {platform: lowered(platform) for platform in ("cuda", "rocm", "cpu", "tpu")}
    assert before["cuda"] == before["rocm"]
    assert len(set(before.values())) == 3
    try:
        primitives.define_platform("cuda", ARRANGEMENTS["tpu"])
        assert lowered("cuda") == before["tpu"]
    finally:
        primitives.define_platform("cuda", ARRANGEMENTS["gpu"])
    assert lowered("cuda") == before["cuda"]
