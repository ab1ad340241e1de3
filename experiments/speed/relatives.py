"""How long the functions related to max_pool take: tie rules, forward mode, argmax, unpooling, adaptive and global.

Each is compared with an equivalent: max_pool itself, lax, JAX's scatter, or torch. Both passes run in one compiled
program unless the row's name specifies one.
"""

import argparse
from functools import partial

import jax

from experiments.common import machine
from experiments.speed import cases, in_torch, options, timing


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    options.add_shapes(parser, cases.relatives())
    options.ROUNDS.add_to(parser, "rounds", 15)


def run(chosen: argparse.Namespace) -> None:
    """Times every chosen function and prints the table."""
    print(f"windows of 3x3, stride 2, padding 1, on {cases.IMAGES}, float32; {machine.versions('torch')}\n")
    print("| function | jpool ms | other | ms | other / jpool |\n|---|---:|---|---:|---:|", flush=True)
    theirs = in_torch.relative_functions() if in_torch.is_here() else {}
    for name, case in cases.relatives().items():
        if name not in chosen.shapes:
            continue
        arrays = cases.arrays_of(case)
        calls: dict[str, timing.Call] = {
            other: partial(jax.jit(function), *arrays) for other, function in case.functions.items()
        }
        if name in theirs:
            calls |= in_torch.calls(theirs[name], arrays, gradient=bool(case.kept), moved=True)
        ours, *others = timing.medians(calls, chosen.rounds).items()
        for other, ms in others or [("-", ours[1])]:
            print(f"| {name} | {ours[1]:.2f} | {other} | {ms:.2f} | {ms / ours[1]:.2f} |", flush=True)
