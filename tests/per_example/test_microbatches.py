"""Microbatches: no padding, only one in memory, and convolutions that stay fast on XLA:CPU inside their loop."""

import re
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core
from jax.interpreters import mlir

import jpool
from jpool.per_example import cpu_convolutions
from jpool.per_example.cpu_convolutions import with_fast_convolutions
from jpool.per_example.microbatches import in_microbatches

RNG = np.random.default_rng(0)
FAST = {
    1: "b0f_0io->b0f",
    2: "b01f_01io->b01f",
    3: "b012f_012io->b012f",
}  # channels last, as the fast routine reads them


def whole_numbers(*shape):
    return jnp.asarray(RNG.integers(-2, 3, shape), jnp.float32)


def layouts(function, *arguments):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return set(re.findall(r"dim_labels=([^,\s]+)", text))


@pytest.mark.parametrize("size", [None, 1, 2, 3, 5, 7, 8])
def test_sums_and_rows_are_those_of_the_whole_batch(size):
    sizes = []

    def function(batch):
        sizes.append(len(batch["x"]))
        return batch["x"].sum(), (batch["x"] * 2, batch["none"])

    x = whole_numbers(7)
    total, (rows, none) = in_microbatches(function, size)({"x": x, "none": None})
    assert total == x.sum()
    np.testing.assert_array_equal(rows, 2 * x)
    assert none is None
    assert set(sizes) == ({7} if size in (None, 7, 8) else {size, 7 % size} - {0})


CONVOLUTIONS = {
    "channels last": ((2, 6, 5, 3), (3, 2, 3, 4), ("NHWC", "HWIO", "NHWC"), {}),
    "channels first": ((2, 3, 6, 5), (4, 3, 3, 2), ("NCHW", "OIHW", "NCHW"), {}),
    "another order": ((6, 3, 2, 5), (4, 3, 2, 3), ("HCNW", "OHWI", "WNHC"), {}),
    "one axis": ((2, 9, 3), (3, 3, 4), ("NWC", "WIO", "NWC"), {"window_strides": (2,)}),
    "three axes": ((1, 2, 4, 4, 4), (3, 2, 2, 2, 2), ("NCDHW", "OIDHW", "NCDHW"), {"window_strides": (1, 2, 1)}),
    "dilated": (
        (2, 3, 7, 6),
        (4, 3, 2, 2),
        ("NCHW", "OIHW", "NCHW"),
        {"padding": [(0, 0), (1, 2)], "rhs_dilation": (2, 1), "lhs_dilation": (1, 2)},
    ),
    "groups": ((2, 6, 6, 5), (4, 3, 3, 2), ("NCHW", "OIHW", "NCHW"), {"feature_group_count": 2}),
    "groups of examples": ((4, 3, 6, 5), (4, 3, 3, 2), ("NCHW", "OIHW", "NCHW"), {"batch_group_count": 2}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_rewritten_convolution_is_the_same_function(name):
    x_shape, w_shape, numbers, options = CONVOLUTIONS[name]
    options = {"window_strides": (1,) * (len(x_shape) - 2), "padding": "SAME"} | options

    def convolve(x, w):
        return lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)

    x, w = whole_numbers(*x_shape), whole_numbers(*w_shape)
    rewritten = with_fast_convolutions(convolve)
    np.testing.assert_array_equal(rewritten(x, w), convolve(x, w), strict=True)
    if "batch_group_count" not in options:  # which the fast routine does not support
        in_a_loop = lambda x, w: lax.map(lambda x: rewritten(x, w), x[None])  # noqa: E731
        assert layouts(in_a_loop, x, w) == {FAST[len(x_shape) - 2]}


def convolve(x, w):
    return lax.conv_general_dilated(x[None], w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]


def loss(w, x):
    return jnp.square(convolve(x, w)).sum()


NESTINGS = {
    "jit": lambda x, w: jax.jit(convolve)(x, w),
    "checkpoint": lambda x, w: jax.checkpoint(convolve)(x, w),
    "cond": lambda x, w: lax.cond(x.sum() > 0, convolve, lambda x, w: -convolve(x, w), x, w),
    "scan": lambda x, w: lax.scan(lambda total, w: (total + convolve(x, w), None), jnp.zeros((4, 4, 3)), w[None])[0],
    "while": lambda x, w: lax.while_loop(
        lambda carry: carry[0] < 2, lambda carry: (carry[0] + 1, carry[1] + convolve(x, w)), (0, jnp.zeros((4, 4, 3)))
    )[1],
}


@pytest.mark.parametrize("name", NESTINGS)
def test_nested_convolutions_are_rewritten(name):
    x, w = whole_numbers(5, 6, 6, 2), whole_numbers(3, 3, 2, 3)
    f = jax.vmap(NESTINGS[name], (0, None))
    rewritten = with_fast_convolutions(f)
    np.testing.assert_array_equal(rewritten(x, w), f(x, w))
    before, after = (str(jax.make_jaxpr(g)(x, w)) for g in (f, rewritten))
    assert before.count("platform_index") == 0 < after.count("platform_index")
    assert (name == "while") == ("while[" in before)


def test_in_the_loop_every_convolution_has_the_layout_of_the_fast_routine():
    """All three: forward, gradient of the input, and gradient of the weights, which has a group for each example."""
    two_layers = lambda params, x: loss(params[1], convolve(x, params[0]))  # noqa: E731
    params, xs = [whole_numbers(3, 3, 2, 3), whole_numbers(3, 3, 3, 4)], whole_numbers(12, 8, 8, 2)
    statistics = jax.jit(jpool.gradient_statistics(two_layers, microbatch_size=4))

    def not_rewritten(params, xs):
        of_microbatch = lambda xs: jax.vmap(jax.grad(two_layers), (None, 0))(params, xs)  # noqa: E731
        return lax.map(of_microbatch, xs.reshape(3, 4, 8, 8, 2))

    assert layouts(statistics, params, xs) == {FAST[2]}
    assert layouts(not_rewritten, params, xs) > {FAST[2]}  # else cpu_convolutions is not needed


class Wrapped(NamedTuple):
    """A jaxpr in a container that no version of JAX uses."""

    hidden: Any


def test_a_convolution_in_an_unknown_kind_of_equation_is_not_rewritten():
    hiding = core.Primitive("hiding")
    of_wrapped = lambda *operands, wrapped: core.jaxpr_as_fun(wrapped.hidden)(*operands)[0]  # noqa: E731
    hiding.def_abstract_eval(lambda *operands, wrapped: wrapped.hidden.out_avals[0])
    mlir.register_lowering(hiding, mlir.lower_fun(of_wrapped, multiple_results=False))
    x, w = whole_numbers(6, 6, 2), whole_numbers(3, 3, 2, 3)
    wrapped = Wrapped(jax.make_jaxpr(convolve)(x, w))
    f = lambda x, w: hiding.bind(x, w, wrapped=wrapped) + convolve(x, w)  # noqa: E731
    np.testing.assert_array_equal(jax.jit(with_fast_convolutions(f))(x, w), 2 * convolve(x, w), strict=True)


@pytest.mark.parametrize(
    ("module", "gone"), [("core", "jaxpr_as_fun"), ("core", "Jaxpr"), ("lax", "conv_general_dilated_p")]
)
def test_without_an_api_of_jax_a_function_stays_as_it_is(module, gone, monkeypatch):
    """As in another version of JAX, which may remove it."""
    whole = getattr(cpu_convolutions, module)
    rest = {name: getattr(whole, name) for name in dir(whole) if name != gone}
    monkeypatch.setattr(cpu_convolutions, module, SimpleNamespace(**rest))
    x, w = whole_numbers(6, 6, 2), whole_numbers(3, 3, 2, 3)
    np.testing.assert_array_equal(with_fast_convolutions(convolve)(x, w), convolve(x, w), strict=True)


def test_an_error_of_the_function_itself_is_raised():
    with pytest.raises(TypeError, match="mine"):
        with_fast_convolutions(lambda x: (_ for _ in ()).throw(TypeError("mine")))(jnp.ones(3))


def test_without_a_convolution_the_function_is_traced_once_and_stays_as_it_is():
    traces = []

    def f(x):
        traces.append(x)
        return 2 * x

    jaxpr = jax.make_jaxpr(with_fast_convolutions(f))(jnp.ones(3))
    assert len(traces) == 1
    assert "platform_index" not in str(jaxpr)


def test_on_other_platforms_a_convolution_is_not_rewritten():
    def platform_text(platform):
        f = jax.jit(with_fast_convolutions(convolve_channels_first))
        return (
            f.trace(whole_numbers(2, 3, 6, 5), whole_numbers(4, 3, 3, 2))
            .lower(lowering_platforms=(platform,))
            .as_text()
        )

    assert "[b, f, 0, 1]x[o, i, 0, 1]->[b, f, 0, 1]" in platform_text("cuda")
    assert "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in platform_text("cpu")


def convolve_channels_first(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))


def test_memory_is_that_of_one_microbatch_for_any_batch_size():
    def dense(w, x):
        return jnp.tanh(x @ w).sum()

    w = jnp.ones((64, 512))
    gradient = w.nbytes

    def temporary(batch, size):
        f = jax.jit(jpool.gradient_statistics(dense, microbatch_size=size))
        return f.lower(w, jnp.ones((batch, 64))).compile().memory_analysis().temp_size_in_bytes

    of_microbatches_of_4 = [temporary(batch, 4) for batch in (16, 64, 256)]
    assert 4 * gradient <= of_microbatches_of_4[0] <= 10 * gradient  # XLA holds the gradients twice here
    assert of_microbatches_of_4[-1] - of_microbatches_of_4[0] < 0.05 * gradient  # the losses and norms
    assert temporary(256, None) >= 256 * gradient
