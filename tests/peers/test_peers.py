"""The reference's table of other libraries, row by row: their call and ours, for libraries that are installed.

Caffe, which no package installs, and TensorFlow, which is too large for a test, are written in NumPy from their sources
or documentation.
"""

import importlib.util
import os
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import oracle
from shared.poolings import resolved

import jpool
from experiments.comparisons import caffe as in_numpy

pytestmark = pytest.mark.usefixtures("compiled_quickly")
os.environ.setdefault("KERAS_BACKEND", "jax")
REFERENCE = (Path(__file__).resolve().parents[2] / "jpool/README.md").read_text()
H, W, C = 12, 9, 3
ROWS = {}
for line in REFERENCE.split("## From other libraries\n")[1].split("\n## ")[0].splitlines():
    cells = [cell.strip() for cell in line.strip("|").split(" | ")]
    if line.startswith("| **"):
        library = re.search(r"\*\*(\w+)", line)[1]
    elif line.startswith("| `"):
        ROWS[library, cells[0].strip("`")] = cells[1].strip("`"), cells[2].strip(" |").split(", ")

MODULES = {"PyTorch": "torch", "Keras": "keras", "ONNX": "onnx", "Flax": "flax", "Equinox": "equinox", "Haiku": "haiku"}
CHANNELS_FIRST = {"PyTorch", "Caffe", "ONNX", "Equinox"}


def batch(channels_first):
    """No two elements are equal, and some are negative."""
    x = np.random.default_rng(0).permutation(2 * H * W * C).reshape(2, H, W, C).astype(np.float32) - 300
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if channels_first else x


def cotangent(shape):
    return np.random.default_rng(1).integers(-9, 10, shape).astype(np.float32)


def of_jax(function, x):
    """(values, indices or None, gradient) of a function of JAX arrays, compiled at once."""

    def passes(x):
        values, backward, indices = jax.vjp(lambda x: (*as_tuple(function(x)), None)[:2], x, has_aux=True)
        floating = jnp.issubdtype(values.dtype, jnp.floating)
        return values, indices, backward(cotangent(values.shape).astype(values.dtype))[0] if floating else None

    return jax.jit(passes)(x)


def as_tuple(results):
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)


@cache
def ours(code, channels_first):
    names = {name: getattr(jpool, name) for name in jpool.__all__} | {"H": H, "W": W, "C": C}
    return of_jax(jax.vmap(lambda x: eval(code, names | {"x": x})), batch(channels_first))


# --- their calls ---


def pytorch(code, x):
    torch = importlib.import_module("torch")
    image = torch.tensor(x, requires_grad=True)
    values, *indices = as_tuple(eval(code, {"F": torch.nn.functional, "x": image}))
    values.backward(torch.tensor(cotangent(values.shape)))
    return values.detach().numpy(), indices[0].numpy() if indices else None, image.grad.numpy()


def keras(code, x):
    return of_jax(lambda x: eval(code, {"keras": importlib.import_module("keras"), "x": x}), x)


def flax(code, x):
    from flax import linen, nnx

    return of_jax(lambda x: eval(code, {"nnx": nnx, "linen": linen, "x": x}), x)


def equinox(code, x):
    layer = eval(code, {"eqx": importlib.import_module("equinox")})
    return of_jax(jax.vmap(lambda x: layer(x)), x)


def haiku(code, x):
    return of_jax(lambda x: eval(code, {"hk": importlib.import_module("haiku"), "x": x}), x)


def onnx(code, x):
    onnx = importlib.import_module("onnx")
    from onnx.reference import ReferenceEvaluator

    operator, attributes = eval(code, {name: lambda name=name, **a: (name, a) for name in ("MaxPool", "GlobalMaxPool")})
    node = onnx.helper.make_node(operator, ["x"], ["y"], **attributes)
    kind = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)  # noqa: E731
    graph = onnx.helper.make_graph([node], "pool", [kind("x")], [kind("y")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)])
    return ReferenceEvaluator(model).run(None, {"x": x})[0], None, None


def tensorflow(code, x):
    pool = lambda x, k, s, padding: of_windows(x, lambda x: oracle.windows(x, (k, k), s, padding))  # noqa: E731
    tf = SimpleNamespace(nn=SimpleNamespace(max_pool2d=pool, max_pool_with_argmax=with_argmax_of_tensorflow))
    results = eval(code, {"tf": tf, "x": x})
    return results if isinstance(results, tuple) else (results, None, None)


def with_argmax_of_tensorflow(x, k, s, padding):
    """(y * width + x) * channels + c, of every maximum."""
    values = np.stack([oracle.pool(example, oracle.windows(example, (k, k), s, padding))[0] for example in x])
    indices = np.zeros(values.shape, np.int64)
    for output, value in np.ndenumerate(values):
        (((y, column, c),)) = np.argwhere(x[output[0]] == value)
        indices[output] = (y * W + column) * C + c
    return values, indices


def of_windows(x, windows):
    """Each example pooled by the oracle: (values, None, gradient)."""
    pooled = [oracle.pool(example, windows(example)) for example in x]
    values = np.stack([values for values, _ in pooled])
    routed = (
        oracle.share(x.shape[1:], winners, ct) for (_, winners), ct in zip(pooled, cotangent(values.shape), strict=True)
    )
    return values, None, np.stack(list(routed)).astype(np.float32)


def caffe(code, x):
    options = {"stride": 1, "pad": 0} | dict(re.findall(r"(\w+): (\w+)", code))
    assert options.pop("pool") == "MAX"
    if options.get("global_pooling") == "true":
        options = {"kernel": (H, W)}
    else:
        options = {
            name: (int(options[field]),) * 2
            for name, field in (("kernel", "kernel_size"), ("stride",) * 2, ("pad",) * 2)
        }
    pooled = [in_numpy.max_pool(example, **options) for example in x]
    values, mask = (np.stack(arrays) for arrays in zip(*pooled, strict=True))
    cts = cotangent(values.shape)
    gradient = [in_numpy.route(*mask_and_ct, x.shape[1:]) for mask_and_ct in zip(mask, cts, strict=True)]
    return values, mask, np.stack(gradient)


THEIRS = {
    "PyTorch": pytorch, "TensorFlow": tensorflow, "Keras": keras, "Caffe": caffe, "ONNX": onnx, "Flax": flax,
    "Equinox": equinox, "Haiku": haiku,
}  # fmt: skip


def test_the_table_has_every_library():
    assert {library for library, _ in ROWS} == set(THEIRS)
    assert len(ROWS) >= 39


@pytest.mark.filterwarnings("ignore")  # of the other libraries
@pytest.mark.parametrize(("library", "code"), ROWS)
def test_row_of_the_table(library, code):
    if library in MODULES:
        pytest.importorskip(MODULES[library])
    first, (our_code, equal) = library in CHANNELS_FIRST, ROWS[library, code]
    assert equal[0] == "values"
    theirs, mine = THEIRS[library](code, batch(first)), ours(our_code, first)
    for name, a, b in zip(("values", "indices", "gradient"), mine, theirs, strict=True):
        if name in equal and (b is not None or name == "values"):
            if a is None:  # a call for values only: compare their indices as well
                _, a, _ = ours(our_code.replace("max_pool(", "max_pool_with_argmax("), first)
            np.testing.assert_array_equal(a, b, err_msg=name)
            assert a.shape == b.shape
        if name in equal and name == "gradient" and library != "TensorFlow":
            assert b is not None


# --- differences that the reference describes ---


def test_same_is_not_padding_1():
    """SAME pads an even size after the input only, whatever it holds."""
    same, after, both = (resolved((12,), (3,), 2, padding, channel_axis=None) for padding in ("SAME", ((0, 1),), 1))
    assert same == after != both


def test_caffe_keeps_a_window_outside_the_input_if_the_stride_exceeds_the_window():
    values, mask, _ = caffe("pool: MAX kernel_size: 1 stride: 5", batch(channels_first=True))
    ours = jpool.pooled_shape((H, W), (1, 1), 5, ceil_mode=True)
    assert (values.shape[2:], ours) == ((4, 3), (3, 2))
    assert (values[:, :, 3] == -np.finfo(np.float32).max).all()
    assert (mask[:, :, 3] == -1).all()


def test_ties_in_torch():
    torch = pytest.importorskip("torch")
    x = np.array([[[0, 2, 2], [2, 1, 0]]], np.float32)
    for theirs, ties in (
        (lambda t: torch.nn.functional.max_pool2d(t, (2, 3)), "first"),
        (lambda t: t.amax((1, 2)), "split"),
    ):
        image = torch.tensor(x, requires_grad=True)
        theirs(image).sum().backward()
        ours = jax.grad(lambda x, ties=ties: jpool.max_pool(x, (2, 3), channel_axis=0, ties=ties).sum())(x)
        np.testing.assert_allclose(ours, image.grad.numpy(), rtol=1e-7)


def test_torch_unpooling_keeps_one_of_several_values_but_has_gradients_for_all():
    torch = pytest.importorskip("torch")
    values = torch.tensor([[[1.0, 2.0]]], requires_grad=True)
    argmax = torch.tensor([[[1, 1]]])
    out = torch.nn.functional.max_unpool1d(values, argmax, 2, 1, output_size=(3,))
    out.sum().backward()
    assert out.sum().item() in (1, 2)  # not 3
    assert values.grad.tolist() == [[[1, 1]]]  # for both, although one of them is not in the result
    ours = jpool.max_unpool(values.detach().numpy()[0], argmax.numpy()[0], (3,), channel_axis=0)
    assert ours.tolist() == [[0, 3, 0]]


def test_equinox_has_other_adaptive_windows():
    equinox = pytest.importorskip("equinox")
    x = jnp.arange(5.0)[None, ::-1]
    assert equinox.nn.AdaptiveMaxPool1d(3)(x).tolist() != jpool.adaptive_max_pool(x, (3,), channel_axis=0).tolist()


@pytest.mark.filterwarnings("ignore")
def test_keras_splits_a_tie_in_global_pooling():
    keras = pytest.importorskip("keras")
    x = jnp.array([[[1.0], [1.0]]])
    theirs = jax.grad(lambda x: keras.layers.GlobalMaxPooling1D()(x).sum())(x)
    ours = jax.grad(lambda x: jpool.max_pool(x[0], (2,), ties="split").sum())(x)
    assert theirs.tolist() == ours.tolist() == [[[0.5], [0.5]]]


@pytest.mark.parametrize("library", ["Flax", "Equinox", "Haiku"])
@pytest.mark.filterwarnings("ignore")
def test_the_gradient_of_lax_is_lost_at_minus_infinity_beside_padding(library):
    pytest.importorskip(MODULES[library])
    code = {
        "Flax": 'nnx.max_pool(x, (3, 3), (1, 1), "SAME")', "Haiku": 'hk.max_pool(x, 3, 1, "SAME")',
        "Equinox": "eqx.nn.MaxPool2d(3, 1, 1)",
    }[library]  # fmt: skip
    x = jnp.full((1, 3, 3, 1) if library != "Equinox" else (1, 1, 3, 3), -jnp.inf)
    lost = THEIRS[library](code, x)[2].sum()
    backward = jax.vjp(lambda x: jpool.max_pool(x, (3, 3), padding=1, channel_axis=None), x.reshape(3, 3))[1]
    ct = cotangent((3, 3))
    assert backward(ct)[0].sum() == ct.sum() != lost
