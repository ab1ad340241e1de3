"""Axes that one window covers completely, arranged for XLA:CPU: two reductions instead of one of two operands.

The first reduction finds the value, the second the number of the element that holds it. XLA:CPU makes fast loops of
both, and a slow one of a reduction of two operands. Reading x twice is also faster than pooling it in blocks where the
window has large prime factors, and compiles 3 to 7 times as fast: global pooling of 64x398x128, both passes, takes 3.0
ms instead of 11, as long as `jnp.max` (AMD EPYC, 2 cores, jax 0.12.0.1, 2026-11-26). The axes are merged into one
first: over two axes, XLA:CPU's reductions take up to four times as long.

The first reduction may lose a NaN: on XLA:CPU `jnp.max` does (jax 0.10.2 to 0.12.0.1, openxla/xla#21461). And it may
return either of 0 and -0. So the second one also finds whether there is a NaN, and the sign of the winner: what it
reduces holds, from the highest bit to the lowest, whether the element is not a NaN, its number, and its sign.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.pooling.cpu.loops import bits_to_accumulator, from_bits, to_bits
from jpool.pooling.integers.geometry import Geometry
from jpool.pooling.plain.arrays import padding_value
from jpool.pooling.plain.ties import RULES, Candidate

NOT_NAN = 1 << 31


def select_step(pooling: Geometry, x: jax.Array) -> Candidate:
    """The same as `plain.reductions.reduce_step`, bit for bit."""
    first, last, sizes = pooling.pooled[0], pooling.pooled[-1] + 1, x.shape
    elements = bits_to_accumulator(to_bits(x, x.dtype), x.dtype)
    elements = elements.reshape(math.prod(sizes[:first]), pooling.taps, math.prod(sizes[last:]))
    padding = padding_value(pooling, x.dtype).astype(elements.dtype)
    value = lax.reduce(elements, padding, lax.min if pooling.minimum else lax.max, (1,))
    holds = lax.eq(elements, lax.broadcast_in_dim(value, elements.shape, (0, 2)))
    numbers = lax.broadcasted_iota(np.uint32, elements.shape, 1)
    if jnp.issubdtype(x.dtype, jnp.floating):
        value, numbers = _of_floats(pooling, elements, value, holds, numbers)
    else:
        numbers = _reduce(numbers, holds, RULES[pooling.ties].last_wins)
    winners = lax.convert_element_type(numbers, RULES[pooling.ties].winners_dtype(pooling))
    values = from_bits(to_bits(value, x.dtype), x.dtype)
    return values.reshape(pooling.values_shape), winners.reshape(pooling.values_shape)


def _of_floats(pooling: Geometry, elements: Any, value: Any, holds: Any, numbers: Any) -> Candidate:
    """The value and the number of the winner, where there may be NaNs and zeros of both signs."""
    integers = lax.bitcast_convert_type(elements, f"int{8 * elements.dtype.itemsize}")
    is_nan, is_negative = lax.ne(elements, elements), lax.lt(integers, lax.full_like(integers, 0))
    marks = numbers * np.uint32(2) + lax.convert_element_type(is_negative, np.uint32)
    marks = lax.select(is_nan, marks, marks | np.uint32(NOT_NAN))
    chosen = _reduce(marks, holds | is_nan, last=False)  # the first NaN, if there is one
    no_nan = chosen >= np.uint32(NOT_NAN)
    if RULES[pooling.ties].last_wins:  # but of several NaNs the first
        chosen = lax.select(no_nan, _reduce(marks, holds, last=True), chosen)
    zero = lax.select(chosen % np.uint32(2) == 1, lax.full_like(value, -0.0), lax.full_like(value, 0))
    value = lax.select(lax.eq(value, zero), zero, value)
    return lax.select(no_nan, value, lax.full_like(value, np.nan)), chosen % np.uint32(NOT_NAN) // np.uint32(2)


def _reduce(marks: jax.Array, where: jax.Array, last: bool) -> jax.Array:
    """The smallest mark of each window, or the largest."""
    none = np.uint32(0 if last else 2**32 - 1)
    return lax.reduce(lax.select(where, marks, lax.full_like(marks, none)), none, lax.max if last else lax.min, (1,))
