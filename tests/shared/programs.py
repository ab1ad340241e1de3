"""The instructions of a compiled program, and of one lowered for another platform."""

import re

import jax
from jax import export

# Scatters, loops, sorts, window reductions, and accesses at indices that are known only at run time.
FORBIDDEN = {
    "scatter",
    "select-and-scatter",
    "reduce-window",
    "gather",
    "dynamic-slice",
    "dynamic-update-slice",
    "while",
    "sort",
}


def compiled_instructions(function, *arguments):
    program = jax.jit(function).lower(*arguments).compile().as_text()
    return set(re.findall(r" ([a-z][a-z-]*)\(", re.sub(r"metadata=\{.*?\}", "", program)))


def lowered_instructions(platform, function, *arguments):
    program = export.export(jax.jit(function), platforms=[platform])(*arguments).mlir_module()
    return {name.replace("_", "-") for name in re.findall(r"stablehlo\.(\w+)", program)}
