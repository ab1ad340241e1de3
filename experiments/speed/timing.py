"""Fair timing of several programs on one machine."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Call = Callable[[], Any]

SHORTEST = 0.01  # seconds; shorter calls are repeated and timed together
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
