"""Sizes by the conventions for padding and ceil_mode, and the text of every error."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from shared.poolings import resolved

import jpool
from jpool.pooling.integers.geometry import Axis


def sizes(shape, window, strides=None, padding="VALID", **options):
    return resolved(shape, window, strides, padding, channel_axis=None, **options).values_shape


CEIL = {"ceil_mode": True}
SIZES = [  # size, window, stride, padding, options: number of windows, low padding
    (24, 2, 2, "VALID", {}, 12, 0),
    (7, 2, 2, "VALID", {}, 3, 0),
    (6, 3, 2, "same", {}, 3, 0),  # in upper or lower case, as in lax
    (6, 3, 1, "SAME", {"window_dilation": 2}, 6, 2),
    (3, 2, 4, "SAME", {}, 1, 0),  # no padding is needed, and no negative padding is used
    (5, 3, 2, ((0, 4),), {}, 4, 0),
    (6, 3, 2, "VALID", CEIL, 3, 0),
    (2, 3, 2, "VALID", CEIL, 1, 0),  # smaller than the window
    (5, 3, 2, "VALID", CEIL, 2, 0),  # no element is left over
    (4, 2, 3, 1, CEIL, 2, 1),  # a third window would start at 6 - 1 = 5, beyond the input
    (5, 2, 3, 1, CEIL, 2, 1),
    (3, 1, 2, "VALID", CEIL, 2, 0),
    (4, 1, 2, "VALID", CEIL, 2, 0),  # a third window would start just after the last element
]


@pytest.mark.parametrize(("n", "window", "stride", "padding", "options", "windows", "low"), SIZES)
def test_sizes(n, window, stride, padding, options, windows, low):
    (axis,) = resolved((n,), (window,), stride, padding, channel_axis=None, **options).axes
    assert (axis.output, axis.low) == (windows, low)


def test_ceil_mode_refuses_an_input_that_no_window_fits():
    """Rounded up, there is still no window: torch refuses these too."""
    for size, window, stride in ((2, 3, 1), (2, 9, 2)):
        with pytest.raises(ValueError, match=rf"pooled_shape: window_shape \({window},\) is larger than the padded"):
            jpool.pooled_shape((size,), (window,), stride, ceil_mode=True)


def test_same_agrees_with_lax():
    for n in range(1, 9):
        for window in range(1, 6):
            for stride in range(1, 5):
                for word in ("SAME", "SAME_LOWER"):
                    ((low, _),) = jax.lax.padtype_to_pads((n,), (window,), (stride,), word)
                    (axis,) = resolved((n,), (window,), stride, word, channel_axis=None).axes
                    assert (axis.output, axis.low) == (-(-n // stride), low)


def test_the_channel_axis_is_an_axis_with_windows_of_one_element():
    last, first = resolved((8, 6, 3), (2, 3), 2), resolved((3, 8, 6), (2, 3), 2, channel_axis=0)
    assert last.axes[2] == first.axes[0] == Axis(3, 1, 1, 1, 0, 3)
    assert last.axes[:2] == first.axes[1:]
    assert last.taps == 6


def test_the_stride_of_a_single_window_is_its_extent():
    for stride in (1, 3, 10**6):
        for padding in ("VALID", "SAME") if stride > 9 else ("VALID",):
            (axis,) = resolved((9,), (5,), stride, padding, window_dilation=2, channel_axis=None).axes
            assert (axis.output, axis.stride) == (1, 9)


def test_windows_far_apart_are_moved_together():
    """At most one window reads elements; the positions of the others must fit int32, and a padded array memory."""
    (axis,) = resolved((5,), (2,), 2**31, ((0, 2**33),), channel_axis=None).axes
    assert (axis.output, axis.reach) == (5, 4 * 7 + 2)
    (axis,) = resolved((5,), (2,), 2**31, ((2**33 - 1, 0),), channel_axis=None).axes
    assert axis.reach < 50
    assert [axis.low - o * axis.stride for o in range(axis.output)].count(-1 + 2**33 - 4 * 2**31) == 1


FAR = [(5, 2, 1, 10**9, 10**9 - 3, 0), (7, 3, 2, 1000, 1000, 996), (4, 4, 1, 10**12, 10**12, 2 * 10**12 + 2)]


@pytest.mark.parametrize(("size", "window", "stride", "dilation", "low", "high"), FAR)
def test_taps_far_apart_are_moved_together(size, window, stride, dilation, low, high):
    (axis,) = resolved((size,), (window,), stride, ((low, high),), window_dilation=dilation, channel_axis=None).axes
    windows = range(min(axis.output, 9))

    def elements(step, low):
        positions = [[o * stride + j * step - low for j in range(window)] for o in windows]
        return [[p if 0 <= p < size else None for p in window] for window in positions]

    assert elements(axis.dilation, axis.low) == elements(dilation, low)
    assert axis.dilation <= size + (axis.output - 1) * stride + 1


def test_the_dilation_of_a_window_of_one_element_is_nothing():
    (axis,) = resolved((5,), (1,), 2, window_dilation=10**30, channel_axis=None).axes
    assert (axis.dilation, axis.reach) == (1, 5)


def test_numpy_integers_and_lists_give_the_same_geometry():
    from_numpy = sizes((9, 9), [np.int64(3), np.uint8(3)], [np.int32(2), 2], [[np.int16(1), 1], np.int8(0)])
    assert from_numpy == sizes((9, 9), (3, 3), (2, 2), ((1, 1), (0, 0)))
    geometry = resolved((9, 1), (np.int64(2),), np.int64(2), ceil_mode=np.bool_(True), channel_axis=np.int64(-1))
    assert hash(geometry) == hash(resolved((9, 1), (2,), 2, 0, ceil_mode=True))
    assert all(type(entry) is int for axis in geometry.axes for entry in axis)


IMAGE = np.zeros((6, 6, 1), np.float32)
DELETED = jnp.zeros((6, 6, 1))
DELETED.delete()

ERRORS = {
    # name: (x, arguments, error, what its text must contain)
    "int window": (IMAGE, {"window_shape": 2}, TypeError, "window_shape must be a tuple of ints >= 1.*got 2 of type int"),
    "no window": (IMAGE, {"window_shape": ()}, ValueError, "window_shape must have at least one spatial axis; got ()"),
    "float window": (IMAGE, {"window_shape": (2.0, 2)}, TypeError, "window_shape must hold ints >= 1; got 2.0 of type float"),
    "bool window": (IMAGE, {"window_shape": (True, 2)}, TypeError, "window_shape must hold ints >= 1; got True of type bool"),
    "NumPy bool window": (IMAGE, {"window_shape": (np.True_, 2)}, TypeError, "window_shape must hold ints >= 1; got np.True_"),
    "zero window": (IMAGE, {"window_shape": (2, 0)}, ValueError, "window_shape must hold ints >= 1; got 0 in (2, 0)"),
    "negative window": (IMAGE, {"window_shape": (-2, 2)}, ValueError, "window_shape must hold ints >= 1; got -2"),
    "word as window": (IMAGE, {"window_shape": "22"}, TypeError, "window_shape must be a tuple of ints >= 1.*got '22'"),
    "array as window": (IMAGE, {"window_shape": np.array([2, 2])}, TypeError, "window_shape must be a tuple.*of type ndarray (use Python numbers, tuples and strings)"),
    "large window": (IMAGE, {"window_shape": (7, 2)}, ValueError,
                     "window_shape (7, 2) is larger than the padded input along spatial axis 0.*spans 7 elements.*has 6 "),
    "large dilated window": (IMAGE, {"window_dilation": 6}, ValueError, "window_shape (2, 2) is larger than the padded input.*spans 7 elements"),
    "more taps than numbers": (IMAGE, {"window_shape": (2**16, 2**16)}, ValueError, "window_shape must have at most 4294967294"),
    "short strides": (IMAGE, {"strides": (2,)}, ValueError, "strides must have one entry per spatial axis, 2.*got (2,)"),
    "zero stride": (IMAGE, {"strides": 0}, ValueError, "strides must hold ints >= 1; got 0"),
    "float stride": (IMAGE, {"strides": 2.0}, TypeError, "strides must be an int >= 1 or 2 of them.*got 2.0 of type float"),
    "bool stride": (IMAGE, {"strides": True}, TypeError, "strides must be an int >= 1.*got True of type bool"),
    "short dilation": (IMAGE, {"window_dilation": (1, 1, 1)}, ValueError, "window_dilation must have one entry per spatial"),
    "zero dilation": (IMAGE, {"window_dilation": (1, 0)}, ValueError, "window_dilation must hold ints >= 1; got 0"),
    "unknown word": (IMAGE, {"padding": "FULL"}, ValueError, "padding must be one of 'VALID', 'SAME', 'SAME_LOWER'.*got 'FULL'"),
    "negative padding": (IMAGE, {"padding": -1}, ValueError, "padding must be one of.*got -1."),
    "negative side": (IMAGE, {"padding": ((0, -1), 0)}, ValueError, "padding must be one of.*got (0, -1)"),
    "float padding": (IMAGE, {"padding": 1.0}, TypeError, "padding must be one of.*got 1.0 of type float"),
    "float side": (IMAGE, {"padding": ((0, 1.5), 0)}, TypeError, "padding must be one of.*got 1.5 of type float in ((0, 1.5), 0)"),
    "bool padding": (IMAGE, {"padding": (True, 1)}, TypeError, "padding must be one of.*got True of type bool"),
    "no padding": (IMAGE, {"padding": None}, TypeError, "padding must be one of.*got None of type NoneType"),
    "long padding": (IMAGE, {"padding": (1, 1, 1)}, ValueError, "padding must have one entry per spatial axis, 2"),
    "long pair": (IMAGE, {"padding": ((1, 1, 1), 1)}, ValueError, "padding must be one of.*got (1, 1, 1)"),
    "pair for one axis": (np.zeros((6, 1)), {"window_shape": (2,), "padding": (1, 0)}, ValueError, "padding must have one entry per spatial axis, 1.*write ((1, 0),)"),
    "a class named bool": (IMAGE, {"ceil_mode": type("bool", (), {})()}, TypeError, "ceil_mode must be True or False; got <"),
    "int ceil_mode": (IMAGE, {"ceil_mode": 1}, TypeError, "ceil_mode must be True or False; got 1 of type int"),
    "channel_axis 1": (IMAGE, {"channel_axis": 1}, ValueError, "channel_axis must be -1 (channels last), 0.*got 1"),
    "bool channel_axis": (IMAGE, {"channel_axis": False}, TypeError, "channel_axis must be -1.*got False of type bool"),
    "word as channel_axis": (IMAGE, {"channel_axis": "last"}, TypeError, "channel_axis must be -1.*got 'last' of type str"),
    "forgotten vmap": (np.zeros((9, 6, 6, 1)), {}, ValueError,
                       "x must be ONE example of shape (*spatial, channels), which has 3 axes.*got 4 axes.*jax.vmap"),
    "no channels": (np.zeros((6, 6)), {}, ValueError, "x must be ONE example.*got 2 axes, shape (6, 6). Without channels use channel_axis=None; with channels leave them out of window_shape"),
    "two more axes": (np.zeros((2, 9, 6, 6, 1)), {}, ValueError, "x must be ONE example.*got 5 axes.*With two batch axes use jax.vmap twice: jax.vmap(jax.vmap(lambda x: jpool."),
    "three more axes": (np.zeros((1, 2, 9, 6, 6, 1)), {}, ValueError, "x must be ONE example.*With 3 batch axes use jax.vmap 3 times: jax.vmap(jax.vmap(jax.vmap(lambda x: jpool."),
    "channels in the window": (IMAGE, {"window_shape": (2, 2, 1)}, ValueError, "x must be ONE example.*which has 4 axes.*got 3 axes.*leave the channels out of window_shape"),
    "batch and channels in the window": (np.zeros((9, 6, 6, 1)), {"window_shape": (1, 2, 2, 1)}, ValueError, "x must be ONE example.*got 4 axes.*leave the channels out of window_shape, and the batch too"),
    "no channels, long window": (IMAGE[..., 0], {"window_shape": (2, 2, 2), "channel_axis": None}, ValueError, "x must be ONE example.*got 2 axes.*leave batch and channels out of it"),
    "huge padding": (IMAGE, {"padding": 2**20}, ValueError, "padding must make an array of at most 2**40 elements; got the padded shape (2097158, 2097158)"),
    "more positions than int32": (np.zeros((5, 1)), {"window_shape": (2,), "padding": 2**31, "strides": 2**31, "window_dilation": 2**31}, ValueError, "padding must make at most 2**31 positions along an axis; got the padded shape (4294967297,)"),
    "endless padding": (IMAGE, {"padding": 2**62}, ValueError, "padding must make an array of at most 2**40 elements"),
    "huge dilation": (IMAGE, {"padding": 2**31, "strides": 2**31, "window_dilation": 2**31}, ValueError, "padding must make an array of at most 2**40 elements"),
    "scalar": (np.float32(1), {}, ValueError, "x must be ONE example.*got 0 axes"),
    "empty axis": (np.zeros((0, 6, 1)), {}, ValueError, "x must have at least one element along every spatial axis.*(0, 6, 1)"),
    "list": ([[[1.0]]], {}, TypeError, "x must be a JAX or NumPy array; got list"),
    "None": (None, {}, TypeError, "x must be a JAX or NumPy array; got NoneType"),
    "words": (np.array([[["a"]]]), {}, TypeError, "x must be an array of real numbers.*ndarray of dtype <U1"),
    "objects": (np.array([[[None]]]), {}, TypeError, "x must be an array of real numbers.*ndarray of dtype object"),
    "dates": (np.array([[["2026-11-24"]]], "M8[D]"), {}, TypeError, "x must be an array of real numbers.*datetime64"),
    "masked": (np.ma.masked_array(IMAGE, IMAGE == 0), {}, TypeError, "x must be an array of real numbers.*MaskedArray"),
    "random keys": (jax.random.split(jax.random.key(0), (6, 6, 1)), {}, TypeError, "x must be an array of real numbers.*key<fry>"),
    "unknown rule": (IMAGE, {"ties": "frist"}, ValueError, "ties must be one of 'first', 'last'.*got 'frist'"),
    "array of rules": (IMAGE, {"ties": np.array(["first", "last"])}, TypeError, "ties must be one of 'first', 'last'.*of type ndarray"),
    "no rule": (IMAGE, {"ties": None}, TypeError, "ties must be one of 'first', 'last'.*got None of type NoneType"),
    "int forward_mode": (IMAGE, {"forward_mode": 0}, TypeError, "forward_mode must be True or False; got 0 of type int"),
    "two bits": (IMAGE.astype(jnp.int2), {}, TypeError, "x must be an array of real numbers.*int2, which XLA does not compare. Convert it to int8"),
    "one bit": (IMAGE.astype(ml_dtypes.uint1), {}, TypeError, "x must be an array of real numbers.*uint1, which XLA does not compare"),
    "six bits": (IMAGE.astype(ml_dtypes.float6_e2m3fn), {}, TypeError, "x must be an array of real numbers.*float6_e2m3fn, which XLA does not compare"),
    "deleted": (DELETED, {}, ValueError, "x has been deleted, for example because it was donated.*shape (6, 6, 1). Use the array"),
    "no zero": (IMAGE.astype(ml_dtypes.float8_e8m0fnu), {}, TypeError, "x must be an array of real numbers.*float8_e8m0fnu"),
    "time differences": (IMAGE.astype("m8[s]"), {}, TypeError, "x must be an array of real numbers.*timedelta64"),
    "integers that JAX narrows": (np.full((6, 6, 1), 2**32 + 1), {}, ValueError, "x must hold integers that fit in int32, JAX's widest without jax_enable_x64; got 4294967297"),
    "natural numbers that JAX narrows": (np.full((6, 6, 1), 2**63, np.uint64), {}, ValueError, "x must hold integers that fit in uint32"),
    "complex": (IMAGE * 1j, {}, TypeError, "x must be an array of real numbers.*complex64.*have no order"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("inside_jit", [False, True])
def test_errors_name_the_function_the_argument_and_the_way_out(name, inside_jit):
    x, arguments, error, text = ERRORS[name]
    pool = lambda x: jpool.max_pool(x, **{"window_shape": (2, 2), **arguments})  # noqa: E731
    pattern = "max_pool: " + ".*".join(map(re.escape, text.split(".*")))
    with pytest.raises(error, match=pattern):
        jax.jit(lambda: pool(x))() if inside_jit else pool(x)


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("function", [jpool.min_pool, jpool.max_pool_with_argmax])
def test_errors_name_the_function_that_was_called(function, name):
    x, arguments, error, text = ERRORS[name]
    with pytest.raises(error, match=f"^{function.__name__}: {re.escape(text.split('.*')[0])}"):
        function(x, **{"window_shape": (2, 2), **arguments})


def test_a_traced_argument_or_entry_is_refused_with_a_hint_at_static_argnames():
    for argument in ("window_shape", "strides", "padding", "window_dilation", "channel_axis", "ties"):
        with pytest.raises(TypeError, match=rf"max_pool: {argument} .*static_argnames"):
            jax.jit(lambda x, n, name=argument: jpool.max_pool(x, **{"window_shape": (2, 2), name: n}))(IMAGE, 2)
    with pytest.raises(TypeError, match=r"max_pool: window_shape must hold ints >= 1; got .*static_argnames"):
        jax.jit(lambda x, n: jpool.max_pool(x, (n, 2)))(IMAGE, 2)


def test_a_call_works_after_a_refused_one():
    with pytest.raises(ValueError, match="strides"):
        jpool.max_pool(IMAGE, (2, 2), -1)
    assert jpool.max_pool(IMAGE, (2, 2)).shape == (5, 5, 1)
