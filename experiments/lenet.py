"""Caffe's LeNet as pure functions of ONE example. The batch is somebody else's business: `jax.vmap`.

conv 5x5x20, pool 2x2/2, conv 5x5x50, pool 2x2/2, dense 500, relu, dense 10 (Caffe: examples/mnist/lenet.prototxt).
"""

import jax
import jax.numpy as jnp
import optax

import jpool
from experiments import convolution

Params = dict[str, dict[str, jax.Array]]

SHAPES = {"conv1": (5, 5, 1, 20), "conv2": (5, 5, 20, 50), "dense1": (800, 500), "dense2": (500, 10)}


def init(key: jax.Array) -> Params:
    """Caffe's "xavier" filler, uniform with variance 1 / fan-in, and zero biases."""
    xavier = jax.nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
    keys = jax.random.split(key, len(SHAPES))
    return {
        name: {"w": xavier(k, shape), "b": jnp.zeros(shape[-1])}
        for k, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }


def logits(params: Params, image: jax.Array) -> jax.Array:
    """The ten scores of one image, (28, 28) in 0 to 1."""
    return after_pool1(params, pool(feature_maps(params, image)))


def feature_maps(params: Params, image: jax.Array) -> jax.Array:
    """The first convolution: (28, 28) -> (24, 24, 20)."""
    return convolve(params["conv1"], image[..., None])


def after_pool1(params: Params, x: jax.Array) -> jax.Array:
    """The rest of the network: (12, 12, 20) -> (10,)."""
    x = pool(convolve(params["conv2"], x))
    x = jax.nn.relu(x.reshape(-1) @ params["dense1"]["w"] + params["dense1"]["b"])
    return x @ params["dense2"]["w"] + params["dense2"]["b"]


def pool(x: jax.Array) -> jax.Array:
    """2x2 windows, two apart: (2n, 2n, channels) -> (n, n, channels)."""
    return jpool.max_pool(x, (2, 2), strides=2)


def convolve(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """(h, w, in) -> (h - 4, w - 4, out)."""
    return convolution.convolve(x, layer["w"]) + layer["b"]


def cross_entropy(scores: jax.Array, label: jax.Array) -> jax.Array:
    """The loss of one image from its scores, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, label)


def loss(params: Params, image: jax.Array, label: jax.Array) -> jax.Array:
    """The loss of one image, in nats."""
    return cross_entropy(logits(params, image), label)
