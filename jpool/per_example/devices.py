"""The batch axis over the devices of a mesh. Independent of gradients.

    over_devices(function) :: (params, batch) -> what function returns for each device's part of the batch

Inside `jax.shard_map` every device maps its own examples, as a single device would. Arrays that are split over devices
without a mesh given are refused where that can be detected: XLA's partitioner then decides what each device computes,
and reads convolutions with groups wrongly in some layouts (see `convolutions`).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jpool.jax_extensions import is_traced, mark_varying, varying_axes

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
    """Refuses arrays without a common first axis, or not divisible over the mesh."""
    batch_shapes = shapes(batch)
    if not batch_shapes or not share_first_axis(batch_shapes):
        raise ValueError(
            f"{name}: every array of the batch must have the examples on its first axis, the same number in each; got "
            + (f"arrays of shapes {batch_shapes}. " if batch_shapes else "no array. ")
            + "Give the inputs of the loss after the first argument, and close over what all examples share."
        )
    if mesh is None:
        return
    size, devices = batch_shapes[0][0], mesh.shape[axis_name]
    if size % devices:
        raise ValueError(
            f"{name}: the examples must divide evenly over the {devices} devices of mesh axis {axis_name!r}; got a "
            f"batch of {size}. Pad it to {size + -size % devices} examples and leave the padding out by weights, 1 for "
            "an example and 0 for padding: gradient_statistics and the step of make_train_step take weights=."
        )


def check_places(name: str, mesh: Mesh | None, **arguments: Any) -> None:
    """Refuses arrays that are split over devices, or on different devices. With a mesh they may be anywhere.

    Reads what is available while tracing as well: the mesh in an array's type, and the mesh set as context. Parameters
    may be on all devices, but not split; whether they are cannot be read while tracing with an Auto mesh.
    """
    if mesh is not None:
        return
    if axes := _open_axes(jax.sharding.get_abstract_mesh()):
        raise ValueError(_advice(name, "a mesh is set as context", axes, "", "call it outside of jax.set_mesh"))
    seen: dict[frozenset[Any], tuple[str, int]] = {}
    for argument, tree in arguments.items():
        leaves = jax.tree.leaves(tree)
        for i in _one_of_each_place(leaves):
            leaf = leaves[i]
            if axes := _split_over(leaf, may_be_whole=argument not in ("batch", "weights")):
                what, where = f"an array of shape {leaf.shape} is on several devices", f", as part of {argument}"
                move = f"move the {argument} to one device: jax.device_put({argument}, jax.devices()[0])"
                raise ValueError(_advice(name, what, axes, where, move))
            if not is_traced(leaf) and leaf.committed:
                seen.setdefault(frozenset(leaf.sharding.device_set), (argument, i))
    if len(seen) > 1:
        (some, first), (others, second), *_ = (
            (_listed(devices), _path(argument, arguments[argument], i)) for devices, (argument, i) in seen.items()
        )
        raise ValueError(
            f"{name}: all arrays must be on the same devices; got {first} on {some} and {second} on {others}. Move one "
            f"of them, for example by jax.device_put({second}, {first}.sharding); or split the examples over a mesh: "
            f"{_maker(name)}(..., mesh=mesh), which puts every array where it is needed."
        )


def _one_of_each_place(leaves: list[Any]) -> Iterable[int]:
    """The first array of each sharding: a state may have a thousand arrays, and is checked in every step."""
    places: dict[Any, int] = {}
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, jax.Array):
            places.setdefault(i if is_traced(leaf) else (leaf.sharding, leaf.committed), i)
    return places.values()


def _open_axes(mesh: Any, least: int = 2) -> dict[str, int]:
    """The sizes of the axes along which arrays may be split by XLA, or by operations that state it."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {axis: mesh.shape[axis] for axis, kind in kinds if kind != AxisType.Manual and mesh.shape[axis] >= least}


def _split_over(array: jax.Array, *, may_be_whole: bool) -> dict[str, int]:
    """What an array is split over, as far as is known; {} for one device. With an Explicit mesh it may not be whole."""
    mesh, spec = jax.typeof(array).sharding.mesh, jax.typeof(array).sharding.spec
    if AxisType.Explicit in mesh.axis_types and any(axis is not None for axis in spec):
        return _open_axes(mesh, 1)  # JAX refuses operations on such types for one device as well
    is_whole = is_traced(array) or array.sharding.is_fully_replicated  # of a traced one it is not known
    if may_be_whole and is_whole and AxisType.Explicit not in mesh.axis_types:
        return {}
    devices = 1 if is_traced(array) else len(array.sharding.device_set)
    return _open_axes(mesh) or ({"devices": devices} if devices > 1 else {})  # some shardings have no mesh


def _advice(name: str, what: str, axes: dict[str, int], where: str, or_else: str) -> str:
    axis_name = "" if {"data", "devices"} & axes.keys() else f", axis_name={next(iter(axes))!r}"
    return (
        f"{name}: {what} ({axes}){where}, where JAX's own partitioner can silently return wrong per-example gradients. "
        f"Give the mesh to split the examples over: {_maker(name)}(..., mesh=mesh{axis_name}); or {or_else}."
    )


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Explains JAX's errors about devices. The arguments have been checked, so what is left is what the loss reads."""
    try:
        yield
    except Exception as error:
        if re.search("context mesh .* should match the mesh passed", str(error)):
            raise ValueError(
                f"{name}: mesh must be the one that jax.set_mesh has set; got another one, or axes of another type. "
                "Give the same mesh to both, or call it outside of jax.set_mesh."
            ) from error
        if re.search(r"Closing over inputs to shard_map|(?i:device.?assignment)|incompatible devices", str(error)):
            raise ValueError(
                f"{name}: loss must not close over arrays of an Explicit mesh, or on other devices than its arguments. "
                "Give them to it in params or in the batch."
            ) from error
        raise


def _maker(name: str) -> str:
    """The function that takes a mesh: that of "make_train_step's step" is make_train_step."""
    return name.removesuffix("'s step")


def _listed(devices: frozenset[Any]) -> str:
    names = sorted(map(str, devices))
    return names[0] if len(names) == 1 else f"{len(names)} devices"


def _path(argument: str, tree: Any, i: int) -> str:
    """The name of a leaf, such as `params['w']`; a batch is (positional, by keyword), whose names say enough."""
    return argument + jax.tree_util.keystr(jax.tree.leaves_with_path(tree)[i][0])
