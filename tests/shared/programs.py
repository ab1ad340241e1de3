"""The instructions of a compiled program, and of one lowered for another platform."""

import os
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


# The options of XLA with which users compile, where the tests compile in another way (see conftest).
AS_USERS = {"xla_cpu_use_fusion_emitters": True} if "fusion_emitters=false" in os.environ.get("XLA_FLAGS", "") else {}


def compiled_instructions(function, *arguments):
    program = jax.jit(function).lower(*arguments).compile(AS_USERS).as_text()
    return set(re.findall(r" ([a-z][a-z-]*)\(", re.sub(r"metadata=\{.*?\}", "", program)))


def lowered_instructions(platforms, function, *arguments):
    """A gather whose indices are constants is none of the instructions: what it reads does not depend on data."""
    program = export.export(jax.jit(function), platforms=platforms)(*arguments).mlir_module()
    names = {name.replace("_", "-") for name in re.findall(r"stablehlo\.(\w+)", program)} - {"gather"}
    constants = set(re.findall(r"(%\w+) = stablehlo\.constant", program))
    indices = set(re.findall(r'stablehlo\.gather"?\(%\w+, (%\w+)\)', program))
    return names if indices <= constants else names | {"gather"}
