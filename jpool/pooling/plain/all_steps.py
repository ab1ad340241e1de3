"""A whole pooling: its steps one after the other, forward and back.

    select :: (geometry; x)           -> (values, winners)        (static arguments; arrays)
    route  :: (geometry; winners, ct) -> cotangent of the example
    gather :: (geometry; winners, t)  -> tangent of the values

`winners` holds one array for each step (see `steps`). What a platform does in its own way is one step, and the values
alone; the loops over steps with winners are the same everywhere.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jpool.pooling.integers.geometry import Geometry
from jpool.pooling.plain import backward, forward
from jpool.pooling.plain.arrays import to_accumulator
from jpool.pooling.plain.steps import steps
from jpool.pooling.plain.ties import RULES

Winners = tuple[jax.Array, ...]


class Platform(NamedTuple):
    """How one step is computed; by default by the plain algorithm."""

    select_step: Callable[[Geometry, jax.Array], tuple[jax.Array, jax.Array]] = forward.select_step
    route_step: Callable[[Geometry, jax.Array, jax.Array], jax.Array] = backward.route_step
    gather_step: Callable[[Geometry, jax.Array, jax.Array], jax.Array] = backward.gather_step
    select_values: Callable[[Geometry, jax.Array], jax.Array] | None = None  # the values alone, in a way of its own


def select(platform: Platform, geometry: Geometry, x: jax.Array) -> tuple[jax.Array, Winners]:
    """Finds the maximum of every window of one example, or the minimum if geometry.minimum, and the tap that holds it.

    Args:
      platform: how one step is computed.
      geometry: the pooling.
      x: one example, shape `geometry.example_shape`, any real dtype.

    Returns:
      values: shape `geometry.values_shape`, dtype of x. That of a window of padding alone is the value of padding:
        -inf, or the lowest of the dtype.
      winners: for each step, the winners of its windows.
    """
    values, winners = x, list[jax.Array]()
    for step in steps(geometry):
        values, step_winners = platform.select_step(step, lax.optimization_barrier(values) if winners else values)
        winners.append(step_winners)
    return values, tuple(winners)


def route(platform: Platform, geometry: Geometry, winners: Winners, ct: jax.Array) -> jax.Array:
    """Sends each cotangent to the winner of its window; where windows overlap, an element adds up what it receives.

    If ties are split, each tied element receives an equal share. Floats of less than 32 bits add up in float32 and are
    rounded once.

    Args:
      platform: how one step is computed.
      geometry: the pooling.
      winners: from `select`.
      ct: cotangents of the values, shape `geometry.values_shape`.

    Returns:
      The cotangent of the example, shape `geometry.example_shape`, dtype of ct.
    """
    # Without the barrier, if both passes are in one program, XLA may compute the winners again where they are read: on
    # an H100 LeNet's forward pass then writes three arrays of bool instead of the winners.
    winners, sums = lax.optimization_barrier(winners), ct
    if RULES[geometry.ties].masks:
        sums = to_accumulator(ct)
        sums = lax.div(sums, count_tied(platform, geometry, winners, sums.dtype))
    for i, step in reversed([*enumerate(steps(geometry))]):
        # Without the barrier XLA:GPU fuses several steps into one kernel, which repeats the first for each tap.
        sums = platform.route_step(step, winners[i], lax.optimization_barrier(sums) if i < len(winners) - 1 else sums)
    return lax.convert_element_type(sums, ct.dtype)


def gather(platform: Platform, geometry: Geometry, winners: Winners, t: jax.Array) -> jax.Array:
    """Reads from t, of shape `geometry.example_shape`, the element at each winner; 0 where a window has no winner.

    If ties are split, the mean of the tied elements.
    """
    masks = RULES[geometry.ties].masks
    read = to_accumulator(t) if masks else t  # only a mean adds
    for step, step_winners in zip(steps(geometry), winners, strict=True):
        read = platform.gather_step(step, step_winners, read)
    if masks:
        read = lax.div(read, count_tied(platform, geometry, winners, read.dtype))
    return lax.convert_element_type(read, t.dtype)


def count_tied(platform: Platform, geometry: Geometry, masks: Winners, dtype: jnp.dtype) -> jax.Array:
    """How many elements of each window are tied; 1 for a window of padding alone, to divide by."""
    count = lax.convert_element_type(lax.population_count(masks[0]), dtype)
    for step, mask in zip(steps(geometry)[1:], masks[1:], strict=True):
        count = platform.gather_step(step, mask, count)
    return lax.max(count, lax.full_like(count, 1))
