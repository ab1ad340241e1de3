"""Pooling of sharded arrays: the results are those of one device, and they stay sharded."""

from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from shared.programs import compiled_instructions

import jpool

pytestmark = pytest.mark.usefixtures("compiled_quickly")
SAME = {"window_shape": (3, 3), "strides": 2, "padding": "SAME"}
XS = np.random.default_rng(0).integers(0, 9, (4, 7, 8, 2)).astype(np.float32)


def mesh(kind, devices=2):
    return jax.make_mesh((devices,), ("d",), devices=jax.devices()[:devices], axis_types=(kind,))


def place(array, of_mesh, *spec):
    return jax.device_put(array, NamedSharding(of_mesh, P(*spec)))


def value_and_gradient(function):
    return lambda x: (function(x), jax.grad(lambda x: (function(x) ** 2).sum())(x))


# --- along a pooled axis, by XLA's partitioner ---

LINES = {
    **{f"adaptive {o}": partial(jpool.adaptive_max_pool, output_shape=(o,)) for o in (1, 3, 5)},
    **{f"{w} by {s}": partial(jpool.max_pool, window_shape=(w,), strides=s) for w, s in ((2, 2), (3, 3), (3, 2), (5, 4))},
    "padded": partial(jpool.max_pool, window_shape=(3,), strides=2, padding=1),
    "ceil": partial(jpool.max_pool, window_shape=(3,), strides=3, ceil_mode=True),
}  # fmt: skip


@pytest.mark.parametrize(("size", "devices"), [(8, 8), (16, 8), (8, 4)])
def test_pooling_along_an_axis_sharded_over_an_auto_mesh(size, devices):
    """XLA's partitioner is wrong about one-element slices with a stride above 1, so there must be none."""
    pools = {name: jax.vmap(partial(line, channel_axis=None)) for name, line in LINES.items()}
    all_of_them = jax.jit(lambda x: {name: value_and_gradient(pool)(x) for name, pool in pools.items()})
    x = np.random.default_rng(0).integers(0, 4, (8, size)).astype(np.float32)
    sharded, expected = (all_of_them(array) for array in (place(x, mesh(AxisType.Auto, devices), None, "d"), x))
    for name in LINES:
        jax.tree.map(partial(np.testing.assert_array_equal, err_msg=name), sharded[name], expected[name])


# --- every function, over batch or channels ---


def unpooled(x, **geometry):
    return jpool.max_unpool(*jpool.max_pool_with_argmax(x, (2, 2), 2), x.shape[:2], **geometry)


def argmax(x):
    return jpool.max_pool_with_argmax(x, **SAME)[1]


FUNCTIONS = {
    "max_pool": partial(jpool.max_pool, **SAME),
    "forward_mode": partial(jpool.max_pool, **SAME, forward_mode=True),
    "adaptive_max_pool": partial(jpool.adaptive_max_pool, output_shape=(4, 5)),
    "many windows": partial(jpool.adaptive_max_pool, output_shape=(83, 3)),
    "global_max_pool": jpool.global_max_pool,
    "max_unpool": unpooled,
    "max_unpool with the geometry": partial(unpooled, window_shape=(2, 2), strides=2),
}
WITHOUT_GRADIENT = {
    "argmax": argmax,
    "convert_argmax": lambda x: jpool.convert_argmax(argmax(x), x.shape[:2], x.shape[-1], to="onnx"),
    # The cotangent of this sum is the same for every example.
    "gradient of a sum": jax.grad(lambda x: jpool.max_pool(x, **SAME).sum()),
    "tangent": lambda x: jax.jvp(FUNCTIONS["forward_mode"], (x,), (x,))[1],
}
ALL = {**{name: value_and_gradient(f) for name, f in FUNCTIONS.items()}, **WITHOUT_GRADIENT}
PARTS = [dict(list(ALL.items())[i::3]) for i in range(3)]


@pytest.mark.parametrize("functions", PARTS, ids=[", ".join(part) for part in PARTS])
def test_every_function_keeps_batch_and_channels_sharded(functions):
    """Over an Explicit mesh, in one program for several functions."""
    all_of_them = jax.jit(lambda x: {name: f(x) for name, f in functions.items()})
    of_batch = jax.jit(jax.vmap(all_of_them))
    expected, explicit_mesh = of_batch(XS), mesh(AxisType.Explicit)
    with jax.set_mesh(explicit_mesh):
        batch = of_batch(place(XS, explicit_mesh, "d"))
        channels = all_of_them(place(XS[0], explicit_mesh, None, None, "d"))
    for name in functions:
        compare = partial(np.testing.assert_array_equal, err_msg=name)
        jax.tree.map(compare, batch[name], expected[name])
        jax.tree.map(lambda a, e, compare=compare: compare(a, e[0]), channels[name], expected[name])
    assert {along_mesh(leaf) for leaf in jax.tree.leaves(batch)} == {(0,)}
    assert all(along_mesh(leaf) == (leaf.ndim - 1,) for leaf in jax.tree.leaves(channels))


def test_an_auto_mesh_has_the_same_results():
    of_batch = jax.jit(jax.vmap(ALL["max_pool"]))
    sharded = of_batch(place(XS, mesh(AxisType.Auto), "d"))
    jax.tree.map(np.testing.assert_array_equal, sharded, of_batch(XS))
    assert {leaf.sharding.spec[0] for leaf in sharded} == {"d"}


def along_mesh(array):
    """The axes of an array that are split."""
    return tuple(i for i, along in enumerate(jax.typeof(array).sharding.spec) if along == "d")


def test_no_device_sends_anything_and_both_branches_are_sharded_alike_on_an_explicit_mesh():
    pool, explicit_mesh = jax.vmap(FUNCTIONS["max_pool"]), mesh(AxisType.Explicit)
    either = lambda x: jax.lax.cond(x.sum() > 0, pool, lambda x: -pool(-x), x)  # noqa: E731
    with jax.set_mesh(explicit_mesh):
        sharded = place(XS, explicit_mesh, "d")
        used = compiled_instructions(value_and_gradient(pool), sharded)
        assert not used & {"all-gather", "all-reduce", "all-to-all", "collective-permute"}
        np.testing.assert_array_equal(jax.jit(either)(sharded), pool(sharded))


def test_every_function_works_outside_of_jit_on_an_explicit_mesh():
    with jax.set_mesh(mesh(AxisType.Explicit)):
        batch = place(XS, mesh(AxisType.Explicit), "d")
        for name in ("max_pool", "max_unpool"):
            values, gradients = value_and_gradient(jax.vmap(FUNCTIONS[name]))(batch)
            assert along_mesh(values) == along_mesh(gradients) == (0,)


# --- what an Explicit mesh refuses, and what not ---


@pytest.mark.parametrize("name", [*FUNCTIONS, "argmax"])
def test_a_spatial_axis_sharded_over_an_explicit_mesh_is_refused_with_the_way_out(name):
    function, explicit_mesh = {**FUNCTIONS, **WITHOUT_GRADIENT}[name], mesh(AxisType.Explicit)
    text = r"x must be whole on each device along spatial axes.*Collect it first, jax.sharding.reshard\(x, jax.P\("
    with jax.set_mesh(explicit_mesh):
        for spec in (("d",), (None, "d")):
            sharded = place(XS[0, :6], explicit_mesh, *spec)
            for f in (function, jax.grad(lambda x: function(x).sum())):
                with pytest.raises(ValueError, match=text):
                    f(sharded)


def test_the_way_out_and_an_axis_that_is_not_pooled():
    pool, x = partial(jpool.max_pool, window_shape=(1, 3), strides=(1, 2)), XS[0, :6]
    expected = pool(x)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        actual = pool(place(x, mesh(AxisType.Explicit), "d"))
        collected = jax.sharding.reshard(place(x, mesh(AxisType.Explicit), None, "d"), P(None, None, None))
        np.testing.assert_array_equal(pool(collected), expected)
    assert along_mesh(actual) == (0,)
    np.testing.assert_array_equal(actual, expected)


VALUES, ARGMAX = jax.device_get(jax.jit(lambda x: jpool.max_pool_with_argmax(x, **SAME))(XS[0]))
EACH_AXES = {"values": (0, None), "argmax": (None, 0), "both": (0, 0)}


@pytest.mark.parametrize("sharded_argument", EACH_AXES)
def test_unpooling_of_values_and_argmax_sharded_differently(sharded_argument):
    unpool = jax.jit(lambda values, argmax: jpool.max_unpool(values, argmax, (7, 8)))
    of_batch, on_mesh = jax.jit(jax.vmap(unpool, EACH_AXES[sharded_argument])), mesh(AxisType.Explicit)
    is_sharded = [sharded_argument in (name, "both") for name in ("values", "argmax")]
    pairs = list(zip((VALUES, ARGMAX), is_sharded, strict=True))
    batch = [np.stack([array, array[::-1]]) if sharded else array for array, sharded in pairs]
    expected, expected_batch = unpool(VALUES, ARGMAX), of_batch(*batch)
    with jax.set_mesh(on_mesh):
        channels = unpool(*(place(array, on_mesh, None, None, "d" if sharded else None) for array, sharded in pairs))
        actual = of_batch(*(place(a, on_mesh, "d" if s else None) for a, s in zip(batch, is_sharded, strict=True)))
    np.testing.assert_array_equal(channels, expected)
    np.testing.assert_array_equal(actual, expected_batch)
    assert along_mesh(actual) == (0,)


def test_inside_shard_map_arrays_that_differ_between_devices_are_marked_varying():
    shard_map = partial(jax.shard_map, mesh=mesh(AxisType.Auto, 4))
    with pytest.raises(ValueError, match="out_specs"):  # argmax differs between devices
        shard_map(lambda x: argmax(x[0]), in_specs=P("d"), out_specs=P())(XS)
    loss = lambda values, argmax: (jpool.max_unpool(values, argmax, (7, 8), **SAME) ** 2).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss))
    argmaxes = np.stack([ARGMAX, np.where(ARGMAX > 9, -1, ARGMAX)] * 2)
    # The gradient of values that every device has is the sum over devices.
    summed = shard_map(lambda a, v: jax.grad(loss)(v, a[0]), in_specs=(P("d"), P()), out_specs=P())(argmaxes, VALUES)
    np.testing.assert_array_equal(summed, sum(gradient(VALUES, indices) for indices in argmaxes))


# --- without jit ---


@pytest.mark.parametrize("name", ["max_pool", "many windows", "global_max_pool", "max_unpool with the geometry"])
def test_gradients_with_jit_disabled_and_infinities_forbidden(name):
    """No infinity is made eagerly: the value of padding is -inf."""
    gradient = jax.grad(lambda x: FUNCTIONS[name](x).sum())
    expected = jax.jit(gradient)(XS[0])
    with jax.disable_jit(), jax.debug_infs(True):
        np.testing.assert_array_equal(gradient(XS[0]), expected)
