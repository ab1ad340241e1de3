"""Adaptive and global pooling, compared with the oracle: values, gradients, argmax, and what they cost."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import oracle
from shared.cases import CONTENTS
from shared.programs import lowered_instructions

import jpool
from jpool.pooling.integers.geometry import adaptive
from jpool.pooling.plain.steps import steps

pytestmark = pytest.mark.usefixtures("compiled_quickly")
SHAPES = {  # the shape of an example, output_shape and channel_axis
    "divides": ((8, 6, 2), (4, 3), -1),
    "one_axis_divides": ((8, 7, 2), (4, 3), -1),
    "neighbours_share": ((7, 5, 2), (3, 4), -1),
    "more_windows_than_elements": ((3, 2, 2), (7, 5), -1),
    "twice_as_many": ((4, 3, 2), (8, 3), -1),
    "one_window": ((5, 4, 2), (1, 1), -1),
    "groups_repeat": ((12, 10, 1), (8, 4), -1),
    "channels_first": ((2, 9, 7), (4, 2), 0),
    "no_channels": ((9, 7), (4, 2), None),
    "long_windows": ((101,), (3,), None),
    "volume": ((5, 4, 3, 1), (2, 3, 2), -1),
    "zero_channels": ((5, 4, 0), (2, 3), -1),
    "one_element": ((1,), (3,), None),
    "many_parts": ((31, 2), (23,), -1),
    "many_windows": ((2, 5, 3), (50, 53), 0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_values_gradients_and_argmax_equal_the_oracle(name, arrangement):
    shape, output, axis = SHAPES[name]
    rng = np.random.default_rng(len(name))
    xs = np.stack([content(rng, shape) for content in CONTENTS.values()])
    windows = oracle.adaptive_windows(xs[0], output, axis)
    ct = rng.integers(-9, 10, (len(xs), *windows.shape)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def all_results(x, ct):
        values, backward = jax.vjp(lambda x: jpool.adaptive_max_pool(x, output, channel_axis=axis), x)
        with_argmax = jpool.adaptive_max_pool_with_argmax(x, output, channel_axis=axis)
        return values, backward(ct)[0], *with_argmax

    values, gradients, values_with_argmax, argmax = jax.device_get(all_results(xs, ct))
    np.testing.assert_array_equal(values, values_with_argmax)
    for i, x in enumerate(xs):
        expected, winners = oracle.pool(x, windows)
        np.testing.assert_array_equal(values[i], expected, strict=True)
        gradient = oracle.share(x.shape, winners, ct[i]).astype(np.float32)
        np.testing.assert_array_equal(gradients[i], gradient, strict=True)
        np.testing.assert_array_equal(argmax[i], oracle.flat(winners, shape, axis), strict=True)


@pytest.mark.parametrize("output_shape", [(None, 4), [3, None], (None, None)])
def test_none_keeps_the_size_of_an_axis(output_shape):
    x = np.random.default_rng(0).integers(0, 9, (7, 5, 2)).astype(np.float32)
    sizes = tuple(size if output is None else output for output, size in zip(output_shape, x.shape, strict=False))
    expected, winners = oracle.pool(x, oracle.adaptive_windows(x, sizes))
    values, argmax = jpool.adaptive_max_pool_with_argmax(x, output_shape)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(argmax, oracle.flat(winners, x.shape))
    np.testing.assert_array_equal(jpool.adaptive_max_pool(x, output_shape), expected)
    first = jpool.adaptive_max_pool(np.moveaxis(x, -1, 0), output_shape, channel_axis=0)
    np.testing.assert_array_equal(first, np.moveaxis(expected, -1, 0))


@pytest.mark.parametrize(("size", "output"), [(5, 4000), (63, 100), (100, 63), (10**5, 61803), (10**5, 3)])
def test_the_size_of_the_program_does_not_grow_with_the_number_of_windows(size, output):
    assert sum(step.taps for step in steps(adaptive((size,), (output,)))) < 60
    text = jax.jit(jax.grad(lambda x: jpool.adaptive_max_pool(x, (output,), channel_axis=None).sum()))
    program = text.lower(jax.ShapeDtypeStruct((size,), np.float32)).as_text()
    assert program.count("stablehlo.") < 1000


def test_a_hundred_thousand_windows():
    x = np.array([[3, 1], [2, 2], [0, 5], [5, 0], [1, 1]], np.float32)
    pool = lambda x: jpool.adaptive_max_pool(x, (10**5, 2), channel_axis=None)  # noqa: E731
    values, gradient = jax.jit(lambda x: (pool(x), jax.grad(lambda x: pool(x).sum())(x)))(x)
    np.testing.assert_array_equal(values, x.repeat(2 * 10**4, axis=0))
    np.testing.assert_array_equal(gradient, np.full(x.shape, 2e4))


def test_no_scatter_where_windows_are_read_one_after_the_other():
    both = jax.value_and_grad(lambda x: jpool.adaptive_max_pool(x, (100, 63), channel_axis=None).sum())
    instructions = lowered_instructions(["cpu", "cuda"], both, jax.ShapeDtypeStruct((63, 100), np.float32))
    assert not {name for name in instructions if "scatter" in name}


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_gradients_of_shared_elements_add_up_in_float32(dtype):
    x, ct = np.eye(1, 4, 1).repeat(2, 0), np.full((700, 3), 0.125)  # one maximum in all windows
    _, winners = oracle.pool(x, oracle.adaptive_windows(x, (700, 3), None))
    expected = oracle.share(x.shape, winners, ct).astype(np.float32).astype(jnp.dtype(dtype))
    for function in (jpool.adaptive_max_pool, lambda *a, **o: jpool.adaptive_max_pool_with_argmax(*a, **o)[0]):
        pool = partial(function, output_shape=(700, 3), channel_axis=None)
        gradient = jax.jit(lambda x, ct, pool=pool: jax.vjp(pool, x)[1](ct)[0])(
            x.astype(expected.dtype), ct.astype(expected.dtype)
        )
        np.testing.assert_array_equal(gradient, expected, strict=True)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "bool"])
def test_integers_are_pooled_exactly_and_have_no_gradient(dtype):
    x = np.array([3, 1, 0, 1, 0]).astype(dtype)
    values = jpool.adaptive_max_pool(x, (3,), channel_axis=None)
    assert values.dtype == dtype
    assert np.asarray(values).astype(int).tolist() == ([1, 1, 1] if dtype == "bool" else [3, 1, 1])
    with pytest.raises(TypeError):
        jax.grad(lambda x: jpool.adaptive_max_pool(x, (3,), channel_axis=None)[0])(x)


# --- global_max_pool ---

GLOBAL = [((5, 4, 3), -1), ((3, 5, 4), 0), ((5, 4), None), ((6, 2), -1), ((2, 3, 4, 5), 0)]


@pytest.mark.parametrize(("shape", "axis"), GLOBAL)
def test_global_pooling_is_the_maximum_over_all_spatial_axes(shape, axis):
    xs = np.random.default_rng(0).permutation(2 * np.prod(shape)).reshape(2, *shape).astype(np.float32)
    spatial = tuple(i + 1 for i in range(len(shape)) if axis is None or i != axis % len(shape))
    pool = partial(jpool.global_max_pool, channel_axis=axis)

    @jax.jit
    @jax.vmap
    def all_results(x):
        return pool(x), pool(x, keepdims=True), jax.grad(lambda x: pool(x).sum())(x)

    values, with_dims, gradient = all_results(xs)
    np.testing.assert_array_equal(values, xs.max(spatial), strict=True)
    np.testing.assert_array_equal(with_dims, xs.max(spatial, keepdims=True), strict=True)
    np.testing.assert_array_equal(gradient, xs == xs.max(spatial, keepdims=True))


# --- errors ---

IMAGE = np.zeros((6, 6, 1), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"output_shape": 3}, TypeError, "output_shape must be a tuple of ints >= 1, one per spatial axis; got 3 of type int"),
        ({"output_shape": ()}, ValueError, "output_shape must have at least one spatial axis"),
        ({"output_shape": (3, 0)}, ValueError, "output_shape must hold ints >= 1; got 0 in (3, 0)"),
        ({"output_shape": (3, 1.5)}, TypeError, "output_shape must hold ints >= 1; got 1.5 of type float"),
        ({"output_shape": (3, "4")}, TypeError, "output_shape must hold ints >= 1; got '4' of type str"),
        ({"output_shape": (3,)}, ValueError, "x must be ONE example of shape (*spatial, channels), which has 2 axes for output_shape (3,) and channel_axis=-1; got 3 axes, shape (6, 6, 1). For a batch use jax.vmap: jax.vmap(lambda x: jpool."),
        ({"x": np.zeros((0, 6, 1))}, ValueError, "x must have at least one element along every spatial axis"),
        ({"x": [[[1.0]]]}, TypeError, "x must be a JAX or NumPy array; got list"),
        ({"x": IMAGE * 1j}, TypeError, "x must be an array of real numbers (floats, integers or bool); got ndarray of dtype complex64"),
        ({"channel_axis": 2}, ValueError, "channel_axis must be -1 (channels last), 0"),
        ({"output_shape": (2, 2**40)}, ValueError, "output_shape must have at most 2**24 windows"),
        ({"x": np.zeros((3, 3, 3, 1)), "output_shape": (2**21,) * 3}, ValueError, "output_shape must have at most 2**40 windows in all; got (2097152, 2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", [jpool.adaptive_max_pool, jpool.adaptive_max_pool_with_argmax])
def test_errors(function, arguments, error, text):
    with pytest.raises(error, match=re.escape(f"{function.__name__}: {text}")):
        function(**{"x": IMAGE, "output_shape": (2, 2), **arguments})


def test_a_traced_output_shape_is_refused_with_a_hint_at_static_argnames():
    with pytest.raises(TypeError, match=r"adaptive_max_pool: output_shape .*static_argnames"):
        jax.jit(lambda x, n: jpool.adaptive_max_pool(x, (n, 2)))(IMAGE, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"x": np.zeros(3)}, ValueError, r"x must have at least one spatial axis beside its channels; got shape \(3,\) and channel_axis=-1\. If it has no channels, use channel_axis=None"),
        ({"x": np.float32(3), "channel_axis": None}, ValueError, r"x must have at least one spatial axis .*shape \(\)"),
        ({"x": np.zeros((2, 0, 3))}, ValueError, "x must have at least one element along every spatial axis"),
        ({"x": None}, TypeError, "x must be a JAX or NumPy array; got NoneType"),
        ({"keepdims": 1}, TypeError, "keepdims must be True or False; got 1 of type int"),
        ({"channel_axis": 1}, ValueError, "channel_axis must be"),
    ],
)  # fmt: skip
def test_errors_of_global_pooling(arguments, error, text):
    with pytest.raises(error, match="global_max_pool: " + text):
        jpool.global_max_pool(**{"x": IMAGE, **arguments})
