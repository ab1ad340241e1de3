"""The arrangements of the platforms, compared on this CPU, and the library without the one for XLA:CPU."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES, CONTENTS
from conftest import ARRANGEMENTS
from test_steps import geometry

from jpool.pooling.integers.arguments import TIES
from jpool.pooling.integers.geometry import resolve
from jpool.pooling.derivative import primitives
from jpool.pooling.plain.grid import Grid, grids, taps_by_shift
from jpool.pooling.integers.steps import Arrangement, steps

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", CASES)
def test_all_arrangements_find_the_same_winners_and_route_alike(name, compiled_quickly):
    """Bit for bit; of whole numbers the sums, too. The TPU's is nowhere else compared with the oracle."""
    case, whole, rng = CASES[name], geometry(CASES[name]), np.random.default_rng(len(name))
    xs = np.stack([content(rng, case.shape) for content in CONTENTS.values()])
    ct, t = (rng.integers(-9, 10, (len(xs), *shape)).astype(np.float32) for shape in (whole.values_shape, case.shape))

    @jax.jit
    def everything(xs, ct, t):
        def one(operations, x, ct, t):
            values, winners = operations.select(whole, x)
            return values, winners, operations.route(whole, winners, ct), operations.gather(whole, winners, t)

        return [
            jax.vmap(lambda *each, operations=operations: one(operations, *each))(xs, ct, t)
            for operations in ARRANGEMENTS.values()
        ]

    first, *others = everything(xs, ct, t)
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b), strict=True), first, other)
    for x, sent, gradient in zip(xs, ct, first[2], strict=True):
        _, winners = oracle.max_pool(x, case.window, **case.arguments)
        np.testing.assert_array_equal(gradient, oracle.route(x.shape, winners, sent).astype(np.float32))


def bits(array):
    return np.asarray(array + 0 if array.dtype == np.float32 else array).view(f"uint{8 * array.dtype.itemsize}")


@pytest.mark.parametrize("ties", TIES)
def test_large_windows_of_every_rule_on_every_arrangement(ties, compiled_quickly):
    options = {"window_dilation": 1, "ceil_mode": False, "channel_axis": -1, "ties": ties}
    whole = resolve("max_pool", (20, 23, 2), (20, 12), (1, 3), (0, 5), **options)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 40, (20, 23, 2)), jnp.float32)
    ct = jnp.asarray(720720 * np.random.default_rng(1).integers(-9, 10, whole.values_shape), jnp.float32)
    found = {}
    for name, operations in ARRANGEMENTS.items():
        values, winners = jax.jit(operations.select, static_argnums=0)(whole, x)
        found[name] = values, winners, jax.jit(operations.route, static_argnums=0)(whole, winners, ct)
    for name in ("gpu", "tpu"):
        jax.tree.map(np.testing.assert_array_equal, found[name], found["cpu"])


def test_the_steps_of_the_arrangements_differ_as_this_test_supposes():
    options = {"window_dilation": 1, "ceil_mode": False, "channel_axis": -1}
    whole = resolve("max_pool", (20, 23, 2), (20, 12), (1, 3), (0, 5), **options)
    of_gpu, of_cpu = steps(whole, Arrangement()), steps(whole, Arrangement(axis_taps=8, reduces=False))
    assert [step.reduced for step in of_gpu] == [(), (0,)]
    assert len(of_cpu) > len(of_gpu)
    stem = geometry(CASES["resnet_stem"])
    (step,) = steps(stem, Arrangement())
    assert len(list(grids(step, Arrangement()))) == 1
    assert len(list(grids(step, Arrangement(spread_axes=1)))) == 2
    assert len(list(grids(step, Arrangement(spread_axes=0)))) == 4
    (step,) = steps(geometry(CASES["gaps"]), Arrangement())
    assert len(list(grids(step, Arrangement()))) == 2  # of 4 phases of rows 2 have a tap, of 3 phases of columns 1


def test_a_large_table_is_computed_and_says_the_same():
    """Numbers by phase are written into the program where they are few, and computed where they are many."""
    axes = [
        axis._replace(stride=axis.window)
        for axis in geometry(CASES["whole"]._replace(shape=(40, 30, 1), window=(40, 30))).axes
    ]
    grid = Grid(axes, taps_by_shift(axes), {})
    ((_, taps),) = grid.taps.items()
    for numbers in (taps, taps * 7 + 3):
        got = grid.table(numbers, np.dtype("uint16"))
        np.testing.assert_array_equal(np.asarray(got).ravel(), numbers.ravel())


WITHOUT = """
import numpy as np, jax, jpool, oracle
from cases import CASES, CONTENTS
from jpool.pooling.derivative import primitives
assert "cpu" not in primitives.PLATFORMS and jpool.__file__.startswith({here!r})
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


def test_the_library_works_with_the_arrangement_for_cpus_removed(tmp_path):
    """The folder deleted, and the one line that imports it."""
    shutil.copytree(ROOT / "jpool", tmp_path / "jpool", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(tmp_path / "jpool/pooling/cpu")
    package = tmp_path / "jpool/pooling/__init__.py"
    lines = package.read_text().splitlines(keepends=True)
    kept = [line for line in lines if "import cpu" not in line]
    assert len(lines) - len(kept) == 1
    package.write_text("".join(kept))
    assert not re.search(r"pooling\.cpu", "".join(file.read_text() for file in (tmp_path / "jpool").rglob("*.py")))
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT / 'tests')!r}]\n" + WITHOUT.format(
        here=str(tmp_path)
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout == "all equal\n", ran.stderr


def test_a_platform_that_nobody_arranged_for_gets_the_plain_algorithm():
    x = jax.ShapeDtypeStruct((9, 9, 2), np.float32)
    program = jax.jit(lambda x: primitives.largest(geometry(CASES["overlapping"]), x)).trace(x)
    gpu, rocm = (program.lower(lowering_platforms=(platform,)).as_text() for platform in ("cuda", "rocm"))
    assert gpu == rocm != program.lower(lowering_platforms=("cpu",)).as_text()
