"""Silent promotion is an error in every test of the library; experiments are written as their users write."""

import gc

import jax
import pytest

from jpool.pooling.derivative import primitives

gc.set_threshold(100_000, 50, 100)  # what JAX keeps of thousands of programs is looked through less often

jax.config.update("jax_num_cpu_devices", 8)  # of which most tests use the first
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def promotion_as_usual():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def compiled_quickly():
    """For modules that test that something runs and says what it should, where compiling takes most of the time."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of processes that are started
        yield
    jax.config.update("jax_disable_most_optimizations", before)


ARRANGEMENTS = {"cpu": primitives.PLATFORMS["cpu"], "gpu": primitives.PLAIN, "tpu": primitives.PLATFORMS["tpu"]}


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def arrangement(request):
    """The tests of a module that uses this run on this CPU as they would there, and again as a GPU would compute."""
    before = jax.config.values["jax_disable_most_optimizations"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(primitives.PLATFORMS, "cpu", ARRANGEMENTS[request.param])
        jax.config.update("jax_disable_most_optimizations", before or request.param != "cpu")  # compiles sooner
        jax.clear_caches()  # of programs for the other one
        yield request.param
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()
