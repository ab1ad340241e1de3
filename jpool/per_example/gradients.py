"""Per-example gradients, and the optax transformation that takes their mean.

    per_example_value_and_grad(loss) :: (params, *batch)      -> (values (B,), gradients (B, *shape))
    mean_over_examples().update      :: gradients (B, *shape) -> their mean (*shape)

Every example is computed separately, on one device or on the devices of a mesh. Only gradients are averaged.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jpool.checks import check_flag
from jpool.per_example.convolutions import with_channels_last
from jpool.per_example.devices import (
    Shape,
    check_batch,
    check_mesh,
    check_places,
    explained,
    over_devices,
    shapes,
    share_first_axis,
    vary_like,
)
from jpool.per_example.inputs import check_kinds, check_loss, check_params, with_checked_result


def per_example_value_and_grad(
    loss: Callable[..., Any], *, has_aux: bool = False, mesh: Mesh | None = None, axis_name: str = "data"
) -> Callable[..., tuple[Any, Any]]:
    """Maps the loss of ONE example to the loss and gradient of every example of a batch, each computed separately.

    Nothing is averaged: the gradient of example i depends only on example i. This also holds for a max pooling layer,
    where every example has its own winners (the elements that hold the maximum). `mean_over_examples` takes the mean.

    Args:
      loss: `loss(params, *example) -> scalar`, or `-> (scalar, aux)` with `has_aux`; params a pytree of float arrays.
      has_aux: whether loss returns auxiliary data as well.
      mesh: the devices to split the examples over, with axes of any kind (Auto or Explicit); None for one device. Every
        device maps its own examples inside `jax.shard_map`, with the results that one device would compute.
      axis_name: the axis of the mesh that the examples are split over; along other axes, devices do the same work.

    Returns:
      `f(params, *batch) -> (values, gradients)`, or `-> ((values, aux), gradients)` with `has_aux`. Every array of the
      batch has the examples on its first axis, length B, and may be given by keyword; values has shape (B,), and every
      leaf of gradients (and aux) the shape of its parameter with a leading B. Gradients take B times the memory of
      params. With a mesh, all results are split over the devices as the examples are. Inside your own `jax.shard_map`,
      f maps the examples that it is given there, and you need not mark params as varying.

      Random numbers: give each example its own key, `jax.random.split(key, B)`. With the generator "rbg", what an
      example draws also depends on the rest of the batch, because JAX draws for a whole batch under `jax.vmap` at once.

    Raises:
      TypeError: loss is not callable, has_aux not a bool, axis_name not a string, or mesh not a `jax.sharding.Mesh`.
        From f: params holds anything but floats, the batch anything but numbers and random keys, or loss does not
        return one float.
      ValueError: axis_name is not an axis of mesh. From f: an array is deleted, the batch is missing, its arrays do not
        share a first axis, or the mesh does not divide it; loss closes over an array on other devices; or, without a
        mesh, the batch is on several devices, the parameters are split over them, arrays are on different devices, or a
        mesh of several is set as context: JAX's partitioner silently returns wrong gradients of convolutions there.
        (What only XLA knows of cannot be detected: shardings in a surrounding `jax.jit`, or of what meets the gradients
        there. Gradients are right if only the examples are split, and may be wrong otherwise: give f the mesh there.)

    Example:
      >>> import jax, jpool
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x, y: (w @ x - y) ** 2
      >>> w, xs, ys = jnp.array([1.0, 2.0]), jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), jnp.array([0.0, 0.0, 3.0])
      >>> values, gradients = jpool.per_example_value_and_grad(loss)(w, xs, ys)
      >>> values
      Array([1., 4., 0.], dtype=float32)
      >>> gradients
      Array([[2., 0.],
             [0., 4.],
             [0., 0.]], dtype=float32)

      The same on all devices of a mesh, here of one:

      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> values, gradients = jpool.per_example_value_and_grad(loss, mesh=mesh)(w, xs, ys)
      >>> values
      Array([1., 4., 0.], dtype=float32)
    """
    name = "per_example_value_and_grad"
    check_loss(name, loss)
    check_flag(name, "has_aux", has_aux)
    check_mesh(name, mesh, axis_name)

    on_one_device = vmapped_value_and_grad(name, loss, bool(has_aux))
    mapped = on_one_device if mesh is None else over_devices(on_one_device, mesh, axis_name, P(axis_name))

    def value_and_grad(params: Any, /, *batch: Any, **named: Any) -> tuple[Any, Any]:
        check_params(name, params)
        check_kinds(name, (batch, named))
        check_batch(name, (batch, named), mesh, axis_name)
        check_places(name, mesh, params=params, batch=(batch, named))
        with explained(name):
            return mapped(params, (batch, named))

    return value_and_grad


def vmapped_value_and_grad(
    name: str, loss: Callable[..., Any], has_aux: bool = False
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """`(params, batch)` -> `jax.value_and_grad` of the loss for every example; batch is (positional, by keyword)."""
    value_and_grad = jax.value_and_grad(with_checked_result(name, loss, has_aux), has_aux=has_aux)

    def of_example(params: Any, example: Any) -> tuple[Any, Any]:
        positional, named = example
        return value_and_grad(params, *positional, **named)

    mapped = with_channels_last(jax.vmap(of_example, (None, 0)))
    return lambda params, batch: mapped(vary_like(params, batch), batch)


def mean_over_examples() -> optax.GradientTransformation:
    """The optax transformation that takes the mean of per-example gradients; the first one of a chain.

    `optax.chain(jpool.mean_over_examples(), optax.sgd(0.1, momentum=0.9))` is a whole update: average, then one step.
    A mean over gradients is exact; a mean over activations or errors is wrong through anything non-linear.

    Its `update(updates, state, params=None)` takes a pytree whose leaves all have a leading axis of B >= 1 examples,
    and removes that axis. It has no state. Dtypes are kept; 16-bit and 8-bit gradients are added up in float32.
    Gradients that already have the shapes of params are returned unchanged, so that a chain that starts with it is also
    an optimiser for `make_train_step`, which averages the gradients itself.

    Raises:
      ValueError: (from update) the leaves do not share a leading axis, it has length 0, or, where params are given, the
        leaves without that axis do not have the shapes of params.

    Example:
      >>> import jpool, optax
      >>> import jax.numpy as jnp
      >>> optimizer = optax.chain(jpool.mean_over_examples(), optax.sgd(0.5))
      >>> params = jnp.array([1.0, 1.0])
      >>> gradients = jnp.array([[2.0, 0.0], [0.0, 4.0]])  # of two examples
      >>> updates, state = optimizer.update(gradients, optimizer.init(params), params)
      >>> optax.apply_updates(params, updates)
      Array([0.5, 0. ], dtype=float32)
    """

    def update(updates: Any, params: Any) -> Any:
        if params is not None and shapes(updates) == shapes(params):
            return updates
        _check_gradients(shapes(updates), None if params is None else shapes(params))
        return jax.tree.map(_mean, updates)

    return optax.stateless(update)


def _mean(gradient: jax.Array) -> jax.Array:
    if gradient.dtype.itemsize >= 4 or not jnp.issubdtype(gradient.dtype, jnp.floating):
        return gradient.mean(axis=0)
    return gradient.mean(axis=0, dtype=jnp.float32).astype(gradient.dtype)


def _check_gradients(leaves: list[Shape], expected: list[Shape] | None) -> None:
    if not share_first_axis(leaves):
        raise ValueError(
            "mean_over_examples: updates must be per-example gradients, every leaf with the same leading axis of "
            f"examples; got shapes {leaves}. Take them from per_example_value_and_grad."
        )
    if any(shape[0] == 0 for shape in leaves):
        raise ValueError(
            f"mean_over_examples: the mean of no examples is undefined; got updates of shapes {leaves}. Skip empty "
            "batches."
        )
    if expected is not None and [shape[1:] for shape in leaves] != expected:
        raise ValueError(
            "mean_over_examples: updates must have the shapes of params after a leading axis of examples; got "
            f"{leaves} for params of shapes {expected}. Give the params that the gradients are of."
        )
