"""Pooling of sharded arrays: the results are those of one device, and they stay sharded."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jpool

pytestmark = pytest.mark.usefixtures("compiled_quickly")
SAME = {"window_shape": (3, 3), "strides": 2, "padding": "SAME"}


def mesh(kind, devices=8):
    return jax.make_mesh((devices,), ("d",), devices=jax.devices()[:devices], axis_types=(kind,))


@pytest.fixture
def xs():
    return jnp.asarray(np.random.default_rng(0).integers(0, 9, (8, 9, 10, 2)), jnp.float32)


LINES = {
    **{f"adaptive {o}": partial(jpool.adaptive_max_pool, output_shape=(o,)) for o in (1, 3, 5)},
    **{
        f"{w} by {s}": partial(jpool.max_pool, window_shape=(w,), strides=s)
        for w, s in ((2, 2), (3, 3), (3, 2), (5, 4))
    },
    "padded": partial(jpool.max_pool, window_shape=(3,), strides=2, padding=1),
    "ceil": partial(jpool.max_pool, window_shape=(3,), strides=3, ceil_mode=True),
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("size", [8, 16])
def test_pooling_along_an_axis_sharded_over_an_auto_mesh(name, size):
    """XLA's partitioner is wrong about one-element slices with a stride above 1, so there must be none."""
    pool = jax.vmap(partial(LINES[name], channel_axis=None))
    x = jnp.asarray(np.random.default_rng(0).integers(0, 4, (8, size)), jnp.float32)

    @jax.jit
    def both(x):
        values, backward = jax.vjp(pool, x)
        return values, backward(jnp.arange(1.0, values.size + 1).reshape(values.shape))[0]

    sharded = jax.device_put(x, NamedSharding(mesh(AxisType.Auto), P(None, "d")))
    for actual, expected in zip(both(sharded), both(x), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_windows_that_overhang_on_an_axis_sharded_over_fewer_devices():
    x = jax.device_put(jnp.arange(8.0), NamedSharding(mesh(AxisType.Auto, 4), P("d")))
    pool = jax.jit(lambda x: jpool.max_pool(x, (3,), 3, ceil_mode=True, channel_axis=None))
    assert pool(x).tolist() == [2, 5, 7]
    assert jax.grad(lambda x: pool(x).sum())(x).tolist() == [0, 0, 1, 0, 0, 1, 0, 1]


def test_a_batch_on_an_explicit_mesh_stays_sharded(xs):
    argmax = lambda x: jpool.max_pool_with_argmax(x, **SAME)[1]  # noqa: E731
    gradient = jax.grad(lambda x: jpool.max_pool(x, **SAME).sum())  # its cotangent is the same for every example
    tangent = lambda x: jax.jvp(partial(jpool.max_pool, **SAME, forward_mode=True), (x,), (x,))[1]  # noqa: E731
    expected = [jax.vmap(f)(xs) for f in (argmax, gradient, tangent)]
    explicit_mesh = mesh(AxisType.Explicit)
    with jax.set_mesh(explicit_mesh):
        sharded = jax.device_put(xs, NamedSharding(explicit_mesh, P("d")))
        for f, on_one_device in zip((argmax, gradient, tangent), expected, strict=True):
            actual = jax.jit(jax.vmap(f))(sharded)
            assert actual.sharding.spec[0] == "d"
            np.testing.assert_array_equal(actual, on_one_device)


def unpooled(x, **geometry):
    return jpool.max_unpool(*jpool.max_pool_with_argmax(x, (2, 2), 2), x.shape[:2], **geometry)


FUNCTIONS = {
    "max_pool": partial(jpool.max_pool, **SAME),
    "min_pool": partial(jpool.min_pool, **SAME),
    "forward_mode": partial(jpool.max_pool, **SAME, forward_mode=True),
    "values": lambda x: jpool.max_pool_with_argmax(x, **SAME)[0],
    "adaptive_max_pool": partial(jpool.adaptive_max_pool, output_shape=(4, 5)),
    "many windows": partial(jpool.adaptive_max_pool, output_shape=(83, 3)),
    "global_max_pool": jpool.global_max_pool,
    "max_unpool": unpooled,
    "max_unpool with the geometry": partial(unpooled, window_shape=(2, 2), strides=2),
}
WITHOUT_GRADIENT = {
    "argmax": lambda x: jpool.max_pool_with_argmax(x, **SAME)[1],
    "convert_argmax": lambda x: jpool.convert_argmax(
        jpool.max_pool_with_argmax(x, **SAME)[1], (9, 10), x.shape[-1], to="onnx"
    ),
}


@pytest.mark.parametrize("jitted", [pytest.param(False, marks=pytest.mark.exhaustive), True])
@pytest.mark.parametrize("kind", [pytest.param(AxisType.Auto, marks=pytest.mark.exhaustive), AxisType.Explicit])
@pytest.mark.parametrize("sharded_axis", ["batch", "channels"])
@pytest.mark.parametrize("name", [*FUNCTIONS, *WITHOUT_GRADIENT])
def test_every_function_keeps_batch_and_channels_sharded(name, sharded_axis, kind, jitted, xs):
    function, spec = {**FUNCTIONS, **WITHOUT_GRADIENT}[name], P("d")
    if sharded_axis == "batch":
        function, x = jax.vmap(function), xs
    else:
        x, spec = xs[0], P(None, None, "d")
    gradient = jax.grad(lambda x: (function(x) ** 2).sum())
    of_mesh = mesh(kind, 2)
    with jax.set_mesh(of_mesh):
        sharded = jax.device_put(x, NamedSharding(of_mesh, spec))
        for f in (function, gradient) if name in FUNCTIONS else (function,):
            actual = (jax.jit(f) if jitted else f)(sharded)
            np.testing.assert_array_equal(actual, np.asarray(f(np.asarray(x))))
            if kind == AxisType.Explicit:
                sharded_along = [i for i, along in enumerate(jax.typeof(actual).sharding.spec) if along == "d"]
                assert sharded_along == [0 if sharded_axis == "batch" else actual.ndim - 1]


@pytest.mark.parametrize("name", [*FUNCTIONS, "argmax"])
@pytest.mark.parametrize("spec", [P("d"), P(None, "d")])
def test_a_spatial_axis_sharded_over_an_explicit_mesh_is_refused_with_the_way_out(name, spec):
    function = {**FUNCTIONS, **WITHOUT_GRADIENT}[name]
    x = jnp.asarray(np.random.default_rng(0).integers(0, 9, (8, 8, 2)), jnp.float32)
    explicit_mesh = mesh(AxisType.Explicit, 2)
    with jax.set_mesh(explicit_mesh):
        sharded = jax.device_put(x, NamedSharding(explicit_mesh, spec))
        text = r"x must be whole on each device along spatial axes.*Collect it first, jax.sharding.reshard\(x, jax.P\("
        for f in (function, jax.grad(lambda x: function(x).sum())):
            with pytest.raises(ValueError, match=text):
                f(sharded)
        np.testing.assert_array_equal(function(jax.sharding.reshard(sharded, P(None, None, None))), function(x))


def test_an_axis_that_is_not_pooled_may_be_sharded_over_an_explicit_mesh(xs):
    explicit_mesh = mesh(AxisType.Explicit, 2)
    pool = partial(jpool.max_pool, window_shape=(1, 3), strides=(1, 2))
    with jax.set_mesh(explicit_mesh):
        actual = pool(jax.device_put(xs[0, :8], NamedSharding(explicit_mesh, P("d"))))
    assert actual.sharding.spec[0] == "d"
    np.testing.assert_array_equal(actual, pool(xs[0, :8]))


@pytest.mark.parametrize("sharded_argument", ["values", "argmax", "both"])
def test_unpooling_of_values_and_argmax_sharded_differently(sharded_argument, xs):
    values, argmax = jpool.max_pool_with_argmax(xs[0], **SAME)
    of_batch = [jnp.stack([array, array[::-1]]) for array in (values, argmax)]
    unpool = lambda values, argmax: jpool.max_unpool(values, argmax, (9, 10))  # noqa: E731
    explicit_mesh = mesh(AxisType.Explicit, 2)

    def on_mesh(array, spec, name):
        return jax.device_put(array, NamedSharding(explicit_mesh, spec if sharded_argument in (name, "both") else P()))

    with jax.set_mesh(explicit_mesh):
        channels = [on_mesh(a, P(None, None, "d"), n) for a, n in ((values, "values"), (argmax, "argmax"))]
        np.testing.assert_array_equal(unpool(*channels), unpool(values, argmax))
        each_axes = {"values": (0, None), "argmax": (None, 0), "both": (0, 0)}[sharded_argument]
        arrays = [
            both if axis == 0 else one for both, one, axis in zip(of_batch, (values, argmax), each_axes, strict=True)
        ]
        expected = jax.vmap(unpool, each_axes)(*arrays)
        batch = [on_mesh(array, P("d"), n) for array, n in zip(arrays, ("values", "argmax"), strict=True)]
        actual = jax.vmap(unpool, each_axes)(*batch)
        assert jax.typeof(actual).sharding.spec[0] == "d"
        np.testing.assert_array_equal(actual, expected)


def test_inside_shard_map_arrays_that_differ_between_devices_are_marked_varying(xs):
    shard_map = partial(jax.shard_map, mesh=mesh(AxisType.Auto))
    with pytest.raises(ValueError, match="out_specs"):  # argmax differs between devices
        shard_map(lambda x: jpool.max_pool_with_argmax(x[0], **SAME)[1], in_specs=P("d"), out_specs=P())(xs)
    values, argmax = jax.vmap(lambda x: jpool.max_pool_with_argmax(x, **SAME))(xs)

    def loss(values, argmax):
        return (jpool.max_unpool(values, argmax, (9, 10), **SAME) ** 2).sum()

    # The gradient of values that every device has is the sum over devices.
    gradient = shard_map(lambda a, v: jax.grad(loss)(v, a[0]), in_specs=(P("d"), P()), out_specs=P())(argmax, values[0])
    np.testing.assert_array_equal(gradient, sum(jax.grad(loss)(values[0], indices) for indices in argmax))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_with_jit_disabled_and_infinities_forbidden(name, xs):
    """No infinity is made eagerly: the value of padding is -inf."""
    gradient = jax.vmap(jax.grad(lambda x: FUNCTIONS[name](x).sum()))
    expected = gradient(xs)
    with jax.disable_jit(), jax.debug_infs(True):
        np.testing.assert_array_equal(gradient(xs), expected)


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_unpooling_with_a_concrete_argmax_inside_jit(xs, as_array):
    values, argmax = jpool.max_pool_with_argmax(xs[0], **SAME)
    concrete, reversed_ = as_array(argmax), as_array(argmax[::-1])
    unpooled = jax.jit(lambda values: jpool.max_unpool(values, concrete, (9, 10), **SAME))(values)
    np.testing.assert_array_equal(unpooled, jpool.max_unpool(values, argmax, (9, 10)))
    with pytest.raises(ValueError, match="argmax must hold indices inside their windows"):
        jax.jit(lambda values: jpool.max_unpool(values, reversed_, (9, 10), **SAME))(values)


def test_two_exports_with_symbolic_batches_in_one_process(xs):
    for _ in range(2):
        (batch,) = export.symbolic_shape("batch")
        gradient = jax.jit(jax.vmap(jax.grad(lambda x: jpool.max_pool(x, **SAME).sum())))
        program = export.export(gradient)(jax.ShapeDtypeStruct((batch, *xs.shape[1:]), np.float32))
        np.testing.assert_array_equal(program.call(xs), gradient(xs))
