"""ONNX's node tests of MaxPool, GlobalMaxPool and MaxUnpool, including their indices, if onnx is installed."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpool

pytestmark = pytest.mark.usefixtures("compiled_quickly")
onnx = pytest.importorskip("onnx")

OPERATORS = ["MaxPool", "GlobalMaxPool", "MaxUnpool"]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # onnx collects the tests of every operator
    from onnx.backend.test.case.node import collect_testcases

    collected = [case for case in collect_testcases() if case.model is not None]
CASES = {case.name: case for case in collected if case.model.graph.node[0].op_type in OPERATORS}


def test_onnx_has_tests_of_every_operator():
    assert len(CASES) >= 23
    assert {case.model.graph.node[0].op_type for case in CASES.values()} == set(OPERATORS)


@pytest.mark.parametrize("name", CASES)
def test_node_test_of_onnx(name):
    (node,) = CASES[name].model.graph.node
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    for inputs, outputs in CASES[name].data_sets:
        call = partial(globals()[node.op_type], **attributes)
        results = call(*inputs) if node.op_type == "MaxUnpool" else jax.jit(call)(*inputs)
        assert len(results) >= len(outputs)
        for ours, theirs in zip(results, outputs, strict=False):
            np.testing.assert_array_equal(ours, theirs)
            if theirs.dtype != np.int64:  # the dtype of ONNX's indices; ours are int32
                assert ours.dtype == theirs.dtype


def MaxPool(  # noqa: N802
    x, *, kernel_shape, strides=None, pads=None, auto_pad=b"NOTSET", dilations=None, ceil_mode=0, storage_order=0
):
    """The call in the reference's table, for a batch with channels first."""
    rank = len(kernel_shape)
    padding = {b"SAME_UPPER": "SAME", b"SAME_LOWER": "SAME_LOWER", b"VALID": "VALID"}.get(auto_pad)
    if padding is None:
        padding = tuple(zip(pads[:rank], pads[rank:], strict=True)) if pads else "VALID"
    to = "onnx_column_major" if storage_order else "onnx"
    channels, *spatial = x.shape[1:]

    def one(x):
        values, argmax = jpool.max_pool_with_argmax(
            x, tuple(kernel_shape), None if strides is None else tuple(strides), padding, channel_axis=0,
            window_dilation=None if dilations is None else tuple(dilations), ceil_mode=bool(ceil_mode),
        )  # fmt: skip
        return values, jpool.convert_argmax(argmax, tuple(spatial), channels, to=to, channel_axis=0)

    values, indices = jax.vmap(one)(x)
    n = jnp.arange(len(x)).reshape(-1, *[1] * (rank + 1)) * int(np.prod(x.shape[1:]))
    return values, jnp.where(indices < 0, -1, indices + n)


def GlobalMaxPool(x):  # noqa: N802
    return (jax.vmap(lambda x: jpool.global_max_pool(x, keepdims=True, channel_axis=0))(x),)


def MaxUnpool(values, indices, output_shape=None, *, kernel_shape, strides):  # noqa: N802
    """For one example with one channel, as in the node tests: ONNX's indices are then ours, in the grid that was pooled."""
    assert values.shape[:2] == (1, 1)
    pooled = [(size - 1) * s + k for size, s, k in zip(values.shape[2:], strides, kernel_shape, strict=True)]
    spatial = pooled if output_shape is None else [int(n) for n in output_shape[2:]]
    argmax = np.ravel_multi_index(np.unravel_index(indices[0], pooled), spatial)
    return (jpool.max_unpool(values[0], argmax, tuple(spatial), channel_axis=0)[None],)
