"""How long max pooling takes, forward and backward, compared with other libraries and with the machine's limits.

    python -m experiments.benchmark

All contenders run in one process, in turn, and every timing waits for its results; medians are printed, with floors.
The copy floor is the time that the fastest copy of x into new memory would take for the bytes that both passes must
move; the arithmetic floor, of CPUs only, is the time that their compares, selects and adds would take with all numbers
in the cache.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from experiments.common import command, pools, timing
from experiments.common.command import Size
from experiments.common.pools import POOLS, Pool
from experiments.digits import figures

Row = dict[str, Any]

RATIOS = {
    "lax / jpool": lambda row: f"{row['both']['lax'] / row['both']['jpool']:.1f}",
    "jpool / torch": lambda row: f"{row['both']['jpool'] / row['torch']:.2f}",
    "jpool / copy floor": lambda row: f"{row['both']['jpool'] / row['copy_floor']:.2f}",
    "copy floor ms": lambda row: f"{row['copy_floor']:.3f}",
    "arithmetic floor ms": lambda row: f"{row['arithmetic_floor']:.3f}",
}
MORE = {
    "forward ms": lambda row: f"{row['forward']['jpool']:.3f}",
    "forward, jpool / lax": lambda row: f"{row['forward']['jpool'] / row['forward']['lax']:.2f}",
    "compile ms": lambda row: f"{row['compile_ms']['jpool']:.0f}",
    "compile ms, lax": lambda row: f"{row['compile_ms']['lax']:.0f}",
    "temporary MB": lambda row: f"{row['temporary_mb']['jpool']:.1f}",
    "temporary MB, lax": lambda row: f"{row['temporary_mb']['lax']:.1f}",
    "GB/s": lambda row: f"{row['gigabytes_per_s']:.0f}",
    "GB/s of a copy": lambda row: f"{row['copy_gigabytes_per_s']:.0f}",
}


def measure(pool: Pool, dtype: str, layout: str, rounds: int, operations_per_ms: float) -> Row:
    """All figures of one pool."""
    contenders = pools.contenders(pool, dtype, layout)
    compiled = {
        name: timing.compile_anew(contender.program) for name, contender in contenders.items() if contender.program
    }
    copies = timing.copies(pool.x, dtype)
    forward = timing.medians({name: contender.forward for name, contender in contenders.items()}, rounds)
    both = timing.medians({name: contender.both for name, contender in contenders.items()} | copies, rounds)
    itemsize = jax.numpy.dtype(dtype).itemsize
    copied = 2 * math.prod(pool.x) * itemsize / min(both.pop(name) for name in copies)  # bytes per ms
    return {
        "x": pool.x,
        "megabytes": math.prod(pool.x) * itemsize / 1e6,
        "both": both,
        "forward": forward,
        "torch": min((ms for name, ms in both.items() if name.startswith("torch")), default=math.nan),
        "copy_floor": pool.bytes_moved(itemsize) / copied,
        "arithmetic_floor": pool.operations / operations_per_ms,
        "compile_ms": {name: ms for name, (ms, _) in compiled.items()},
        "temporary_mb": {name: timing.temporary_mb(program) for name, (_, program) in compiled.items()},
        "gigabytes_per_s": pool.bytes_moved(itemsize) / both["jpool"] / 1e6,
        "copy_gigabytes_per_s": copied / 1e6,
    }


def times(library: str) -> Callable[[Row], str]:
    """A column of milliseconds; for torch, those of its faster memory layout."""
    return lambda row: f"{row['torch'] if library == 'torch' else row['both'].get(library, math.nan):.3f}"


def table(rows: dict[str, Row], columns: dict[str, Any]) -> str:
    """A row for each pool, in Markdown."""
    lines = [f"| pool | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(column(row) for column in columns.values())} |")
    return "\n".join(lines).replace("nan", "-")


def summary(rows: dict[str, Row]) -> str:
    """Geometric means of the ratios."""
    large = [row for row in rows.values() if row["megabytes"] > 32]
    ratios = {
        "lax / jpool": [row["both"]["lax"] / row["both"]["jpool"] for row in rows.values()],
        "jpool / torch": [row["both"]["jpool"] / row["torch"] for row in rows.values()],
        "jpool / copy floor, x over 32 MB": [row["both"]["jpool"] / row["copy_floor"] for row in large],
        "forward, jpool / lax": [row["forward"]["jpool"] / row["forward"]["lax"] for row in rows.values()],
    }
    lines = [
        f"{name}: geometric mean {timing.geometric_mean(values):.2f}, from {min(values):.2f} to {max(values):.2f}"
        for name, values in ratios.items()
        if values and not math.isnan(values[0])
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Times every chosen pool, prints the tables, and writes the requested files."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, chosen = parse(given)
    if options.huge_pages:
        timing.with_huge_pages("experiments.benchmark", given)
    if options.threads < timing.cores():
        timing.on_threads(options.threads)
    about = f"{options.dtype}, channels {options.layout}; {timing.versions()}"
    print(f"forward + backward in one program, {about}\n", flush=True)
    operations = timing.operations_per_ms()
    rows = {
        name: measure(pool, options.dtype, options.layout, options.rounds, operations)
        for name, pool in tqdm(chosen.items(), leave=False, disable=None)
    }
    libraries = dict.fromkeys(name.split(",")[0] for row in rows.values() for name in row["both"])
    columns = {f"{library} ms": times(library) for library in libraries} | RATIOS
    print(table(rows, columns), table(rows, MORE), summary(rows), sep="\n\n")
    if options.json:
        written = {
            name: {key: None if value != value else value for key, value in row.items()} for name, row in rows.items()
        }
        options.json.write_text(json.dumps({"about": about, "rounds": options.rounds, "pools": written}, indent=1))
    if options.png:
        figures.bars({name: row["both"] for name, row in rows.items()}, about, options.png)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Pool]]:
    """The options, checked, and the pools that they select."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=(__doc__ or "").split("\n")[0])
    command.add_shapes(parser, "pool")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--layout", choices=["last", "first"], default="last", help="position of the channels")
    command.ROUNDS.add_to(parser, "rounds", 15)
    Size("number of cores to use (Linux)", 1, timing.cores()).add_to(parser, "threads", timing.cores())
    parser.add_argument(
        "--huge-pages", action="store_true", help="use huge pages for new memory, for all methods (Linux)"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures to a file")
    parser.add_argument("--png", metavar="FILE", type=Path, help="draw them as bars")
    options = parser.parse_args(arguments)
    chosen = {name: POOLS[name] for name in command.chosen(parser, options.shapes, POOLS, "pool")}
    for name, is_given in {"threads": options.threads < timing.cores(), "huge-pages": options.huge_pages}.items():
        if is_given and sys.platform != "linux":
            parser.error(f"argument --{name}: needs Linux")
    command.check_files(parser, options.json, options.png)
    return options, chosen


if __name__ == "__main__":
    main()
