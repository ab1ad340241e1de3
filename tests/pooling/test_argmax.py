"""argmax, in our numbering and in that of other libraries. test_forward_mode compares it on every case."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import oracle
from shared.cases import CASES, CONTENTS, EVERY_CASE

import jpool

inf, nan = np.inf, np.nan


def argmax(x, window_shape=(2, 2), *arguments, **options):
    return jpool.max_pool_with_argmax(x, window_shape, *arguments, **{"channel_axis": None, **options})[1]


def test_argmax_of_a_3x3_example():
    x = np.array([[9, 1, 8], [2, 3, 4], [7, 5, 6]], np.float32)
    indices = argmax(x)
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(indices, [[0, 2], [6, 8]])


@pytest.mark.usefixtures("arrangement")
@pytest.mark.parametrize("ties", ["first", "last"])
@pytest.mark.parametrize(
    "name", ["only_padding_strided", "channels_first", "long_strided", "four_axes", "dilated_same"]
)
def test_both_rules_equal_the_oracle(name, ties):
    case = CASES[name]
    for content in CONTENTS.values():
        x = content(np.random.default_rng(0), case.shape)
        expected, winners = oracle.pool(x, oracle.windows(x, case.window, **case.arguments), ties)
        values, indices = jpool.max_pool_with_argmax(x, case.window, **case.arguments, ties=ties)
        np.testing.assert_array_equal(values, expected)
        expected_indices = oracle.flat(winners, x.shape, case.arguments.get("channel_axis", -1))
        np.testing.assert_array_equal(indices, expected_indices, strict=True)


@pytest.mark.usefixtures("arrangement")
def test_padding_is_not_counted_and_an_all_padding_window_has_minus_one():
    np.testing.assert_array_equal(argmax(np.zeros((2, 2)), (2, 2), 3, 2), [[-1, -1], [-1, 3]])


@pytest.mark.usefixtures("arrangement")
def test_the_first_nan_wins_and_a_real_infinity_beats_padding():
    assert argmax(np.array([1.0, nan, nan, inf]), (4,)).tolist() == [1]
    assert argmax(np.full(3, -inf), (3,), padding=1).tolist() == [0, 0, 1]


@pytest.mark.usefixtures("arrangement")
def test_values_have_the_derivatives_of_max_pool():
    x = CONTENTS["tied"](np.random.default_rng(0), (7, 6, 2))
    arguments = {"window_shape": (3, 2), "strides": 2, "padding": 1}

    def loss(x):
        values, indices = jpool.max_pool_with_argmax(x, **arguments)
        return (values**3).sum(), indices

    expected = jax.grad(lambda x: (jpool.max_pool(x, **arguments) ** 3).sum())(x)
    gradient, indices = jax.grad(loss, has_aux=True)(x)
    np.testing.assert_array_equal(gradient, expected)
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: loss(x)[0]))(x), expected)
    hessian = jax.hessian(lambda x: loss(x)[0])(x)
    np.testing.assert_array_equal(hessian, jax.hessian(lambda x: (jpool.max_pool(x, **arguments) ** 3).sum())(x))


def test_argmax_is_the_index_of_the_gradient_under_vmap():
    xs = np.random.default_rng(0).integers(0, 3, (4, 6, 6, 2)).astype(np.float32)
    both = jax.jit(jax.vmap(lambda x: jpool.max_pool_with_argmax(x, (3, 3), 3)))
    _, indices = both(xs)
    gradient = jax.grad(lambda xs: both(xs)[0].sum())(xs)
    ones_at_indices = np.zeros((4, 36, 2))
    np.put_along_axis(ones_at_indices, np.asarray(indices).reshape(4, -1, 2), 1, axis=1)
    np.testing.assert_array_equal(gradient, ones_at_indices.reshape(xs.shape))


@pytest.mark.usefixtures("arrangement")
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "bool", "float8_e4m3fn"])
def test_other_dtypes_have_an_argmax(dtype):
    x = jnp.asarray([[0, 1], [1, 0]]).astype(dtype)
    assert argmax(x).tolist() == [[1]]
    assert argmax(x, ties="last").tolist() == [[2]]


@pytest.mark.parametrize("ties", ["split", "none", "First"])
def test_rules_without_one_winner_are_refused(ties):
    text = rf"max_pool_with_argmax: ties must be one of 'first', 'last'; got '{ties}'\."
    text += "$" if ties == "First" else f" A window has one argmax: with ties='{ties}' use max_pool"
    with pytest.raises(ValueError, match=text):
        argmax(np.zeros((2, 2)), ties=ties)


def test_a_grid_too_large_for_int32_is_refused_before_anything_is_computed():
    def shape(*sizes, **options):
        x = jax.ShapeDtypeStruct(sizes, np.int8)
        return jax.eval_shape(lambda x: argmax(x, (2, 2), 2, **options), x).shape

    assert shape(2**16, 2**15) == (2**15, 2**14)
    with pytest.raises(
        ValueError, match=r"max_pool_with_argmax: x must span at most 2\*\*31 positions.*\(65536, 32769\)"
    ):
        shape(2**16, 2**15 + 1)


# --- convert_argmax ---


@pytest.mark.parametrize(
    ("to", "index"),
    [
        ("tensorflow", lambda c, y, x, channels: (y * 5 + x) * channels + c),
        ("onnx", lambda c, y, x, channels: c * 20 + y * 5 + x),
        ("onnx_column_major", lambda c, y, x, channels: c * 20 + x * 4 + y),
    ],
)
@pytest.mark.parametrize("axis", [-1, 0, None])
def test_converted_indices(axis, to, index):
    shape = {-1: (4, 5, 3), 0: (3, 4, 5), None: (4, 5)}[axis]
    channels = 1 if axis is None else 3
    x = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(np.float32)
    arguments = {"padding": 2, "strides": 3, "channel_axis": axis}
    converted = jpool.convert_argmax(argmax(x, (2, 2), **arguments), (4, 5), channels, to=to, channel_axis=axis)
    _, winners = oracle.pool(x, oracle.windows(x, (2, 2), **arguments))
    assert converted.dtype == np.int32
    count = 0
    for output, positions in np.ndenumerate(winners):
        if positions:
            position = positions[0]
            c, y, column = {-1: (position[-1], *position[:-1]), 0: position, None: (0, *position)}[axis]
            assert converted[output] == index(c, y, column, channels)
            count += 1
        else:
            assert converted[output] == -1
    assert 0 < count < winners.size  # some windows have a winner, some have none


def test_a_traced_index_outside_the_grid_becomes_minus_one():
    convert = jax.jit(lambda a: jpool.convert_argmax(a, (4, 5), 1, to="onnx_column_major"))
    assert convert(jnp.array([[[7, 20, -5]]]).reshape(1, 3, 1)).ravel().tolist() == [2 * 4 + 1, -1, -1]
    with jax.enable_x64(True):
        assert convert(jnp.array([[[2**32 + 7]]])).item() == -1


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8", "int16", "uint32", "int64", "uint64"])
def test_indices_of_every_integer_dtype(dtype):
    indices = np.array([[[5]]], jnp.dtype(dtype))
    assert jpool.convert_argmax(indices, (30, 30), 1, to="tensorflow").item() == 5
    if jnp.iinfo(dtype).max > 900:
        with pytest.raises(ValueError, match=f"argmax must hold flat indices 0 to 899 .* got {jnp.iinfo(dtype).max}"):
            jpool.convert_argmax(np.full((1, 1, 1), jnp.iinfo(dtype).max, dtype), (30, 30), 1, to="tensorflow")


def test_conversion_of_volumes_and_lines():
    volume = np.ravel_multi_index((1, 2, 3), (2, 3, 4))
    indices = np.full((1, 1, 1, 1), volume, np.int32)
    assert jpool.convert_argmax(indices, (2, 3, 4), 1, to="onnx_column_major").item() == 1 + 2 * (2 + 3 * 3)
    line = jnp.array([[3, 4]])
    assert jpool.convert_argmax(line, (9,), 2, to="tensorflow").tolist() == [[6, 9]]


def test_the_term_of_a_batch_is_added_as_in_the_docstring():
    x = np.random.default_rng(0).permutation(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(np.float32)
    argmaxes = jax.vmap(lambda x: argmax(x, (2, 2), 2, channel_axis=-1))(x)
    converted = jax.vmap(lambda a: jpool.convert_argmax(a, (4, 6), 3, to="tensorflow"))(argmaxes)
    n = jnp.arange(len(converted))[:, None, None, None] * (4 * 6 * 3)
    converted = jnp.where(converted < 0, -1, converted + n)
    np.testing.assert_array_equal(x.ravel()[converted], jax.vmap(lambda x: jpool.max_pool(x, (2, 2), 2))(x))


ONE = np.zeros((1, 1, 2), np.int32)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((ONE, (4, 5), 2, "caffe"), ValueError, "to must be one of 'tensorflow', 'onnx', 'onnx_column_major'; got 'caffe'"),
        ((ONE, (4, 5), 2, None), TypeError, "to must be one of .*; got None of type NoneType"),
        ((ONE, (4, 5), 3, "onnx"), ValueError, r"channels must be the number of channels of argmax, 2 for shape \(1, 1, 2\).*; got 3"),
        ((ONE, (4, 5), 0, "onnx"), ValueError, "channels must be an int >= 1; got 0"),
        ((ONE, (4, 5), 2.0, "onnx"), TypeError, "channels must be an int >= 1"),
        ((ONE, 4, 2, "onnx"), TypeError, "spatial_shape must be a tuple of ints >= 1.*got 4 of type int"),
        ((ONE, (4, 5, 6), 2, "onnx"), ValueError, r"argmax must be ONE example .* 4 axes for spatial_shape \(4, 5, 6\)"),
        ((ONE + 20, (4, 5), 2, "onnx"), ValueError, r"argmax must hold flat indices 0 to 19 of spatial_shape \(4, 5\), or -1 for no winner; got 20"),
        ((ONE - 2, (4, 5), 2, "onnx"), ValueError, "argmax must hold flat indices .* got -2"),
        ((ONE * 1.0, (4, 5), 2, "onnx"), TypeError, "argmax must be an array of integers.*got dtype float"),
        (([[[1]]], (4, 5), 1, "onnx"), TypeError, "argmax must be a JAX or NumPy array; got list"),
        ((ONE, (2**15, 2**16), 2, "onnx"), ValueError, r"spatial_shape must span at most 2\*\*31 positions.*and 2 channels"),
    ],
)  # fmt: skip
def test_errors_of_conversion(arguments, error, text):
    *positional, to = arguments
    with pytest.raises(error, match="convert_argmax: " + text):
        jpool.convert_argmax(*positional, to=to)


# --- pooled_shape ---


@pytest.mark.parametrize("name", EVERY_CASE)
def test_pooled_shape_is_the_spatial_shape_of_the_values(name):
    case = CASES[name]
    arguments = dict(case.arguments)
    axis = arguments.pop("channel_axis", -1)
    spatial = {-1: case.shape[:-1], 0: case.shape[1:], None: case.shape}[axis]
    values = jax.eval_shape(
        lambda x: jpool.max_pool(x, case.window, **case.arguments), jax.ShapeDtypeStruct(case.shape, np.float32)
    )
    pooled = {-1: values.shape[:-1], 0: values.shape[1:], None: values.shape}[axis]
    strides, padding = arguments.pop("strides", None), arguments.pop("padding", "VALID")
    assert jpool.pooled_shape(spatial, case.window, strides, padding, **arguments) == pooled


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((8, (2, 2)), TypeError, "spatial_shape must be a tuple of ints >= 1.*got 8 of type int"),
        (((8, 0), (2, 2)), ValueError, "spatial_shape must hold ints >= 1; got 0"),
        (((8,), (2, 2)), ValueError, r"spatial_shape must have as many axes as window_shape, 2; got \(8,\)"),
        (((8, 8), 2), TypeError, "window_shape must be a tuple"),
        (((8, 8), (9, 2)), ValueError, r"window_shape \(9, 2\) is larger than the padded input along spatial axis 0"),
        (((8, 8), (2, 2), 0), ValueError, "strides must hold ints >= 1; got 0"),
        (((8, 8), (2, 2), 1, "FULL"), ValueError, "padding must be one of"),
    ],
)
def test_errors_of_pooled_shape(arguments, error, text):
    with pytest.raises(error, match="pooled_shape: " + text):
        jpool.pooled_shape(*arguments)
