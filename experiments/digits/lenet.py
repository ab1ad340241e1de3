"""Caffe's LeNet for ONE example (Caffe: examples/mnist/lenet.prototxt).

conv 5x5x20, pool 2x2/2, conv 5x5x50, pool 2x2/2, dense 500, relu, dense 10.
"""

import jax

from experiments.digits import convolution, layers
from experiments.digits.layers import Params

SHAPES: layers.Shapes = {"conv1": (5, 5, 1, 20), "conv2": (5, 5, 20, 50), "dense1": (800, 500), "dense2": (500, 10)}
# The widths of LeNet-5 (1998), which take a sixth of the time.
NARROW: layers.Shapes = {"conv1": (5, 5, 1, 6), "conv2": (5, 5, 6, 16), "dense1": (256, 84), "dense2": (84, 10)}


def network(pool: layers.Layer = layers.pool, convolve: layers.Convolution = convolution.convolve) -> layers.Network:
    """The layers, from the image (28, 28) with values from 0 to 1 to the ten scores, for parameters of any widths."""
    below = layers.one_channel, layers.convolve("conv1", convolve), pool, layers.convolve("conv2", convolve), pool
    return *below, layers.flatten, layers.dense("dense1"), layers.relu, layers.dense("dense2")


NETWORK = network()
loss = layers.loss(NETWORK)


def init(key: jax.Array, shapes: layers.Shapes = SHAPES) -> Params:
    """New parameters."""
    return layers.init(key, shapes)


def logits(params: Params, image: jax.Array) -> jax.Array:
    """The ten scores of one image, (28, 28) with values from 0 to 1."""
    return layers.apply(NETWORK, params, image)


def feature_maps(params: Params, image: jax.Array) -> jax.Array:
    """The first convolution: (28, 28) -> (24, 24, 20)."""
    return layers.apply(NETWORK[:2], params, image)


def after_pool1(params: Params, x: jax.Array) -> jax.Array:
    """The rest of the network: (12, 12, 20) -> (10,)."""
    return layers.apply(NETWORK[3:], params, x)
