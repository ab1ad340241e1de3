"""Convolutions with channels last: the same functions, read rightly by XLA's partitioner, and fast in loops on a CPU."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jpool
from jpool.per_example.convolutions import with_channels_last

RNG = np.random.default_rng(0)
# Channels last, as the fast routine reads them.
FAST = {1: "b0f_0io->b0f", 2: "b01f_01io->b01f", 3: "b012f_012io->b012f"}


def whole_numbers(*shape):
    return RNG.integers(-2, 3, shape).astype(np.float32)


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def layouts(program):
    return set(re.findall(r"dim_labels=([^,\s]+)", program.as_text()))


CONVOLUTIONS = {
    "channels last": ((2, 6, 5, 3), (3, 2, 3, 4), ("NHWC", "HWIO", "NHWC"), {}),
    "channels first": ((2, 3, 6, 5), (4, 3, 3, 2), ("NCHW", "OIHW", "NCHW"), {}),
    "another order": ((6, 3, 2, 5), (4, 3, 2, 3), ("HCNW", "OHWI", "WNHC"), {}),
    "one axis": ((2, 9, 3), (3, 3, 4), ("NWC", "WIO", "NWC"), {"window_strides": (2,)}),
    "three axes": ((1, 2, 4, 4, 4), (3, 2, 2, 2, 2), ("NCDHW", "OIDHW", "NCDHW"), {"window_strides": (1, 2, 1)}),
    "dilated": ((2, 3, 7, 6), (4, 3, 2, 2), ("NCHW", "OIHW", "NCHW"), {"padding": [(0, 0), (1, 2)], "rhs_dilation": (2, 1), "lhs_dilation": (1, 2)}),
    "groups": ((2, 6, 6, 5), (4, 3, 3, 2), ("NCHW", "OIHW", "NCHW"), {"feature_group_count": 2}),
    "groups of examples": ((4, 3, 6, 5), (4, 3, 3, 2), ("NCHW", "OIHW", "NCHW"), {"batch_group_count": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_rewritten_convolution_is_the_same_function(name):
    x_shape, w_shape, numbers, options = CONVOLUTIONS[name]
    options = {"window_strides": (1,) * (len(x_shape) - 2), "padding": "SAME"} | options
    convolve = partial(lax.conv_general_dilated, dimension_numbers=numbers, **options)
    x, w = whole_numbers(*x_shape), whole_numbers(*w_shape)
    in_a_loop = lambda x, w: lax.map(lambda x: with_channels_last(convolve)(x, w), x[None])[0]  # noqa: E731
    program = compiled(in_a_loop, x, w)
    np.testing.assert_array_equal(program(x, w), convolve(x, w), strict=True)
    if "batch_group_count" not in options:  # which the fast routine does not support
        assert layouts(program) == {FAST[len(x_shape) - 2]}


def convolve(x, w):
    return lax.conv_general_dilated(x[None], w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]


def loss(w, x):
    return jnp.square(convolve(x, w)).sum()


def convolve_and_save(x, w):
    return convolve(x, w), (x, w)


with_a_derivative_of_its_own = jax.custom_vjp(lambda x, w: convolve(x, w))
with_a_derivative_of_its_own.defvjp(convolve_and_save, lambda saved, ct: jax.vjp(convolve, *saved)[1](ct))
NESTINGS = {
    "jit": jax.jit(convolve),
    "checkpoint": jax.checkpoint(convolve),
    "cond": lambda x, w: lax.cond(w.sum() > 0, convolve, lambda x, w: -convolve(x, w), x, w),
    "scan": lambda x, w: lax.scan(lambda total, w: (total + convolve(x, w), None), jnp.zeros((4, 4, 3)), w[None])[0],
    "custom_vjp": with_a_derivative_of_its_own,
    "vmap": lambda x, w: jax.vmap(convolve, (None, 0))(x, w[None])[0],
    "another order": lambda x, w: lax.conv_general_dilated(x.transpose(1, 2, 0)[:, None], w.transpose(3, 0, 2, 1), (1, 1), "VALID", dimension_numbers=("WNCH", "OHIW", "HWNC"))[:, :, 0],
    "groups": lambda x, w: lax.conv_general_dilated(x[None], jnp.tile(w[:, :, :1], (1, 1, 1, 2)), (1, 1), "VALID", feature_group_count=2, dimension_numbers=("NHWC", "HWIO", "NHWC"))[0, :, :, 3:],
    "a kernel for each example": lambda x, w: convolve(x, w * x[0, 0, 0]),
}  # fmt: skip


def gradients_with(function):
    """A function of (w, xs, targets): the results and the gradients of every example with a convolution."""
    of_example = lambda w, x, target: (function(x, w) * target).sum()  # noqa: E731
    return jax.vmap(jax.value_and_grad(of_example), (None, 0, 0))


def test_gradients_on_several_devices_are_those_of_one():
    """XLA's partitioner is what decides here. With the axes in their own order it is wrong for most of these."""
    arguments = w, *batch = whole_numbers(3, 3, 2, 3), whole_numbers(8, 6, 6, 2), whole_numbers(8, 4, 4, 3)
    every = lambda *arguments: {name: gradients_with(NESTINGS[name])(*arguments) for name in NESTINGS}  # noqa: E731
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    split = NamedSharding(mesh, P("data"))
    results, right = jax.jit(with_channels_last(every))(w, *jax.device_put(batch, split)), jax.jit(every)(*arguments)
    for name in NESTINGS:
        for result, expected in zip(results[name], right[name], strict=True):
            np.testing.assert_array_equal(result, expected, err_msg=name)
            assert result.sharding.is_equivalent_to(split, result.ndim), name


@pytest.mark.parametrize("name", NESTINGS)
def test_nested_convolutions_are_rewritten(name):
    arguments = whole_numbers(3, 3, 2, 3), whole_numbers(5, 6, 6, 2), whole_numbers(5, 4, 4, 3)
    text = str(jax.make_jaxpr(with_channels_last(gradients_with(NESTINGS[name])))(*arguments))
    numbers = set(re.findall(r"ConvDimensionNumbers\(.*?\)\)", text))
    assert numbers == {"ConvDimensionNumbers(lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2))"}


def test_in_the_loop_every_convolution_has_the_layout_of_the_fast_routine():
    """All three: forward, gradient of the input, and gradient of the weights, which has a group for each example."""
    two_layers = lambda params, x: loss(params[1], convolve(x, params[0]))  # noqa: E731
    params, xs = [whole_numbers(3, 3, 2, 3), whole_numbers(3, 3, 3, 4)], whole_numbers(12, 8, 8, 2)
    statistics = jpool.gradient_statistics(two_layers, microbatch_size=4)

    def not_rewritten(params, xs):
        of_microbatch = lambda xs: jax.vmap(jax.grad(two_layers), (None, 0))(params, xs)  # noqa: E731
        return lax.map(of_microbatch, xs.reshape(3, 4, 8, 8, 2))

    assert layouts(compiled(statistics, params, xs)) == {FAST[2]}
    assert layouts(compiled(not_rewritten, params, xs)) > {FAST[2]}  # else the rewriting is not needed for speed


def test_the_function_is_traced_once_and_its_own_error_is_raised():
    traces = []
    jaxpr = jax.make_jaxpr(with_channels_last(lambda x: traces.append(x) or 2 * x))(jnp.ones(3))
    assert len(traces) == len(jaxpr.eqns) == 1
    with pytest.raises(TypeError, match="mine"):
        with_channels_last(lambda x: (_ for _ in ()).throw(TypeError("mine")))(jnp.ones(3))


def test_outside_of_a_program_the_loss_computes_with_values():
    """As with JAX's own transformations, and it is not compiled anew in every call."""
    w, xs = whole_numbers(2), whole_numbers(3, 2)
    branches = lambda w, x: (w @ x) ** 2 if w.sum() > -99 else w.sum()  # noqa: E731
    expected = np.square(xs @ w), 2 * (xs @ w)[:, None] * xs
    jax.tree.map(np.testing.assert_array_equal, jpool.per_example_value_and_grad(branches)(w, xs), expected)
    with jax.disable_jit():
        statistics = jpool.gradient_statistics(branches, microbatch_size=2)(w, xs, weights=[1] * 3)
        arguments = whole_numbers(3, 3, 2, 3), whole_numbers(1, 6, 6, 2)
        assert "conv_general_dilated" in str(jax.make_jaxpr(jpool.per_example_value_and_grad(loss))(*arguments))
    np.testing.assert_array_equal(statistics.losses, expected[0])
