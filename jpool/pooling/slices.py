"""Reading by slices, and the backward pass by padding, for compilers that read badly at the indices of a table.

Forward, x is padded so that no window overhangs, and one strided slice reads one tap of all windows.

Backward, along an axis of stride s, the element at `m * s + phase` is covered by the windows `m + shift` for a few
shifts, and which of their taps it is depends on shift and phase: without padding and dilation, `phase - shift * s`. So
for each shift one slice reads the windows of all m, or one padding moves them.

`route_by_phases` is the whole backward pass. For each shift, keep the cotangents of the windows whose winner is the tap
in the table, zero elsewhere; move them, so that index m holds window `m + shift`; add up. For window 3 and stride 2:

    phase                                          0    1
    tap in window m         (shift 0)              0    1
    tap in window m - 1     (shift -1)             2    -

    x = [1, 5, 2, 5, 9], winners [1, 2], ct [10, 20]   m = 0         m = 1        m = 2
    ct of window m, where its winner is 0, 1           0, 10         0, 0         (no window)
    ct of window m - 1, where its winner is 2, -       (no window)   0, 0         20, 0
    sum, merged into elements: [0, 10, 0, 0, 20]       0, 10         0, 0         20, (cut off)
"""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import product

import jax
import numpy as np
from jax import lax

from jpool.pooling.integers.geometry import Axis, Geometry
from jpool.pooling.plain.arrays import to_accumulator
from jpool.pooling.plain.forward import Taps, best_of, no_tap, number_dtype, tap_numbers
from jpool.pooling.plain.ties import RULES, Candidate

LARGE_TABLE = 64  # larger tables are computed by the program instead of written into it


def pad_for_windows(axes: Sequence[Axis], array: jax.Array, value: np.ndarray | int) -> jax.Array:
    """The array with the padding that the windows read."""
    config = [(max(axis.low, 0), max(axis.reach - axis.low - axis.size, 0), 0) for axis in axes]
    return pad(array, config, value)


def pad(array: jax.Array, config: Sequence[tuple[int, int, int]], value: int | np.ndarray) -> jax.Array:
    """`lax.pad`, except that an array without padding is returned as it is."""
    if all(entry == (0, 0, 0) for entry in config):
        return array
    return lax.pad(array, np.asarray(value, array.dtype), config)


def slice_tap(axes: Sequence[Axis], index: Sequence[int], padded: jax.Array) -> jax.Array:
    """One tap of all windows at once, by its index along each axis: a strided slice with one element per window.

    A negative `low` skips elements.
    """
    start = [along * axis.dilation + max(-axis.low, 0) for along, axis in zip(index, axes, strict=True)]
    end = [
        axis.output if axis.is_identity else first + max((axis.output - 1) * axis.stride + 1, 0)
        for first, axis in zip(start, axes, strict=True)
    ]
    # XLA's partitioner reads a sharded axis wrongly where a slice of one element has a stride larger than 1.
    strides = [axis.stride if axis.is_identity or axis.output > 1 else 1 for axis in axes]
    return lax.slice(padded, start, end, strides)


def best_of_padded(pooling: Geometry, taps: Taps, padding: np.ndarray) -> Candidate:
    """`forward.best_of` of what windows read of an array with padding.

    Padding may tie with an element and win, but only if all elements of a window are equal: with one winner, that of
    such a window follows from the table. Taken tap by tap, the same table splits values and winners into two loops on a
    TPU (ResNet's pooling: 4,058 thousand cycles by XLA's estimate for a v5e instead of 3,465; libtpu 0.0.52).
    """
    rule, shape = RULES[pooling.ties], pooling.values_shape
    dtype, strides = rule.winners_dtype(pooling), [pooling.tap_strides[i] for i in pooling.pooled]
    if not rule.one_winner or all(axis.is_regular for axis in pooling.axes):
        return best_of(pooling, ((value, tap_numbers(pooling, index, dtype)) for index, value in taps))
    constants = ((value, lax.full(shape, int(np.dot(index, strides)), dtype)) for index, value in taps)
    values, winners = best_of(pooling, constants)
    of_equal_elements = tap_numbers(
        pooling, tuple(pooling.axes[i].window - 1 if rule.last_wins else 0 for i in pooling.pooled), dtype
    )
    is_padding = lax.eq(values, lax.full_like(values, padding.astype(values.dtype)))
    return values, lax.select(is_padding, of_equal_elements, winners)


def taps_by_shift(pooling: Geometry) -> dict[tuple[int, ...], np.ndarray]:
    """For each shift a table by phase: which tap of window `m + shift` is element `m * stride + phase`, or `no_tap`."""
    axes = pooling.axes
    numbers = np.arange(pooling.taps).reshape([axis.window for axis in axes])
    offsets = [np.arange(axis.window) * axis.dilation - axis.low for axis in axes]
    axis_shifts = [-(offset // axis.stride) for offset, axis in zip(offsets, axes, strict=True)]
    tables: dict[tuple[int, ...], np.ndarray] = {}
    for shift in product(*(dict.fromkeys(shifts.tolist()) for shifts in axis_shifts)):
        taps = [np.flatnonzero(shifts == one) for shifts, one in zip(axis_shifts, shift, strict=True)]
        phases = [offset[tap] % axis.stride for offset, tap, axis in zip(offsets, taps, axes, strict=True)]
        tables[shift] = np.full([axis.stride for axis in axes], no_tap(pooling))
        tables[shift][np.ix_(*phases)] = numbers[np.ix_(*taps)]
    return tables


def repeat(array: jax.Array, phases: Sequence[int]) -> jax.Array:
    """An array of the windows, the same for every phase: (windows, phases, windows, phases, ..); unchanged for one."""
    if math.prod(phases) == 1:
        return array
    shape = [n for sizes in zip(array.shape, phases, strict=True) for n in sizes]
    return lax.broadcast_in_dim(array, shape, range(0, len(shape), 2))


def by_phase(pooling: Geometry, numbers: np.ndarray, shape: Sequence[int]) -> jax.Array:
    """A number for each phase, the same for every window."""
    dtype, flat = number_dtype(pooling), numbers.ravel()
    if flat.size == 1:
        return lax.full(shape, flat[0], dtype)
    table, step = numbers.astype(dtype), int(flat[-1] - flat[0]) // max(flat.size - 1, 1)
    if flat.size > LARGE_TABLE and (np.diff(flat) == step).all():
        table = (lax.iota(dtype, flat.size) * dtype.type(step) + dtype.type(flat[0])).reshape(numbers.shape)
    return lax.broadcast_in_dim(table, shape, range(1, len(shape), 2))


def merge(array: jax.Array, rank: int) -> jax.Array:
    """From (windows, phases, windows, phases, ..) to elements along `rank` axes."""
    for i in range(array.ndim - rank):  # one axis after the other, which JAX allows on a sharded array
        array = array.reshape(*array.shape[:i], array.shape[i] * array.shape[i + 1], *array.shape[i + 2 :])
    return array


def route_by_phases(pooling: Geometry, winners: jax.Array, ct: jax.Array, *, joint: bool = True) -> jax.Array:
    """The same as `plain.backward.route_step`, except for the order of sums; for windows that are not adaptive.

    With `joint`, the phases of all axes are computed together; if not, those of all but the first strided axis are
    computed one by one. So are the phases of axes where no tap covers some of them.
    """
    axes, tables, parts = pooling.axes, taps_by_shift(pooling), list[jax.Array]()
    ct = ct if ct.dtype.itemsize > 1 else to_accumulator(ct)  # XLA:GPU cannot pad floats of 4 bits
    strided = [i for i, axis in enumerate(axes) if axis.stride > 1 and axis.output > 1]
    separate = [
        i for i in strided if (not joint and i != strided[0]) or len(phases_with_taps(axes[i])) < axes[i].stride
    ]
    choices = (
        [slice(p, p + 1) for p in phases_with_taps(axis)] if i in separate else [slice(0, axis.stride)]
        for i, axis in enumerate(axes)
    )
    for phases in product(*choices):
        moved = []
        for shift, table in tables.items():
            if (numbers := table[phases]).min() == no_tap(pooling):
                continue
            winner, cotangent = repeat(winners, numbers.shape), repeat(ct, numbers.shape)
            won = RULES[pooling.ties].has_won(winner, by_phase(pooling, numbers, winner.shape))
            kept = lax.select(won, cotangent, lax.full_like(cotangent, 0))
            moved.append(to_accumulator(_move(axes, phases, shift, kept)))  # reads and selects are narrow
        if moved:
            parts.append(_interleave(axes, phases, reduce(lax.add, moved)))
    return reduce(
        lax.add, parts or [lax.full(pooling.example_shape, 0, to_accumulator(ct).dtype)]
    )  # no element is covered


def _move(axes: Sequence[Axis], phases: Sequence[slice], shift: Sequence[int], array: jax.Array) -> jax.Array:
    """From an entry for each window to one for each m: that of window `m + shift`, or 0 if there is none."""
    config = [(0, 0, 0)] * array.ndim
    for i, (axis, phase, offset) in enumerate(zip(axes, phases, shift, strict=True)):
        config[i * (array.ndim // len(axes))] = (-offset, _periods(axis, phase) + offset - axis.output, 0)
    return pad(array, config, 0)


def _interleave(axes: Sequence[Axis], phases: Sequence[slice], array: jax.Array) -> jax.Array:
    """From an entry for each m and phase to an entry for each element; 0 at elements of other phases."""
    config = []
    for axis, phase in zip(axes, phases, strict=True):
        stride = axis.stride // (phase.stop - phase.start)  # 1 if all phases are here
        length = (_periods(axis, phase) * (axis.stride // stride) - 1) * stride + 1
        config.append((phase.start, axis.size - phase.start - length, stride - 1))
    return pad(merge(array, len(axes)), config, 0)


def _periods(axis: Axis, phase: slice) -> int:
    """How many values m takes along an axis: size / stride, rounded up."""
    return max(-(-(axis.size - phase.start) // axis.stride), 0)


def phases_with_taps(axis: Axis) -> list[int]:
    """The phases of an axis in which an element is covered by a window."""
    phases = {(j * axis.dilation - axis.low) % axis.stride for j in range(min(axis.window, axis.stride))}
    return sorted(phase for phase in phases if phase < axis.size)
