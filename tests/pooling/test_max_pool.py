"""max_pool: small examples to check by eye, the edge cases of its docstring row by row, dtypes, and its signature.

Compiled as users compile, with all optimisations of XLA.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from shared import oracle
from shared.programs import AS_USERS

import jpool

inf, nan = np.inf, np.nan


def pool(x, window_shape=(2, 2), *arguments, **options):
    return jpool.max_pool(x, window_shape, *arguments, **{"channel_axis": None, **options})


def value_and_gradient(x, *arguments, cotangent=None, compiler_options=None, **options):
    """Both passes in one program; by default with cotangents 1, 2, 3, .. in row-major order."""

    def both(x):
        values, backward = jax.vjp(lambda x: pool(x, *arguments, **options), x)
        ct = 1 + np.arange(values.size) if cotangent is None else np.full(values.size, cotangent)
        return values, backward(ct.reshape(values.shape).astype(values.dtype))[0]

    return jax.device_get(jax.jit(both, compiler_options=compiler_options)(x))


def float32(numbers):
    return np.array(numbers, np.float32)


def check(x, values, gradient, *arguments, **options):
    actual_values, actual_gradient = value_and_gradient(float32(x), *arguments, **options)
    np.testing.assert_array_equal(actual_values, float32(values), strict=True)
    np.testing.assert_array_equal(actual_gradient, float32(gradient), strict=True)


# --- 3 x 3 examples: x, values, gradient for the cotangents 1, 2, 3, 4 ---


def test_each_window_sends_its_cotangent_to_its_winner():
    check([[9, 1, 8], [2, 3, 4], [7, 5, 6]],
          [[9, 8], [7, 6]],
          [[1, 0, 2], [0, 0, 0], [3, 0, 4]])  # fmt: skip


def test_an_element_that_wins_every_window_receives_every_cotangent():
    check([[1, 2, 3], [4, 9, 5], [6, 7, 8]],
          [[9, 9], [9, 9]],
          [[0, 0, 0], [0, 10, 0], [0, 0, 0]])  # fmt: skip


def test_elements_that_no_strided_window_covers_have_no_gradient():
    check([[1, 2, 9], [4, 3, 9], [9, 9, 9]],
          [[4]],
          [[0, 0, 0], [1, 0, 0], [0, 0, 0]], (2, 2), 2)  # fmt: skip


# --- the table of edge cases, row by row ---


def test_the_first_element_of_a_tie_in_row_major_order_wins():
    check([[5, 5, 5], [5, 5, 5], [5, 5, 5]],
          [[5, 5], [5, 5]],
          [[1, 2, 0], [3, 4, 0], [0, 0, 0]])  # fmt: skip


def test_in_a_tie_the_upper_row_wins_and_not_the_left_column():
    check([[0, 7, 0], [7, 0, 0], [0, 0, 0]],
          [[7]],
          [[0, 1, 0], [0, 0, 0], [0, 0, 0]], (3, 3))  # fmt: skip


def test_zeros_of_both_signs_tie():
    values, gradient = value_and_gradient(float32([-0.0, 0.0]), (2,))
    assert gradient.tolist() == [1, 0]
    assert np.signbit(values[0])  # the value is the winner's bit for bit


def test_nan_propagates_and_the_first_nan_wins():
    check([[1, 2, nan], [3, nan, 4], [9, 5, 6]],
          [[nan, nan], [nan, nan]],
          [[0, 0, 2], [0, 8, 0], [0, 0, 0]])  # fmt: skip


def test_nan_wins_over_infinity():
    check([inf, nan, inf], [nan], [0, 1, 0], (3,))


def test_minus_infinity_beats_padding():
    check([[-inf, -inf, -inf]] * 3,
          [[-inf, -inf, -inf]] * 3,
          [[1 + 2 + 4 + 5, 3 + 6, 0], [7 + 8, 9, 0], [0, 0, 0]], (3, 3), padding="SAME")  # fmt: skip


def test_the_lowest_integer_is_pooled_beside_padding():
    x = np.full((2, 2), np.iinfo(np.int8).min, np.int8)
    np.testing.assert_array_equal(pool(x, padding=1), np.full((3, 3), -128, np.int8), strict=True)


def test_an_all_padding_window_is_minus_infinity_and_has_no_gradient():
    check([3.0], [-inf, 3, 3, -inf], [2 + 3], (2,), padding=2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_gradients_of_16_and_8_bits_add_up_in_float32(dtype):
    x = np.eye(1, 1023, 511)[0].astype(jnp.dtype(dtype))  # one maximum, the winner of 512 windows
    values, gradient = value_and_gradient(x, (512,), cotangent=2.0**-6)
    assert (values == 1).all()
    assert gradient.dtype == dtype
    assert gradient[511] == 512 * 2.0**-6  # adding one by one in bfloat16 stops at 4, in float8 sooner


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "int4", "uint4"])
def test_integers_and_bool_are_pooled_exactly_and_have_no_gradient(dtype):
    x = (np.random.default_rng(0).integers(-8, 8, (6, 7)) % 16).astype(jnp.dtype(dtype))
    expected, _ = oracle.pool(x.astype(int), oracle.windows(x, (3, 2), padding=1, channel_axis=None))
    values, backward = jax.vjp(lambda x: pool(x, (3, 2), padding=((1, 1), (1, 1))), x)
    assert values.dtype == dtype
    np.testing.assert_array_equal(np.asarray(values).astype(int), expected)
    assert backward(np.zeros(values.shape, jax.dtypes.float0))[0].dtype == jax.dtypes.float0
    with pytest.raises(TypeError):
        jax.grad(lambda x: pool(x)[0, 0])(x)


def test_large_integers_are_not_converted_to_floats():
    x = np.array([2**24, 2**24 + 1, -(2**31), 2**31 - 1], np.int32)
    assert pool(x, (2,)).tolist() == [2**24 + 1, 2**24 + 1, 2**31 - 1]


FLOATS = ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float8_e4m3fnuz",
          "float8_e5m2fnuz", "float8_e3m4", "float8_e4m3"]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float_dtype(dtype):
    x = np.random.default_rng(1).choice([-4.0, -1.0, 0.5, 0.75, 3.0, nan], (7, 8))
    expected, winners = oracle.pool(x, oracle.windows(x, (3, 2), 2, 1, channel_axis=None))
    with jax.enable_x64(dtype == "float64"):
        values, gradient = value_and_gradient(x.astype(jnp.dtype(dtype)), (3, 2), 2, 1, cotangent=-0.5)
    assert values.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(values.astype(np.float64), expected)
    routed = oracle.share(x.shape, winners, np.full(values.shape, -0.5))
    np.testing.assert_array_equal(gradient.astype(np.float64), routed)


def test_floats_of_4_bits():
    x = np.array([[0.5, -6, 6, 1], [3, 4, -1, 1]])
    expected, winners = oracle.pool(x, oracle.windows(x, (2, 3), padding=1, channel_axis=None))
    arguments = {"padding": 1, "cotangent": 0.5, "compiler_options": AS_USERS}  # the older emitter cannot compile it
    values, gradient = value_and_gradient(x.astype(ml_dtypes.float4_e2m1fn), (2, 3), **arguments)
    np.testing.assert_array_equal(
        values.astype(float), np.where(np.isinf(expected), -6, expected)
    )  # it has no infinity
    routed = oracle.share(x.shape, winners, np.full(values.shape, 0.5))
    np.testing.assert_array_equal(gradient.astype(float), routed.clip(max=6))


def test_float64_values_that_float32_cannot_distinguish_are_not_a_tie():
    with jax.enable_x64(True):
        values, gradient = value_and_gradient(np.array([1.0, 1.0 + 1e-12]), (2,))
    assert values.dtype == gradient.dtype == np.float64
    assert gradient.tolist() == [0, 1]


def test_numpy_arrays_and_objects_with_a_jax_array_method_are_accepted():
    class Parameter:
        def __jax_array__(self):
            return jnp.arange(4.0)

    class Whole(Parameter):
        dtype = None

    assert pool(Whole(), (2,)).tolist() == [1, 2, 3]
    assert pool(np.arange(4.0, dtype=np.float32), (2,)).tolist() == pool(Parameter(), (2,)).tolist() == [1, 2, 3]
