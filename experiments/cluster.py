"""Where a run computes: one device, several of this process, or those of many processes, as one mesh with axis "data".

connect :: options        -> Mesh, or None for one device
split   :: (mesh, batch)  -> the batch with its examples over the mesh
here    :: tree           -> what is the same everywhere, as arrays of this process alone
"""

import contextlib
import hashlib
import socket
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

TIMEOUT = 120  # seconds that processes wait for each other at the start


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
        meet(processes, str(coordinator), process_id)
    chosen = jax.devices() if processes > 1 else jax.devices()[:devices]
    if devices is not None and len(chosen) != devices * processes:
        raise ClusterError(
            f"--devices {devices}: JAX has {len(chosen)} ({chosen[0].platform}) in {processes} processes"
        )
    return mesh_of(chosen) if len(chosen) > 1 else None


def meet(processes: int, coordinator: str, process_id: int) -> None:
    """Waits for the others, at first by a plain socket: where JAX waits in vain, it ends the whole program."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"--coordinator must be HOST:PORT, such as 10.0.0.1:1234; got {coordinator!r}")
    print(f"process {process_id} waits up to {TIMEOUT} s for {processes} at {coordinator}", file=sys.stderr, flush=True)
    until = time.monotonic() + TIMEOUT
    while process_id > 0:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            break
        except OSError as error:
            if time.monotonic() > until:
                raise ClusterError(
                    f"nobody listens at {coordinator} after {TIMEOUT} s ({error}); is process 0 there?"
                ) from error
            time.sleep(0.2)
    try:
        jax.distributed.initialize(coordinator, processes, process_id, initialization_timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ClusterError(f"cannot meet {processes} processes at {coordinator}: {first_line(error)}") from error


def agree(options: object) -> None:
    """All processes must have the same in hand; with different seeds they would train different networks as one."""
    if jax.process_count() > 1:
        own = np.frombuffer(hashlib.sha256(repr(options).encode()).digest(), np.uint8)
        if (multihost_utils.process_allgather(own) != own).any():
            raise ClusterError(
                "the processes differ in their options, their data or the checkpoint they found; give all the same, "
                "and a --checkpoint directory that they share"
            )


def first_line(error: Exception) -> str:
    """What it says, in short, or of what kind it is."""
    return f"{str(error) or type(error).__name__}".splitlines()[0][:200]


def make_up(devices: int) -> None:
    """Lets a CPU count as several devices, which share its cores. Only before JAX starts, which is at its first use."""
    with contextlib.suppress(RuntimeError):  # it has started: what there is will have to do
        jax.config.update("jax_num_cpu_devices", devices)


def mesh_of(devices: list[Any]) -> Mesh:
    """All in one row."""
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def split(mesh: Mesh | None, batch: Any) -> Any:
    """A batch that every process has, its examples over the mesh."""
    return _spread(mesh, batch, P("data"))


def everywhere(mesh: Mesh | None, tree: Any) -> Any:
    """What every process has, on all devices."""
    return _spread(mesh, tree, P())


def _spread(mesh: Mesh | None, tree: Any, spec: P) -> Any:
    """Every device takes its part of what its own process has; nothing is sent."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, spec)
    own = lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda part: np.asarray(leaf[part]))  # noqa: E731
    return jax.tree.map(own, tree)


def here(tree: Any) -> Any:
    """The copies on this process's first device."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def first() -> bool:
    """Whether this is the process that prints and draws."""
    return jax.process_index() == 0


def anywhere(flag: bool) -> bool:
    """Whether it is so in any of the processes; all have to ask at the same point."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())
