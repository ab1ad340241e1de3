"""One training step: per-example gradients, their mean, one update by optax.

    make_train_step(loss, optimizer) :: (state, *batch) -> (state, metrics)

The step is one compiled program, on one device or many. You write the training loop.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import export
from jax.sharding import Mesh

from jpool.jax_extensions import is_traced
from jpool.per_example.devices import check_mesh, check_places, explained, put, shapes
from jpool.per_example.inputs import (
    as_mask,
    check_alive,
    check_floats,
    check_loss,
    check_optimizer,
    check_params,
    check_state,
    described,
    missing_arguments,
    read_weights,
)
from jpool.per_example.statistics import check_examples, check_microbatch_size, gradient_totals


class TrainState(NamedTuple):
    """Everything that a step changes."""

    params: Any
    opt_state: Any
    step: jax.Array  # int32 scalar, the number of steps taken; it stays at 2**31 - 1

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """The state before the first step, with a copy of params, so that donating the state keeps the caller's params.

        Raises:
          TypeError: optimizer is not an optax optimiser, or params holds anything but floats.
        """
        check_optimizer("TrainState.create", optimizer)
        check_params("TrainState.create", params)
        # With an explicit dtype no leaf is weakly typed. A weak type would become strong in the first step, and the
        # second step would be compiled again.
        params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), params)
        return _without_shared_buffers(cls(params, optimizer.init(params), jnp.zeros((), jnp.int32)))


class Metrics(NamedTuple):
    """Measured by a step before its update."""

    loss: jax.Array  # mean over the batch
    gradient_norm: jax.Array  # Euclidean norm of the mean gradient, over all parameters, in float32 at least


export.register_namedtuple_serialization(TrainState, serialized_name="jpool.TrainState")
export.register_namedtuple_serialization(Metrics, serialized_name="jpool.Metrics")


def make_train_step(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    *,
    microbatch_size: int | None = None,
    mesh: Mesh | None = None,
    axis_name: str = "data",
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds the compiled training step for the loss of ONE example.

    The step computes the gradient of every example separately, takes their mean, and passes it to the optimiser once.
    On many devices it is the same step: each device sums the gradients of its own examples, one all-reduce (a sum over
    devices) of the size of the parameters gives the mean, and every device makes the same update.

    Args:
      loss: `loss(params, *example) -> scalar`.
      optimizer: any optax optimiser, with or without `mean_over_examples` in front; it receives the mean gradient, and
        the mean loss as `value` if it takes one (reduce_on_plateau, polyak_sgd). One that evaluates the loss itself
        (lbfgs and other line searches) is refused in the first step. A transformation of each example's gradient
        (clipping, differential privacy) is a chain after `per_example_value_and_grad`.
      microbatch_size: how many examples each device processes at a time, None for all of them. It need not divide
        their number.
      mesh: the devices to split the examples over, as in `per_example_value_and_grad`; None for one device.
      axis_name: the axis of the mesh that the examples are split over.

    Returns:
      `step(state, *batch, weights=None) -> (state, metrics)`, state a `TrainState`, metrics a `Metrics`; every array of
      the batch has the examples on its first axis, may be given by keyword, and weights (B,) of zeros and ones leave
      examples out exactly. Weights that are all zero are refused. Inside your own `jax.jit` they are not checked: then
      the state does not change, and loss and gradient_norm are nan. The state is donated: its buffers are reused and
      must not be read again. Compiled once per shape of the batch. With a mesh, state and batch may be anywhere; the
      returned state is on all devices, and an array of the batch that is split over them already is not moved.
      `step.lower` and other attributes are those of the jitted function.

    Raises:
      TypeError: loss is not callable, optimizer not an optax optimiser, microbatch_size not an int, axis_name not a
        string, or mesh not a `jax.sharding.Mesh`. From step, before the state is donated: as in `gradient_statistics`,
        state is not a `TrainState`, or the optimiser needs other arguments than `value`.
      ValueError: microbatch_size is below 1, or axis_name is not an axis of mesh. From step, before the state is
        donated: as in `gradient_statistics`, the state was donated before or is another optimiser's, or weights are all
        zero.

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

      To clip the gradient of every example, or to take a differentially private mean, use another chain of optax.

      >>> import jax
      >>> private = optax.contrib.differentially_private_aggregate(l2_norm_clip=1.0, noise_multiplier=0.0, key=0)
      >>> optimizer = optax.chain(private, optax.sgd(0.25))
      >>> params, xs, ys = {"w": jnp.array(0.0)}, jnp.array([1.0, 1.0]), jnp.array([2.0, -0.25])
      >>> each = jpool.per_example_value_and_grad(lambda params, x, y: loss(params["w"], x, y))
      >>> losses, gradients = each(params, xs, ys)  # -4, which is clipped to -1, and 0.5
      >>> updates, _ = optimizer.update(gradients, optimizer.init(params))
      >>> optax.apply_updates(params, updates)["w"]  # 0.25 * (1 - 0.5) / 2
      Array(0.0625, dtype=float32)
    """
    name = "make_train_step"
    check_loss(name, loss)
    check_optimizer(name, optimizer)
    check_mesh(name, mesh, axis_name)
    check_microbatch_size(name, microbatch_size)
    of_step = f"{name}'s step"
    totals_and_rows = gradient_totals(of_step, loss, microbatch_size, mesh, axis_name, norms=False)

    def check(state: Any, batch: Any, weights: Any) -> None:
        check_examples(of_step, batch, weights, mesh, axis_name, may_be_all_zero=False)
        check_places(of_step, mesh, state=state, batch=batch, weights=weights)

    # As one tuple, because an argument of the batch may be called state, which jax.jit would take for another one.
    def step(*_state_and_batch: Any, weights: Any = None, **named: Any) -> tuple[TrainState, Metrics]:
        state, positional, named = _with_state_first(of_step, _state_and_batch, named)
        check(state, (positional, named), weights)
        check_floats(of_step, "state.params", state.params)
        _check_opt_state(of_step, optimizer, state)
        totals, _ = totals_and_rows(state.params, (positional, named), weights)
        gradient, mean_loss = totals.mean(state.params), totals.loss / totals.examples
        updates, opt_state = _updates(of_step, optimizer, gradient, state, mean_loss)
        after = TrainState(optax.apply_updates(state.params, updates), opt_state, optax.safe_increment(state.step))
        if weights is not None:  # without an example there is no step
            after = jax.tree.map(partial(jnp.where, totals.examples > 0), after, state)
        return after, Metrics(mean_loss, optax.tree.norm(totals.unrounded_mean()))

    return _Step(of_step, jax.jit(step, donate_argnums=0), check, mesh, axis_name)


def _check_opt_state(name: str, optimizer: Any, state: TrainState) -> None:
    """Refuses the state of another optimiser, or of other parameters; a list may stand for a tuple."""
    try:
        first = jax.eval_shape(optimizer.init, state.params)
        value = jax.ShapeDtypeStruct((), jnp.float32)
        second = jax.eval_shape(partial(_updated, optimizer), state.params, first, state.params, value)[1]
    except Exception:  # one that reads values, which nothing has here, cannot be checked
        return
    if not any(_has_form(state.opt_state, expected) for expected in (first, second)):
        raise ValueError(
            f"{name}: state.opt_state must be a state of the step's own optimizer for these parameters; got "
            f"{state.opt_state!r:.80}. Make the first state by TrainState.create(params, optimizer), with the "
            "optimizer of the step."
        )


def _has_form(opt_state: Any, expected: Any) -> bool:
    """Whether it has arrays of the same shapes, and no other named tuples."""
    names = [set(re.findall(r"namedtuple\[(\w+)", str(jax.tree.structure(tree)))) for tree in (opt_state, expected)]
    return shapes(opt_state) == shapes(expected) and names[0] <= names[1]


def _updated(optimizer: Any, gradient: Any, opt_state: Any, params: Any, mean_loss: Any) -> tuple[Any, Any]:
    """The optimiser's updates and state; it receives the mean loss as `value` if it takes one."""
    try:
        return optimizer.update(gradient, opt_state, params, value=mean_loss)
    except TypeError as error:
        if "unexpected keyword argument 'value'" not in str(error):
            raise
        return optimizer.update(gradient, opt_state, params)


def _updates(name: str, optimizer: Any, gradient: Any, state: TrainState, mean_loss: jax.Array) -> tuple[Any, Any]:
    """The optimiser's updates and state, or an error that names what else it needs."""
    try:
        return _updated(optimizer, gradient, state.opt_state, state.params, mean_loss)
    except (TypeError, ValueError) as error:
        if missing := missing_arguments(error):
            raise TypeError(
                f"{name}: optimizer must need no argument but value, the mean loss; got one that needs {missing}. It "
                "evaluates the loss or its gradient itself: call its update in a step of your own."
            ) from error
        raise


def _with_state_first(name: str, arguments: Any, named: Any) -> tuple[TrainState, Any, dict[str, Any]]:
    """The state and the batch. The state may be given by keyword, if nothing is given by position."""
    if not arguments:
        named = dict(named)
        arguments = (named.pop("state", None),)
    state, *positional = arguments
    if not isinstance(state, TrainState):
        raise TypeError(
            f"{name}: state must be a TrainState; got {described(state)}. Make the first one by "
            "TrainState.create(params, optimizer), and then give the one that the step returned."
        )
    return state, positional, named


class _Step:
    """The compiled step after checks that need concrete arrays; other attributes are the jitted function's."""

    def __init__(self, name: str, compiled: Any, check: Callable[..., None], mesh: Mesh | None, axis_name: str) -> None:
        self._name, self._compiled, self._check, self._axis_name = name, compiled, check, axis_name
        self._mesh: Any = mesh

    def __call__(self, /, *arguments: Any, weights: Any = None, **named: Any) -> tuple[TrainState, Metrics]:
        state, positional, named = _with_state_first(self._name, arguments, named)
        weights = read_weights(self._name, weights)
        if not isinstance(state.step, jax.Array):
            check_state(self._name, state)
        self._check(state, (positional, named), weights)
        weights = as_mask(weights)
        try:
            with explained(self._name):
                return self._on_devices(state, (positional, named), weights)
        except (TypeError, ValueError, RuntimeError) as error:
            check_floats(self._name, "state.params", state.params)  # here, so that a good call does not wait for it
            check_state(self._name, state)
            if "deleted" in str(error):
                check_alive(self._name, "state", state)
            raise

    def _on_devices(self, state: TrainState, batch: Any, weights: Any) -> tuple[TrainState, Metrics]:
        if self._mesh is None:
            state, positional, named = _without_shared_buffers((state, *batch))
            return self._compiled(state, *positional, weights=weights, **named)
        # A moved array may share its buffer on one device with the original, which is deleted below: so copy it.
        copied = lambda leaf, moved: moved if moved is leaf else moved.copy()  # noqa: E731
        on_mesh = jax.tree.map(copied, state, put(state, self._mesh))
        batch, weights = put((batch, weights), self._mesh, self._axis_name)
        on_mesh, positional, named = _without_shared_buffers((on_mesh, *batch))
        after = self._compiled(on_mesh, *positional, weights=weights, **named)
        for leaf, moved in zip(jax.tree.leaves(state), jax.tree.leaves(on_mesh), strict=True):
            if leaf is not moved and isinstance(leaf, jax.Array) and not is_traced(leaf):
                leaf.delete()  # as a donated state is
        return after

    def __getattr__(self, name: str) -> Any:
        if name == "_compiled":  # not set yet while the object is copied
            raise AttributeError(name)
        return getattr(self._compiled, name)


def _without_shared_buffers(tree: Any) -> Any:
    """The same, with a copy of every array that is in it twice: a donated buffer must not be read or donated again.

    Some optimisers keep the parameters themselves in their first state: optax.contrib's dog, prodigy, sam, mechanize.
    """
    leaves, structure = jax.tree.flatten(tree)
    if len({id(leaf) for leaf in leaves}) < len(leaves):
        earlier = set[int]()
        for i, leaf in enumerate(leaves):
            if id(leaf) in earlier and isinstance(leaf, jax.Array):
                leaves[i] = leaf.copy()
            earlier.add(id(leaf))
    return jax.tree.unflatten(structure, leaves)
