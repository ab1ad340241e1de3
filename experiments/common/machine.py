"""The machine and the versions that an experiment's figures depend on."""

import datetime
import importlib.metadata
import importlib.util
import os
import platform

import jax


def versions(*libraries: str) -> str:
    """The hardware, the versions of Python, jax and other libraries that are installed, and the date."""
    device = jax.devices()[0]
    parts = [f"{processor()}, {cores()} cores" if device.platform == "cpu" else device.device_kind]
    installed = [name for name in ("jax", *libraries) if importlib.util.find_spec(name)]
    parts += [f"{name} {importlib.metadata.version(name)}" for name in installed]
    return ", ".join([*parts, f"Python {platform.python_version()}", str(datetime.date.today())])


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
