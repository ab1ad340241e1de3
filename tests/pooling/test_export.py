"""Values and gradients exported with jax.export on a CPU, for every platform."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from shared.cases import mostly_exhaustive

import jpool
from jpool.pooling.plain.ties import RULES

POOLS = {
    "2x2/2": partial(jpool.max_pool, window_shape=(2, 2), strides=2),
    "3x3/2 pad 1": partial(jpool.max_pool, window_shape=(3, 3), strides=2, padding=1),
    "5x5 SAME": partial(jpool.max_pool, window_shape=(5, 5), padding="SAME"),
    "dilated": partial(jpool.max_pool, window_shape=(2, 3), window_dilation=2),
    "min_pool": partial(jpool.min_pool, window_shape=(3, 3), strides=2, padding=1),
    **{f"ties={ties}": partial(jpool.max_pool, window_shape=(3, 4), strides=2, ties=ties) for ties in RULES},
    "forward_mode": partial(jpool.max_pool, window_shape=(3, 3), strides=2, padding=1, forward_mode=True),
    "with_argmax": lambda x: jpool.max_pool_with_argmax(x, (3, 3), 2)[0],
    "adaptive_max_pool": partial(jpool.adaptive_max_pool, output_shape=(4, 5)),
    "global_max_pool": jpool.global_max_pool,
    "unpooled": lambda x: jpool.max_unpool(*jpool.max_pool_with_argmax(x, (3, 3), 2), x.shape[:2], (3, 3), 2),
}
SHAPE = (2, 11, 9, 3)
SCATTER = re.compile(r"stablehlo\.\w*scatter")


def value_and_gradient(pool, xs):
    values, backward = jax.vjp(jax.vmap(pool), xs)
    return values, backward(jnp.ones_like(values))[0]


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
@pytest.mark.parametrize("name", POOLS)
def test_no_exported_program_has_a_scatter(name, platform):
    function = jax.jit(partial(value_and_gradient, POOLS[name]))
    program = export.export(function, platforms=[platform])(jax.ShapeDtypeStruct(SHAPE, np.float32))
    assert program.platforms == (platform,)
    text = program.mlir_module()
    assert "stablehlo.compare" in text
    assert not SCATTER.search(text)


def test_the_exported_program_of_lax_has_a_scatter():
    function = jax.jit(
        jax.grad(lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 2), (1, 1), "VALID").sum())
    )
    text = export.export(function, platforms=["cuda"])(jax.ShapeDtypeStruct((4, 4), np.float32)).mlir_module()
    assert SCATTER.search(text)


@pytest.mark.parametrize("name", mostly_exhaustive(POOLS, list(POOLS)[:2]))
def test_a_program_runs_after_serialization(name):
    function = jax.jit(partial(value_and_gradient, POOLS[name]))
    program = export.export(function, platforms=["cpu", "cuda", "rocm", "tpu"])(jax.ShapeDtypeStruct(SHAPE, np.float32))
    loaded = export.deserialize(program.serialize())
    xs = jnp.asarray(np.random.default_rng(0).integers(0, 9, SHAPE), jnp.float32)
    if jax.default_backend() != "cpu":
        pytest.skip("tests the CPU")
    for actual, expected in zip(loaded.call(xs), function(xs), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_program_serialized_with_its_vjp_can_be_differentiated():
    function = jax.jit(jax.vmap(POOLS["3x3/2 pad 1"]))
    program = export.export(function, platforms=["cpu", "cuda"])(jax.ShapeDtypeStruct(SHAPE, np.float32))
    loaded = export.deserialize(program.serialize(vjp_order=1))
    xs = jnp.asarray(np.random.default_rng(0).integers(0, 9, SHAPE), jnp.float32)
    np.testing.assert_array_equal(
        jax.grad(lambda xs: loaded.call(xs).sum())(xs), jax.grad(lambda xs: function(xs).sum())(xs)
    )


@pytest.mark.parametrize("name", POOLS)
def test_one_program_runs_with_any_number_of_examples_and_channels(name):
    batch, channels = export.symbolic_shape("batch, channels")
    function = jax.jit(partial(value_and_gradient, POOLS[name]))
    program = export.export(function)(jax.ShapeDtypeStruct((batch, *SHAPE[1:3], channels), np.float32))
    for size in ((1, 4), (5, 1)) if name == "3x3/2 pad 1" else ((3, 2),):
        xs = jnp.asarray(np.random.default_rng(0).integers(0, 9, (size[0], *SHAPE[1:3], size[1])), jnp.float32)
        jax.tree.map(np.testing.assert_array_equal, program.call(xs), function(xs))


@pytest.mark.parametrize("name", POOLS)
def test_a_symbolic_spatial_size_is_refused_with_the_way_out(name):
    height, width = export.symbolic_shape("height, width")
    text = (
        r"x must have spatial axes of known sizes; got (height along spatial axis 0|width along spatial axis 1), shape"
    )
    for shape in ((height, 9, 3), (11, width, 3)):
        with pytest.raises(ValueError, match=text):
            export.export(jax.jit(POOLS[name]))(jax.ShapeDtypeStruct(shape, np.float32))


def test_a_symbolic_size_of_argmax_is_refused_with_the_way_out():
    (height,) = export.symbolic_shape("height")
    arrays = jax.ShapeDtypeStruct((height, 4, 3), np.float32), jax.ShapeDtypeStruct((height, 4, 3), np.int32)
    with pytest.raises(ValueError, match="max_unpool: argmax must have spatial axes of known sizes; got height"):
        export.export(jax.jit(lambda values, argmax: jpool.max_unpool(values, argmax, (8, 8))))(*arrays)
    with pytest.raises(ValueError, match="convert_argmax: argmax must have spatial axes of known sizes; got height"):
        export.export(jax.jit(lambda argmax: jpool.convert_argmax(argmax, (8, 8), 3, to="onnx")))(arrays[1])
