"""What the gradients of a batch have in common and how they differ, in one pass.

    gradient_totals(loss)     :: (params, batch, weights)          -> (Totals over all examples, rows of each example)
    gradient_statistics(loss) :: (params, *batch, weights=weights) -> GradientStatistics

Per-example gradients exist for one microbatch at a time. Only their sum and the norm of each is kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import export
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jpool.checks import is_int, positive_int
from jpool.jax_extensions import is_traced
from jpool.per_example.devices import check_batch, check_mesh, check_places, explained, over_devices, put, shapes
from jpool.per_example.gradients import vmapped_value_and_grad
from jpool.per_example.inputs import as_mask, check_kinds, check_loss, check_params, read_weights
from jpool.per_example.microbatches import in_microbatches


class GradientStatistics(NamedTuple):
    """Statistics of the B examples of a batch, or of those with weight 1."""

    losses: jax.Array  # (B,)
    squared_norms: jax.Array  # (B,), of each example's gradient, over all parameters
    mean: Any  # the gradients' mean, a pytree like params
    noise_trace: jax.Array  # unbiased estimate of the trace of the covariance of one example's gradient
    signal: jax.Array  # unbiased estimate of the squared norm of the true gradient
    noise_scale: jax.Array  # noise_trace / signal, in examples


export.register_namedtuple_serialization(GradientStatistics, serialized_name="jpool.GradientStatistics")


class Totals(NamedTuple):
    """Sums over examples, in float32 at least."""

    examples: jax.Array
    loss: jax.Array
    squared_norm: Any  # None if norms are not requested
    gradient: Any  # like params

    def mean(self, params: Any) -> Any:
        """The mean gradient, in the dtypes of params."""
        return jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), self.unrounded_mean(), params)

    def unrounded_mean(self) -> Any:
        """The mean gradient, in float32 at least."""
        return jax.tree.map(lambda total: total / self.examples, self.gradient)


def gradient_statistics(
    loss: Callable[..., Any],
    *,
    microbatch_size: int | None = None,
    mesh: Mesh | None = None,
    axis_name: str = "data",
) -> Callable[..., GradientStatistics]:
    """Maps the loss of ONE example to statistics of the gradients of a batch, without keeping all of them in memory.

    With g_i the gradient of example i, n = mean |g_i|^2 and m = |mean g_i|^2,

        noise_trace = (n - m) B / (B - 1)    the trace of the covariance of one example's gradient (ddof = 1)
        signal      = (B m - n) / (B - 1)    the squared norm of the true gradient, the mean over all data
        noise_scale = noise_trace / signal   the batch size at which noise and signal of the mean gradient are equal

    The first two are unbiased estimates, so signal may be negative, and is returned as it is: average both over several
    batches before taking their ratio. (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix
    A.1, with the batches of one example and of B.) They are differences of sums in float32 (or wider), so that a
    noise_trace below about 1e-7 m, of gradients that are nearly equal, is rounding.

    Args:
      loss: `loss(params, *example) -> scalar`; params a pytree of float arrays.
      microbatch_size: how many per-example gradients each device holds at a time, None for all of its examples. It
        need not divide the batch.
      mesh: the devices to split the examples over, as in `per_example_value_and_grad`; None for one device.
      axis_name: the axis of the mesh that the examples are split over.

    Returns:
      `f(params, *batch, weights=None) -> GradientStatistics`, compiled once per shape of the batch. Every array of the
      batch has the examples on its first axis, length B >= 1, and may be given by keyword, unless it is called weights.
      `weights`, shape (B,), of zeros and ones (bool, integer or float), leaves examples out exactly, whatever they
      contain; their losses and squared norms are 0. `mean` has the shapes and dtypes of params; sums, squared_norms and
      the scalars are float32 at least. With fewer than two examples the last three are nan; without any, mean as well.
      With a mesh, losses and squared_norms are split over the devices, and the rest is on all of them.

    Raises:
      TypeError: loss is not callable, microbatch_size not an int, axis_name not a string, or mesh not a
        `jax.sharding.Mesh`. From f: as in `per_example_value_and_grad`, or weights are not an array of numbers.
      ValueError: microbatch_size is below 1, or axis_name is not an axis of mesh. From f: as in
        `per_example_value_and_grad`, the batch is empty, weights are not B zeros and ones, as they were given, or
        microbatch_size is not None for a batch of symbolic size.

    Example:
      >>> import jpool
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: x * w  # the gradient is x
      >>> statistics = jpool.gradient_statistics(loss, microbatch_size=2)
      >>> result = statistics(jnp.array(1.0), jnp.array([1.0, 2.0, 3.0, 6.0, 9.0]), weights=jnp.array([1, 1, 1, 1, 0]))
      >>> print(result.mean, result.squared_norms)
      3.0 [ 1.  4.  9. 36.  0.]
      >>> print(f"{result.noise_trace:.4f} {result.signal:.4f} {result.noise_scale:.4f}")  # (4 + 1 + 0 + 9) / 3
      4.6667 7.8333 0.5957
    """
    name = "gradient_statistics"
    check_loss(name, loss)
    check_mesh(name, mesh, axis_name)
    check_microbatch_size(name, microbatch_size)
    totals_and_rows = gradient_totals(name, loss, microbatch_size, mesh, axis_name, norms=True)

    @jax.jit
    def statistics(params: Any, batch: Any, weights: Any) -> GradientStatistics:
        totals, (losses, squared_norms) = totals_and_rows(params, batch, weights)
        return GradientStatistics(losses, squared_norms, totals.mean(params), *noise(totals))

    def checked(params: Any, /, *positional: Any, weights: Any = None, **named: Any) -> GradientStatistics:
        batch, weights = (positional, named), read_weights(name, weights)
        check_params(name, params)
        check_examples(name, batch, weights, mesh, axis_name)
        check_places(name, mesh, params=params, batch=batch, weights=weights)
        weights = as_mask(weights)
        if mesh is not None:
            params, (batch, weights) = put(params, mesh), put((batch, weights), mesh, axis_name)
        with explained(name):
            return statistics(params, batch, weights)

    return checked


def noise(totals: Totals) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The trace, the signal and their ratio; nan for fewer than two examples, which have no variance."""
    count, squares = totals.examples, totals.squared_norm
    square_of_sum = optax.tree.norm(totals.gradient, squared=True)
    pairs = jnp.where(count > 1, count * (count - 1), jnp.nan)
    trace, signal = (count * squares - square_of_sum) / pairs, (square_of_sum - squares) / pairs
    return trace, signal, trace / signal


def gradient_totals(
    name: str, loss: Callable[..., Any], microbatch_size: int | None, mesh: Mesh | None, axis_name: str, *, norms: bool
) -> Callable[..., tuple[Totals, Any]]:
    """`(params, batch, weights)` -> the totals over all devices, and (losses, squared_norms) of each example.

    Without norms, which need the gradient of every example, XLA sums within the products that compute the gradients.
    """
    value_and_grad = vmapped_value_and_grad(name, loss)

    def squared_norm(loss: jax.Array, gradient: Any) -> jax.Array:
        # The loss tells how many examples there are, even without parameters, whose squared norm is Python's 0.
        return jnp.asarray(optax.tree.norm(gradient, squared=True), _accumulator_dtype(gradient))

    def of_microbatch(params: Any, batch: Any, weights: Any) -> tuple[Totals, Any]:
        losses, gradients = value_and_grad(params, batch)
        present = jnp.ones(losses.shape, bool) if weights is None else weights.astype(bool)
        if weights is not None:
            losses, gradients = jax.tree.map(lambda leaf: _or_zero(leaf, present), (losses, gradients))
        accumulator = _accumulator_dtype(gradients)
        gradients = jax.tree.map(lambda leaf: leaf.astype(accumulator), gradients)
        squared_norms = jax.vmap(squared_norm)(losses, gradients) if norms else None
        rows = present.astype(accumulator), losses.astype(accumulator), squared_norms, gradients
        return Totals(*jax.tree.map(lambda leaf: leaf.sum(axis=0), rows)), (losses, squared_norms)

    def totals_on_device(params: Any, examples: Any) -> tuple[Totals, Any]:
        return in_microbatches(lambda examples: of_microbatch(params, *examples), microbatch_size)(examples)

    def all_reduced_totals(params: Any, examples: Any) -> tuple[Totals, Any]:
        totals, rows = totals_on_device(params, examples)
        return jax.lax.psum(totals, axis_name), rows  # in one call, which XLA compiles to one all-reduce

    specs = P(), P(axis_name)
    run = totals_on_device if mesh is None else over_devices(all_reduced_totals, mesh, axis_name, specs)

    def totals_and_rows(params: Any, batch: Any, weights: Any) -> tuple[Totals, Any]:
        if microbatch_size is not None and not is_int(count := shapes(batch)[0][0]):
            raise ValueError(
                f"{name}: microbatch_size must be None for a batch of symbolic size, because the number of "
                f"microbatches must be known; got microbatch_size={microbatch_size} and a batch of {count} examples."
            )
        with explained(name):  # here as well as around a call, for those who only trace or lower
            return run(params, (batch, weights))

    return totals_and_rows


def check_microbatch_size(name: str, size: Any) -> None:
    """Refuses what is neither None nor an int >= 1."""
    if size is not None:
        positive_int(name, "microbatch_size", size, ", or None for the whole batch")


def check_examples(
    name: str, batch: Any, weights: Any, mesh: Mesh | None, axis_name: str, *, may_be_all_zero: bool = True
) -> None:
    """Refuses a batch without examples, and weights that are not a zero or a one for each of them."""
    check_kinds(name, batch)
    check_batch(name, batch, mesh, axis_name)
    (count, *_), *_ = shapes(batch)
    if count == 0:
        raise ValueError(
            f"{name}: the mean of no examples is undefined; got a batch of shapes {shapes(batch)}. Skip empty batches."
        )
    if weights is None:
        return
    if jnp.shape(weights) != (count,):
        raise ValueError(
            f"{name}: weights must have shape ({count},), one for each example; got shape {jnp.shape(weights)}. Give 1 "
            "for an example and 0 for padding."
        )
    # Traced weights and those of other processes cannot be read.
    if not is_traced(weights) and getattr(weights, "is_fully_addressable", True):
        values = np.asarray(weights)
        other = np.unique(values[(values != 0) & (values != 1)])
        if other.size:
            raise ValueError(
                f"{name}: weights must be 1 for an example and 0 for padding; got {other.tolist()[:3]} among them. To "
                "give examples unequal weight, multiply their losses inside loss."
            )
        if not may_be_all_zero and not values.any():
            raise ValueError(
                f"{name}: the mean of no examples is undefined; got weights that are all 0. Skip batches of padding."
            )


def _or_zero(leaf: jax.Array, present: jax.Array) -> jax.Array:
    # Not a product: 0 * nan is nan.
    return jnp.where(present.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, jnp.zeros_like(leaf))


def _accumulator_dtype(tree: Any) -> Any:
    dtypes = [jnp.dtype(jnp.float32), *(leaf.dtype for leaf in jax.tree.leaves(tree))]
    return max(dtypes, key=lambda dtype: dtype.itemsize)
