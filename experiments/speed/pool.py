"""How long max pooling takes, forward and backward, compared with lax and torch and with a copy.

All contenders run in one process, in turn, and every timing waits for its results; medians are printed. The copy floor
is the time that the fastest copy of x into new memory would take for the bytes that both passes must move.
"""

import argparse
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import machine
from experiments.speed import in_torch, options, timing
from experiments.speed.cases import POOLS, Pool, arrays_of, bytes_of

HEAD = """\
| pool | batch | jpool ms | lax ms | torch ms | lax / jpool | torch / jpool | forward only: lax / jpool \
| jpool / copy floor | compile ms: jpool, lax | temporary MB: jpool, lax |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""
Row = dict[str, Any]


def measure(pool: Pool, dtype: str, layout: str, rounds: int) -> Row:
    """All figures of one pool."""
    more: dict[str, Any] = {"channel_axis": 0} if layout == "first" else {}
    case = pool.case(dtype, **more)
    arrays = arrays_of(case)
    programs = {name: jax.jit(function) for name, function in case.functions.items()}
    check_equal(dtype, *(programs[name](*arrays) for name in ("jpool", "lax")))
    anew = {name: timing.compile_anew(partial(program.lower, *arrays)) for name, program in programs.items()}
    both: dict[str, timing.Call] = {name: partial(program, *arrays) for name, program in programs.items()}
    forward: dict[str, timing.Call] = {
        name: partial(jax.jit(function), arrays[0]) for name, function in pool.functions(**more).items()
    }
    if in_torch.is_here():
        both |= in_torch.calls(in_torch.pool_function(pool), arrays, gradient=True, moved=layout == "last")
    ms, forward_ms = timing.medians(both | copies(arrays[0]), rounds), timing.medians(forward, rounds)
    copied = min(time for name, time in ms.items() if "copy" in name)
    return {
        "jpool": ms["jpool"],
        "lax": ms["lax"],
        "torch": min((time for name, time in ms.items() if name.startswith("torch")), default=math.nan),
        "forward": forward_ms["lax"] / forward_ms["jpool"],
        "floor": copied * case.least_bytes / (2 * bytes_of(arrays[0])),
        "compile": [anew[name][0] for name in ("jpool", "lax")],
        "memory": [timing.temporary_mb(anew[name][1]) for name in ("jpool", "lax")],
    }


def check_equal(dtype: str, ours: Any, theirs: Any) -> None:
    """Values, and gradients unless narrow floats tie, for which lax has a rule of its own."""
    for a, b in zip(ours[: 2 if dtype == "float32" else 1], theirs, strict=False):
        np.testing.assert_array_equal(a, b)


def copies(x: jax.Array) -> dict[str, timing.Call]:
    """Copies of an array into new memory."""
    add = jax.jit(lambda x: x + jnp.ones((), x.dtype))
    calls: dict[str, timing.Call] = {"copy by jax": lambda: add(x)}
    return calls | ({"copy by NumPy": np.array(x).copy} if jax.default_backend() == "cpu" else {})


def line(name: str, pool: Pool, row: Row) -> str:
    """A row of the table."""
    times = [f"{row[library]:.2f}" for library in ("jpool", "lax", "torch")]
    ratios = [f"{row[library] / row['jpool']:.2f}" for library in ("lax", "torch")]
    more = [f"{row['forward']:.2f}", f"{row['jpool'] / row['floor']:.1f}"]
    pairs = ["{:.0f}, {:.0f}".format(*row["compile"]), "{:.1f}, {:.1f}".format(*row["memory"])]
    return f"| {' | '.join([name, str(pool.x), *times, *ratios, *more, *pairs])} |"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    options.add_shapes(parser, POOLS)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of x")
    parser.add_argument("--layout", choices=["last", "first"], default="last", help="position of the channels")
    options.ROUNDS.add_to(parser, "rounds", 15)
    options.add_png(parser)


def run(chosen: argparse.Namespace) -> None:
    """Times every chosen pool, and prints the table and the medians of its ratios."""
    about = f"forward + backward, {chosen.dtype}, channels {chosen.layout}; {machine.versions('torch')}"
    print(f"{about}\n\n{HEAD}", flush=True)
    rows: dict[str, Row] = {}
    for name in chosen.shapes:
        rows[name] = measure(POOLS[name], chosen.dtype, chosen.layout, chosen.rounds)
        print(line(name, POOLS[name], rows[name]), flush=True)
    ratios = {
        name: {library: row[library] / row["jpool"] for library in ("lax", "torch") if not math.isnan(row[library])}
        for name, row in rows.items()
    }
    print()
    for library in dict.fromkeys(library for row in ratios.values() for library in row):
        print(options.spread(f"{library} / jpool", [row[library] for row in ratios.values()]))
    print(options.spread("forward only, lax / jpool", [row["forward"] for row in rows.values()]))
    if chosen.png:
        options.draw(ratios, "time of both passes, as a multiple of jpool's", about, chosen.png)
