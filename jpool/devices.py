"""The batch axis over the devices of a mesh. Knows nothing of gradients.

    over_devices(function) :: (params, batch) -> what function makes of each device's own examples

Left to itself, JAX partitions a batch that lies on several devices wherever it likes, and with an Auto mesh (jax 0.10.2
to 0.12.0.1) the gradients of a convolution's weights come out wrong for every example outside the first device, without
a word. Inside `jax.shard_map` every device maps its own examples, as one device would. What lies on several devices and
cannot be taken that way is refused, as far as it shows: shardings given to a `jax.jit` around it do not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Shape = tuple[int, ...]


def over_devices(function: Callable[..., Any], mesh: Mesh, axis_name: str, out_specs: Any) -> Callable[..., Any]:
    """The same function of (params, batch) with the examples split over the mesh; params are on every device."""
    program = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(P(), P(axis_name)), out_specs=out_specs))
    return lambda params, batch: program(place(params, mesh), place(batch, mesh, axis_name))


def varying(params: Any, batch: Any) -> Any:
    """Marks params as different on every device on which the batch is: a gradient is then each device's own.

    Unmarked, the transpose of handing the parameters to all devices adds their gradients up (jax#36886).
    """
    axes = frozenset[str]().union(*(_varies_over(leaf) for leaf in jax.tree.leaves(batch)))

    def mark(leaf: Any) -> Any:
        missing = tuple(sorted(axes - _varies_over(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, params) if axes else params


def place(tree: Any, mesh: Mesh, *axes: str) -> Any:
    """Puts every array where a program over the mesh reads it; one that lies there already stays the same object."""
    return jax.device_put(tree, NamedSharding(mesh, P(*axes)))


def shapes(tree: Any) -> list[Shape]:
    """The shapes of all arrays."""
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def share_first_axis(found: list[Shape]) -> bool:
    """Whether all have a first axis, of one length."""
    return all(found) and len({shape[0] for shape in found}) <= 1


def check_mesh(name: str, mesh: Any, axis_name: str) -> None:
    """Refuses what is no mesh, and an axis that it does not have."""
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


def check_batch(name: str, batch: tuple[Any, ...], mesh: Mesh | None, axis_name: str) -> None:
    """Refuses what is no batch, what the mesh does not divide, and what is on several devices without a mesh."""
    found = shapes(batch)
    if not found or not share_first_axis(found):
        raise ValueError(
            f"{name}: every array of the batch must have the examples on its first axis, as many in each; got arrays "
            f"of shapes {found}."
        )
    if mesh is None:
        return _check_one_device(name, batch)
    size, devices = found[0][0], mesh.shape[axis_name]
    if size % devices:
        raise ValueError(
            f"{name}: the examples must divide evenly over the {devices} devices of mesh axis {axis_name!r}; got a "
            f"batch of {size}. Pad it to {size + -size % devices} examples and leave the padding out by weights, 1 for "
            "an example and 0 for padding: gradient_statistics and the step of make_train_step take weights=."
        )
    return None


def _check_one_device(name: str, batch: tuple[Any, ...]) -> None:
    """What can be seen, also while tracing: the mesh of an argument's type, and the mesh that is set as context."""
    meshes = [("a mesh is set as context", jax.sharding.get_abstract_mesh())]
    meshes += [
        (f"an array of shape {jnp.shape(leaf)} lies on several devices", jax.typeof(leaf).sharding.mesh)
        for leaf in jax.tree.leaves(batch)
    ]
    for what, mesh in meshes:
        open_axes = [
            axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual
        ]
        if any(mesh.shape[axis] > 1 for axis in open_axes):
            axis_name = "" if "data" in open_axes else f", axis_name={open_axes[0]!r}"
            raise ValueError(
                f"{name}: {what} ({dict(mesh.shape)}), where JAX's own partitioner can return wrong per-example "
                f"gradients without a word. Give the mesh to split the examples over: {name}(..., "
                f"mesh=mesh{axis_name}); or take the batch to one device: jax.device_put(batch, jax.devices()[0])."
            )


def _varies_over(leaf: Any) -> frozenset[str]:
    return jax.typeof(leaf).manual_axis_type.varying
