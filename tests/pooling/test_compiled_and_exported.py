"""Programs: no scatter, no loop, no index that depends on data; what they save and write; exported ones run anywhere."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from shared.programs import AS_USERS, FORBIDDEN, compiled_instructions, lowered_instructions

import jpool
from jpool.pooling.derivative.vjp import pool as jitted
from jpool.pooling.plain.ties import RULES

PLATFORMS = ["cpu", "cuda", "rocm", "tpu"]
OVERLAPPING = {"window_shape": (3, 3), "strides": 2, "padding": 1}
POOLS = {
    "2x2/2": partial(jpool.max_pool, window_shape=(2, 2), strides=2),
    "3x3/2 pad 1": partial(jpool.max_pool, **OVERLAPPING),
    "5x5 SAME": partial(jpool.max_pool, window_shape=(5, 5), padding="SAME"),
    "9x2 dilated": partial(jpool.max_pool, window_shape=(9, 2), window_dilation=2, padding=(4, 0)),
    "min_pool": partial(jpool.min_pool, **OVERLAPPING),
    **{f"ties={ties}": partial(jpool.max_pool, window_shape=(3, 4), strides=2, ties=ties) for ties in RULES},
    "forward_mode": partial(jpool.max_pool, **OVERLAPPING, forward_mode=True),
    "with_argmax": lambda x: jpool.max_pool_with_argmax(x, (3, 3), 2)[0],
    "adaptive_max_pool": partial(jpool.adaptive_max_pool, output_shape=(4, 5)),
    "global_max_pool": jpool.global_max_pool,
    "unpooled": lambda x: jpool.max_unpool(*jpool.max_pool_with_argmax(x, (3, 3), 2), x.shape[:2], (3, 3), 2),
}
SHAPE = (2, 11, 9, 3)
XS = np.random.default_rng(0).integers(0, 9, SHAPE).astype(np.float32)


def of_lax(x):
    return jax.lax.reduce_window(x, -np.inf, jax.lax.max, (2, 2, 1), (1, 1, 1), "VALID")


def value_and_gradient(pool):
    def both(xs):
        values, backward = jax.vjp(jax.vmap(pool), xs)
        return values, backward(jnp.ones_like(values))[0]

    return both


def shaped(shape=SHAPE, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("name", ["2x2/2", "5x5 SAME", "9x2 dilated", "unpooled"])
def test_the_compiled_program_has_no_scatter_and_no_loop(name):
    instructions = compiled_instructions(value_and_gradient(POOLS[name]), shaped())
    assert {"compare", "select"} <= instructions
    assert not instructions & FORBIDDEN


@pytest.mark.parametrize("name", POOLS)
def test_the_lowered_program_of_every_platform_has_no_scatter_and_no_loop(name):
    """One program for all platforms; rocm has that of cuda."""
    instructions = lowered_instructions(PLATFORMS, value_and_gradient(POOLS[name]), shaped())
    assert {"compare", "select"} <= instructions
    assert not instructions & FORBIDDEN


def test_the_programs_of_lax_have_forbidden_instructions():
    assert compiled_instructions(value_and_gradient(of_lax), shaped()) & FORBIDDEN
    assert lowered_instructions(["cuda"], value_and_gradient(of_lax), shaped()) & FORBIDDEN


# --- what is written and saved ---


@pytest.mark.parametrize("name", ["2x2/2", "3x3/2 pad 1"])
def test_a_forward_pass_without_gradient_writes_no_winners(name):
    assert " u8[" not in jax.jit(jax.vmap(POOLS[name])).lower(shaped()).compile(AS_USERS).as_text()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="tests a loop of XLA:CPU")
def test_values_and_winners_are_written_in_one_pass_over_x():
    program = jax.jit(value_and_gradient(POOLS["2x2/2"])).lower(shaped((4, 8, 8, 3))).compile(AS_USERS).as_text()
    entry = program[program.index("\nENTRY") :]
    (fusion_of_x,) = re.findall(r"%([\w.]+) = [^=]*fusion\(%xs[\w.]*\)", entry)
    assert re.search(rf"%{re.escape(fusion_of_x)} = \(f32\[[^)]*u8\[", entry)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_x_is_not_copied_for_padding_or_for_conversion(dtype):
    def both(x, ct):
        values, backward = jax.vjp(jax.vmap(POOLS["3x3/2 pad 1"]), x)
        return values, backward(ct)[0]

    x, ct = shaped((2, 32, 32, 16), dtype), shaped((2, 16, 16, 16), dtype)
    memory = jax.jit(both).lower(x, ct).compile(AS_USERS).memory_analysis()
    # Nothing else as large is copied, either; but 16-bit cotangents are converted, because they add up in float32.
    assert memory.temp_size_in_bytes < x.size * x.dtype.itemsize * (0.5 if dtype == "float32" else 1)


# 17 taps are 5 and 4 blocks, 15 taps 6 and 4: the values of each step along the last axis, then along the first.
RESIDUALS = [
    ((2, 2), 19 * 19), ((3, 3), 18 * 18), ((5, 5), 20 * 16 + 16 * 16), ((15, 17), 20 * (16 + 4) + (15 + 6) * 4), ((20, 20), 2),
]  # fmt: skip


@pytest.mark.parametrize(("window", "values"), RESIDUALS)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_only_the_winners_are_saved(window, values, wrap):
    """A byte for each value of each step; a reduction saves the number of one tap."""
    pool = wrap(jax.vmap(lambda x: jpool.max_pool(x, window)))
    saved = jax.tree.leaves(jax.eval_shape(lambda xs: jax.vjp(pool, xs)[1], shaped((3, 20, 20, 2))))
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in saved) == 3 * 2 * values


def test_adaptive_pooling_saves_one_byte_for_each_value_of_its_steps():
    pool = lambda x: jpool.adaptive_max_pool(x, (7, 3), channel_axis=None)  # noqa: E731
    saved = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(pool, x)[1], shaped((30, 31))))
    # Of the last axis in two steps, of the first in one.
    assert [(leaf.size, leaf.dtype) for leaf in saved] == [(30 * 6, "uint8"), (30 * 3, "uint8"), (7 * 3, "uint8")]


# --- how often programs are compiled ---


def test_a_derivative_outside_jit_compiles_two_programs(caplog):
    x = jnp.asarray(XS[0])
    with jax.log_compiles(True):
        _, backward = jax.vjp(partial(jpool.max_pool, window_shape=(2, 3), padding="SAME"), x)
        backward(x)
    compiled = re.findall(r"Finished XLA compilation of jit\((\w+)\)", "\n".join(caplog.messages))
    assert len([name for name in compiled if name != "convert_element_type"]) == 2  # JAX may convert x first


def test_four_ways_to_write_one_geometry_are_compiled_once():
    before = jitted._cache_size()
    for padding in (0, "VALID", ((0, 0), (0, 0)), np.int64(0)):
        jpool.max_pool(np.zeros((5, 9, 1), np.float32), (2, 2), padding=padding)
    assert jitted._cache_size() == before + 1


# --- exported programs ---


@pytest.mark.parametrize("name", ["3x3/2 pad 1", "unpooled"])
def test_a_program_for_all_platforms_runs_after_serialization(name):
    function = jax.jit(value_and_gradient(POOLS[name]))
    program = export.export(function, platforms=PLATFORMS)(shaped())
    assert program.platforms == tuple(PLATFORMS)
    loaded = export.deserialize(program.serialize())
    if jax.default_backend() != "cpu":
        pytest.skip("tests the CPU")
    jax.tree.map(np.testing.assert_array_equal, loaded.call(XS), function(XS))


def test_a_program_serialized_with_its_vjp_can_be_differentiated():
    function = jax.jit(jax.vmap(POOLS["3x3/2 pad 1"]))
    loaded = export.deserialize(export.export(function)(shaped()).serialize(vjp_order=1))
    gradients = (jax.grad(lambda xs, f=f: f(xs).sum())(XS) for f in (loaded.call, function))
    np.testing.assert_array_equal(*gradients)


RUN = {"3x3/2 pad 1": [(1, 4), (5, 1)], "ties=split": [(3, 2)], "adaptive_max_pool": [(3, 2)], "unpooled": [(3, 2)]}


@pytest.mark.parametrize("name", POOLS)
def test_one_program_is_for_any_number_of_examples_and_channels(name):
    batch, channels = export.symbolic_shape("batch, channels")
    function = jax.jit(value_and_gradient(POOLS[name]))
    program = export.export(function)(shaped((batch, *SHAPE[1:3], channels)))
    assert re.search(r"tensor<\?x11x9x\?xf32>", program.mlir_module())
    for examples, depth in RUN.get(name, []):
        xs = np.random.default_rng(0).integers(0, 9, (examples, *SHAPE[1:3], depth)).astype(np.float32)
        jax.tree.map(np.testing.assert_array_equal, program.call(xs), function(xs))


def test_a_second_program_of_symbolic_size_in_one_process_is_another():
    for name in ("batch", "batch", "other"):
        (batch,) = export.symbolic_shape(name)
        program = export.export(jax.jit(jax.vmap(POOLS["2x2/2"])))(shaped((batch, *SHAPE[1:])))
        assert program.call(XS).shape == (2, 5, 4, 3)


@pytest.mark.parametrize("name", POOLS)
def test_a_symbolic_spatial_size_is_refused_with_the_way_out(name):
    height, width = export.symbolic_shape("height, width")
    for shape, where in (
        ((height, 9, 3), "height along spatial axis 0"),
        ((11, width, 3), "width along spatial axis 1"),
    ):
        with pytest.raises(ValueError, match=f"x must have spatial axes of known sizes; got {where}, shape"):
            export.export(jax.jit(POOLS[name]))(shaped(shape))


def test_a_symbolic_size_of_argmax_is_refused_with_the_way_out():
    (height,) = export.symbolic_shape("height")
    values, argmax = shaped((height, 4, 3)), shaped((height, 4, 3), np.int32)
    with pytest.raises(ValueError, match="max_unpool: argmax must have spatial axes of known sizes; got height"):
        export.export(jax.jit(lambda values, argmax: jpool.max_unpool(values, argmax, (8, 8))))(values, argmax)
    with pytest.raises(ValueError, match="convert_argmax: argmax must have spatial axes of known sizes; got height"):
        export.export(jax.jit(lambda argmax: jpool.convert_argmax(argmax, (8, 8), 3, to="onnx")))(argmax)
