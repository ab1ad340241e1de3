"""The batch axis over the devices of a mesh. Independent of gradients.

    over_devices(function) :: (params, batch) -> what function returns for each device's part of the batch

If a batch is on several devices, JAX's partitioner decides what each of them computes. With an Auto mesh (jax 0.10.2 to
0.12.0.1) it silently computes wrong gradients of a convolution's weights for every example outside the first device.
Inside `jax.shard_map` every device maps its own examples, as a single device would. A batch on several devices without
a mesh is refused where it can be detected: shardings given to a surrounding `jax.jit` cannot.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jpool.jax_extensions import mark_varying, varying_axes

Shape = tuple[int, ...]


def over_devices(function: Callable[..., Any], mesh: Mesh, axis_name: str, out_specs: Any) -> Callable[..., Any]:
    """The same function of (params, batch), with the examples split over the mesh and params on every device."""
    program = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(P(), P(axis_name)), out_specs=out_specs))
    return lambda params, batch: program(put(params, mesh), put(batch, mesh, axis_name))


def vary_like(params: Any, batch: Any) -> Any:
    """Marks params as varying over the devices that share the batch, so that each has the gradient of its own examples.

    Without the mark JAX adds up the gradients of all devices (jax#36886).
    """
    axes = frozenset[str]().union(*map(varying_axes, jax.tree.leaves(batch)))
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, mark_varying(leaves, axes)) if axes else params


def put(tree: Any, mesh: Mesh, *axes: str) -> Any:
    """Puts every array where a program over the mesh reads it; an array that is there already stays the same object."""
    return jax.device_put(tree, NamedSharding(mesh, P(*axes)))


def shapes(tree: Any) -> list[Shape]:
    """The shapes of all arrays."""
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def share_first_axis(array_shapes: list[Shape]) -> bool:
    """Whether all have a first axis, of the same length."""
    return all(array_shapes) and len({shape[0] for shape in array_shapes}) <= 1


def check_mesh(name: str, mesh: Any, axis_name: str) -> None:
    """Refuses what is not a Mesh, and an axis name that it lacks."""
    if not isinstance(axis_name, str):
        raise TypeError(
            f'{name}: axis_name must be a string, the name of a mesh axis such as "data"; got {axis_name!r}.'
        )
    if mesh is None:
        return
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f'{name}: mesh must be a jax.sharding.Mesh, such as jax.make_mesh((4,), ("data",)), or None; got {mesh!r}.'
        )
    if axis_name not in mesh.axis_names:
        raise ValueError(
            f"{name}: axis_name must be one of the mesh's axes, which are {mesh.axis_names}; got {axis_name!r}. Name "
            f"the axis that the examples are split over: {name}(..., mesh=mesh, axis_name={mesh.axis_names[0]!r})."
        )


def check_batch(name: str, batch: Any, mesh: Mesh | None, axis_name: str) -> None:
    """Refuses arrays without a common first axis, not divisible over the mesh, or on several devices without a mesh."""
    batch_shapes = shapes(batch)
    if not batch_shapes or not share_first_axis(batch_shapes):
        raise ValueError(
            f"{name}: every array of the batch must have the examples on its first axis, the same number in each; got "
            + (f"arrays of shapes {batch_shapes}. " if batch_shapes else "no array. ")
            + "Give the inputs of the loss after the first argument, and close over what all examples share."
        )
    if mesh is None:
        return _check_one_device(name, batch)
    size, devices = batch_shapes[0][0], mesh.shape[axis_name]
    if size % devices:
        raise ValueError(
            f"{name}: the examples must divide evenly over the {devices} devices of mesh axis {axis_name!r}; got a "
            f"batch of {size}. Pad it to {size + -size % devices} examples and leave the padding out by weights, 1 for "
            "an example and 0 for padding: gradient_statistics and the step of make_train_step take weights=."
        )
    return None


def _check_one_device(name: str, batch: Any) -> None:
    """Reads what is available while tracing as well: the mesh in an argument's type, and the mesh set as context."""
    meshes = [("a mesh is set as context", "call it outside of jax.set_mesh", jax.sharding.get_abstract_mesh())]
    one_device = "move the batch to one device: jax.device_put(batch, jax.devices()[0])"
    meshes += [
        (f"an array of shape {jnp.shape(leaf)} is on several devices", one_device, jax.typeof(leaf).sharding.mesh)
        for leaf in jax.tree.leaves(batch)
    ]
    for what, or_else, mesh in meshes:
        open_axes = [
            axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual
        ]
        if any(mesh.shape[axis] > 1 for axis in open_axes):
            axis_name = "" if "data" in open_axes else f", axis_name={open_axes[0]!r}"
            raise ValueError(
                f"{name}: {what} ({dict(mesh.shape)}), where JAX's own partitioner can silently return wrong "
                f"per-example gradients. Give the mesh to split the examples over: {name}(..., mesh=mesh{axis_name}); "
                f"or {or_else}."
            )
