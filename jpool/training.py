"""One step of training: per-example gradients, their mean, one update by optax. Knows nothing of pooling.

    make_train_step(loss, optimizer) :: (state, *batch) -> (state, metrics)

The step is a plain jitted function; the loop around it belongs to its user.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jpool.per_example import mean_over_examples, per_example_value_and_grad


class TrainState(NamedTuple):
    """All that a step changes."""

    params: Any
    opt_state: Any
    step: jax.Array  # int32 scalar, the number of steps taken

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """The state before the first step, with a copy of params: donating the state leaves the caller's alone."""
        # Named dtypes make no leaf weakly typed; a weak one would turn strong in the first step and compile a second.
        params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), params)
        return cls(params, optimizer.init(params), jnp.zeros((), jnp.int32))


class Metrics(NamedTuple):
    """What a step measured, before its update."""

    loss: jax.Array  # mean over the batch
    gradient_norm: jax.Array  # Euclidean norm of the mean gradient, over all parameters


def make_train_step(
    loss: Callable[..., Any], optimizer: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds the jitted training step for the loss of ONE example.

    The step computes every example's gradient by itself, takes their mean, and hands it to the optimiser once.

    Args:
      loss: `loss(params, *example) -> scalar`.
      optimizer: any optax optimiser, with or without `mean_over_examples` in front; it sees the mean gradient.

    Returns:
      `step(state, *batch) -> (state, metrics)`, state a `TrainState`, metrics a `Metrics`; every array of the batch has
      the examples on its first axis. The state is donated: its buffers are reused and must not be read again. Compiled
      once per shape of the batch.

    Raises:
      TypeError: loss is not callable, or optimizer is not an optax optimiser.
      ValueError: (from step) the batch is missing or empty, or its arrays do not share a first axis.

    Example:
      >>> import jpool, optax
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x, y: (w * x - y) ** 2
      >>> optimizer = optax.sgd(0.25)
      >>> step = jpool.make_train_step(loss, optimizer)
      >>> state = jpool.TrainState.create(jnp.array(0.0), optimizer)
      >>> state, metrics = step(state, jnp.array([1.0, 1.0]), jnp.array([2.0, 4.0]))
      >>> print(state.params, state.step, metrics.loss, metrics.gradient_norm)
      1.5 1 10.0 6.0
    """
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise TypeError(
            f"make_train_step: optimizer must be an optax optimiser, such as optax.sgd(0.1); got {optimizer!r}."
        )
    value_and_grad = per_example_value_and_grad(loss)
    mean = mean_over_examples()

    def step(state: TrainState, *batch: Any) -> tuple[TrainState, Metrics]:
        losses, gradients = value_and_grad(state.params, *batch)
        gradient, _ = mean.update(gradients, optax.EmptyState(), state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.step + 1), Metrics(losses.mean(), optax.tree.norm(gradient))

    return jax.jit(step, donate_argnums=0)
