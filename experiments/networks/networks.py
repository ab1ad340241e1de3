"""The networks: layers of public models, shortened to what decides the cost of their poolings, and their shapes.

The cost of pooling in a network depends on its neighbours: a relu, a bias or a batch norm may be fused into the same
kernel, or not.
"""

import importlib.util
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from experiments.networks.poolings import (
    global_max_pool,
    linen,
    max_pool,
    max_pool_with_argmax,
    max_unpool,
    min_pool,
)
from experiments.networks.steps import Step, equinox_step, haiku_step, linen_step, nnx_step

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


def segnet(ours: bool, x: jax.Array) -> jax.Array:
    """Two levels; the decoder puts values back where the encoder found them."""
    winners = []
    for features in (64, 128):
        x, argmax = max_pool_with_argmax(ours, conv(x, features, norm=True))
        winners.append(argmax)
    for features in (64, 64):
        x = conv(max_unpool(ours, x, winners.pop()), features, norm=True)
    return linen().Conv(12, (1, 1))(x)


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


class Network(NamedTuple):
    """A network that can be built with either pooling, and its batches."""

    framework: str
    build: Callable[..., Step]  # (with jpool's poolings or not, shape of a batch) -> Step
    shape: tuple[int, ...]  # as it is trained on an accelerator
    cpu_batch: int  # the examples of a batch that is timed on a CPU

    def step(self, ours: bool, batch: int | None = None) -> Step:
        """The training step."""
        return self.build(ours, (batch or self.shape[0], *self.shape[1:]))


def of_linen(body: Callable[[bool, jax.Array], jax.Array], shape: tuple[int, ...], batch: int, **more: Any) -> Network:
    """A network in flax.linen."""
    return Network("flax", partial(linen_step, body, **more), shape, batch)


NETWORKS = {
    "MNIST, Flax": of_linen(mnist, (128, 28, 28, 1), 128),
    "MNIST, nnx": Network("flax", nnx_step, (128, 28, 28, 1), 128),
    "MNIST, Equinox": Network("equinox", equinox_step, (64, 1, 28, 28), 64),
    "LeNet, Haiku": Network("haiku", haiku_step, (64, 28, 28, 1), 64),
    "ResNet": of_linen(resnet, (32, 224, 224, 3), 4),
    "DenseNet": of_linen(densenet, (32, 224, 224, 3), 4),
    "AlexNet": of_linen(alexnet, (128, 227, 227, 3), 16),
    "VGG": of_linen(vgg, (16, 224, 224, 3), 1),
    "SqueezeNet": of_linen(squeezenet, (32, 224, 224, 3), 4),
    "U-Net": of_linen(unet, (8, 128, 128, 1), 2),
    "SegNet": of_linen(segnet, (8, 128, 128, 3), 2),
    "PointNet": of_linen(pointnet, (32, 1024, 3), 8),
    "M5": of_linen(m5, (256, 8000, 1), 64),
    "TextCNN": of_linen(textcnn, (64, 400), 64, dtype=jnp.int32),
    "SPPF": of_linen(sppf, (16, 40, 40, 256), 4),
    "Inception": of_linen(inception, (32, 28, 28, 64), 8),
    "clDice": of_linen(lambda ours, x: dense(conv(conv(x, 16), 16), 1), (8, 256, 256, 1), 2, loss=cldice),
}


def missing_frameworks(names: Iterable[str]) -> str:
    """The frameworks that these networks need and that are not installed; an empty text if there are none."""
    needed = dict.fromkeys(NETWORKS[name].framework for name in names)
    return ", ".join(framework for framework in needed if not importlib.util.find_spec(framework))
