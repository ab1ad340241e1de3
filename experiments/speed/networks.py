"""Complete networks, layer for layer as in the source that `NETWORKS` names, with one thing to choose: the pooling.

`by` is "framework", "jpool" or "free" (see poolings.py). Widths, paddings, biases, batch norms and dropouts are the
source's; a test counts the parameters, where their number is published. Only the size of an image or a batch is
reduced where a step would take too long on two cores, and `NETWORKS` states both.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.speed.poolings import global_max_pool, linen, max_pool


def conv(x: jax.Array, features: int, side: int, stride: int = 1, padding: int = 0, bias: bool = True) -> jax.Array:
    """A convolution over all axes between batch and channels."""
    axes = x.ndim - 2
    return linen().Conv(features, (side,) * axes, (stride,) * axes, [(padding, padding)] * axes, use_bias=bias)(x)


def dense(x: jax.Array, features: int) -> jax.Array:
    """A dense layer over the last axis."""
    return linen().Dense(features)(x)


def norm(x: jax.Array) -> jax.Array:
    """Batch norm in training mode; Flax's momentum 0.9 is PyTorch's 0.1."""
    return linen().BatchNorm(use_running_average=False, momentum=0.9)(x)


def dropout(x: jax.Array, rate: float = 0.5) -> jax.Array:
    """Dropout in training mode."""
    return linen().Dropout(rate, deterministic=False)(x)


relu = jax.nn.relu
mean = lambda x: x.mean(tuple(range(1, x.ndim - 1)))  # noqa: E731 - over all axes between batch and channels
flat = lambda x: x.reshape(len(x), -1)  # noqa: E731


def lenet(by: str, x: jax.Array) -> jax.Array:
    """Caffe's LeNet."""
    for features in (20, 50):
        x = max_pool(by, conv(x, features, 5), 2, 2)
    return dense(relu(dense(flat(x), 500)), 10)


def alexnet(by: str, x: jax.Array) -> jax.Array:
    """AlexNet in the version of one GPU (arXiv:1404.5997); the average pooling to 6 x 6 leaves 6 x 6 as it is."""
    x = max_pool(by, relu(conv(x, 64, 11, 4, 2)), 3, 2)
    x = max_pool(by, relu(conv(x, 192, 5, 1, 2)), 3, 2)
    for features in (384, 256, 256):
        x = relu(conv(x, features, 3, 1, 1))
    x = flat(max_pool(by, x, 3, 2))
    for _ in range(2):
        x = relu(dense(dropout(x), 4096))
    return dense(x, 1000)


def squeezenet(by: str, x: jax.Array) -> jax.Array:
    """SqueezeNet 1.1; with images of 224 x 224 rounding the number of windows up adds none."""
    x = relu(conv(x, 64, 3, 2))
    for block in ((16, 16), (32, 32), (48, 48, 64, 64)):
        x = max_pool(by, x, 3, 2)
        for squeezed in block:
            x = relu(conv(x, squeezed, 1))
            x = jnp.concatenate([relu(conv(x, 4 * squeezed, 1)), relu(conv(x, 4 * squeezed, 3, 1, 1))], -1)
    return mean(relu(conv(dropout(x), 1000, 1)))


def vgg11(by: str, x: jax.Array) -> jax.Array:
    """VGG-11, without batch norm."""
    for block in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for features in block:
            x = relu(conv(x, features, 3, 1, 1))
        x = max_pool(by, x, 2, 2)
    x = flat(x)
    for _ in range(2):
        x = dropout(relu(dense(x, 4096)))
    return dense(x, 1000)


def resnet18(by: str, x: jax.Array) -> jax.Array:
    """ResNet-18."""
    x = max_pool(by, relu(norm(conv(x, 64, 7, 2, 3, bias=False))), 3, 2, 1)
    for features, strides in ((64, (1, 1)), (128, (2, 1)), (256, (2, 1)), (512, (2, 1))):
        for stride in strides:
            y = relu(norm(conv(x, features, 3, stride, 1, bias=False)))
            y = norm(conv(y, features, 3, 1, 1, bias=False))
            x = relu(y + (norm(conv(x, features, 1, stride, bias=False)) if stride == 2 else x))
    return dense(mean(x), 1000)


def unet(by: str, x: jax.Array) -> jax.Array:
    """U-Net, without padding: the maps on the left are cropped before they are joined to those on the right."""
    two = lambda x, features: relu(conv(relu(conv(x, features, 3)), features, 3))  # noqa: E731
    left = []
    for features in (64, 128, 256, 512):
        x = two(x, features)
        left.append(dropout(x) if features == 512 else x)
        x = max_pool(by, left[-1], 2, 2)
    x = dropout(two(x, 1024))
    for features in (512, 256, 128, 64):
        x = linen().ConvTranspose(features, (2, 2), (2, 2))(x)
        edge = (left[-1].shape[1] - x.shape[1]) // 2
        x = two(jnp.concatenate([left.pop()[:, edge:-edge, edge:-edge], x], -1), features)
    return conv(x, 2, 1)


def m5(by: str, x: jax.Array) -> jax.Array:
    """M5, for a second of audio resampled to 8 kHz."""
    for features, side, stride in ((32, 80, 16), (32, 3, 1), (64, 3, 1), (64, 3, 1)):
        x = max_pool(by, relu(norm(conv(x, features, side, stride))), 4, 4)
    return jax.nn.log_softmax(dense(mean(x), 35))


def textcnn(by: str, words: jax.Array) -> jax.Array:
    """CNN-rand, without its bound on the norm of weights; 64 words: 56 of the longest sentence, 8 of padding."""
    x = linen().Embed(18_766, 300)(words)
    pooled = [global_max_pool(by, relu(conv(x, 100, side))) for side in (3, 4, 5)]
    return dense(dropout(jnp.concatenate(pooled, -1)), 2)


def pointnet(by: str, points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """PointNet for classification: scores, and how far the transformation of features is from an orthogonal one."""
    layer = lambda x, features: relu(norm(dense(x, features)))  # noqa: E731

    def layers(x: jax.Array, *widths: int) -> jax.Array:
        for features in widths:
            x = layer(x, features)
        return x

    def transformation(x: jax.Array) -> jax.Array:
        size = x.shape[-1]
        x = layers(global_max_pool(by, layers(x, 64, 128, 1024)), 512, 256)
        zeros = linen().initializers.zeros
        return jnp.eye(size) + linen().Dense(size**2, kernel_init=zeros)(x).reshape(-1, size, size)

    x = layers(points @ transformation(points), 64, 64)
    of_features = transformation(x)
    x = layer(global_max_pool(by, layers(x @ of_features, 64, 128, 1024)), 512)
    scores = dense(dropout(layer(dropout(x, 0.3), 256), 0.3), 40)
    off = jnp.eye(64) - of_features @ of_features.swapaxes(1, 2)
    return scores, 0.001 * (off**2).sum() / 2


def equinox_mnist(by: str) -> Any:
    """Equinox's example for MNIST, which has its channels first and windows of stride 1: a model of one example."""
    eqx: Any = importlib.import_module("equinox")
    nn, keys = eqx.nn, jax.random.split(jax.random.key(0), 4)
    free = lambda x: x[:, :-1, :-1]  # noqa: E731
    pool = nn.Lambda(free) if by == "free" else nn.MaxPool2d(2)
    layers = [nn.Conv2d(1, 3, 4, key=keys[0]), pool, relu, jnp.ravel, nn.Linear(1728, 512, key=keys[1])]
    layers += [
        jax.nn.sigmoid,
        nn.Linear(512, 64, key=keys[2]),
        relu,
        nn.Linear(64, 10, key=keys[3]),
        jax.nn.log_softmax,
    ]
    return nn.Sequential([layer if isinstance(layer, eqx.Module) else nn.Lambda(layer) for layer in layers])


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over everything that has a label: examples or pixels. Of log-probabilities it is their mean as well."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def regularised(result: tuple[jax.Array, jax.Array], labels: jax.Array) -> jax.Array:
    """PointNet's loss."""
    return cross_entropy(result[0], labels) + result[1]


class Network(NamedTuple):
    """A network and the batch that is timed."""

    source: str
    shape: tuple[int, ...]  # of a batch
    parameters: int  # their number
    body: Callable[..., Any]  # (by, x) -> scores, from layers of Flax; or `equinox_mnist`
    loss: Callable[[Any, jax.Array], jax.Array] = cross_entropy
    dtype: Any = jnp.float32
    reduced: str = ""  # what is smaller than in the source
    by_windows: bool = True  # so that `replace_pooling` replaces its poolings; else `x.max` and jpool's are two lines


# The numbers of parameters are published, except those of Equinox's example and of TextCNN; PointNet's as 3.5 million.
NETWORKS = {
    "MNIST": Network("Equinox, example", (64, 1, 28, 28), 918_781, equinox_mnist),
    "LeNet": Network("Caffe, example", (64, 28, 28, 1), 431_080, lenet),
    "AlexNet": Network("torchvision", (16, 224, 224, 3), 61_100_840, alexnet, reduced="batch 16 of 32"),
    "SqueezeNet 1.1": Network("torchvision", (8, 224, 224, 3), 1_235_496, squeezenet, reduced="batch 8 of 32"),
    "VGG-11": Network("torchvision", (2, 224, 224, 3), 132_863_336, vgg11, reduced="batch 2 of 32"),
    "ResNet-18": Network("torchvision", (4, 224, 224, 3), 11_689_512, resnet18, reduced="batch 4 of 32"),
    "U-Net": Network("arXiv:1505.04597", (1, 252, 252, 1), 31_030_658, unet, reduced="image 252 of 572"),
    "M5": Network("PyTorch, tutorial", (256, 8000, 1), 26_915, m5),
    "TextCNN": Network("arXiv:1408.5882", (50, 64), 5_990_702, textcnn, dtype=jnp.int32, by_windows=False),
    "PointNet": Network("arXiv:1612.00593, code", (32, 1024, 3), 3_480_049, pointnet, regularised, by_windows=False),
}
