"""Compiles for an H100 and a TPU v5e on a machine without either, and reads kernels and bytes from the programs.

The compilers are packages (the extra `accelerators` in pyproject.toml) that run on a CPU. Their programs are not run
here, so no figure in this file is a measured time.
"""

import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

# Rates of an H100 per second: bytes moved, and instructions issued by 132 x 128 lanes at 1.755 GHz.
BANDWIDTH = 3.35232e12
INSTRUCTIONS = 132 * 128 * 1.755e9

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
TPU = "v5e:2x2"

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "-1",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes at once
}
DUMP = "--xla_dump_hlo_pass_re=NONE --xla_dump_emitter_re=ptx --xla_gpu_autotune_level=0"
MISSING = """The compilers for accelerators are packages. Install them in an environment of their own (1 GB):
  pip install -e ".[experiments,accelerators]"
JAX reports: {error}"""

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}  # no data moved
SHAPE = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
CALLED = re.compile(r"\b(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")


class Kernel(NamedTuple):
    """One operation of a compiled program that reads and writes memory."""

    name: str
    operation: str  # "fusion", "custom-call", ..
    read: int  # bytes
    written: int  # bytes
    cycles: int  # estimated by the TPU compiler, 0 where it gives no estimate
    instructions: int  # of all threads of a GPU together, 0 where unknown

    @property
    def seconds(self) -> float:
        """The larger of two bounds on an H100: bytes over bandwidth, and instructions over the issue rate."""
        return max((self.read + self.written) / BANDWIDTH, self.instructions / INSTRUCTIONS)


class Program(NamedTuple):
    """A compiled program and its kernels; those inside a loop are counted once."""

    text: str
    kernels: tuple[Kernel, ...]

    @property
    def bytes(self) -> int:
        """Read and written by all kernels."""
        return sum(kernel.read + kernel.written for kernel in self.kernels)

    @property
    def seconds(self) -> float:
        """The estimated time on an H100."""
        return sum(kernel.seconds for kernel in self.kernels)

    @property
    def cycles(self) -> int:
        """Estimated by the TPU compiler; reduce-window and select-and-scatter are not included."""
        return sum(kernel.cycles for kernel in self.kernels)

    def count(self, operation: str) -> int:
        """How often the operation occurs in the text."""
        return len(re.findall(rf" {re.escape(operation)}(?:-start)?\(", self.text))


# --- compiling ---


def restart_for_compilers(module: str, arguments: list[str]) -> None:
    """Replaces this process by `python -m module` with the environment that the compilers need.

    The plugins look for hardware as soon as JAX is imported, and XLA reads there where to dump the GPU's kernels.
    """
    if "xla_dump_to" not in os.environ.get("XLA_FLAGS", ""):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={tempfile.mkdtemp()} {DUMP}"
        os.execve(
            sys.executable,
            [sys.executable, "-m", module, *arguments],
            {**os.environ, **ENVIRONMENT, "XLA_FLAGS": flags},
        )


@cache
def devices(platform: str, topology: str = "") -> list[Any]:
    """Devices of "cuda" or "tpu" to compile for: one, or those of a topology (slices x hosts x devices, or a TPU's)."""
    try:
        if platform == "cuda":
            target = topologies.get_topology_desc(platform="cuda", target_config=H100, topology=topology or "1x1x1")
        else:
            target = topologies.get_topology_desc(topology or TPU, platform="tpu")
    except Exception as error:  # plugins raise exceptions of many types
        raise RuntimeError(MISSING.format(error=error)) from error
    return list(target.devices)


def compile_for(platform: str, function: Callable[..., Any], *shapes: Any) -> Program:
    """Compiles `function` for one device of the platform, for arguments of these shapes and dtypes."""
    sharding = SingleDeviceSharding(devices(platform)[0])
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
    compiled = jax.jit(function).lower(*placed).compile()
    return read_program(compiled.as_text() or "", dumped_instructions())


def dumped_instructions() -> dict[str, int]:
    """Instructions by kernel, over all threads, of the program compiled last; read from XLA's dump, which is deleted.

    Branches count as taken, and a loop inside a kernel counts once.
    """
    option = re.search(r"--xla_dump_to=(\S+)", os.environ.get("XLA_FLAGS", ""))
    files = [file for file in Path(option[1]).iterdir() if file.is_file()] if option else []
    per_thread = {}
    for text in (file.read_text() for file in files if file.suffix == ".ptx"):
        for name, body in re.findall(r"\.entry ([\w$]+)\((.*?)\n}", text, re.DOTALL):
            per_thread[name] = len(re.findall(r"^\t(?!\.)[^\n]*;", body, re.MULTILINE))
    total = {}
    for text in (file.read_text() for file in files if file.name.endswith("thunk_sequence.txt")):
        for name, *sizes in re.findall(
            r"\] (\S+) grid: \[(\d+), (\d+), (\d+)\] threads: \[(\d+), (\d+), (\d+)\]", text
        ):
            total[name] = per_thread.get(name, 0) * math.prod(map(int, sizes))
    for file in files:
        file.unlink()
    return total


# --- reading what was compiled ---


def read_program(text: str, instructions: dict[str, int] | None = None) -> Program:
    """The kernels of a compiled program; `instructions` maps the names of kernels to counts, where known."""
    computations = dict(_computations(text))
    types = {name: type_ for computation in computations.values() for name, (type_, _, _) in computation.items()}
    kernels = []
    for name, type_, operation, rest in _executed(computations, "ENTRY"):
        operands, attributes = _operands_and_attributes(rest)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', attributes)
        read = sum(_bytes_read(computations, types, operands, attributes))
        kernels.append(
            Kernel(
                name,
                operation,
                read,
                size_of(type_),
                int(cycles[1]) if cycles else 0,
                (instructions or {}).get(re.sub(r"\W", "_", name), 0),
            )
        )
    return Program(text, tuple(kernels))


def size_of(type_: str) -> int:
    """The bytes of an array, or of all arrays of a tuple, from its type as written in HLO."""
    total = 0
    for dtype, shape in SHAPE.findall(type_):
        bits = 8 if dtype == "pred" else int(re.sub(r"^[a-z]+(\d+).*", r"\1", dtype))
        total += -(-math.prod(int(n) for n in shape.split(",") if n) * bits // 8)
    return total


def _computations(text: str) -> Iterator[tuple[str, dict[str, tuple[str, str, str]]]]:
    """Each computation by name, with "ENTRY" for the program's: (type, operation, remaining text) by instruction."""
    for block in re.split(r"\n(?=ENTRY |%?[\w.\-]+ \()", text):
        header, *lines = block.split("\n")
        name = "ENTRY" if header.startswith("ENTRY") else header.split(" ")[0].lstrip("%")
        matches = (INSTRUCTION.match(re.sub(r"/\*.*?\*/", "", line)) for line in lines)
        yield name, {m[1]: (m[2], m[3], m[4]) for m in matches if m}


def _executed(computations: Any, name: str) -> Iterator[tuple[str, str, str, str]]:
    """The instructions of a computation that move data, and those of the loops and branches that it runs."""
    for instruction, (type_, operation, rest) in computations[name].items():
        if operation in ("while", "conditional", "call"):
            called = CALLED.findall(rest)
            branches = re.search(r"branch_computations=\{(.*?)\}", rest)
            called += [branch.strip(" %") for branch in branches[1].split(",")] if branches else []
            for computation in called:
                yield from _executed(computations, computation)
        elif operation not in FREE and not operation.endswith("-done"):
            yield instruction, type_, operation, rest


def _operands_and_attributes(rest: str) -> tuple[list[str], str]:
    depth, end = 1, len(rest)
    for i, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            end = i
            break
    return re.findall(r"%([\w.\-]+)", rest[:end]), rest[end:]


def _bytes_read(computations: Any, types: dict[str, str], operands: list[str], attributes: str) -> Iterator[int]:
    """The bytes of each operand; for one that a fusion only slices, the bytes of the slices."""
    fused = computations.get(next(iter(re.findall(r"calls=%?([\w.\-]+)", attributes)), ""), {})
    for i, operand in enumerate(operands):
        whole = size_of(types.get(operand, ""))
        parameter = next(
            (n for n, (_, op, rest) in fused.items() if op == "parameter" and rest.startswith(f"{i})")), None
        )
        users = [(type_, op) for type_, op, rest in fused.values() if parameter in _operands_and_attributes(rest)[0]]
        sliced = users and all(op == "slice" for _, op in users)
        yield min(whole, sum(size_of(type_) for type_, _ in users)) if sliced else whole
