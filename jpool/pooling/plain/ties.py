"""The rules for ties: which element of a window receives the cotangent if several are the maximum.

A rule is a function `choose`, which takes two candidates, the best so far and one whose tap comes later, and returns
the better one, and a few facts about it. A new rule is one such function and one entry in RULES. Three things are asked
of it, because windows are compared in steps, and values may be computed without winners:

    associative     it does not matter whether single elements are compared, or blocks that have been compared before
    values          depend on values only, and the first NaN of a window is its value
    the same tap    may be compared twice, under one number (see `tables`): no element ties with itself

A rule with one winner is "first" or "last" of the equal elements: where one window covers an axis, platforms find the
winner from the value and from `last_wins`, without `choose`.

"first", "last" and "none" save the number of the winning tap in its step: 0 .. taps - 1 in row-major order, and `taps`
for no winner. "split" may have several winners, and saves a mask with one bit per tap, and 0 for no winner.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.checks import check_word
from jpool.pooling.integers.geometry import Geometry

MASK_BITS = 31  # taps that one mask can mark; its integers have at most 32 bits

Candidate = tuple[jax.Array, jax.Array]  # values and winners


class Rule(NamedTuple):
    """How a rule chooses, and what follows from it."""

    choose: Callable[[Geometry, Candidate, Candidate], Candidate]  # of the best so far and a later one
    one_winner: bool = True  # whether every window with a real element has exactly one winner
    last_wins: bool = False  # whether the last of equal elements wins
    nan_wins: bool = True  # whether the first NaN of a window wins, or nothing
    masks: bool = False  # whether winners are masks of all winning taps, instead of the number of one

    def winners_dtype(self, pooling: Geometry) -> np.dtype:
        """The smallest unsigned integers that hold every number or mask.

        The largest of the dtype is left free, except for windows of padding alone: a reduction may begin with it.
        """
        return np.min_scalar_type(2**pooling.taps if self.masks else pooling.taps + (not self.one_winner))

    def no_winner(self, pooling: Geometry) -> int:
        """What the winners of a window without one are."""
        return 0 if self.masks else pooling.taps

    def winner(self, number: jax.Array, dtype: np.dtype) -> jax.Array:
        """The winners, if the tap of this number wins."""
        number = lax.convert_element_type(number, dtype)
        return lax.shift_left(lax.full_like(number, 1), number) if self.masks else number

    def has_won(self, winners: jax.Array, number: jax.Array) -> jax.Array:
        """Whether the tap of this number is a winner. Above `pooling.taps` no number is one, and no bit is set."""
        if not self.masks:
            return lax.eq(lax.convert_element_type(winners, number.dtype), number)
        bits = lax.bitwise_and(winners, self.winner(number, winners.dtype))
        return lax.ne(bits, lax.full_like(bits, 0))


def first(pooling: Geometry, best: Candidate, later: Candidate) -> Candidate:
    """The first maximum in row-major order wins: torch's and Caffe's rule."""
    return _keep_if(lax.ge if pooling.minimum else lax.le, best, later)


def last(pooling: Geometry, best: Candidate, later: Candidate) -> Candidate:
    """The last maximum in row-major order wins, but of several NaNs the first."""
    return _keep_if(lax.gt if pooling.minimum else lax.lt, best, later)


def none(pooling: Geometry, best: Candidate, later: Candidate) -> Candidate:
    """Of several maxima none wins: J_a = J_m if a > b else 0, read literally. No NaN wins: see `nan_wins`."""
    value, winner = first(pooling, best, later)
    tie = lax.bitwise_and(lax.eq(later[0], best[0]), lax.ne(later[1], best[1]))
    return value, lax.select(tie, lax.full_like(winner, pooling.taps), winner)


def split(pooling: Geometry, best: Candidate, later: Candidate) -> Candidate:
    """All maxima win, in equal shares: the rule of `jnp.max`. The first NaN receives everything."""
    value, mask = first(pooling, best, later)
    return value, lax.select(lax.eq(later[0], best[0]), lax.bitwise_or(best[1], later[1]), mask)


def _keep_if(loses: Callable[..., jax.Array], best: Candidate, later: Candidate) -> Candidate:
    """The best candidate so far where the later one loses or the best is a NaN, else the later one.

    No comparison with a NaN is true, so the first NaN replaces the best.
    """
    keep = loses(later[0], best[0])
    if jnp.issubdtype(best[0].dtype, jnp.floating):
        keep = lax.bitwise_or(keep, lax.ne(best[0], best[0]))
    return lax.select(keep, best[0], later[0]), lax.select(keep, best[1], later[1])


RULES = {
    "first": Rule(first),
    "last": Rule(last, last_wins=True),
    "split": Rule(split, one_winner=False, masks=True),
    "none": Rule(none, one_winner=False, nan_wins=False),
}


def check_ties(function: str, ties: Any, window: tuple[int, ...]) -> None:
    """Refuses a name that is no rule, and a window too long for the masks of a rule: blocks may not overlap there."""
    check_word(function, "ties", ties, tuple(RULES))
    for side in window if RULES[ties].masks else ():
        if (prime := largest_prime(side)) > MASK_BITS:
            raise ValueError(
                f"{function}: ties={ties!r} marks tied elements in masks of {MASK_BITS} bits, so every side of "
                f"window_shape must be a product of numbers up to {MASK_BITS}; got {window}, and {side} has the "
                f"prime factor {prime}. Take a neighbouring size, or another rule for ties."
            )


def largest_prime(number: int) -> int:
    """The largest prime factor of a number >= 1; 1 of 1."""
    largest, factor = 1, 2
    while factor * factor <= number:
        while number % factor == 0:
            largest, number = factor, number // factor
        factor += 1
    return max(largest, number)
