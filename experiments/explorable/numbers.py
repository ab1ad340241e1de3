"""The numbers of the explorable page: a batch of digits in one channel of a LeNet, forward and back, and its one step.

The network is that of `experiments/wrong_averages.py`, with the same digits, batches and steps, so that the wrong
averages are those measured there. The page shows one of these batches, early in the training.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jpool
from experiments import wrong_averages
from experiments.common.command import claim
from experiments.comparisons import linearity, shortcuts
from experiments.digits import figures, layers, lenet, loop

SHOWN = 100  # the training step whose batch the page shows; at the end, its mean gradient is mostly noise
RATE = 0.5  # the learning rate of the step, larger than in training, so that the change of the filter can be seen
CHUNK = 500  # digits whose gradients are held at a time


class Numbers(NamedTuple):
    """What the page shows; N examples."""

    step: int  # the training steps before
    images: np.ndarray  # (N, 28, 28) uint8
    labels: np.ndarray  # (N,)
    maps: np.ndarray  # (N, 24, 24) float32, the feature map of the filter
    winners: np.ndarray  # (N, 12, 12) uint8, 0 to 3: which element of the window, in row-major order
    cotangents: np.ndarray  # (N, 12, 12) float32, of the pooled map
    gradients: np.ndarray  # (N, 5, 5) float32, each example's gradient of the filter
    filter: np.ndarray  # (5, 5) float32
    after: np.ndarray  # (5, 5) float32, the filter after a step of SGD with the mean gradient and RATE
    full: np.ndarray  # (5, 5) float32, the mean gradient over all training digits
    digits: int  # how many these are
    noise: float  # trace of the covariance of their gradients: what one example adds to the squared distance to `full`
    likenesses: dict[str, tuple[float, float]]  # by shortcut: median cosine with the right gradient, median norm


def measure(seed: int, steps: int = 300) -> Numbers:
    """Trains with the right gradient, compares the shortcuts along the way, and takes one batch apart."""
    key, batches, (images, labels, *_) = wrong_averages.setting(seed, steps)
    network, shapes = linearity.NETWORKS["LeNet"]
    path = list(wrong_averages.train(network, shortcuts.right, layers.init(key, shapes), batches))
    at = wrong_averages.compared_at(steps)
    likenesses = {
        way: np.median(wrong_averages.likenesses(network, gradient, path, batches, at), 0)
        for (where, way), gradient in wrong_averages.WAYS.items()
        if where == "LeNet" and way
    }
    step = min(SHOWN, steps - 1)
    gradients, after = one_step(path[step], *batches[step])
    every_digit = loop.draw(jax.random.key(seed + 1), jnp.arange(len(images)), images, labels)
    full, noise = over_all(path[step], *every_digit)
    signal_to_noise = (full**2).sum((0, 1)) / noise
    channel = int(signal_to_noise.argmax())  # the filter whose gradient the examples agree on most
    maps, winners, cotangents = traced(path[step], *batches[step], channel)
    text = "the gradient of the filter is the sum over all winners of their cotangent times the pixels that they see"
    claim(text, np.allclose(by_positions(batches[step][0], winners, cotangents), gradients[..., channel], atol=1e-5))
    return Numbers(
        step, np.asarray(jnp.round(batches[step][0] * 255), np.uint8), np.asarray(batches[step][1]),
        maps, winners, cotangents, gradients[..., channel], filters(path[step])[..., channel], after[..., channel],
        full[..., channel], len(images), float(noise[channel]),
        {way: (float(cosine), float(norm)) for way, (cosine, norm) in likenesses.items()},
    )  # fmt: skip


def filters(params: layers.Params) -> np.ndarray:
    """The filters of the first convolution: (..., 5, 5, channels)."""
    return np.asarray(params["conv1"]["w"][..., 0, :])


def one_step(params: layers.Params, xs: jax.Array, labels: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of the filters for every example, and the filters after a step with their mean."""
    _, gradients = jax.jit(jpool.per_example_value_and_grad(lenet.loss))(params, xs, labels)
    optimizer = optax.chain(jpool.mean_over_examples(), optax.sgd(RATE))
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return filters(gradients), filters(optax.apply_updates(params, updates))


def over_all(params: layers.Params, xs: jax.Array, labels: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Over many examples: the mean gradient of the filters, and the noise of each (channels,)."""
    of_examples = jax.jit(jpool.per_example_value_and_grad(lenet.loss))
    chunks = [slice(start, start + CHUNK) for start in range(0, len(xs), CHUNK)]
    gradients = np.concatenate([filters(of_examples(params, xs[chunk], labels[chunk])[1]) for chunk in chunks])
    return gradients.mean(0), gradients.var(0, ddof=1).sum((0, 1))


def traced(params: layers.Params, xs: jax.Array, labels: jax.Array, channel: int) -> tuple[np.ndarray, ...]:
    """One channel of the first pooling layer for every example: feature maps, winners and cotangents."""
    parts = jax.vmap(partial(figures.through_pooling, params))(xs, labels)
    maps, _, won, cotangents, _ = (np.asarray(part[..., channel]) for part in parts)
    examples, rows, columns = cotangents.shape
    windows = won.reshape(examples, rows, 2, columns, 2).swapaxes(2, 3).reshape(*cotangents.shape, 4)
    return maps, windows.argmax(-1).astype(np.uint8), cotangents


def by_positions(xs: jax.Array, winners: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
    """The gradient of the filter for every example (N, 5, 5), added up from the winners."""
    rows, columns = np.indices(winners.shape[1:])
    images, sums = np.asarray(xs), np.zeros((len(winners), 5, 5))
    examples = np.arange(len(winners))[:, None, None]
    for i, j in np.ndindex(5, 5):
        seen = images[examples, 2 * rows + winners // 2 + i, 2 * columns + winners % 2 + j]
        sums[:, i, j] = (seen * cotangents).sum((1, 2))
    return sums
