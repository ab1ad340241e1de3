"""The backward pass: `route_step` sends every cotangent to the winner of its window. `gather_step` is its transpose.

    route_step  :: (pooling; winners, ct) -> cotangent of the example        (static arguments; arrays)
    gather_step :: (pooling; winners, t)  -> tangent of the values

A cotangent (`ct`) is the gradient of the loss with respect to one value. Usually "every window adds its cotangent to
its winner", which writes to addresses that depend on the data: a scatter. Here every element reads the windows that
cover it, which depend on the geometry only (see `tables`), and adds up the cotangents of those that it has won. For
window 3, stride 2 and padding 1:

    x = [7, 1, 4, 6, 6], winners [1, 2, 0], ct [10, 20, 40]     element   0   1   2   3   4
    the first window that covers it                                       0   0   1   1   2
    ... the winner of that window                                         1   1   2   2   0
    ... and as which of its taps it covers the element                    1   2   1   2   1
    its ct, where both are equal                                         10   0   0  20   0
    the next window that covers it                                        -   1   -   2   -
    ... the winner of that window                                         -   2   -   0   -
    ... and as which of its taps it covers the element                    -   0   -   0   -
    its ct, where both are equal                                          0   0   0  40   0
    sum                                                                  10   0   0  60   0
"""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.pooling.integers.geometry import Geometry
from jpool.pooling.integers.tables import covers
from jpool.pooling.plain.arrays import sum_of_tables, take, to_accumulator
from jpool.pooling.plain.forward import Taps, no_tap, number_dtype, read_taps, tap_numbers
from jpool.pooling.plain.reductions import gather_reduced
from jpool.pooling.plain.steps import is_reduction
from jpool.pooling.plain.ties import RULES

UNROLLED = 32  # more windows that cover one element are an axis of the arrays: the program stays short


def route_step(pooling: Geometry, winners: jax.Array, ct: jax.Array) -> jax.Array:
    """Sends each cotangent to the winners of its window; an element adds up what it receives.

    Args:
      pooling: one step of a pooling.
      winners: from `select_step`.
      ct: cotangents of the values, shape `pooling.values_shape`.

    Returns:
      The cotangent of the example, shape `pooling.example_shape`; float32 for narrower floats, else the dtype of ct.
    """
    rule, shape, ct = RULES[pooling.ties], pooling.example_shape, to_accumulator(ct)

    def add_up(pooled: tuple[int, ...], tables: tuple[Any, ...], winners: jax.Array, ct: jax.Array) -> jax.Array:
        if not pooled:
            won = rule.has_won(winners, sum_of_tables(tables, shape, number_dtype(pooling)))
            return lax.select(won, ct, lax.full_like(ct, 0))
        i, *others = pooled

        def nth(windows: Any, numbers: Any) -> jax.Array:
            return add_up(tuple(others), (*tables, (i, numbers)), take(winners, i, windows), take(ct, i, windows))

        none, stride = no_tap(pooling), pooling.tap_strides[i]
        windows = [cover.windows for cover in covers(pooling.axes[i])]
        numbers = [np.where(cover.taps < 0, none, cover.taps * stride) for cover in covers(pooling.axes[i])]
        if len(windows) > UNROLLED:
            return jnp.sum(jax.vmap(nth)(np.stack(windows), np.stack(numbers)), 0, dtype=ct.dtype)
        return reduce(lax.add, [*map(nth, windows, numbers)] or [lax.full(shape, 0, ct.dtype)])  # no element is covered

    return add_up(pooling.pooled, (), winners, ct)


def gather_step(pooling: Geometry, winners: jax.Array, t: jax.Array, taps: Taps | None = None) -> jax.Array:
    """Reads t, of shape `pooling.example_shape`, at the winner of each window, or adds up what it reads at several.

    A window without a winner reads 0.
    """
    rule = RULES[pooling.ties]
    if is_reduction(pooling):
        return gather_reduced(pooling, winners, t)
    read = zeros = lax.full(pooling.values_shape, 0, t.dtype)
    for index, element in taps or read_taps(pooling, t):
        numbers = tap_numbers(pooling, index, number_dtype(pooling), replaced=False)  # a sum counts each tap once
        won = rule.has_won(winners, numbers)
        read = lax.add(read, lax.select(won, element, zeros)) if rule.masks else lax.select(won, element, read)
    return read
