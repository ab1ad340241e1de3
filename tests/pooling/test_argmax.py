"""argmax, in our numbering and in that of other libraries. test_every_case compares it with the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import oracle
from shared.cases import CONTENTS

import jpool

pytestmark = pytest.mark.usefixtures("compiled_quickly")
inf, nan = np.inf, np.nan


def argmax(x, window_shape=(2, 2), *arguments, **options):
    return jpool.max_pool_with_argmax(x, window_shape, *arguments, **{"channel_axis": None, **options})[1]


def test_argmax_of_a_3x3_example():
    indices = argmax(np.array([[9, 1, 8], [2, 3, 4], [7, 5, 6]], np.float32))
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(indices, [[0, 2], [6, 8]])


def test_padding_is_not_counted_and_a_window_of_padding_alone_has_minus_one():
    np.testing.assert_array_equal(argmax(np.zeros((2, 2)), (2, 2), 3, 2), [[-1, -1], [-1, 3]])


def test_the_first_nan_wins_and_a_real_infinity_beats_padding():
    assert argmax(np.array([1.0, nan, nan, inf]), (4,)).tolist() == [1]
    assert argmax(np.full(3, -inf), (3,), padding=1).tolist() == [0, 0, 1]


def test_values_have_the_derivatives_of_max_pool():
    x = CONTENTS["tied"](np.random.default_rng(0), (7, 6))
    arguments = {"window_shape": (3, 2), "strides": 2, "padding": 1, "channel_axis": None}
    cubes = [
        lambda x: (jpool.max_pool(x, **arguments) ** 3).sum(),
        lambda x: (jpool.max_pool_with_argmax(x, **arguments)[0] ** 3).sum(),
    ]
    expected, actual = jax.jit(lambda x: [(jax.grad(cube)(x), jax.hessian(cube)(x)) for cube in cubes])(x)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "bool", "float8_e4m3fn"])
def test_other_dtypes_have_an_argmax(dtype):
    x = np.array([[0, 1], [1, 0]]).astype(jnp.dtype(dtype))
    assert [argmax(x, ties=ties).item() for ties in ("first", "last")] == [1, 2]


@pytest.mark.parametrize("ties", ["split", "none", "First"])
def test_rules_without_one_winner_are_refused(ties):
    text = rf"max_pool_with_argmax: ties must be one of 'first', 'last'; got '{ties}'\."
    text += "$" if ties == "First" else f" A window has one argmax: with ties='{ties}' use max_pool"
    with pytest.raises(ValueError, match=text):
        argmax(np.zeros((2, 2)), ties=ties)


def test_a_grid_too_large_for_int32_is_refused_before_anything_is_computed():
    shape = lambda *sizes: jax.eval_shape(lambda x: argmax(x, (2, 2), 2), jax.ShapeDtypeStruct(sizes, np.int8)).shape  # noqa: E731
    assert shape(2**16, 2**15) == (2**15, 2**14)
    with pytest.raises(
        ValueError, match=r"max_pool_with_argmax: x must span at most 2\*\*31 positions.*\(65536, 32769\)"
    ):
        shape(2**16, 2**15 + 1)


# --- convert_argmax ---


POSITIONS = {
    "tensorflow": lambda c, y, x, channels: (y * 5 + x) * channels + c,
    "onnx": lambda c, y, x, channels: c * 20 + y * 5 + x,
    "onnx_column_major": lambda c, y, x, channels: c * 20 + x * 4 + y,
}


@pytest.mark.parametrize("axis", [-1, 0, None])
def test_converted_indices(axis):
    shape, channels = {-1: ((4, 5, 3), 3), 0: ((3, 4, 5), 3), None: ((4, 5), 1)}[axis]
    x = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(np.float32)
    arguments = {"padding": 2, "strides": 3, "channel_axis": axis}
    _, winners = oracle.pool(x, oracle.windows(x, (2, 2), **arguments))
    indices = np.asarray(argmax(x, (2, 2), **arguments))
    for to, index in POSITIONS.items():
        converted = np.asarray(jpool.convert_argmax(indices, (4, 5), channels, to=to, channel_axis=axis))
        assert converted.dtype == np.int32
        for output, positions in np.ndenumerate(winners):
            first = {-1: lambda p: (p[-1], *p[:-1]), 0: lambda p: p, None: lambda p: (0, *p)}[axis]
            assert converted[output] == (index(*first(positions[0]), channels) if positions else -1)
    assert 0 < sum(map(bool, winners.ravel())) < winners.size  # some windows have a winner, some have none


def test_a_traced_index_outside_the_grid_becomes_minus_one():
    convert = jax.jit(lambda a: jpool.convert_argmax(a, (4, 5), 1, to="onnx_column_major"))
    assert convert(np.array([[[7], [20], [-5]]])).ravel().tolist() == [2 * 4 + 1, -1, -1]
    with jax.enable_x64(True):
        assert convert(np.array([[[2**32 + 7]]])).item() == -1


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
    converted = np.asarray(jax.vmap(lambda a: jpool.convert_argmax(a, (4, 6), 3, to="tensorflow"))(argmaxes))
    n = np.arange(2)[:, None, None, None] * (4 * 6 * 3)
    converted = np.where(converted < 0, -1, converted + n)
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


# --- pooled_shape: test_every_case compares its sizes ---

POOLED_SHAPE_ERRORS = [
    ((8, (2, 2)), TypeError, "spatial_shape must be a tuple of ints >= 1.*got 8 of type int"),
    (((8, 0), (2, 2)), ValueError, "spatial_shape must hold ints >= 1; got 0"),
    (((8,), (2, 2)), ValueError, r"spatial_shape must have as many axes as window_shape, 2; got \(8,\)"),
    (((8, 8), 2), TypeError, "window_shape must be a tuple"),
    (((8, 8), (9, 2)), ValueError, r"window_shape \(9, 2\) is larger than the padded input along spatial axis 0"),
    (((8, 8), (2, 2), 0), ValueError, "strides must hold ints >= 1; got 0"),
    (((8, 8), (2, 2), 1, "FULL"), ValueError, "padding must be one of"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "text"), POOLED_SHAPE_ERRORS)
def test_errors_of_pooled_shape(arguments, error, text):
    with pytest.raises(error, match="pooled_shape: " + text):
        jpool.pooled_shape(*arguments)
