"""Microbatches: no padding, and only one in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpool
from jpool.per_example.microbatches import in_microbatches

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("size", [None, 1, 2, 5, 8])
def test_sums_and_rows_are_those_of_the_whole_batch(size):
    """Of 7 examples: all at once, a loop, a loop and a remainder, one and a remainder, fewer than a microbatch."""
    sizes = []

    def function(batch):
        sizes.append(len(batch["x"]))
        return batch["x"].sum(), (batch["x"] * 2, batch["none"])

    x = np.array([3, -1, 4, 1, -5, 9, 2], np.float32)
    total, (rows, none) = in_microbatches(function, size)({"x": jnp.asarray(x), "none": None})
    assert total == x.sum()
    np.testing.assert_array_equal(rows, 2 * x)
    assert none is None
    assert set(sizes) == ({7} if size in (None, 8) else {size, 7 % size} - {0})


def test_memory_is_that_of_one_microbatch_for_any_batch_size():
    w = jax.ShapeDtypeStruct((64, 512), jnp.float32)
    gradient = 4 * w.size

    def temporary(batch, size):
        f = jax.jit(jpool.gradient_statistics(lambda w, x: jnp.tanh(x @ w).sum(), microbatch_size=size))
        xs = jax.ShapeDtypeStruct((batch, 64), jnp.float32)
        return f.lower(w, xs).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(16, 4), temporary(256, 4)
    assert 4 * gradient <= few <= 10 * gradient  # XLA holds the gradients twice here
    assert many - few < 0.05 * gradient  # the losses and norms
    assert temporary(256, None) >= 256 * gradient
