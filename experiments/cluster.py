"""Where a run computes: one device, several of this process, or those of many processes, as one mesh with axis "data".

connect :: options        -> Mesh, or None for one device
split   :: (mesh, batch)  -> the batch with its examples over the mesh
here    :: tree           -> what is the same everywhere, as arrays of this process alone
"""

import contextlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

TIMEOUT = 60  # seconds that processes wait for each other at the start


class ClusterError(Exception):
    """What is asked for is not there; one sentence."""


def connect(
    devices: int | None, processes: int = 1, coordinator: str | None = None, process_id: int = 0
) -> Mesh | None:
    """Finds the other processes and makes the mesh of all devices; on a CPU, as many devices as asked for are made up.

    Args:
      devices: of each process, None for all that it has.
      processes: how many take part; all make this call.
      coordinator: "host:port" of the process 0, as all of them reach it.
      process_id: 0 to processes - 1.
    """
    if devices is not None:
        make_up(devices)
    if processes > 1:
        try:
            jax.distributed.initialize(coordinator, processes, process_id, initialization_timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ClusterError(f"no {processes} processes at {coordinator} within {TIMEOUT} s: {reason}") from error
    chosen = jax.devices() if processes > 1 else jax.devices()[:devices]
    if devices is not None and len(chosen) != devices * processes:
        raise ClusterError(
            f"--devices {devices}: JAX has {len(chosen)} ({chosen[0].platform}) in {processes} processes"
        )
    return mesh_of(chosen) if len(chosen) > 1 else None


def make_up(devices: int) -> None:
    """Lets a CPU count as several devices, which share its cores. Only before JAX starts, which is at its first use."""
    with contextlib.suppress(RuntimeError):  # it has started: what there is will have to do
        jax.config.update("jax_num_cpu_devices", devices)


def mesh_of(devices: list[Any]) -> Mesh:
    """All in one row."""
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def split(mesh: Mesh | None, batch: Any) -> Any:
    """Takes its own part from a batch that every process has; nothing is sent."""
    if mesh is None:
        return batch
    sharding = NamedSharding(mesh, P("data"))
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda index: np.asarray(leaf[index])), batch
    )


def everywhere(mesh: Mesh | None, tree: Any) -> Any:
    """Puts what every process has on all devices; nothing is sent."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, P())
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda _: np.asarray(leaf)), tree
    )


def here(tree: Any) -> Any:
    """The copies on this process's first device."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def first() -> bool:
    """Whether this is the process that prints and draws."""
    return jax.process_index() == 0


def anywhere(flag: bool) -> bool:
    """Whether it is so in any of the processes; all have to ask at the same point."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())
