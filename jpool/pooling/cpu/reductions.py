"""Axes that one window covers completely, arranged for XLA:CPU: two reductions instead of one of two operands.

The first reduction finds the value, the second the mark of the element that holds it. XLA:CPU makes fast loops of both,
and a slow one of a reduction of two operands. Reading x twice is also faster than pooling it in blocks where the window
has large prime factors, and compiles 3 to 7 times as fast: global pooling of 64x398x128, both passes, takes 3.0 ms
instead of 11, as long as `jnp.max` (AMD EPYC, 2 cores, jax 0.12.0.1, 2026-11-26). The axes are merged into one first:
over two axes, XLA:CPU's reductions take up to four times as long.

The first reduction may lose a NaN: on XLA:CPU `jnp.max` does (jax 0.10.2 to 0.12.0.1, openxla/xla#21461). And it may
return either of 0 and -0. So the second one also finds whether there is a NaN, and the sign of the winner.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.pooling.cpu.loops import bits_to_accumulator, to_bits
from jpool.pooling.integers.geometry import Geometry, Step
from jpool.pooling.plain.arrays import filled, padding_value
from jpool.pooling.plain.forward import marks_of_all_taps, reduce_axes
from jpool.pooling.plain.ties import RULES, Candidate

NO_NAN = 1 << 31  # a bit of a mark: the element is not a NaN
MOST_TAPS = 1 << 30  # marks have 30 bits, beside NO_NAN and the sign


def select_step(
    geometry: Geometry,
    step: Step,
    values: jax.Array,
    inner: jax.Array | None,
    dtype: np.dtype,
    finished: Geometry | None,
) -> Candidate:
    """As `forward._select_step`, for a step that reduces axes; for rules with one winner."""
    rule, elements = RULES[geometry.ties], bits_to_accumulator(values, dtype)
    padding = padding_value(geometry, dtype).astype(elements.dtype)
    if geometry.taps < MOST_TAPS:
        marks = lax.convert_element_type(marks_of_all_taps(geometry, step, values.shape, inner), jnp.uint32)
        value, mark = _reduce_twice(geometry, _one_axis(step, elements), _one_axis(step, marks), padding)
        value, mark = (array.reshape(step.geometry.values_shape) for array in (value, mark))
    else:
        value, mark = reduce_axes(geometry, step, elements, inner, padding)
    winners = lax.convert_element_type(mark, rule.winners_dtype(geometry))
    if finished is not None:
        winners = rule.resolve_padding(finished, value, winners, padding)
    return to_bits(value, dtype), winners


def _one_axis(step: Step, array: jax.Array) -> jax.Array:
    """An array (before, reduced, after) of the axes before those that are reduced, these, and those after them."""
    first, last = step.reduced_axes[0], step.reduced_axes[-1] + 1
    shape = array.shape
    return array.reshape(math.prod(shape[:first]), math.prod(shape[first:last]), math.prod(shape[last:]))


def _reduce_twice(geometry: Geometry, elements: jax.Array, marks: jax.Array, padding: np.ndarray) -> Candidate:
    """The value and the mark of the element that holds it, as uint32, along axis 1."""
    last = RULES[geometry.ties].last_wins
    value = _reduce(elements, padding, lax.min if geometry.minimum else lax.max)
    holds = lax.eq(elements, lax.broadcast_in_dim(value, elements.shape, (0, 2)))
    if not jnp.issubdtype(elements.dtype, jnp.floating):
        return value, _choose(marks, holds, last)
    is_nan = lax.ne(elements, elements)
    marks = lax.bitwise_or(lax.shift_left(marks, filled(marks, 1)), _is_negative(elements))
    marks = lax.select(is_nan, marks, lax.bitwise_or(marks, filled(marks, NO_NAN)))
    chosen = _choose(marks, lax.bitwise_or(holds, is_nan), last=False)  # the first NaN, if there is one
    no_nan = _has_bit(chosen, NO_NAN)
    if last:  # but of several NaNs the first
        chosen = lax.select(no_nan, _choose(marks, holds, last=True), chosen)
    zero = lax.select(_has_bit(chosen, 1), filled(value, -0.0), filled(value, 0))
    value = lax.select(lax.eq(value, zero), zero, value)
    mark = lax.shift_right_logical(lax.bitwise_and(chosen, filled(chosen, NO_NAN - 1)), filled(chosen, 1))
    return lax.select(no_nan, value, filled(value, np.nan)), mark


def _choose(marks: jax.Array, where: jax.Array, last: bool) -> jax.Array:
    """The smallest mark of each window, or the largest."""
    none, choice = (0, lax.max) if last else (jnp.iinfo(marks.dtype).max, lax.min)
    return _reduce(lax.select(where, marks, filled(marks, none)), np.asarray(none, marks.dtype), choice)


def _reduce(array: jax.Array, init: np.ndarray, operation: Callable[..., Any]) -> jax.Array:
    return lax.reduce(array, init, operation, (1,))


def _is_negative(floats: jax.Array) -> jax.Array:
    """1 where the sign bit is set, as uint32."""
    integers = lax.bitcast_convert_type(floats, f"int{8 * floats.dtype.itemsize}")
    return lax.convert_element_type(lax.lt(integers, filled(integers, 0)), jnp.uint32)


def _has_bit(numbers: jax.Array, bit: int) -> jax.Array:
    return lax.ne(lax.bitwise_and(numbers, filled(numbers, bit)), filled(numbers, 0))
