"""A training step of a network of Flax (linen or nnx), Equinox or Haiku: the loss, its gradient and an SGD update."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jpool
from experiments.networks.poolings import linen

Body = Callable[[bool, jax.Array], jax.Array]  # a network's layers: (with jpool's poolings or not, batch) -> scores


pool_pairs = partial(jpool.max_pool, window_shape=(2, 2), strides=2)  # of one example


class Step(NamedTuple):
    """A training step, what it needs, and nothing computed yet."""

    step: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]]  # (state, x, labels) -> (state, loss)
    init: Callable[[jax.Array], Any]  # a key -> the parameters, with batch statistics where there are any
    x: jax.ShapeDtypeStruct
    labels: jax.ShapeDtypeStruct
    classes: int  # the number of scores; labels are below it

    @property
    def shapes(self) -> tuple[Any, ...]:
        """The shapes of the step's arguments."""
        return jax.eval_shape(self.init, jax.random.key(0)), self.x, self.labels


def cross_entropy(scores: jax.Array, labels: jax.Array, ours: bool = False) -> jax.Array:
    """The mean over everything that has a label: examples, pixels or cells."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def updated(params: Any, objective: Callable[[Any], Any]) -> tuple[Any, jax.Array, Any]:
    """The parameters after one SGD update, the loss before it, and the other result of the objective."""
    optimizer = optax.sgd(0.1)
    (value, others), grads = jax.value_and_grad(objective, has_aux=True)(params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return optax.apply_updates(params, updates), value, others


def linen_step(
    body: Body, ours: bool, shape: tuple[int, ...], dtype: Any = jnp.float32, loss: Any = cross_entropy
) -> Step:
    """A step of a network in flax.linen, whose layers are created when `body` calls them."""

    class Network(linen().Module):  # type: ignore[misc]
        __call__ = linen().compact(lambda self, x: body(ours, x))

    def step(variables: Any, x: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        def objective(params: Any) -> Any:
            scores, statistics = Network().apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return loss(scores, labels, ours), statistics

        params, value, statistics = updated(variables["params"], objective)
        return {**statistics, "params": params}, value

    x = jax.ShapeDtypeStruct(shape, dtype)
    scores, _ = jax.eval_shape(Network().init_with_output, jax.random.key(0), x)
    init = lambda key: Network().init(key, jnp.zeros(shape, dtype))  # noqa: E731
    return Step(step, init, x, jax.ShapeDtypeStruct(scores.shape[:-1], jnp.int32), max(2, scores.shape[-1]))


def nnx_step(ours: bool, shape: tuple[int, ...]) -> Step:
    """The MNIST example of Flax, in nnx and with max instead of average pooling."""
    nnx = importlib.import_module("flax.nnx")
    pool = jax.vmap(pool_pairs) if ours else partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))

    class Network(nnx.Module):  # type: ignore[misc,name-defined]
        def __init__(self, rngs: Any) -> None:
            self.conv1, self.conv2 = nnx.Conv(1, 32, (3, 3), rngs=rngs), nnx.Conv(32, 64, (3, 3), rngs=rngs)
            self.dense1, self.dense2 = nnx.Linear(3136, 256, rngs=rngs), nnx.Linear(256, 10, rngs=rngs)

        def __call__(self, x: jax.Array) -> Any:
            x = pool(nnx.relu(self.conv2(pool(nnx.relu(self.conv1(x))))))
            return self.dense2(nnx.relu(self.dense1(x.reshape(len(x), -1))))

    definition = nnx.graphdef(Network(nnx.Rngs(0)))

    def step(params: Any, x: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        objective = lambda params: (cross_entropy(nnx.merge(definition, params)(x), labels), None)  # noqa: E731
        return updated(params, objective)[:2]

    init = lambda key: nnx.state(Network(nnx.Rngs(key)))  # noqa: E731
    return Step(step, init, jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.int32), 10)


def equinox_step(ours: bool, shape: tuple[int, ...]) -> Step:
    """The MNIST example of Equinox: channels first, and windows of stride 1."""
    eqx = importlib.import_module("equinox")
    nn = eqx.nn
    pool = nn.Lambda(partial(jpool.max_pool, window_shape=(2, 2), channel_axis=0)) if ours else nn.MaxPool2d(2)

    def network(key: jax.Array) -> Any:
        relu, sigmoid, ravel = map(nn.Lambda, (jax.nn.relu, jax.nn.sigmoid, jnp.ravel))
        first, second, third = (nn.Linear(*sizes, key=key) for sizes in ((1728, 512), (512, 64), (64, 10)))
        layers = [nn.Conv2d(1, 3, 4, key=key), pool, relu, ravel, first, sigmoid, second, relu, third]
        return nn.Sequential(layers)

    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
    static = eqx.partition(eqx.filter_eval_shape(network, jax.random.key(0)), is_shape)[1]

    def step(params: Any, x: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        objective = lambda params: (cross_entropy(jax.vmap(eqx.combine(params, static))(x), labels), None)  # noqa: E731
        return updated(params, objective)[:2]

    init = lambda key: eqx.filter(network(key), eqx.is_array)  # noqa: E731
    return Step(step, init, jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.int32), 10)


def haiku_step(ours: bool, shape: tuple[int, ...]) -> Step:
    """LeNet in Haiku, for digits."""
    hk = importlib.import_module("haiku")
    window = (2, 2, 1)
    pool = jax.vmap(pool_pairs) if ours else lambda x: hk.max_pool(x, window, window, "VALID")

    def network(x: jax.Array) -> jax.Array:
        for channels in (20, 50):
            x = pool(hk.Conv2D(channels, 5, padding="VALID")(x))
        return hk.nets.MLP([500, 10])(hk.Flatten()(x))

    model = hk.without_apply_rng(hk.transform(network))

    def step(params: Any, x: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        return updated(params, lambda params: (cross_entropy(model.apply(params, x), labels), None))[:2]

    init = lambda key: model.init(key, jnp.zeros(shape))  # noqa: E731
    return Step(step, init, jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.int32), 10)
