"""The training step of a network: the loss, its gradient and an SGD update, with the pooling of one's choice."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jpool
from experiments.speed.networks import Network, equinox_mnist
from experiments.speed.poolings import linen

OPTIMIZER = optax.sgd(0.001)  # the same for all: it is not what is compared
WORDS = 18_766  # of TextCNN


class Model(NamedTuple):
    """A network as two functions."""

    init: Callable[[jax.Array], Any]  # a key -> (parameters, batch statistics)
    apply: Callable[..., tuple[Any, Any]]  # (parameters, batch statistics, x) -> (scores, new batch statistics)


def of_linen(network: Network, by: str) -> Model:
    """A network whose layers are created when its body calls them."""

    class Body(linen().Module):  # type: ignore[misc]
        __call__ = linen().compact(lambda self, x: network.body(by, x))

    def init(key: jax.Array) -> Any:
        variables = Body().init({"params": key, "dropout": key}, jnp.zeros(network.shape, network.dtype))
        return variables.pop("params"), variables

    def apply(params: Any, statistics: Any, x: jax.Array) -> tuple[Any, Any]:
        draws = {"dropout": jax.random.key(0)}  # the same elements in every step, so that steps can be compared
        return Body().apply({"params": params, **statistics}, x, rngs=draws, mutable=["batch_stats"])

    return Model(init, apply)


def of_equinox(by: str) -> Model:
    """Equinox's example."""
    eqx: Any = importlib.import_module("equinox")
    arrays, static = eqx.partition(equinox_mnist(by), eqx.is_array)
    params, tree = jax.tree.flatten(arrays)  # a list: with another pooling the model has another type

    def apply(params: Any, _: Any, x: jax.Array) -> tuple[Any, Any]:
        return jax.vmap(eqx.combine(jax.tree.unflatten(tree, params), static))(x), {}

    return Model(lambda key: (params, {}), apply)


def model_of(network: Network, by: str) -> Model:
    """A network with one of the poolings; with jpool's, the framework's model as it is, replaced whole."""
    model = of_equinox(by) if network.body is equinox_mnist else of_linen(network, by)
    is_replaced = by == "jpool" and network.by_windows
    return model._replace(apply=jpool.replace_pooling(model.apply)) if is_replaced else model


def training_step(network: Network, by: str) -> Any:
    """The compiled step, (state, x, labels) -> state, whose state is donated as in a training loop."""
    model = model_of(network, by)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, x: jax.Array, labels: jax.Array) -> Any:
        params, statistics = state

        def objective(params: Any) -> tuple[jax.Array, Any]:
            result, new = model.apply(params, statistics, x)
            return network.loss(result, labels), new

        gradient, new = jax.grad(objective, has_aux=True)(params)
        updates, _ = OPTIMIZER.update(gradient, OPTIMIZER.init(params), params)
        return optax.apply_updates(params, updates), new

    return step


def batch_of(network: Network) -> tuple[jax.Array, jax.Array]:
    """A random batch: normal numbers or words, and labels."""
    key, other = jax.random.split(jax.random.key(1))
    is_text = network.dtype == jnp.int32
    x = jax.random.randint(key, network.shape, 0, WORDS) if is_text else jax.random.normal(key, network.shape)
    model = model_of(network, "framework")
    scores, *_ = jax.tree.leaves(jax.eval_shape(model.apply, *jax.eval_shape(model.init, key), x)[0])
    return x, jax.random.randint(other, scores.shape[:-1], 0, scores.shape[-1])
