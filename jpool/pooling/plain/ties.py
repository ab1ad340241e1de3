"""The rules for ties, as objects: which element of a window receives the cotangent if several are the maximum.

A rule says how a tap is marked in the winners, how two candidates combine, which element wins if padding ties with it,
and which windows a tap has won. Nothing else depends on the rule, so a new rule is one class and one entry in RULES.

"first", "last" and "none" save the number of the winning tap: 0 .. taps - 1 in row-major order, and `taps` for no
winner. "split" may have several winners, and saves a mask with one bit per tap.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.checks import check_word
from jpool.pooling.integers.geometry import Geometry, Step
from jpool.pooling.plain.arrays import filled, spread_along

MASK_BITS = 31  # taps that one mask can mark; its integers have at most 32 bits

Candidate = tuple[jax.Array, jax.Array]  # values and winners
ByTap = Callable[[np.ndarray, np.dtype], jax.Array]  # numbers, one for each of the taps compared, as an array


class First:
    """The first maximum in row-major order wins: torch's and Caffe's rule."""

    one_winner = True  # whether every window with a real element has exactly one winner
    masks = False  # whether each step saves a mask; if not, one number is saved for the whole window
    last_wins = False  # whether the last of equal elements wins

    def check_window(self, function: str, window: tuple[int, ...]) -> None:
        """Refuses a window that the rule cannot handle."""

    def winners_dtype(self, geometry: Geometry) -> np.dtype:
        """The smallest unsigned integers that hold the number of every tap, and that of no winner."""
        return np.min_scalar_type(geometry.taps)

    def mark(self, geometry: Geometry, step: Step, tap: int, like: jax.Array, inner: jax.Array | None) -> jax.Array:
        """The winners if this tap of the step wins; `inner` are the winners within the blocks that it compares."""
        number = lax.broadcast(np.asarray(tap * step.block_stride, self.winners_dtype(geometry)), like.shape)
        return number if inner is None else lax.add(inner, number)

    def stays(self, geometry: Geometry, best: jax.Array, later: jax.Array) -> jax.Array:
        """Where the best value so far stays the best. A NaN replaces it: no comparison with a NaN is true."""
        return _or_nan((lax.ge if geometry.minimum else lax.le)(later, best), best)

    def combine(self, geometry: Geometry, best: Candidate, later: Candidate) -> Candidate:
        """The winning one of two candidates, the best so far and one whose taps come later."""
        stays = self.stays(geometry, best[0], later[0])
        return lax.select(stays, best[0], later[0]), lax.select(stays, best[1], later[1])

    def resolve_padding(
        self, geometry: Geometry, values: jax.Array, winners: jax.Array, padding: np.ndarray | None
    ) -> jax.Array:
        """The final winners. Where the value is that of padding, padding may have tied with an element and won.

        Such a window holds no other value, so the geometry alone decides which element wins. `padding` is None if none
        was read.
        """
        if padding is None or not any(axis.overhangs for axis in geometry.axes):
            return winners
        return lax.select(lax.eq(values, filled(values, padding)), self.of_equal_elements(geometry, winners), winners)

    def of_equal_elements(self, geometry: Geometry, like: jax.Array) -> jax.Array:
        """The winner of each window if all its elements are equal: along each axis the first, or the last, or none."""
        number, exists = filled(like, 0), None
        for i, axis in enumerate(geometry.axes):
            first, last = axis.real_taps()
            wins = self.has_winner(first, last)
            tap = np.where(wins, last if self.last_wins else first, 0) * _tap_stride(geometry, i)
            if tap.any():
                number = lax.add(number, spread_along(i, tap, like))
            if not wins.all():
                here = spread_along(i, wins, like)
                exists = here if exists is None else lax.bitwise_and(exists, here)
        return number if exists is None else lax.select(exists, number, filled(like, geometry.taps))

    def has_winner(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Whether equal elements at the taps `first` to `last` have a winner among them."""
        return first <= last

    def won(self, step: Step, winners: jax.Array, taps: np.ndarray, by_tap: ByTap) -> jax.Array:
        """Whether the winner is in the block of a tap; of two that hold it, the earlier. Tap -1 wins nothing."""
        if step.block == step.block_stride == 1:  # -1 is then the largest of the dtype, which is no winner
            return lax.eq(winners, by_tap(taps, winners.dtype))
        begin = np.where(taps > 0, (taps - 1) * step.block_stride + step.block, 0)  # where the block before ends
        count = np.where(taps > 0, step.block_stride, np.where(taps == 0, step.block, 0))
        # Unsigned: a winner before `begin` wraps around to a large number.
        return lax.lt(lax.sub(winners, by_tap(begin, winners.dtype)), by_tap(count, winners.dtype))


class Last(First):
    """The last maximum in row-major order wins, but of several NaNs the first."""

    last_wins = True

    def stays(self, geometry: Geometry, best: jax.Array, later: jax.Array) -> jax.Array:
        """Only where it is strictly better."""
        return _or_nan((lax.gt if geometry.minimum else lax.lt)(later, best), best)


class NoWinner(First):
    """Of several maxima none wins, and no NaN does: J_a = J_m if a > b else 0, read literally."""

    one_winner = False

    def winners_dtype(self, geometry: Geometry) -> np.dtype:
        """One number more: in `cpu.loops.in_one_pass`, "no winner" must not be the largest number of the dtype."""
        return np.min_scalar_type(geometry.taps + 1)

    def mark(self, geometry: Geometry, step: Step, tap: int, like: jax.Array, inner: jax.Array | None) -> jax.Array:
        """A block without a winner stays without one."""
        number = super().mark(geometry, step, tap, like, inner)
        if inner is None:
            return number
        no_winner = filled(inner, geometry.taps)
        return lax.select(lax.eq(inner, no_winner), no_winner, number)

    def combine(self, geometry: Geometry, best: Candidate, later: Candidate) -> Candidate:
        """Equal values have no winner, unless both are the same element in two overlapping blocks."""
        value, winner = super().combine(geometry, best, later)
        tie = lax.bitwise_and(lax.eq(later[0], best[0]), lax.ne(later[1], best[1]))
        return value, lax.select(tie, filled(winner, geometry.taps), winner)

    def resolve_padding(
        self, geometry: Geometry, values: jax.Array, winners: jax.Array, padding: np.ndarray | None
    ) -> jax.Array:
        """A NaN does not win either."""
        if jnp.issubdtype(values.dtype, jnp.floating):
            winners = lax.select(lax.eq(values, values), winners, filled(winners, geometry.taps))
        return super().resolve_padding(geometry, values, winners, padding)

    def has_winner(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Only a single element wins."""
        return first == last


class Split(First):
    """All maxima win, in equal shares: the rule of `jnp.max`. The first NaN receives everything."""

    one_winner = False
    masks = True

    def check_window(self, function: str, window: tuple[int, ...]) -> None:
        """Every step marks its taps in one mask, and blocks do not overlap, so sides must have small factors."""
        for side in window:
            if (prime := largest_prime(side)) > MASK_BITS:
                raise ValueError(
                    f"{function}: ties='split' marks tied elements in masks of {MASK_BITS} bits, so every side of "
                    f"window_shape must be a product of numbers up to {MASK_BITS}; got {window}, and {side} has the "
                    f"prime factor {prime}. Take a neighbouring size, or another rule for ties."
                )

    def winners_dtype(self, geometry: Geometry) -> np.dtype:
        """A bit for each tap and one more: all taps marked must not be the largest of the dtype (see `NoWinner`)."""
        return np.min_scalar_type(2**geometry.taps)

    def mark(self, geometry: Geometry, step: Step, tap: int, like: jax.Array, inner: jax.Array | None) -> jax.Array:
        """The bit of the tap, in the mask of the step."""
        return lax.broadcast(np.asarray(1 << tap, self.winners_dtype(step.geometry)), like.shape)

    def combine(self, geometry: Geometry, best: Candidate, later: Candidate) -> Candidate:
        """Equal values share the window."""
        value, mask = super().combine(geometry, best, later)
        return value, lax.select(lax.eq(later[0], best[0]), lax.bitwise_or(best[1], later[1]), mask)

    def of_equal_elements(self, geometry: Geometry, like: jax.Array) -> jax.Array:
        """The mask of a window is the product of the masks along its axes: the positions of their bits add up."""
        mask = filled(like, 1)
        for i, axis in enumerate(geometry.axes):
            first, last = axis.real_taps()
            taps = np.arange(axis.window)
            real = (first[:, None] <= taps) & (taps <= last[:, None])
            mask = lax.mul(mask, spread_along(i, (real << (taps * _tap_stride(geometry, i))).sum(1), like))
        return mask

    def won(self, step: Step, winners: jax.Array, taps: np.ndarray, by_tap: ByTap) -> jax.Array:
        """Whether the bit of the tap is set."""
        bits = by_tap(np.where(taps >= 0, 1 << np.maximum(taps, 0), 0), winners.dtype)
        return lax.ne(lax.bitwise_and(winners, bits), filled(winners, 0))


RULES: dict[str, First] = {"first": First(), "last": Last(), "split": Split(), "none": NoWinner()}


def check_ties(function: str, ties: Any, window: tuple[int, ...]) -> None:
    """Refuses a name that is no rule, and a window that the rule cannot handle."""
    check_word(function, "ties", ties, tuple(RULES))
    RULES[ties].check_window(function, window)


def _tap_stride(geometry: Geometry, i: int) -> int:
    """By how much the numbers of neighbouring taps along axis i differ: row-major order."""
    return math.prod(axis.window for axis in geometry.axes[i + 1 :])


def _or_nan(stays: jax.Array, best: jax.Array) -> jax.Array:
    if not jnp.issubdtype(best.dtype, jnp.floating):
        return stays
    return lax.bitwise_or(stays, lax.ne(best, best))  # nothing replaces a NaN


def largest_prime(number: int) -> int:
    """The largest prime factor of a number >= 1; 1 of 1."""
    largest, factor = 1, 2
    while factor * factor <= number:
        while number % factor == 0:
            largest, number = factor, number // factor
        factor += 1
    return max(largest, number)
