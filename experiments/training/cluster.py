"""The devices of a run: one, several of this process, or those of many processes, as one mesh with axis "data".

connect    :: options        -> Mesh, or None for one device
split      :: (mesh, batch)  -> the batch with its examples sharded over the mesh
replicate  :: (mesh, tree)   -> the tree on all devices
local_copy :: tree           -> a replicated tree as arrays of this process
"""

import contextlib
import hashlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.training.stops import Stopped

# Seconds: processes wait for each other at the start, then one without a sign of life is dead, and all end together.
TIMES: Any = {"initialization_timeout": 120, "heartbeat_timeout_seconds": 20, "shutdown_timeout_seconds": 120}


def connect(devices: int | None, processes: int, coordinator: str | None, process_id: int) -> Mesh | None:
    """Connects the processes and makes the mesh of all devices; on a CPU, the requested devices are simulated.

    Args:
      devices: number per process, None for all that it has.
      processes: how many take part; each must make this call.
      coordinator: "host:port" of process 0, as all others can reach it.
      process_id: of this process, 0 to processes - 1.
    """
    if devices is not None:
        simulate_devices(devices)
    if processes > 1:
        jax.distributed.initialize(coordinator, processes, process_id, **TIMES)
    chosen = jax.devices() if processes > 1 else jax.devices()[:devices]
    if devices is not None and len(chosen) != devices * processes:
        raise Stopped(f"argument --devices: must be at most what JAX has, {len(chosen)}; got {devices}")
    return mesh_of(chosen) if len(chosen) > 1 else None


def simulate_devices(devices: int) -> None:
    """Makes a CPU count as several devices, which share its cores. It must be called before JAX is first used."""
    with contextlib.suppress(RuntimeError):  # JAX has started: keep the devices that it has
        jax.config.update("jax_num_cpu_devices", devices)


def mesh_of(devices: list[Any]) -> Mesh:
    """A mesh of all devices along one axis."""
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def split(mesh: Mesh | None, batch: Any) -> Any:
    """Shards the examples of a batch, which every process has, over the mesh."""
    return _spread(mesh, batch, P("data"))


def replicate(mesh: Mesh | None, tree: Any) -> Any:
    """Copies a tree, which every process has, to all devices."""
    return _spread(mesh, tree, P())


def _spread(mesh: Mesh | None, tree: Any, spec: P) -> Any:
    """Each device takes its part of its process's arrays; nothing is sent between processes."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, spec)
    shard = lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda part: np.asarray(leaf[part]))  # noqa: E731
    return jax.tree.map(shard, tree)


def local_copy(tree: Any) -> Any:
    """The copies on the first device of this process."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def largest(number: int) -> int:
    """The largest of the numbers that the processes give; all must call this at the same point."""
    return number if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.array(number)).max())


def agree(options: object) -> None:
    """Checks that all processes have equal options; with different seeds they would train different networks as one."""
    digest = np.frombuffer(hashlib.sha256(repr(options).encode()).digest(), np.uint8)
    if (multihost_utils.process_allgather(digest) != digest).any():
        raise Stopped("the processes differ in their options, data or checkpoints; give all the same")
