"""max_unpool, the transpose of reading at argmax, for any indices. test_every_case compares it for those of every pooling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from shared.programs import lowered_instructions

import jpool

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def by_definition(values, argmax, sizes):
    """max_unpool from its definition, for channels last: in row-major order, each value is added at its index."""
    out = np.zeros((*sizes, values.shape[-1]), np.float64)
    for output in np.ndindex(*values.shape):
        if 0 <= argmax[output] < np.prod(sizes):
            out[(*np.unravel_index(argmax[output], sizes), output[-1])] += values[output]
    return out


def whole_numbers(*shape, seed=0):
    return np.random.default_rng(seed).integers(1, 10, shape).astype(np.float32)


@pytest.mark.parametrize(("sizes", "shape"), [((7,), (3,)), ((4, 5), (6, 2)), ((3, 1, 4), (2, 3, 2)), ((2, 2), (1, 1))])
def test_arbitrary_indices(sizes, shape):
    argmax = np.random.default_rng(0).integers(-1, np.prod(sizes), (20, *shape, 2)).astype(np.int32)
    values = whole_numbers(*argmax.shape)
    unpooled = jax.jit(jax.vmap(lambda v, a: jpool.max_unpool(v, a, sizes)))(values, argmax)
    np.testing.assert_array_equal(unpooled, [by_definition(v, a, sizes) for v, a in zip(values, argmax, strict=True)])


def test_values_of_overlapping_windows_add_up():
    x = np.array([[1, 2, 3], [4, 9, 5], [6, 7, 8]], np.float32)
    values, argmax = jpool.max_pool_with_argmax(x, (2, 2), channel_axis=None)
    unpooled = jpool.max_unpool(values, argmax, (3, 3), channel_axis=None)
    np.testing.assert_array_equal(unpooled, [[0, 0, 0], [0, 36, 0], [0, 0, 0]])


def test_values_are_added_in_row_major_order_in_float32():
    values, argmax = np.random.default_rng(0).standard_normal((300, 1)).astype(np.float32), np.zeros((512, 1), int)
    assert jpool.max_unpool(values, argmax[:300], (2,))[0, 0] == np.add.accumulate(values, dtype=np.float32)[-1, 0]
    for dtype in ("bfloat16", "float16"):
        ones = np.full((512, 1), 2.0**-6).astype(jnp.dtype(dtype))
        assert jpool.max_unpool(ones, argmax, (2,)).tolist() == [[8], [0]]


@pytest.mark.parametrize("dtype", ["int8", "uint16", "bfloat16", "float8_e5m2", "float64"])
@pytest.mark.parametrize("geometry", [(), ((2,),)])
def test_dtypes(dtype, geometry):
    with jax.enable_x64(dtype == "float64"):
        values = np.array([[100], [100]]).astype(jnp.dtype(dtype))  # two windows with the same winner
        unpooled = jpool.max_unpool(values, np.array([[1], [1]]), (3,), *geometry)
    total = {"int8": -56, "float8_e5m2": 192}.get(dtype, 200)  # int8 wraps around; float8_e5m2 rounds 100 to 96
    assert unpooled.dtype == dtype
    assert np.asarray(unpooled).astype(float).tolist() == [[0], [total], [0]]


@pytest.mark.parametrize("geometry", [{}, {"window_shape": (2,), "strides": 1, "padding": 0}])
def test_bools(geometry):
    unpooled = jpool.max_unpool(np.array([[True], [True], [False]]), np.array([[1], [1], [2]]), (4,), **geometry)
    assert unpooled.dtype == bool
    assert unpooled.ravel().tolist() == [False, True, False, False]


def test_empty_values():
    assert jpool.max_unpool(np.zeros((0, 2)), np.zeros((0, 2), int), (3,)).tolist() == [[0, 0]] * 3
    assert jpool.max_unpool(np.zeros((2, 0)), np.zeros((2, 0), int), (3,)).shape == (3, 0)


# --- derivatives and transformations ---

ARGMAX = np.array([[[0, 3], [4, 3]], [[-1, 5], [4, 4]]], np.int32)  # 2 x 2 windows, 2 channels, on a grid of 2 x 3


def test_it_is_linear_and_its_transpose_reads_at_argmax():
    unpool = lambda values: jpool.max_unpool(values, ARGMAX, (2, 3))  # noqa: E731
    v, ct = whole_numbers(*ARGMAX.shape), np.arange(12, dtype=np.float32).reshape(2, 3, 2)

    @jax.jit
    def everything(v, ct):
        out, tangent = jax.jvp(unpool, (v,), (v,))
        transposed = jax.vjp(unpool, v)[1](ct)[0], jax.linear_transpose(unpool, v)(ct)[0]
        cubes = jax.hessian(lambda v: (unpool(v) ** 3).sum())(v)
        return out, tangent, transposed, (jax.jacfwd(unpool)(v), jax.jacrev(unpool)(v)), cubes

    out, tangent, transposed, jacobians, cubes = jax.device_get(everything(v, ct))
    np.testing.assert_array_equal(out, by_definition(v, ARGMAX, (2, 3)))
    np.testing.assert_array_equal(tangent, out)
    for gradient in transposed:
        np.testing.assert_array_equal(gradient, [[[0, 7], [8, 7]], [[0, 11], [8, 9]]])
    np.testing.assert_array_equal(*jacobians)
    jacobian = jacobians[0].reshape(12, 8)
    np.testing.assert_array_equal(cubes.reshape(8, 8), jacobian.T @ np.diag(6 * out.ravel()) @ jacobian)


def all_by_definition(values, argmax):
    return [by_definition(v, a, (5, 4)) for v, a in zip(values, argmax, strict=True)]


GEOMETRY = {"window_shape": (3, 3), "strides": 2, "padding": 1}


@pytest.mark.parametrize("geometry", [{}, GEOMETRY])
def test_every_transformation(geometry):
    xs = np.random.default_rng(0).permutation(3 * 5 * 4 * 2).reshape(3, 5, 4, 2).astype(np.float32)
    values, argmax = jax.device_get(jax.jit(jax.vmap(lambda x: jpool.max_pool_with_argmax(x, **GEOMETRY)))(xs))
    unpool = partial(jpool.max_unpool, spatial_shape=(5, 4), **geometry)

    @jax.jit
    def everything(values, argmax):
        one_of_values = jax.vmap(unpool, (None, 0))
        batch, tangent = jax.jvp(lambda values: jax.vmap(unpool)(values, argmax), (values,), (values,))
        summed = jax.grad(lambda v: one_of_values(v, argmax).sum())(values[0])
        squares = jax.vmap(jax.grad(lambda v, a: (unpool(v, a) ** 2).sum()))(values, argmax)
        return (
            batch,
            tangent,
            one_of_values(values[0], argmax),
            jax.vmap(unpool, (0, None))(values, argmax[0]),
            summed,
            squares,
        )

    batch, tangent, of_one_value, of_one_argmax, summed, squares = jax.device_get(everything(values, argmax))
    np.testing.assert_array_equal(batch, all_by_definition(values, argmax))
    np.testing.assert_array_equal(tangent, batch)
    np.testing.assert_array_equal(of_one_value, all_by_definition([values[0]] * 3, argmax))
    if not geometry:  # an index of another example may be outside of its window
        np.testing.assert_array_equal(of_one_argmax, all_by_definition(values, [argmax[0]] * 3))
    np.testing.assert_array_equal(summed, np.full(values[0].shape, 3))
    read = [np.take_along_axis(o.reshape(20, 2), a.reshape(-1, 2), 0) for o, a in zip(batch, argmax, strict=True)]
    np.testing.assert_array_equal(squares, 2 * np.reshape(read, values.shape))


# --- with the geometry ---


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_with_the_geometry_there_is_no_loop_and_no_index_known_only_at_run_time(platform):
    arrays = [jax.ShapeDtypeStruct((4, 3, 2), dtype) for dtype in (np.float32, np.int32)]

    def both(values, argmax, **geometry):
        out, backward = jax.vjp(lambda v: jpool.max_unpool(v, argmax, (7, 6), **geometry), values)
        return out, backward(out)[0]

    with_geometry = lowered_instructions([platform], partial(both, **GEOMETRY), *arrays)
    assert not with_geometry & {"while", "gather", "scatter", "dynamic-slice"}
    assert "scatter" in lowered_instructions([platform], both, *arrays)


@pytest.mark.parametrize(("size", "window", "stride"), [(40, 13, 1), (60, 25, 5), (64, 32, 32), (90, 70, 3)])
def test_any_argmax_inside_its_windows_with_the_geometry_of_large_windows(size, window, stride):
    """Not only that of one pooling: overlapping windows may name different elements."""
    starts = np.arange(jpool.pooled_shape((size,), (window,), stride)[0]) * stride
    argmax = (starts + np.random.default_rng(window).integers(0, window, len(starts)))[:, None].astype(np.int32)
    values, ct = whole_numbers(len(starts), 1), whole_numbers(size, 1, seed=1)
    unpool = lambda values: jpool.max_unpool(values, argmax, (size,), (window,), stride)  # noqa: E731
    unpooled, gradient = jax.jit(lambda values, ct: (unpool(values), jax.vjp(unpool, values)[1](ct)[0]))(values, ct)
    np.testing.assert_array_equal(unpooled, by_definition(values, argmax, (size,)).astype(np.float32))
    np.testing.assert_array_equal(gradient, ct[argmax[:, 0]])


def test_the_defaults_of_the_geometry_may_be_written_out_without_it():
    arguments = np.ones((2, 1), np.float32), np.array([[1], [3]]), (4,)
    for options in ({"padding": "valid"}, {"padding": "VALID", "ceil_mode": np.False_}, {"strides": None}):
        assert jpool.max_unpool(*arguments, **options).ravel().tolist() == [0, 1, 0, 1]


# --- indices outside ---


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_a_concrete_argmax_is_checked_even_inside_jit(as_array):
    """An array that jit closes over is concrete."""
    values = np.ones(2, np.float32)
    for wrong in ([9, 0], [0, -2], [0, 2**32 + 3]):  # as int32 the last would wrap around to 3
        if as_array is jnp.asarray and max(wrong) > 2**31:
            continue
        argmax, text = (
            as_array(wrong),
            f"argmax must hold flat indices 0 to 3 of .*-1 for no winner; got {wrong[wrong[0] == 0]}",
        )
        unpool = lambda values, argmax=argmax: jpool.max_unpool(values, argmax, (4,), channel_axis=None)  # noqa: E731
        for call in (unpool, jax.jit(unpool)):
            with pytest.raises(ValueError, match=text):
                call(values)
    first, other = as_array([1, 0]), as_array([1, 3])
    unpool = jax.jit(lambda values: jpool.max_unpool(values, first, (4,), (2,), 2, channel_axis=None))
    text = r"argmax must hold indices inside their windows, or -1; got 0 at position \(1,\), where the window has no tap. Give the geometry that argmax is from, or omit"
    with pytest.raises(ValueError, match=text):  # 0 is in the first window, not in the second
        unpool(values)
    with pytest.raises(ValueError, match=r"got 1 at position \(0,\), where the window has no tap"):  # between two taps
        jpool.max_unpool(values, other, (6,), (2,), 3, window_dilation=2, channel_axis=None)
    right = jax.jit(lambda values: jpool.max_unpool(values, other, (4,), (2,), 2, channel_axis=None))
    assert right(values).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("argmax", "geometry"), [([1, 7], ()), ([1, -5], ()), ([1, 0], ((2,), 2)), ([1, 7], ((2,), 2))]
)
def test_a_traced_index_outside_is_skipped(argmax, geometry):
    unpool = lambda values, argmax: jpool.max_unpool(values, argmax, (4,), *geometry, channel_axis=None)  # noqa: E731
    both = jax.jit(lambda v, a: (unpool(v, a), jax.grad(lambda v: unpool(v, a).sum())(v)))
    unpooled, gradient = both(np.ones(2, np.float32), np.array(argmax))
    assert (unpooled.tolist(), gradient.tolist()) == ([0, 1, 0, 0], [1, 0])


@pytest.mark.parametrize("geometry", [(), ((2,), 2)])
def test_a_skipped_value_is_not_reported_as_out_of_bounds(geometry):
    unpool = lambda values, argmax: jpool.max_unpool(values, argmax, (4,), *geometry, channel_axis=None)  # noqa: E731
    error, unpooled = checkify.checkify(unpool, checkify.index_checks)(jnp.array([3.0, 5.0]), np.array([1, -1]))
    assert (error.get(), unpooled.tolist()) == (None, [0, 3, 0, 0])


# --- errors ---

ZEROS = {"values": np.zeros((2, 1)), "argmax": np.zeros((2, 1), int), "spatial_shape": (4,)}
BOTH = {"values": np.ones(ARGMAX.shape), "argmax": ARGMAX, "spatial_shape": (2, 3)}
ERRORS = [
    (BOTH, {"spatial_shape": 6}, TypeError, "spatial_shape must be a tuple of ints >= 1.*got 6 of type int"),
    (BOTH, {"spatial_shape": (6, 0)}, ValueError, "spatial_shape must hold ints >= 1; got 0"),
    (BOTH, {"spatial_shape": (2, 3, 4)}, ValueError, r"argmax must be ONE example .*4 axes for spatial_shape \(2, 3, 4\).*with channels leave them out of spatial_shape"),
    (BOTH, {"argmax": np.stack([ARGMAX] * 2)}, ValueError, r"argmax must be ONE example .*jax.vmap\(lambda values, argmax: jpool.max_unpool\(.*\)\(values, argmax\)"),
    (BOTH, {"spatial_shape": (2**16, 2**16)}, ValueError, r"spatial_shape must span at most 2\*\*31 positions"),
    (BOTH, {"values": np.zeros((2, 2, 3))}, ValueError, r"values must have the shape of argmax, \(2, 2, 2\), one index for each value; got \(2, 2, 3\)"),
    (BOTH, {"values": None}, TypeError, "values must be a JAX or NumPy array; got NoneType"),
    (BOTH, {"values": ARGMAX * 1j}, TypeError, "values must be an array of real numbers.*dtype complex64|dtype complex128"),
    (BOTH, {"argmax": ARGMAX * 1.0}, TypeError, "argmax must be an array of integers, as from max_pool_with_argmax; got dtype float"),
    (BOTH, {"argmax": ARGMAX > 0}, TypeError, "argmax must be an array of integers.*got dtype bool"),
    (BOTH, {"argmax": ARGMAX.tolist()}, TypeError, "argmax must be a JAX or NumPy array; got list"),
    (BOTH, {"channel_axis": 1}, ValueError, "channel_axis must be -1"),
    (ZEROS, {"strides": 2}, ValueError, r"strides is part of the geometry .* got strides=2 and window_shape=None\. Give both, or neither"),
    (ZEROS, {"padding": 1}, ValueError, "padding is part of the geometry"),
    (ZEROS, {"padding": 0}, ValueError, "padding is part of the geometry"),
    (ZEROS, {"window_dilation": 2}, ValueError, "window_dilation is part of the geometry"),
    (ZEROS, {"ceil_mode": True}, ValueError, "ceil_mode is part of the geometry"),
    (ZEROS, {"ceil_mode": 0}, ValueError, "ceil_mode is part of the geometry"),
    (ZEROS, {"window_shape": (2, 2)}, ValueError, r"window_shape must have 1 entries, one for each axis of spatial_shape; got \(2, 2\)"),
    (ZEROS, {"window_shape": 2}, TypeError, "window_shape must be a tuple of ints"),
    (ZEROS, {"window_shape": (2,)}, ValueError, r"the spatial shape that pooling \(4,\) with these arguments gives, \(3,\); got \(2,\)\. Give"),
    (ZEROS, {"window_shape": (9,)}, ValueError, "larger than the padded input"),
    (ZEROS, {"window_shape": (2,), "strides": 0}, ValueError, "strides must hold ints >= 1"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "arguments", "error", "text"), ERRORS)
def test_errors(call, arguments, error, text):
    with pytest.raises(error, match="max_unpool: .*" + text):
        jpool.max_unpool(**{**call, **arguments})


def test_values_and_argmax_on_different_devices_are_refused():
    values, argmax = (jax.device_put(np.array([1, 3]), device) for device in jax.devices()[:2])
    text = r"max_unpool: values and argmax must be on the same devices; got .*device_put"
    with pytest.raises(ValueError, match=text):
        jpool.max_unpool(values, argmax, (4,), channel_axis=None)
