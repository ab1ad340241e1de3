"""Networks as tuples of layers, each a pure function of (params, ONE example).

    apply :: (network, params, x)   -> scores, layer by layer
    loss  :: network                -> (params, x, label) -> scalar

jpool maps the loss over a batch.
"""

from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
import optax

import jpool
from experiments.digits import convolution

Shapes = dict[str, tuple[int, ...]]  # of each layer's weights
Params = dict[str, dict[str, jax.Array]]
Layer = Callable[[Params, jax.Array], jax.Array]
Network = tuple[Layer, ...]
Cost = Callable[[jax.Array, jax.Array], jax.Array]
Convolution = Callable[[jax.Array, jax.Array], jax.Array]
Loss = Callable[[Params, jax.Array, jax.Array], jax.Array]


def init(key: jax.Array, shapes: Shapes) -> Params:
    """Caffe's "xavier" filler, uniform with variance 1 / fan-in, and zero biases."""
    xavier = jax.nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
    keys = jax.random.split(key, len(shapes))
    return {
        name: {"w": xavier(k, shape), "b": jnp.zeros(shape[-1])}
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def apply(network: Network, params: Params, x: jax.Array) -> jax.Array:
    """The network's result for one example."""
    return reduce(lambda x, layer: layer(params, x), network, x)


def cross_entropy(scores: jax.Array, label: jax.Array) -> jax.Array:
    """The cost of one example's scores, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, label)


def loss(network: Network, cost: Cost = cross_entropy) -> Loss:
    """The loss of one example, `loss(params, x, label)`, which jpool maps over a batch."""
    return lambda params, x, label: cost(apply(network, params, x), label)


def convolve(name: str, op: Convolution = convolution.convolve) -> Layer:
    """(h, w, in) -> (h - kh + 1, w - kw + 1, out)."""
    return lambda params, x: op(x, params[name]["w"]) + params[name]["b"]


def dense(name: str) -> Layer:
    """(in,) -> (out,)."""
    return lambda params, x: x @ params[name]["w"] + params[name]["b"]


def fixed(function: Callable[[jax.Array], jax.Array]) -> Layer:
    """A layer without parameters."""
    return lambda params, x: function(x)


halve = partial(jpool.max_pool, window_shape=(2, 2), strides=2)  # (2n, 2n, channels) -> (n, n, channels)
one_channel = fixed(lambda image: image[..., None])
pool = fixed(halve)
relu = fixed(jax.nn.relu)
flatten = fixed(jnp.ravel)
