"""The devices of a run: one, several of this process, or those of many processes, as one mesh with axis "data".

connect    :: options        -> Mesh, or None for one device
together   :: a context in which an error of one process ends all
split      :: (mesh, batch)  -> the batch with its examples sharded over the mesh
replicate  :: (mesh, tree)   -> the tree on all devices
local_copy :: tree           -> a replicated tree as arrays of this process
"""

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.long_run import meeting

TIMEOUT = 120  # seconds that processes wait for each other at the start
HEARTBEAT = 7 * 24 * 3600  # seconds; JAX aborts the program then, and the watch below notices a dead process at once
watch: meeting.Watch | None = None  # of the other processes, if there are any


class ClusterError(Exception):
    """The requested devices or processes are not available; the message is one sentence."""


def connect(
    devices: int | None, processes: int = 1, coordinator: str | None = None, process_id: int = 0
) -> Mesh | None:
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
        join_processes(processes, str(coordinator), process_id)
    chosen = jax.devices() if processes > 1 else jax.devices()[:devices]
    if devices is not None and len(chosen) != devices * processes:
        raise ClusterError(
            f"--devices {devices}: JAX has {len(chosen)} ({chosen[0].platform}) in {processes} processes"
        )
    return mesh_of(chosen) if len(chosen) > 1 else None


def join_processes(processes: int, coordinator: str, process_id: int) -> None:
    """Waits for the other processes, starts JAX in all of them, and watches them from then on."""
    host, port = address(coordinator)
    print(f"process {process_id} waits up to {TIMEOUT} s for {processes} at {coordinator}", file=sys.stderr, flush=True)
    try:
        if process_id:
            partners = meeting.join(host, port, processes, process_id, TIMEOUT)
        else:
            partners = meeting.gather(coordinator, port, processes, TIMEOUT)
    except meeting.MeetingError as error:
        raise ClusterError(str(error)) from error
    global watch
    watch = meeting.Watch(partners)
    local = meeting.relay(host, port) if process_id else f"127.0.0.1:{port}"
    try:
        jax.distributed.initialize(
            local, processes, process_id, initialization_timeout=TIMEOUT, heartbeat_timeout_seconds=HEARTBEAT
        )
    except (RuntimeError, ValueError) as error:
        raise ClusterError(f"cannot meet {processes} processes at {coordinator}: {first_line(error)}") from error


def address(coordinator: str) -> tuple[str, int]:
    """The host and the port of "HOST:PORT"."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ClusterError(f"--coordinator must be HOST:PORT, such as 10.0.0.1:1234; got {coordinator!r}")
    if not 0 < int(port) < 65536:
        raise ClusterError(f"--coordinator must have a port from 1 to 65535; got {coordinator!r}")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ClusterError(f"--coordinator must have the name or the number of a host; got {coordinator!r}") from error
    return host, int(port)


@contextlib.contextmanager
def together(advice: Callable[[], str]) -> Iterator[None]:
    """Around everything after `connect`: all processes end together, and one that fails does not wait for the others.

    Args:
      advice: says what is saved and how to continue; printed if another process dies.
    """
    if watch is None:
        yield
        return
    watch.advice = advice
    try:
        yield
    except BaseException as error:
        watch.fail(error)
    jax.distributed.shutdown()  # waits for the others
    watch.send("bye")


def agree(options: object) -> None:
    """Checks that all processes have equal options; with different seeds they would train different networks as one."""
    if jax.process_count() > 1:
        local_digest = np.frombuffer(hashlib.sha256(repr(options).encode()).digest(), np.uint8)
        if (multihost_utils.process_allgather(local_digest) != local_digest).any():
            raise ClusterError(
                "the processes differ in their options, their data or the checkpoint they resume from; give all the "
                "same, and a --checkpoint directory that they share"
            )


def first_line(error: Exception) -> str:
    """The first line of an error's message, shortened, or its type if it has no message."""
    return f"{str(error) or type(error).__name__}".splitlines()[0][:200]


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


def is_main_process() -> bool:
    """Whether this is the process that prints and draws."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process; all must call this at the same point."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())
