"""Microbatches: no padding, and only one in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpool
from jpool.per_example.microbatches import in_microbatches

RNG = np.random.default_rng(0)


def whole_numbers(*shape):
    return jnp.asarray(RNG.integers(-2, 3, shape), jnp.float32)


@pytest.mark.parametrize("size", [None, 1, 2, 3, 5, 7, 8])
def test_sums_and_rows_are_those_of_the_whole_batch(size):
    sizes = []

    def function(batch):
        sizes.append(len(batch["x"]))
        return batch["x"].sum(), (batch["x"] * 2, batch["none"])

    x = whole_numbers(7)
    total, (rows, none) = in_microbatches(function, size)({"x": x, "none": None})
    assert total == x.sum()
    np.testing.assert_array_equal(rows, 2 * x)
    assert none is None
    assert set(sizes) == ({7} if size in (None, 7, 8) else {size, 7 % size} - {0})


def test_memory_is_that_of_one_microbatch_for_any_batch_size():
    def dense(w, x):
        return jnp.tanh(x @ w).sum()

    w = jnp.ones((64, 512))
    gradient = w.nbytes

    def temporary(batch, size):
        f = jax.jit(jpool.gradient_statistics(dense, microbatch_size=size))
        return f.lower(w, jnp.ones((batch, 64))).compile().memory_analysis().temp_size_in_bytes

    of_microbatches_of_4 = [temporary(batch, 4) for batch in (16, 64, 256)]
    assert 4 * gradient <= of_microbatches_of_4[0] <= 10 * gradient  # XLA holds the gradients twice here
    assert of_microbatches_of_4[-1] - of_microbatches_of_4[0] < 0.05 * gradient  # the losses and norms
    assert temporary(256, None) >= 256 * gradient
