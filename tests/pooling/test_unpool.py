"""max_unpool, the transpose of reading at argmax: for indices that come from pooling, and for any others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from shared.cases import CASES, CONTENTS, EVERY_CASE, QUICK, mostly_exhaustive
from shared.programs import lowered_instructions

import jpool


def by_definition(values, argmax, sizes):
    """max_unpool from its definition, for channels last: in row-major order, each value is added at its index."""
    out = np.zeros((*sizes, values.shape[-1]), np.float64)
    for output in np.ndindex(*values.shape):
        if 0 <= argmax[output] < np.prod(sizes):
            out[(*np.unravel_index(argmax[output], sizes), output[-1])] += values[output]
    return out


def pooled(name, content="distinct"):
    case = CASES[name]
    x = CONTENTS[content](np.random.default_rng(len(name)), case.shape)
    return x, jpool.max_pool_with_argmax(x, case.window, **case.arguments)


@pytest.mark.parametrize(
    "name",
    mostly_exhaustive(
        ["halves", "resnet_stem", "inception", "gaps", "whole", "zero_channels", "line", "volume", "four_axes",
         "only_padding", "dilated_same", "ceil_high_padding", "five_by_five_strided", "long_only_padding"],
        ["resnet_stem", "gaps", "zero_channels", "volume"]),
)  # fmt: skip
def test_every_value_is_put_back_at_its_index(name):
    x, (_, argmax) = pooled(name)
    values = np.random.default_rng(0).integers(1, 9, argmax.shape).astype(np.float32)
    unpooled = jpool.max_unpool(values, argmax, x.shape[:-1])
    np.testing.assert_array_equal(
        unpooled, by_definition(values, np.asarray(argmax), x.shape[:-1]).astype(np.float32), strict=True
    )


@pytest.mark.parametrize(
    "name",
    mostly_exhaustive(["inception", "gaps", "only_padding", "long_strided", "volume", "default_strides"], QUICK),
)
@pytest.mark.parametrize("content", CONTENTS)
def test_unpooling_cotangents_is_the_gradient_of_pooling(name, content):
    case = CASES[name]
    x, (_, argmax) = pooled(name, content)
    ct = np.random.default_rng(0).integers(-9, 10, argmax.shape).astype(np.float32)
    (gradient,) = jax.vjp(lambda x: jpool.max_pool(x, case.window, **case.arguments), x)[1](ct)
    np.testing.assert_array_equal(jpool.max_unpool(ct, argmax, x.shape[:-1]), gradient)


@pytest.mark.parametrize(
    "name", mostly_exhaustive(["channels_first", "no_channels", "no_channels_padded", "taps_256"], QUICK)
)
def test_channels_first_and_no_channels(name):
    x, (values, argmax) = pooled(name)
    axis = CASES[name].arguments["channel_axis"]
    spatial = x.shape if axis is None else x.shape[1:]
    last = [a[..., None] if axis is None else np.moveaxis(a, 0, -1) for a in (values, argmax)]
    expected = by_definition(*map(np.asarray, last), spatial)
    expected = expected[..., 0] if axis is None else np.moveaxis(expected, -1, 0)
    np.testing.assert_array_equal(
        jpool.max_unpool(values, argmax, spatial, channel_axis=axis), expected.astype(np.float32)
    )


@pytest.mark.parametrize("sizes", [(7,), (4, 5), (3, 1, 4)])
@pytest.mark.parametrize("shape", [(3,), (1,), (6, 2), (2, 3, 2)])
def test_arbitrary_indices(sizes, shape):
    """The rank must be that of the grid; apart from that, any index of the grid is allowed."""
    if len(sizes) != len(shape):
        with pytest.raises(ValueError, match="argmax must be ONE example"):
            jpool.max_unpool(np.zeros((*shape, 2)), np.zeros((*shape, 2), int), sizes)
        return
    rng = np.random.default_rng(0)
    for _ in range(20):
        argmax = rng.integers(-1, np.prod(sizes), (*shape, 2)).astype(np.int32)
        values = rng.integers(-9, 10, argmax.shape).astype(np.float32)
        np.testing.assert_array_equal(jpool.max_unpool(values, argmax, sizes), by_definition(values, argmax, sizes))


def test_values_of_overlapping_windows_add_up():
    x = np.array([[1, 2, 3], [4, 9, 5], [6, 7, 8]], np.float32)
    values, argmax = jpool.max_pool_with_argmax(x, (2, 2), channel_axis=None)
    np.testing.assert_array_equal(
        jpool.max_unpool(values, argmax, (3, 3), channel_axis=None), [[0, 0, 0], [0, 36, 0], [0, 0, 0]]
    )


@pytest.mark.parametrize(
    "name", mostly_exhaustive(["halves", "line", "whole", "gaps", "left_over", "one_tap_strided"], ["halves", "gaps"])
)
def test_pooling_again_gives_the_same_values_if_windows_do_not_overlap(name):
    case = CASES[name]
    x = CONTENTS["distinct"](np.random.default_rng(0), case.shape) + 8  # all above 0, which is at the other elements
    values, argmax = jpool.max_pool_with_argmax(x, case.window, **case.arguments)
    back = jpool.max_unpool(values, argmax, x.shape[:-1])
    np.testing.assert_array_equal(jpool.max_pool(back, case.window, **case.arguments), values)
    np.testing.assert_array_equal(jpool.max_pool_with_argmax(back, case.window, **case.arguments)[1], argmax)


def test_values_are_added_in_row_major_order_in_float32():
    argmax = jnp.zeros((300, 1), int)
    values = jnp.asarray(np.random.default_rng(0).standard_normal((300, 1)), jnp.float32)
    total = np.float32(0)
    for value in np.asarray(values).ravel():
        total += value
    assert jpool.max_unpool(values, argmax, (2,))[0, 0] == total
    for dtype in ("bfloat16", "float16"):
        ones = jnp.full((512, 1), 2.0**-6, dtype)
        assert jpool.max_unpool(ones, jnp.zeros((512, 1), int), (2,)).tolist() == [[8], [0]]


@pytest.mark.parametrize("dtype", ["int8", "uint16", "bfloat16", "float8_e5m2", "float64"])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == "float64"):
        values = jnp.asarray([[1], [2]]).astype(dtype)
        unpooled = jpool.max_unpool(values, np.array([[2], [0]]), (3,))
        assert unpooled.dtype == dtype
        assert unpooled.astype(int).tolist() == [[2], [0], [1]]


# --- derivatives ---

ARGMAX = np.array([[[0, 3], [4, 3]], [[-1, 5], [4, 4]]], np.int32)  # 2 x 2 windows, 2 channels, on a grid of 2 x 3


def unpool(values):
    return jpool.max_unpool(values, ARGMAX, (2, 3))


def test_the_gradient_reads_the_cotangent_at_argmax():
    ct = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    (gradient,) = jax.vjp(unpool, jnp.ones(ARGMAX.shape))[1](ct)
    np.testing.assert_array_equal(gradient, [[[0, 7], [8, 7]], [[0, 11], [8, 9]]])


def test_it_is_linear_and_its_transpose_is_exact():
    rng = np.random.default_rng(0)
    v, ct = (jnp.asarray(rng.integers(-9, 10, shape), jnp.float32) for shape in (ARGMAX.shape, (2, 3, 2)))
    out, tangent = jax.jvp(unpool, (v,), (v,))
    np.testing.assert_array_equal(out, tangent)
    (transposed,) = jax.linear_transpose(unpool, v)(ct)
    assert (out * ct).sum() == (v * transposed).sum()
    np.testing.assert_array_equal(jax.jacfwd(unpool)(v), jax.jacrev(unpool)(v))


@pytest.mark.exhaustive
def test_derivatives_of_every_order():
    v = jnp.arange(1.0, 9).reshape(ARGMAX.shape)
    loss = lambda v: (unpool(v) ** 3).sum()  # noqa: E731
    expected = jax.hessian(lambda v: (by_scatter(v) ** 3).sum())(v)
    for outer in (jax.jacfwd, jax.jacrev):
        for inner in (jax.jacfwd, jax.jacrev):
            np.testing.assert_array_equal(jax.jit(outer(inner(loss)))(v), expected)
    np.testing.assert_array_equal(
        jax.jacrev(jax.hessian(loss))(v), jax.jacrev(jax.hessian(lambda v: (by_scatter(v) ** 3).sum()))(v)
    )


def by_scatter(values):
    """The same by JAX's scatter."""
    rows = values.reshape(-1, 2)
    indices = jnp.asarray(np.where(ARGMAX < 0, 99, ARGMAX)).reshape(-1, 2)
    channel = jnp.broadcast_to(jnp.arange(2), indices.shape)
    return jnp.zeros((6, 2)).at[indices, channel].add(rows, mode="drop").reshape(2, 3, 2)


@pytest.mark.exhaustive
def test_vmap_over_values_argmax_or_both():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 9, (4, 3, 3, 2)).astype(np.float32)
    argmax = rng.integers(-1, 30, (4, 3, 3, 2)).astype(np.int32)
    unpool = lambda v, a: jpool.max_unpool(v, a, (5, 6))  # noqa: E731
    expected = [by_definition(v, a, (5, 6)) for v, a in zip(values, argmax, strict=True)]
    np.testing.assert_array_equal(jax.jit(jax.vmap(unpool))(values, argmax), expected)
    np.testing.assert_array_equal(
        jax.vmap(unpool, (None, 0))(values[0], argmax), [by_definition(values[0], a, (5, 6)) for a in argmax]
    )
    np.testing.assert_array_equal(
        jax.vmap(unpool, (0, None))(values, argmax[0]), [by_definition(v, argmax[0], (5, 6)) for v in values]
    )
    summed = jax.grad(lambda v: jax.vmap(unpool, (None, 0))(v, argmax).sum())(values[0])
    np.testing.assert_array_equal(summed, (argmax >= 0).sum(0))
    gradients = jax.vmap(jax.grad(lambda v, a: (unpool(v, a) ** 2).sum()))(values, argmax)
    expected_gradients = [
        jax.grad(lambda v, a=a: (unpool(v, a) ** 2).sum())(v) for v, a in zip(values, argmax, strict=True)
    ]
    np.testing.assert_array_equal(gradients, expected_gradients)


def test_an_autoencoder_that_pools_and_unpools():
    def decode(x):
        values, argmax = jpool.max_pool_with_argmax(x, (3, 3), strides=2, padding=1)
        return jpool.max_unpool(values, argmax, x.shape[:-1])

    x = jnp.asarray(np.random.default_rng(0).permutation(162).reshape(9, 9, 2), jnp.float32)
    wins = jax.grad(lambda x: jpool.max_pool(x, (3, 3), strides=2, padding=1).sum())(x)
    np.testing.assert_array_equal(decode(x), x * wins)
    np.testing.assert_array_equal(jax.grad(lambda x: decode(x).sum())(x), wins)
    np.testing.assert_array_equal(jax.jit(jax.vmap(jax.grad(lambda x: decode(x).sum())))(x[None])[0], wins)


# --- errors ---


def test_an_index_outside_the_grid_is_refused_if_concrete_and_skipped_if_traced():
    values, argmax = jnp.ones((2, 1)), jnp.array([[1], [3]])
    with pytest.raises(
        ValueError,
        match=r"max_unpool: argmax must hold flat indices 0 to 2 of spatial_shape \(3,\), or -1 for no winner; got 3",
    ):
        jpool.max_unpool(values, argmax, (3,))
    with pytest.raises(ValueError, match="got -4"):
        jpool.max_unpool(values, argmax - 5, (3,))
    with pytest.raises(ValueError, match="got 4294967296"):
        jpool.max_unpool(values, np.array([[1], [2**32]]), (3,))
    unpooled, gradient = jax.jit(jax.value_and_grad(lambda v, a: jpool.max_unpool(v, a, (3,)).sum()))(values, argmax)
    assert unpooled == 1
    assert gradient.tolist() == [[1], [0]]
    assert jax.vmap(lambda a: jpool.max_unpool(values, a, (3,)))(argmax[None])[0].tolist() == [[0], [1], [0]]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"spatial_shape": 6}, TypeError, "spatial_shape must be a tuple of ints >= 1.*got 6 of type int"),
        ({"spatial_shape": (6, 0)}, ValueError, "spatial_shape must hold ints >= 1; got 0"),
        ({"spatial_shape": (2, 3, 4)}, ValueError, r"argmax must be ONE example .*4 axes for spatial_shape \(2, 3, 4\).*with channels leave them out of spatial_shape"),
        ({"argmax": np.stack([ARGMAX] * 2)}, ValueError, r"argmax must be ONE example .*jax.vmap\(lambda values, argmax: jpool.max_unpool\(.*\)\(values, argmax\)"),
        ({"spatial_shape": (2**16, 2**16)}, ValueError, r"spatial_shape must span at most 2\*\*31 positions"),
        ({"values": np.zeros((2, 2, 3))}, ValueError, r"values must have the shape of argmax, \(2, 2, 2\), one index for each value; got \(2, 2, 3\)"),
        ({"values": None}, TypeError, "values must be a JAX or NumPy array; got NoneType"),
        ({"values": ARGMAX * 1j}, TypeError, "values must be an array of real numbers.*dtype complex64"),
        ({"argmax": ARGMAX * 1.0}, TypeError, "argmax must be an array of integers, as from max_pool_with_argmax; got dtype float"),
        ({"argmax": ARGMAX > 0}, TypeError, "argmax must be an array of integers.*got dtype bool"),
        ({"argmax": ARGMAX.tolist()}, TypeError, "argmax must be a JAX or NumPy array; got list"),
        ({"channel_axis": 1}, ValueError, "channel_axis must be -1"),
    ],
)  # fmt: skip
def test_errors(arguments, error, text):
    call = {"values": np.ones(ARGMAX.shape), "argmax": ARGMAX, "spatial_shape": (2, 3), **arguments}
    with pytest.raises(error, match="max_unpool: " + text):
        jpool.max_unpool(**call)


@pytest.mark.parametrize(
    ("argmax", "wrong"),
    [(np.array([0, 2**32 + 3]), 2**32 + 3), (np.array([9, 0]), 9), (np.array([0, -2]), -2), (jnp.array([9, 0]), 9)],
)
def test_a_concrete_argmax_is_checked_inside_jit(argmax, wrong):
    """An array that jit closes over is concrete; as int32 the first would wrap around to 3."""
    unpool = jax.jit(lambda values: jpool.max_unpool(values, argmax, (4,), channel_axis=None))
    with pytest.raises(ValueError, match=f"argmax must hold flat indices 0 to 3 .* got {wrong}"):
        unpool(jnp.ones(2))


def test_empty_values():
    assert jpool.max_unpool(jnp.zeros((0, 2)), jnp.zeros((0, 2), int), (3,)).tolist() == [[0, 0]] * 3
    assert jpool.max_unpool(jnp.zeros((2, 0)), jnp.zeros((2, 0), int), (3,)).shape == (3, 0)


# --- with the geometry of the pooling ---


@pytest.mark.parametrize("content", mostly_exhaustive(["distinct", "special", "lowest"], ["special"]))
@pytest.mark.parametrize("name", EVERY_CASE)
def test_with_the_geometry_every_value_is_put_back_at_its_index(name, content, compiled_quickly):
    case = CASES[name]
    x, (_, argmax) = pooled(name, content)
    axis = case.arguments.get("channel_axis", -1)
    spatial = {-1: x.shape[:-1], 0: x.shape[1:], None: x.shape}[axis]
    values = np.random.default_rng(0).integers(1, 9, argmax.shape).astype(np.float32)
    ct = np.random.default_rng(1).integers(1, 9, x.shape).astype(np.float32)

    @jax.jit
    def both(values, ct):
        unpool = lambda v: jpool.max_unpool(v, argmax, spatial, case.window, **case.arguments)  # noqa: E731
        unpooled, backward = jax.vjp(unpool, values)
        return unpooled, backward(ct)[0]

    last = lambda a: np.asarray({-1: a, 0: np.moveaxis(a, 0, -1), None: a[..., None]}[axis])  # noqa: E731
    unpooled, gradient = map(last, both(values, ct))
    expected = by_definition(last(values), last(argmax), spatial)
    np.testing.assert_array_equal(unpooled, expected.astype(np.float32))
    for output, index in np.ndenumerate(last(argmax)):
        position = (*np.unravel_index(max(index, 0), spatial), output[-1])
        assert gradient[output] == (last(ct)[position] if index >= 0 else 0)


GEOMETRY = {"window_shape": (3, 3), "strides": 2, "padding": 1}


def test_with_the_geometry_every_transformation_works():
    xs = np.random.default_rng(0).permutation(3 * 7 * 6 * 2).reshape(3, 7, 6, 2).astype(np.float32)
    values, argmax = jax.vmap(lambda x: jpool.max_pool_with_argmax(x, **GEOMETRY))(xs)
    unpool = lambda values, argmax: jpool.max_unpool(values, argmax, (7, 6), **GEOMETRY)  # noqa: E731
    expected = np.stack([by_definition(v, np.asarray(a), (7, 6)) for v, a in zip(values, argmax, strict=True)])
    batch = jax.jit(jax.vmap(unpool))
    np.testing.assert_array_equal(batch(values, argmax), expected)
    _, tangent = jax.jvp(lambda values: batch(values, argmax), (values,), (values,))
    np.testing.assert_array_equal(tangent, expected)
    cube = lambda values: (unpool(values, argmax[0]) ** 3).sum() / 6  # noqa: E731
    hessian = jax.hessian(cube)(values[0]).reshape(values[0].size, -1)
    jacobian = jax.jacrev(lambda values: unpool(values, argmax[0]))(values[0]).reshape(-1, values[0].size)
    np.testing.assert_array_equal(hessian, jacobian.T @ np.diag(expected[0].ravel()) @ jacobian)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_with_the_geometry_there_is_no_loop_and_no_index_known_only_at_run_time(platform):
    values, argmax = jax.ShapeDtypeStruct((4, 3, 2), np.float32), jax.ShapeDtypeStruct((4, 3, 2), np.int32)

    def both(values, argmax):
        out, backward = jax.vjp(lambda v: jpool.max_unpool(v, argmax, (7, 6), **GEOMETRY), values)
        return out, backward(out)[0]

    assert not lowered_instructions(platform, both, values, argmax) & {"while", "gather", "scatter", "dynamic-slice"}
    without_geometry = lambda values, argmax: jpool.max_unpool(values, argmax, (7, 6))  # noqa: E731
    assert "scatter" in lowered_instructions(platform, without_geometry, values, argmax)


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [(40, 13, 1), (40, 31, 2), (60, 25, 5), (64, 32, 32), (90, 70, 3), (200, 100, 7)],
)
def test_any_argmax_inside_its_windows_with_the_geometry_of_large_windows(size, window, stride, compiled_quickly):
    """Not only that of one pooling: overlapping windows may name different elements."""
    rng = np.random.default_rng(window)
    starts = np.arange(jpool.pooled_shape((size,), (window,), stride)[0]) * stride
    argmax = (starts + rng.integers(0, window, len(starts)))[:, None].astype(np.int32)
    values, ct = (rng.integers(1, 9, (n, 1)).astype(np.float32) for n in (len(starts), size))
    unpool = lambda values: jpool.max_unpool(values, argmax, (size,), (window,), stride)  # noqa: E731
    unpooled, backward = jax.vjp(jax.jit(unpool), values)
    np.testing.assert_array_equal(unpooled, by_definition(values, argmax, (size,)).astype(np.float32))
    np.testing.assert_array_equal(backward(ct)[0][:, 0], ct[argmax[:, 0], 0])


@pytest.mark.parametrize("geometry", [{}, {"window_shape": (2,)}, {"window_shape": (2,), "strides": 1, "padding": 0}])
def test_bools_are_put_back_with_and_without_the_geometry(geometry):
    unpooled = jpool.max_unpool(jnp.array([[True], [True], [False]]), np.array([[1], [1], [2]]), (4,), **geometry)
    assert unpooled.dtype == bool
    assert unpooled.ravel().tolist() == [False, True, False, False]


@pytest.mark.parametrize("dtype", ["int8", "uint16", "bfloat16", "float8_e5m2", "float64"])
def test_dtypes_with_the_geometry(dtype):
    with jax.enable_x64(dtype == "float64"):
        values = jnp.asarray([[100], [100]]).astype(dtype)
        unpooled = jpool.max_unpool(values, np.array([[1], [1]]), (3,), (2,))  # two windows with the same winner
        assert unpooled.dtype == dtype
        total = {"int8": -56, "float8_e5m2": 192}.get(dtype, 200)  # int8 wraps around; float8_e5m2 rounds 100 to 96
        assert unpooled.astype(float).tolist() == [[0], [total], [0]]


def test_an_index_outside_its_window_is_refused_if_concrete_and_skipped_if_traced():
    values, argmax = jnp.ones((2, 1)), np.array([[1], [0]])  # 0 is in the first window, not in the second
    text = (
        r"max_unpool: argmax must hold indices inside their windows, or -1; got 0 at position \(1, 0\), where the "
        "window has no tap. Give the geometry that argmax is from, or omit window_shape"
    )
    with pytest.raises(ValueError, match=text):
        jpool.max_unpool(values, argmax, (4,), (2,), 2)
    unpooled = jax.jit(lambda values, argmax: jpool.max_unpool(values, argmax, (4,), (2,), 2))(values, argmax)
    assert unpooled.ravel().tolist() == [0, 1, 0, 0]
    between = np.array([[1], [3]])  # between two taps
    with pytest.raises(ValueError, match=r"got 1 at position \(0, 0\), where the window has no tap"):
        jpool.max_unpool(values, between, (6,), (2,), 3, window_dilation=2)


def test_values_and_argmax_on_different_devices_are_refused():
    values, argmax = (jax.device_put(jnp.array([1, 3]), device) for device in jax.devices()[:2])
    with pytest.raises(
        ValueError, match=r"max_unpool: values and argmax must be on the same devices; got .*device_put"
    ):
        jpool.max_unpool(values, argmax, (4,), channel_axis=None)


@pytest.mark.parametrize("geometry", [(), ((2,), 2)])
def test_a_skipped_value_is_not_reported_as_out_of_bounds(geometry):
    unpool = lambda values, argmax: jpool.max_unpool(values, argmax, (4,), *geometry, channel_axis=None)  # noqa: E731
    error, unpooled = checkify.checkify(unpool, checkify.index_checks)(jnp.array([3.0, 5.0]), np.array([1, -1]))
    assert (error.get(), unpooled.tolist()) == (None, [0, 3, 0, 0])


def test_the_defaults_of_the_geometry_may_be_written_out_without_it():
    plain = jpool.max_unpool(jnp.ones((2, 1)), np.array([[1], [3]]), (4,))
    for options in ({"padding": "valid"}, {"padding": "VALID", "ceil_mode": np.False_}, {"strides": None}):
        np.testing.assert_array_equal(jpool.max_unpool(jnp.ones((2, 1)), np.array([[1], [3]]), (4,), **options), plain)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"strides": 2}, ValueError, r"strides is part of the geometry .* got strides=2 and window_shape=None\. Give both, or neither"),
        ({"padding": 1}, ValueError, "padding is part of the geometry"),
        ({"window_dilation": 2}, ValueError, "window_dilation is part of the geometry"),
        ({"ceil_mode": True}, ValueError, "ceil_mode is part of the geometry"),
        ({"window_shape": (2, 2)}, ValueError, r"window_shape must have 1 entries, one for each axis of spatial_shape; got \(2, 2\)"),
        ({"window_shape": 2}, TypeError, "window_shape must be a tuple of ints"),
        ({"window_shape": (2,)}, ValueError, r"the spatial shape that pooling \(4,\) with these arguments gives, \(3,\); got \(2,\)\. Give"),
        ({"window_shape": (9,)}, ValueError, "larger than the padded input"),
        ({"ceil_mode": 0}, ValueError, "ceil_mode is part of the geometry"),
        ({"padding": 0}, ValueError, "padding is part of the geometry"),
        ({"window_shape": (2,), "strides": 0}, ValueError, "strides must hold ints >= 1"),
    ],
)  # fmt: skip
def test_errors_of_the_geometry(options, error, text):
    with pytest.raises(error, match="max_unpool: .*" + text):
        jpool.max_unpool(np.zeros((2, 1)), np.zeros((2, 1), int), (4,), **options)
