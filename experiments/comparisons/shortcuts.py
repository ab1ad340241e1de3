"""One gradient for a whole batch: the right way, and three tempting shortcuts.

Each is `gradient(network, params, xs, labels)`, a tree like params; examples are on the first axis of xs and labels.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import Array

import jpool
from experiments.digits import layers
from experiments.digits.layers import Cost, Network, Params, cross_entropy


def right(network: Network, params: Params, xs: Array, labels: Array, cost: Cost = cross_entropy) -> Params:
    """The mean of per-example gradients: only gradients are averaged."""
    _, gradients = jpool.per_example_value_and_grad(layers.loss(network, cost))(params, xs, labels)
    return jax.tree.map(lambda leaf: leaf.mean(0), gradients)


def of_mean_loss(network: Network, params: Params, xs: Array, labels: Array) -> Params:
    """The gradient of the mean loss: the same by linearity, without holding the gradient of any example."""
    losses = jax.vmap(layers.loss(network), (None, 0, 0))
    return jax.grad(lambda params: losses(params, xs, labels).mean())(params)


def averaged_activations(network: Network, params: Params, xs: Array, labels: Array) -> Params:
    """(a) Averages the feature maps of the batch before the first pooling; runs the rest once, on that average."""
    below = network.index(layers.pool)

    def loss(params: Params) -> Array:
        activations = jax.vmap(partial(layers.apply, network[:below]), (None, 0))(params, xs)
        scores = layers.apply(network[below:], params, activations.mean(0))
        return optax.softmax_cross_entropy(scores, jax.nn.one_hot(labels, scores.size).mean(0))

    return jax.grad(loss)(params)


def shared_routing(network: Network, params: Params, xs: Array, labels: Array) -> Params:
    """(b) Spreads over all winners.

    In each window, averages the cotangents over the batch, and shares the result equally among all elements that won
    in at least one example. The forward pass is right. Backward, every example receives the same shares, wherever
    its own winners are.
    """

    def loss(params: Params) -> Array:
        x = xs
        for layer in network:
            x = pool_as_one(x) if layer is layers.pool else jax.vmap(layer, (None, 0))(params, x)
        return jax.vmap(cross_entropy)(x, labels).mean()

    return jax.grad(loss)(params)


@jax.custom_vjp
def pool_as_one(xs: Array) -> Array:
    """The pooling layer of (b): (B, 2n, 2n, channels) -> (B, n, n, channels)."""
    return jax.vmap(layers.halve)(xs)


def _forward(xs: Array) -> tuple[Array, Array]:
    values, route = jax.vjp(jax.vmap(layers.halve), xs)
    return values, route(jnp.ones_like(values))[0].any(0)


def _backward(won: Array, ct: Array) -> tuple[Array]:
    batch, rows, columns, channels = ct.shape
    windows = won.reshape(rows, 2, columns, 2, channels)
    share = ct.mean(0) / windows.sum((1, 3))
    shared = jnp.where(windows, share[:, None, :, None], 0).reshape(won.shape)
    return (jnp.broadcast_to(shared, (batch, *won.shape)),)


pool_as_one.defvjp(_forward, _backward)


def averaged_errors(network: Network, params: Params, xs: Array, labels: Array, cost: Cost = cross_entropy) -> Params:
    """(c) Averages the errors, the cotangents of the scores; sends this one error back through mean activations."""
    mean_inputs = []
    for layer in network:
        mean_inputs.append(xs.mean(0))
        xs = jax.vmap(layer, (None, 0))(params, xs)
    error = jax.vmap(jax.grad(cost))(xs, labels).mean(0)
    gradients = optax.tree.zeros_like(params)
    for layer, x in zip(reversed(network), reversed(mean_inputs), strict=True):
        gradient, error = jax.vjp(layer, params, x)[1](error)
        gradients = optax.tree.add(gradients, gradient)
    return gradients
