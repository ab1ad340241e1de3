"""Training steps of well-known networks, shortened, with their framework's max pooling or with jpool's; to be compiled.

The cost of pooling in a network depends on its neighbours: a relu, a bias or a batch norm may be fused into the same
kernel, or not. A step here is the loss, its gradient and an SGD update, compiled from shapes only: nothing runs.
"""

import importlib
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

import jpool
from experiments.accelerators import compiled

Step = tuple[Callable[..., Any], tuple[Any, ...]]  # a training step, and the shapes of its arguments
Body = Callable[[bool, jax.Array], jax.Array]  # a network's layers: (with jpool's poolings or not, batch) -> scores

CONVOLUTION = re.compile(r' %?([\w.\-]+) = [^\n]* (?:convolution\(|custom-call\([^\n]*"__cudnn\$conv)')
SCRATCH = re.compile(r" %?([\w.\-]+) = \([^\n=]*?(s8\[\d+\]\S*)\) custom-call\(")


def bytes_besides_convolutions(program: compiled.Program) -> int:
    """Bytes read and written by all kernels of a GPU program except convolutions, which are the same for any pooling.

    The scratch memory of a matrix product is not counted, because it is unknown how much of it is used.
    """
    convolutions = set(CONVOLUTION.findall(program.text))
    scratch = {name: compiled.size_of(type_) for name, type_ in SCRATCH.findall(program.text)}
    counted = [kernel for kernel in program.kernels if kernel.name not in convolutions]
    return sum(kernel.read + kernel.written - scratch.get(kernel.name, 0) for kernel in counted)


# --- poolings: jpool's, or what users of a framework write ---


@cache
def linen() -> Any:
    """flax.linen, imported only when a network is built."""
    return importlib.import_module("flax.linen")


def max_pool(
    ours: bool, x: jax.Array, window: tuple[int, ...], stride: int = 1, padding: int = 0, ceil_mode: bool = False
) -> jax.Array:
    """Max pooling of a batch with its channels last."""
    if ours:
        return jax.vmap(lambda x: jpool.max_pool(x, window, stride, padding, ceil_mode=ceil_mode))(x)
    sizes = zip(x.shape[1:-1], window, strict=True)
    overhang = [(size + 2 * padding - side) % stride if ceil_mode else 0 for size, side in sizes]
    return linen().max_pool(x, window, (stride,) * len(window), [(padding, padding + more) for more in overhang])


def min_pool(ours: bool, x: jax.Array, window: tuple[int, ...]) -> jax.Array:
    """Min pooling with stride 1; the values have the size of x."""
    if ours:
        return jax.vmap(lambda x: jpool.min_pool(x, window, padding="SAME"))(x)
    return -linen().max_pool(-x, window, padding="SAME")


def global_max_pool(ours: bool, x: jax.Array) -> jax.Array:
    """The maximum over all axes between batch and channels."""
    return jax.vmap(jpool.global_max_pool)(x) if ours else x.max(tuple(range(1, x.ndim - 1)))


# --- steps ---


def cross_entropy(scores: jax.Array, labels: jax.Array, ours: bool = False) -> jax.Array:
    """The mean over everything that has a label: examples, pixels or cells."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def updated(params: Any, objective: Callable[[Any], Any]) -> tuple[Any, jax.Array, Any]:
    """The parameters after one SGD update, the loss before it, and the other result of the objective."""
    optimizer = optax.sgd(0.1)
    (value, others), grads = jax.value_and_grad(objective, has_aux=True)(params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return optax.apply_updates(params, updates), value, others


def flax_step(
    body: Body, shape: tuple[int, ...], ours: bool, dtype: Any = jnp.float32, loss: Any = cross_entropy
) -> Step:
    """A step of a Flax network, whose layers are created when `body` calls them."""

    class Network(linen().Module):  # type: ignore[misc]
        __call__ = linen().compact(lambda self, x: body(ours, x))

    def step(variables: Any, x: jax.Array, labels: jax.Array) -> Any:
        def objective(params: Any) -> Any:
            scores, statistics = Network().apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return loss(scores, labels, ours), statistics

        params, value, statistics = updated(variables["params"], objective)
        return {**statistics, "params": params}, value

    x = jax.ShapeDtypeStruct(shape, dtype)
    scores, variables = jax.eval_shape(Network().init_with_output, jax.random.key(0), x)
    return step, (variables, x, jax.ShapeDtypeStruct(scores.shape[:-1], jnp.int32))


# --- layers ---


def conv(x: jax.Array, features: int, side: int = 3, stride: int = 1, norm: bool = False, **more: Any) -> jax.Array:
    """A convolution over all axes between batch and channels, a bias or a batch norm, and a relu."""
    sides, strides = (side,) * (x.ndim - 2), (stride,) * (x.ndim - 2)
    x = linen().Conv(features, sides, strides, use_bias=not norm, **more)(x)
    return jax.nn.relu(batch_norm(x) if norm else x)


def batch_norm(x: jax.Array) -> jax.Array:
    """Batch norm in training mode."""
    return linen().BatchNorm(use_running_average=False)(x)


def dense(x: jax.Array, *features: int) -> jax.Array:
    """Dense layers, with a relu between them."""
    for hidden in features[:-1]:
        x = jax.nn.relu(linen().Dense(hidden)(x))
    return linen().Dense(features[-1])(x)


def mean(x: jax.Array) -> jax.Array:
    """The mean over all axes between batch and channels."""
    return x.mean(tuple(range(1, x.ndim - 1)))


# --- networks ---


def mnist(ours: bool, x: jax.Array) -> jax.Array:
    """Flax's example, with max instead of average pooling."""
    for features in (32, 64):
        x = max_pool(ours, conv(x, features), (2, 2), 2)
    return dense(x.reshape(len(x), -1), 256, 10)


def resnet(ours: bool, x: jax.Array) -> jax.Array:
    """The stem, and one convolution after it."""
    x = max_pool(ours, conv(x, 64, 7, 2, norm=True), (3, 3), 2, 1)
    return dense(mean(conv(x, 64, norm=True)), 1000)


def densenet(ours: bool, x: jax.Array) -> jax.Array:
    """The stem, and the first two layers of a dense block."""
    x = max_pool(ours, conv(x, 64, 7, 2, norm=True), (3, 3), 2, 1)
    for _ in range(2):
        bottleneck = conv(jax.nn.relu(batch_norm(x)), 128, 1, norm=True)
        x = jnp.concatenate([x, linen().Conv(32, (3, 3), use_bias=False)(bottleneck)], -1)
    return dense(mean(x), 1000)


def alexnet(ours: bool, x: jax.Array) -> jax.Array:
    """The whole network, without local response normalisation and dropout."""
    x = max_pool(ours, conv(x, 96, 11, 4, padding="VALID"), (3, 3), 2)
    x = max_pool(ours, conv(x, 256, 5), (3, 3), 2)
    x = max_pool(ours, conv(conv(conv(x, 384), 384), 256), (3, 3), 2)
    return dense(x.reshape(len(x), -1), 4096, 4096, 1000)


def vgg(ours: bool, x: jax.Array) -> jax.Array:
    """The first two blocks."""
    for features in (64, 128):
        x = max_pool(ours, conv(conv(x, features), features), (2, 2), 2)
    return dense(mean(x), 1000)


def squeezenet(ours: bool, x: jax.Array) -> jax.Array:
    """SqueezeNet 1.0; the windows of its second pooling extend past the end."""
    x = conv(x, 96, 7, 2, padding="VALID")
    for block in ((16, 16, 32), (32, 48, 48, 64), (64,)):
        x = max_pool(ours, x, (3, 3), 2, ceil_mode=True)
        for squeezed in block:
            x = conv(x, squeezed, 1)
            x = jnp.concatenate([conv(x, 4 * squeezed, 1), conv(x, 4 * squeezed)], -1)
    return mean(conv(x, 1000, 1))


def unet(ours: bool, x: jax.Array) -> jax.Array:
    """Three levels."""
    skipped = []
    for features in (32, 64):
        skipped.append(conv(conv(x, features), features))
        x = max_pool(ours, skipped[-1], (2, 2), 2)
    x = conv(conv(x, 128), 128)
    for features in (64, 32):
        x = jnp.concatenate([skipped.pop(), linen().ConvTranspose(features, (2, 2), (2, 2))(x)], -1)
        x = conv(conv(x, features), features)
    return linen().Conv(2, (1, 1))(x)


def pointnet(ours: bool, x: jax.Array) -> jax.Array:
    """Without its transformations of the input."""
    for features in (64, 64, 64, 128, 1024):
        x = jax.nn.relu(batch_norm(dense(x, features)))
    return dense(global_max_pool(ours, x), 512, 256, 40)


def m5(ours: bool, x: jax.Array) -> jax.Array:
    """A network for audio, as in PyTorch's tutorial."""
    for features, side, stride in ((32, 80, 16), (32, 3, 1), (64, 3, 1), (64, 3, 1)):
        x = max_pool(ours, conv(x, features, side, stride, norm=True, padding="VALID"), (4,), 4)
    return dense(mean(x), 35)


def textcnn(ours: bool, x: jax.Array) -> jax.Array:
    """Convolutions over three, four and five words at a time."""
    x = linen().Embed(20000, 128)(x)
    pooled = [global_max_pool(ours, conv(x, 128, words, padding="VALID")) for words in (3, 4, 5)]
    return dense(jnp.concatenate(pooled, -1), 2)


def sppf(ours: bool, x: jax.Array) -> jax.Array:
    """The end of a YOLO backbone, and scores for each cell."""

    def unit(x: jax.Array, features: int, side: int = 1, stride: int = 1) -> jax.Array:
        convolution = linen().Conv(features, (side, side), (stride, stride), use_bias=False)
        return jax.nn.silu(batch_norm(convolution(x)))

    pyramid = [unit(unit(x, 512, 3, 2), 256)]
    for _ in range(3):
        pyramid.append(max_pool(ours, pyramid[-1], (5, 5), padding=2))
    return dense(unit(jnp.concatenate(pyramid, -1), 512), 80)


def inception(ours: bool, x: jax.Array) -> jax.Array:
    """The first block of GoogLeNet, after a convolution."""
    x = conv(x, 192)
    pooled = max_pool(ours, x, (3, 3), padding=1)
    branches = [conv(x, 64, 1), conv(conv(x, 96, 1), 128), conv(conv(x, 16, 1), 32, 5), conv(pooled, 32, 1)]
    return dense(mean(jnp.concatenate(branches, -1)), 1000)


def cldice(scores: jax.Array, labels: jax.Array, ours: bool) -> jax.Array:
    """A segmentation loss that compares skeletons, computed by repeated poolings of stride 1."""

    def skeleton(x: jax.Array) -> jax.Array:
        thinned = jnp.zeros_like(x)
        for _ in range(4):
            eroded = lax.min(*(min_pool(ours, x, window) for window in ((3, 1), (1, 3))))
            opened = max_pool(ours, eroded, (3, 3), padding=1)
            thinned = thinned + jax.nn.relu(jax.nn.relu(x - opened) * (1 - thinned))
            x = eroded
        return thinned

    mask, true = jax.nn.sigmoid(scores), labels[..., None].astype(scores.dtype)
    pairs = ((skeleton(mask), true), (skeleton(true), mask))
    precision, recall = ((bones * whole).sum() / (bones.sum() + 1) for bones, whole in pairs)
    return 1 - 2 * precision * recall / (precision + recall)


def equinox_step(ours: bool) -> Step:
    """The MNIST example of Equinox: channels first, and windows of stride 1."""
    eqx = importlib.import_module("equinox")
    nn = eqx.nn
    pool = nn.Lambda(partial(jpool.max_pool, window_shape=(2, 2), channel_axis=0)) if ours else nn.MaxPool2d(2)

    def network(key: jax.Array) -> Any:
        relu, sigmoid, ravel = map(nn.Lambda, (jax.nn.relu, jax.nn.sigmoid, jnp.ravel))
        first, second, third = (nn.Linear(*sizes, key=key) for sizes in ((1728, 512), (512, 64), (64, 10)))
        layers = [nn.Conv2d(1, 3, 4, key=key), pool, relu, ravel, first, sigmoid, second, relu, third]
        return nn.Sequential(layers)

    shaped = eqx.filter_eval_shape(network, jax.random.key(0))
    params, static = eqx.partition(shaped, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def step(params: Any, x: jax.Array, labels: jax.Array) -> Any:
        def objective(params: Any) -> Any:
            return cross_entropy(jax.vmap(eqx.combine(params, static))(x), labels), None

        return updated(params, objective)[:2]

    shapes = jax.ShapeDtypeStruct((64, 1, 28, 28), jnp.float32), jax.ShapeDtypeStruct((64,), jnp.int32)
    return step, (params, *shapes)


NETWORKS: dict[str, Callable[[bool], Step]] = {
    "MNIST, Flax": partial(flax_step, mnist, (128, 28, 28, 1)),
    "MNIST, Equinox": equinox_step,
    "ResNet": partial(flax_step, resnet, (32, 224, 224, 3)),
    "DenseNet": partial(flax_step, densenet, (32, 224, 224, 3)),
    "AlexNet": partial(flax_step, alexnet, (128, 227, 227, 3)),
    "VGG": partial(flax_step, vgg, (16, 224, 224, 3)),
    "SqueezeNet": partial(flax_step, squeezenet, (32, 224, 224, 3)),
    "U-Net": partial(flax_step, unet, (8, 128, 128, 1)),
    "PointNet": partial(flax_step, pointnet, (32, 1024, 3)),
    "M5": partial(flax_step, m5, (256, 8000, 1)),
    "TextCNN": partial(flax_step, textcnn, (64, 400), dtype=jnp.int32),
    "SPPF": partial(flax_step, sppf, (16, 40, 40, 256)),
    "Inception": partial(flax_step, inception, (32, 28, 28, 64)),
    "clDice": partial(flax_step, lambda ours, x: dense(conv(conv(x, 16), 16), 1), (8, 256, 256, 1), loss=cldice),
}
