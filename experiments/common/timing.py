"""Fair timing of several programs on one machine, and the limits of the machine itself."""

import datetime
import importlib.metadata
import importlib.util
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Call = Callable[[], Any]

SHORTEST = 0.01  # seconds; shorter calls are repeated and timed together
HUGE_PAGES = "glibc.malloc.hugetlb=1"
PAUSE = 0.01  # seconds before each timing; the threads of some frameworks keep spinning for a while after their work


def medians(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Milliseconds per call. The contenders alternate, so that a busy moment of the machine affects all of them.

    What counts is the steady state, as in a loop. So each timing follows calls that do not count, which wake up threads
    and replace the memory, of other sizes, that the previous contender left behind. Short calls are timed together.

    A call returns its result. A CPU waits for it before the next call. A GPU or TPU is given all calls that are timed
    together, and then waited for: so the time is the device's, unless Python takes longer to start a program.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    repeats = dict.fromkeys(calls, 1)
    for round_number in range(rounds + 2):
        for name, call in calls.items():
            time.sleep(PAUSE)
            run(call, repeats[name])
            start = time.perf_counter()
            run(call, repeats[name])
            taken = time.perf_counter() - start
            times[name].append(taken / repeats[name])
            if round_number == 1:
                repeats[name] = max(1, round(SHORTEST / min(times[name])))
    return {name: float(np.median(seconds[2:])) * 1000 for name, seconds in times.items()}


def run(call: Call, repeats: int) -> None:
    """Calls `repeats` times, and returns when the results are there."""
    in_turn = jax.default_backend() == "cpu"
    for i in range(repeats):
        result = call()
        if in_turn or i == repeats - 1:
            wait(result)


def wait(result: Any) -> None:
    """Returns when a result of JAX or torch has been computed."""
    jax.block_until_ready(result)
    if any(getattr(leaf, "is_cuda", False) for leaf in jax.tree.leaves(result)):
        import torch

        torch.cuda.synchronize()


def compile_anew(lower: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds to trace and compile a program without what JAX has cached, and the compiled program."""
    jax.clear_caches()
    start = time.perf_counter()
    program = lower().compile()
    return (time.perf_counter() - start) * 1000, program


def temporary_mb(program: Any) -> float:
    """The megabytes that a compiled program needs besides inputs and results."""
    return program.memory_analysis().temp_size_in_bytes / 1e6


def geometric_mean(ratios: Iterable[float]) -> float:
    """The mean of ratios, which does not depend on which of the two is divided by the other."""
    return float(np.exp(np.mean(np.log(list(ratios)))))


def copies(shape: tuple[int, ...], dtype: str) -> dict[str, Call]:
    """Copies of an array into new memory; the fastest gives the bandwidth of the machine."""
    x = jnp.ones(shape, dtype)
    add = jax.jit(lambda x: x + 1)
    calls: dict[str, Call] = {"copy by jax": lambda: add(x)}
    if jax.default_backend() == "cpu":
        in_numpy = np.ones(shape, np.dtype(jnp.dtype(dtype)))
        calls["copy by NumPy"] = in_numpy.copy
        if importlib.util.find_spec("torch"):
            import torch

            calls["copy by torch"] = torch.ones(shape, dtype=getattr(torch, dtype)).clone
    return calls


def operations_per_ms(seconds: float = 0.2) -> float:
    """Compares and selects per millisecond, compiled by XLA, on float32 numbers that stay in the nearest cache.

    Only a CPU is measured, on all its cores; for other devices the result is NaN.
    """
    if jax.default_backend() != "cpu":
        return math.nan
    rounds, size = 64, 1 << 13

    @jax.jit
    def work(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        for i in range(rounds):
            swap = lax.lt(x, jnp.full_like(x, i))
            x, y = lax.select(swap, y, x), lax.select(swap, x, y)
        return x, y

    x, y = jnp.linspace(0, rounds, size), jnp.linspace(rounds, 0, size)
    jax.block_until_ready(work(x, y))
    best, first_start = float("inf"), time.perf_counter()
    while time.perf_counter() - first_start < seconds:
        start = time.perf_counter()
        jax.block_until_ready(work(x, y))
        best = min(best, time.perf_counter() - start)
    return 3 * rounds * size / best / 1000 * cores()  # one thread does all the work on so small an array


def on_threads(threads: int) -> None:
    """Limits this process to `threads` cores. Call it before the first use of JAX, which starts JAX's threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(threads)


def with_huge_pages(module: str, arguments: list[str]) -> None:
    """Replaces this process by `python -m module` with a C library that requests huge pages (Linux).

    A large array is new memory, which the system provides page by page: at 4 KiB each, that takes longer than pooling.
    """
    if HUGE_PAGES not in os.environ.get("GLIBC_TUNABLES", ""):
        tunables = ":".join(filter(None, [os.environ.get("GLIBC_TUNABLES"), HUGE_PAGES]))
        environment = {**os.environ, "GLIBC_TUNABLES": tunables}
        os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)


def versions() -> str:
    """The hardware and the versions that the figures depend on."""
    device = jax.devices()[0]
    parts = [f"{processor()}, {cores()} cores" if device.platform == "cpu" else device.device_kind]
    parts += [
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch") if importlib.util.find_spec(name)
    ]
    pages = ["huge pages"] if HUGE_PAGES in os.environ.get("GLIBC_TUNABLES", "") else []
    return ", ".join([*parts, f"Python {platform.python_version()}", *pages, str(datetime.date.today())])


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The name of the processor, from Linux if it reports one."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
