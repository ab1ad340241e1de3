"""Implicit promotion is an error in tests of the library; tests of experiments allow it, as JAX does by default."""

import ctypes
import gc
import os
import sys

import jax
import jaxlib
import pytest
from shared.poolings import ARRANGEMENTS

from jpool.pooling.derivative.primitives import define_platform

gc.set_threshold(100_000, 50, 100)  # JAX keeps many objects alive: collect garbage less often

# jaxlib 0.10 has two ways to compile a fused loop; the older one takes half the time. Later versions, which CI runs as
# well, have one.
if jaxlib.__version__.startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"

jax.config.update("jax_traceback_in_locations_limit", 0)  # programs without source locations are lowered faster
jax.config.update("jax_num_cpu_devices", 8)  # most tests use the first one
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def _no_programs_of_other_modules():
    """The compiled programs of all modules would take several GB."""
    yield
    jax.clear_caches()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # the memory of compiling goes back to the system


@pytest.fixture
def promotion_as_usual():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def compiled_quickly():
    """For modules that test behaviour and texts, and spend most of their time compiling."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for subprocesses
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", params=["cpu", pytest.param("plain", marks=pytest.mark.exhaustive)])
def arrangement(request, compiled_quickly):
    """Runs the tests of a module with the arrangement for CPUs, and again with the plain algorithm, both on this CPU."""
    define_platform("cpu", ARRANGEMENTS[request.param])
    jax.clear_caches()  # programs of the other arrangement
    yield request.param
    define_platform("cpu", ARRANGEMENTS["cpu"])
    jax.clear_caches()
