"""Where the windows of a step meet the elements: which taps cover an element, and arrays with an axis for each phase.

Element `m * stride + phase` of an axis is some tap of window `m + shift`, for a few shifts. Which tap it is, is decided
here, in integers, and so are the shapes between windows and elements.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product

import jax
import numpy as np
from jax import lax

from jpool.geometry import Axis
from jpool.pooling.steps import Arrangement, Step

Index = tuple[int, ...]
LARGE = 64  # entries of a table that is computed, instead of written into the program


def taps_by_shift(axes: Sequence[Axis]) -> dict[Index, np.ndarray]:
    """For each shift, which tap of window `m + shift` is element `m * stride + phase`: a table by phase, -1 if none."""
    numbers = np.arange(math.prod(axis.window for axis in axes)).reshape([axis.window for axis in axes])
    places = [np.arange(axis.window) * axis.dilation - axis.low for axis in axes]
    shifts = [-(place // axis.stride) for place, axis in zip(places, axes, strict=True)]
    tables: dict[Index, np.ndarray] = {}
    for shift in product(*(dict.fromkeys(along.tolist()) for along in shifts)):
        taps = [np.flatnonzero(along == by) for along, by in zip(shifts, shift, strict=True)]
        phases = [place[own] % axis.stride for place, own, axis in zip(places, taps, axes, strict=True)]
        tables[shift] = np.full([axis.stride for axis in axes], -1)
        tables[shift][np.ix_(*phases)] = numbers[np.ix_(*taps)]
    return tables


class Grid:
    """Arrays of windows with a further axis for the phases of each strided axis: (windows, phases, windows, phases).

    Along the axes in `separate` there is one phase, the one given there, and no further axis.
    """

    def __init__(
        self, axes: Sequence[Axis], taps: dict[Index, np.ndarray], separate: dict[int, int], block_stride: int = 1
    ) -> None:
        """Takes the tables of all taps, of which it keeps those of its phases."""
        self.axes, self.separate, self.block_stride = axes, separate, block_stride
        self.dims: list[int] = []  # where the windows of each axis are
        self.phases: list[int] = []  # where the phases are
        shape: list[int] = []
        for i, axis in enumerate(axes):
            self.dims.append(len(shape))
            shape.append(axis.output)
            if axis.stride > 1 and i not in separate:
                self.phases.append(len(shape))
                shape.append(axis.stride)
        self.shape = tuple(shape)
        here = tuple(slice(separate[i], separate[i] + 1) if i in separate else slice(None) for i in range(len(axes)))
        self.taps = {shift: table[here] for shift, table in taps.items() if (table[here] >= 0).any()}
        self.blocks = [self._blocks(i) for i in range(len(axes))]

    def _blocks(self, i: int) -> int:
        """How many times the stride fits along the axis, the last time perhaps in part."""
        axis = self.axes[i]
        return axis.size if axis.is_identity else max(-(-(axis.size - self.separate.get(i, 0)) // axis.stride), 0)

    def spread(self, array: jax.Array) -> jax.Array:
        """An array of the windows, the same for every phase."""
        return lax.broadcast_in_dim(array, self.shape, self.dims) if self.phases else array

    def table(self, numbers: np.ndarray, dtype: np.dtype) -> jax.Array:
        """Numbers by phase, the same for every window."""
        flat = numbers.ravel()
        if (flat == flat[0]).all():
            return lax.broadcast(flat[0].astype(dtype), self.shape)
        by_phase = numbers.reshape([self.shape[i] for i in self.phases]).astype(dtype)
        distance = flat[1] - flat[0]
        if flat.size > LARGE and (np.diff(flat) == distance).all():
            computed = lax.iota(dtype, flat.size) * distance.astype(dtype) + flat[0].astype(dtype)
            by_phase = computed.reshape(by_phase.shape)
        return lax.broadcast_in_dim(by_phase, self.shape, self.phases)

    def moved(self, array: jax.Array, shift: Index, nothing: int) -> jax.Array:
        """What window `m + shift` has, at `m`."""
        config = [(0, 0, 0)] * array.ndim
        for dim, axis, blocks, by in zip(self.dims, self.axes, self.blocks, shift, strict=True):
            if not axis.is_identity:
                config[dim] = (-by, blocks + by - axis.output, 0)
        return pad(array, config, nothing)

    def interleaved(self, array: jax.Array, nothing: int) -> jax.Array:
        """The elements: phases among their blocks, and `nothing` at those of other grids."""
        for i in reversed(range(len(self.axes))):  # one by one, which JAX follows where the array is sharded
            dim = self.dims[i]
            if dim + 1 in self.phases:
                merged = array.shape[dim] * array.shape[dim + 1]
                array = array.reshape(*array.shape[:dim], merged, *array.shape[dim + 2 :])
        config = []
        for i, axis in enumerate(self.axes):
            between = axis.stride - 1 if i in self.separate else 0
            phase = self.separate.get(i, 0)
            length = (self.blocks[i] - 1) * axis.stride + 1 if between else array.shape[i]
            config.append((0, 0, 0) if axis.is_identity else (phase, axis.size - phase - length, between))
        return pad(array, config, nothing)


def grids(step: Step, arrangement: Arrangement) -> Iterator[Grid]:
    """One grid of all phases; or where the platform wants it, one for each phase of some axes."""
    axes = step.geometry.axes
    taps = taps_by_shift(axes)
    strided = [i for i, axis in enumerate(axes) if axis.stride > 1 and axis.output > 1]
    separate = [] if arrangement.spread_axes is None else strided[arrangement.spread_axes :]
    separate = sorted({*separate, *(i for i in strided if len(phases_with_taps(axes[i])) < axes[i].stride)})
    for phase in product(*(phases_with_taps(axes[i]) for i in separate)):
        grid = Grid(axes, taps, dict(zip(separate, phase, strict=True)), step.block_stride)
        if grid.taps:
            yield grid


def phases_with_taps(axis: Axis) -> list[int]:
    """The phases of an axis that taps have, but for those beyond its end."""
    phases = {(j * axis.dilation - axis.low) % axis.stride for j in range(min(axis.window, axis.stride))}
    return sorted(phase for phase in phases if phase < axis.size)


def pad(array: jax.Array, config: list[tuple[int, int, int]], value: int | np.ndarray) -> jax.Array:
    """`lax.pad`, but for an array that it would leave as it is."""
    if all(each == (0, 0, 0) for each in config):
        return array
    return lax.pad(array, np.asarray(value, array.dtype), config)
