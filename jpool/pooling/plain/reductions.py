"""Axes that one window covers completely, in one step however large they are: a reduction and its tangent."""

import jax
import numpy as np
from jax import lax

from jpool.pooling.integers.geometry import Geometry
from jpool.pooling.plain.arrays import padding_value
from jpool.pooling.plain.ties import RULES, Candidate


def reduce_step(pooling: Geometry, x: jax.Array) -> Candidate:
    """`select_step` where one window covers the pooled axes, for a rule with one winner: a `lax.reduce`.

    Its order is free, so two candidates are ordered by their numbers.
    """
    rule = RULES[pooling.ties]

    def choose(a: Candidate, b: Candidate) -> Candidate:
        in_order = lax.le(a[1], b[1])
        earlier = lax.select(in_order, a[0], b[0]), lax.select(in_order, a[1], b[1])
        later = lax.select(in_order, b[0], a[0]), lax.select(in_order, b[1], a[1])
        return rule.choose(pooling, earlier, later)

    numbers = element_numbers(pooling)
    # If an element equals the initial value, the lowest, all do, so that the number of the first or last one is right.
    initial = padding_value(pooling, x.dtype), np.zeros((), numbers.dtype)
    result = lax.reduce((x, numbers), initial, choose, pooling.pooled)
    return result[0].reshape(pooling.values_shape), result[1].reshape(pooling.values_shape)


def element_numbers(pooling: Geometry) -> jax.Array:
    """The number of each element in the one window that covers it."""
    dtype = RULES[pooling.ties].winners_dtype(pooling)
    numbers = lax.iota(dtype, pooling.taps).reshape([pooling.axes[i].size for i in pooling.pooled])
    return lax.broadcast_in_dim(numbers, pooling.example_shape, pooling.pooled)


def gather_reduced(pooling: Geometry, winners: jax.Array, t: jax.Array) -> jax.Array:
    """Reads t at the winner of the one window."""
    won = lax.eq(lax.broadcast_in_dim(winners, t.shape, range(t.ndim)), element_numbers(pooling))
    read = lax.reduce(lax.select(won, t, lax.full_like(t, 0)), np.zeros((), t.dtype), lax.add, pooling.pooled)
    return read.reshape(pooling.values_shape)
