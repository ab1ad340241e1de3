"""How each platform arranges a step, compared on this CPU, and the library without these arrangements."""

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
from shared.cases import CASES, CONTENTS
from shared.poolings import ARRANGEMENTS, geometry, resolved, winner_numbers

from jpool.pooling import cpu
from jpool.pooling.cpu.runs import MAX_EDGES, reads_in_place, runs, selects_in_place
from jpool.pooling.derivative import primitives
from jpool.pooling.integers.geometry import Axis, Geometry, adaptive
from jpool.pooling.plain import all_steps
from jpool.pooling.plain.arrays import padding_value
from jpool.pooling.plain.steps import steps
from jpool.pooling.slices import by_phase, taps_by_shift

pytestmark = pytest.mark.usefixtures("compiled_quickly")
ROOT = Path(__file__).parents[2]


def on_every_platform(pooling, *arrays, platforms=ARRANGEMENTS):
    """Values, winners, values alone, cotangents and tangents of a batch, by platform."""

    def results(platform, x, ct, t):
        values, winners = all_steps.select(platform, pooling, x)
        alone = platform.select_values(pooling, x) if platform.select_values else values
        routed, read = all_steps.route(platform, pooling, winners, ct), all_steps.gather(platform, pooling, winners, t)
        return values, winners, alone, routed, read

    of_batch = lambda name: jax.vmap(lambda *arrays: results(ARRANGEMENTS[name], *arrays))  # noqa: E731
    return jax.device_get(jax.jit(lambda *arrays: {name: of_batch(name)(*arrays) for name in platforms})(*arrays))


def assert_all_are_equal(results):
    """Bit for bit, except for the bits of NaNs and, where no winner is asked for or sums are made, the sign of zeros."""
    # As a dtype in which NumPy knows that NaNs are equal.
    first, *others = jax.tree.map(lambda array: np.asarray(array, np.float64), list(results.values()))
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other, first)
        number = ~np.isnan(first[0])
        np.testing.assert_array_equal(np.signbit(other[0])[number], np.signbit(first[0])[number])
    return next(iter(results.values()))


def whole_numbers(rng, *shape):
    return rng.integers(-9, 10, shape).astype(np.float32)  # sums are exact in any order


SOME_CASES = [
    "overlapping", "resnet_stem", "no_channels_padded", "inception", "gaps", "volume", "only_padding",
    "one_window_of_padding", "dilated_strided", "dilated_coarser", "ceil_low_padding", "five_by_five_strided",
    "taps_64",  # as max_unpool pools it: in one step
]  # fmt: skip


@pytest.mark.parametrize("name", SOME_CASES)
def test_all_arrangements_have_the_same_results(name):
    case, rng = CASES[name], np.random.default_rng(len(name))
    pooling = geometry(case)._replace(one_step=name == "taps_64")
    xs = np.stack([content(rng, case.shape) for content in CONTENTS.values()])
    ct, t = (whole_numbers(rng, len(xs), *shape) for shape in (pooling.values_shape, case.shape))
    values, winners, _, gradients, _ = assert_all_are_equal(on_every_platform(pooling, xs, ct, t))
    windows = oracle.windows(xs[0], case.window, **case.arguments)
    for i, x in enumerate(xs):
        expected, positions = oracle.pool(x, windows)
        np.testing.assert_array_equal(values[i], expected)
        np.testing.assert_array_equal(gradients[i], oracle.share(x.shape, positions, ct[i]).astype(np.float32))
        if len(winners) == 1:  # of several steps, each has numbers of its own
            np.testing.assert_array_equal(winners[0][i], winner_numbers(pooling, positions))
    assert [(w.shape[1:], w.dtype) for w in winners] == [(step.values_shape, "uint8") for step in steps(pooling)]


@pytest.mark.parametrize(("sizes", "outputs"), [((30, 2), (7, 2)), ((9, 13), (4, 5)), ((2, 5), (101, 3))])
def test_adaptive_windows_have_the_same_results_on_every_arrangement(sizes, outputs):
    rng = np.random.default_rng(0)
    xs = np.stack([content(rng, sizes) for content in CONTENTS.values()])
    ct, t = (whole_numbers(rng, len(xs), *shape) for shape in (outputs, sizes))
    assert_all_are_equal(on_every_platform(adaptive(sizes, outputs), xs, ct, t))


@pytest.mark.parametrize("ties", ["last", "split", "none"])
def test_large_windows_of_every_rule_on_every_arrangement(ties):
    pooling, rng = resolved((20, 23, 2), (20, 12), (1, 3), (0, 5))._replace(ties=ties), np.random.default_rng(0)
    xs, ct = 3 + whole_numbers(rng, 1, 20, 23, 2), 720720 * whole_numbers(rng, 1, *pooling.values_shape)
    assert_all_are_equal(on_every_platform(pooling, xs, ct, xs, platforms=["cpu", "gpu", "tpu"]))


COVERED = {  # one window covers these axes: all, those beside padding, those around an axis of one window each
    "line": ((40, 3), (40,), 0),
    "padded": ((10, 12, 3), (10, 11), ((0, 0), (5, 5))),
    "apart": ((10, 2, 11, 3), (10, 1, 11), 0),
}
PAIRS = [  # every two entries of two columns are together in a row
    ("line", "float32", False, "first"), ("line", "bfloat16", True, "last"), ("line", "int8", False, "last"), ("line", "uint32", True, "first"),
    ("padded", "float32", True, "last"), ("padded", "bfloat16", False, "first"), ("padded", "int8", True, "first"), ("padded", "uint32", False, "last"),
    ("apart", "float32", False, "last"), ("apart", "float8_e4m3fn", True, "first"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype", "minimum", "ties"), PAIRS)
def test_axes_that_one_window_covers(name, dtype, minimum, ties):
    """A reduction on every platform, on CPUs two; also after a step with padding. Zeros keep the sign of the winner."""
    shape, window, padding = COVERED[name]
    pooling = resolved(shape, window, padding=padding)._replace(ties=ties, minimum=minimum)
    low, among = (np.inf if minimum else -np.inf), np.array([-np.inf, -1, -0.0, 0.0, 2, np.inf, np.nan])
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        low, among = (info.max if minimum else info.min), np.array([info.min, 0, 1, info.max])
    rng = np.random.default_rng(0)
    chosen = [rng.choice(among[rng.permutation(len(among))[: 1 + i % 4]], shape) for i in range(24)]
    xs = np.stack([*chosen, np.full(shape, low)]).astype(jnp.dtype(dtype))
    ct, t = whole_numbers(rng, len(xs), *pooling.values_shape), np.zeros(xs.shape, np.float32)
    assert_all_are_equal(on_every_platform(pooling, xs, ct, t, platforms=["gpu", "cpu"]))


@pytest.mark.parametrize("window", [4, 9, 31])
def test_cotangents_of_16_bits_add_up_in_float32_on_every_arrangement(window):
    """Added in bfloat16, 256 + 1 is 256."""
    pooling, x = resolved((2 * window - 1,), (window,), channel_axis=None), np.zeros((1, 2 * window - 1))
    x[0, window - 1] = 1  # the winner of all windows
    ct = np.append(256, np.ones(window - 1))[None].astype(jnp.bfloat16)
    *_, gradient, _ = assert_all_are_equal(on_every_platform(pooling, x.astype(jnp.bfloat16), ct, x))
    np.testing.assert_array_equal(gradient, (x * (256 + window - 1)).astype(jnp.bfloat16), strict=True)


def test_a_large_table_that_is_computed_has_the_same_numbers():
    """Small tables by phase are written into the program; large ones are computed."""
    pooling = geometry(CASES["whole"]._replace(shape=(40, 30, 1), window=(40, 30)))
    ((_, table),) = taps_by_shift(pooling).items()
    for each in (table, table * 7 + 3, table[::-1].copy()):
        np.testing.assert_array_equal(np.asarray(by_phase(pooling, each, (1, 40, 1, 30, 1, 1))).ravel(), each.ravel())


@pytest.mark.parametrize(("size", "dtype"), [(255, "uint8"), (256, "uint16"), (66_000, "uint32")])
def test_a_reduction_saves_the_smallest_numbers_that_hold_every_tap(size, dtype):
    x = np.random.default_rng(0).permutation(size).astype(np.float32)
    pooling = resolved((size,), (size,), channel_axis=None)
    values, (winners,) = jax.jit(lambda x: primitives.select(pooling, x))(x)
    assert (winners.dtype, winners.item(), values.item()) == (dtype, x.argmax(), x.max())


def test_enormous_windows():
    pooling, x = resolved((66_000,), (65_536,), channel_axis=None), np.random.default_rng(0).permutation(66_000)
    x, ct = x.astype(np.float32)[None], np.ones((1, 465), np.float32)
    values, _, _, gradient, _ = on_every_platform(pooling, x, ct, x, platforms=["cpu"])["cpu"]
    windows = np.lib.stride_tricks.sliding_window_view(x[0], 65_536)
    np.testing.assert_array_equal(values[0], windows.max(1))
    wins = np.bincount(np.arange(len(windows)) + windows.argmax(1), minlength=66_000)
    np.testing.assert_array_equal(gradient[0], wins)


LOWEST = [
    ("float32", -np.inf, np.inf), ("bfloat16", -np.inf, np.inf), ("float8_e5m2", -np.inf, np.inf), ("float8_e4m3fn", -448, 448),
    ("float8_e5m2fnuz", -57344, 57344), ("int8", -128, 127), ("uint16", 0, 65535), ("int4", -8, 7), ("bool", False, True),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "low", "high"), LOWEST)
def test_no_element_loses_to_padding(dtype, low, high):
    for minimum, value in ((False, low), (True, high)):
        padding = padding_value(Geometry((), minimum=minimum), jnp.dtype(dtype))
        assert padding.dtype == dtype
        assert padding == np.asarray(value).astype(jnp.dtype(dtype))


# --- which windows XLA:CPU computes together: integers ---

AXES = [
    Axis(*numbers)
    for numbers in np.array(np.meshgrid((1, 2, 5, 12), (1, 2, 3, 5), (1, 2, 3), (1, 2), (0, 1, 4), (1, 2, 6))).T.reshape(-1, 6).tolist()
]  # fmt: skip


def test_each_window_is_in_one_run_and_reads_exactly_its_real_elements():
    position = lambda axis, window, tap, dilation: window * axis.stride + tap * dilation - axis.low  # noqa: E731
    for axis in AXES:
        read = []
        for run in runs(axis):
            for window in range(run.axis.output):
                taps = range(run.axis.window)
                read.append([(run.first_tap + tap, position(run.axis, window, tap, axis.dilation)) for tap in taps])
        all_taps = lambda o, axis=axis: [(tap, position(axis, o, tap, axis.dilation)) for tap in range(axis.window)]  # noqa: E731
        assert read == [[(tap, p) for tap, p in all_taps(o) if 0 <= p < axis.size] for o in range(axis.output)], axis


def test_windows_of_one_size_and_distance_are_one_run():
    as_numbers = lambda axis: [(-run.axis.low, run.axis.window, run.axis.output) for run in runs(axis)]  # noqa: E731
    assert as_numbers(Axis(10**6, 3, 1, 1, 1, 10**6)) == [(0, 2, 1), (0, 3, 10**6 - 2), (10**6 - 2, 2, 1)]
    assert as_numbers(adaptive((30,), (7,)).axes[0]) == [(0, 5, 3), (12, 6, 1), (17, 5, 3)]


def test_arrays_are_read_in_place_if_few_windows_overhang_and_none_on_the_last_axis():
    none, two, four = Axis(9, 3, 1, 1, 0, 7), Axis(9, 3, 1, 1, 1, 9), Axis(9, 5, 1, 1, 2, 9)  # windows that overhang
    assert MAX_EDGES == 3
    assert all(map(reads_in_place, ([none, none], [two, two, none])))
    assert not any(map(reads_in_place, ([none, two], [four, none])))
    assert [reads_in_place([none, two], last_axis_edges=edges) for edges in (1, 2)] == [False, True]


SELECTS_IN_PLACE = {
    "halves": True, "overlapping": True, "resnet_stem": True, "no_channels_padded": True,
    "channels_first": True,  # no window overhangs
    "inception": False,  # as many windows as elements: joining them would copy as much as padding does
    "default_strides": False, "uneven": False,
    "only_padding_strided": False,  # windows of padding alone
    "ceil_high_padding": False,
}  # fmt: skip


def test_the_geometry_determines_whether_select_reads_in_place():
    assert {name: selects_in_place(geometry(CASES[name])) for name in SELECTS_IN_PLACE} == SELECTS_IN_PLACE


# --- platforms can be left out, and defined ---

CHECK = """
import sys
sys.path[:0] = sys.argv[1:]
import numpy as np, jax, jax.export, jpool
from shared import oracle
from shared.cases import CASES, CONTENTS
assert jpool.__file__.startswith(sys.argv[1])
case, rng = CASES["five_by_five_strided"], np.random.default_rng(0)
both = jax.jit(lambda x, ct: (lambda values, backward: (values, *backward(ct)))(*jax.vjp(lambda x: jpool.max_pool(x, case.window, **case.arguments), x)))
for content in CONTENTS.values():
    x = content(rng, case.shape)
    expected, winners = oracle.pool(x, oracle.windows(x, case.window, **case.arguments))
    ct = rng.integers(-9, 10, expected.shape).astype(np.float32)
    values, gradient = both(x, ct)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(gradient, oracle.share(x.shape, winners, ct).astype(np.float32))
jax.export.export(both, platforms=["cpu", "cuda", "tpu"])(x, ct)
print("all equal")
"""


def test_the_library_works_without_the_folders_of_the_platforms(tmp_path):
    """Deletes each folder and the one line that imports it; no other module reads it."""
    shutil.copytree(ROOT / "jpool", tmp_path / "jpool", ignore=shutil.ignore_patterns("__pycache__"))
    package = tmp_path / "jpool/pooling/__init__.py"
    for folder in ("cpu", "gpu", "tpu"):
        shutil.rmtree(tmp_path / "jpool/pooling" / folder)
        lines = package.read_text().splitlines(keepends=True)
        kept = [line for line in lines if f"import {folder}" not in line]
        assert len(lines) - len(kept) == 1
        package.write_text("".join(kept))
        of_others = [path for path in (ROOT / "jpool").rglob("*.py") if path.parent.name != folder]
        assert not re.search(rf"pooling\.{folder}", "".join(path.read_text() for path in of_others))
    arguments = [str(tmp_path), str(ROOT / "tests")]
    ran = subprocess.run([sys.executable, "-c", CHECK, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout == "all equal\n", ran.stderr


def test_the_arrangement_of_each_platform_takes_effect_and_another_can_be_defined():
    pooling = geometry(CASES["overlapping"])
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((9, 9, 2), pooling.values_shape)]

    def lowered(platform):
        function = jax.jit(lambda x, ct: primitives.route(pooling, primitives.select(pooling, x)[1], ct))
        return function.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()

    before = {platform: lowered(platform) for platform in ("cuda", "rocm", "cpu", "tpu")}
    assert before["cuda"] == before["rocm"]
    assert len(set(before.values())) == 3
    try:
        primitives.define_platform("cuda", ARRANGEMENTS["tpu"])
        assert lowered("cuda") == before["tpu"]
    finally:
        primitives.define_platform("cuda", ARRANGEMENTS["gpu"])
    assert lowered("cuda") == before["cuda"]
    assert ARRANGEMENTS["cpu"] is cpu.PLATFORM
