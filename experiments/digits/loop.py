"""The training loop: shuffled, shifted batches of digits, a step for each, and the accuracy."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice

import jax
import jax.numpy as jnp
import numpy as np

import jpool
from experiments.digits import layers
from experiments.digits.data import Digits

SHIFT = 2  # a training digit is moved by up to this many pixels in each direction
CHUNK = 500  # digits that are classified at a time
Batch = tuple[jax.Array, jax.Array]
Step = Callable[..., tuple[jpool.TrainState, jpool.Metrics]]
OnDevice = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # images and labels to train, images and labels held out


def on_device(digits: Digits) -> OnDevice:
    """Moves all digits to the device: images as float32 from 0 to 1, labels as int32."""
    images, labels, test_images, test_labels = map(jnp.asarray, digits)
    return images / 255.0, labels.astype(int), test_images / 255.0, test_labels.astype(int)


def shift(key: jax.Array, image: jax.Array) -> jax.Array:
    """Moves one image by up to SHIFT pixels in each direction, at random."""
    start = jax.random.randint(key, (2,), 0, 2 * SHIFT + 1)
    return jax.lax.dynamic_slice(jnp.pad(image, SHIFT), start, image.shape)


@jax.jit
def draw(key: jax.Array, chosen: jax.Array, images: jax.Array, labels: jax.Array) -> Batch:
    """The chosen digits, each shifted at random."""
    keys = jax.random.split(key, len(chosen))
    return jax.vmap(shift)(keys, images[chosen]), labels[chosen]


def epoch(key: jax.Array, images: jax.Array, labels: jax.Array, batch_size: int) -> Iterator[Batch]:
    """All digits in a random order; those left over after the last whole batch are skipped in this epoch."""
    order_key, shift_key = jax.random.split(key)
    count = len(images) // batch_size
    order = jax.random.permutation(order_key, len(images))[: count * batch_size]
    for chosen, step_key in zip(order.reshape(count, batch_size), jax.random.split(shift_key, count), strict=True):
        yield draw(step_key, chosen, images, labels)


def batches(key: jax.Array, images: jax.Array, labels: jax.Array, batch_size: int, steps: int) -> Iterator[Batch]:
    """A batch for each of `steps` steps, epoch after epoch."""
    epochs = -(-steps // (len(images) // batch_size))
    keys = jax.random.split(key, epochs)
    return islice(chain.from_iterable(epoch(k, images, labels, batch_size) for k in keys), steps)


@partial(jax.jit, static_argnums=0)
def count_right(network: layers.Network, params: layers.Params, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The number of digits that are classified correctly."""
    scores = jax.vmap(partial(layers.apply, network), (None, 0))(params, images)
    return (scores.argmax(axis=-1) == labels).sum()


def accuracy(network: layers.Network, params: layers.Params, images: jax.Array, labels: jax.Array) -> float:
    """The share of digits that are classified correctly, counted in chunks to save memory."""
    chunks = (slice(start, start + CHUNK) for start in range(0, len(images), CHUNK))
    right = (count_right(network, params, images[chunk], labels[chunk]) for chunk in chunks)
    return sum(map(int, right)) / len(images)


def fit(step: Step, state: jpool.TrainState, batches: Iterable[Batch]) -> tuple[layers.Params, np.ndarray]:
    """Takes a step for each batch; the parameters after the last, and the mean loss of each batch before its step."""
    losses = []
    for batch in batches:
        state, metrics = step(state, *batch)
        losses.append(metrics.loss)
    return state.params, np.array(losses)
