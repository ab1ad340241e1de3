"""Which taps cover an element, and arrays with an axis for the phases of a stride.

See `backward` for the idea. `taps_by_shift` computes its table, in integers; padding makes some shifts positive.
`PhaseGroup` is the shape of the arrays between windows and elements.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product

import jax
import numpy as np
from jax import lax

from jpool.pooling.integers.geometry import Axis, Step
from jpool.pooling.plain.arrays import pad
from jpool.pooling.plain.steps import Arrangement

Index = tuple[int, ...]
LARGE_TABLE = 64  # larger tables are computed by the program instead of written into it


def taps_by_shift(axes: Sequence[Axis]) -> dict[Index, np.ndarray]:
    """For each shift a table by phase: which tap of window `m + shift` is element `m * stride + phase`; -1 if none is.

    Along one axis with window 3, stride 2 and no padding: {(0,): [0, 1], (-1,): [2, -1]}.
    """
    numbers = np.arange(math.prod(axis.window for axis in axes)).reshape([axis.window for axis in axes])
    offsets = [np.arange(axis.window) * axis.dilation - axis.low for axis in axes]
    axis_shifts = [-(offset // axis.stride) for offset, axis in zip(offsets, axes, strict=True)]
    tables: dict[Index, np.ndarray] = {}
    for shift in product(*(dict.fromkeys(shifts.tolist()) for shifts in axis_shifts)):
        taps = [np.flatnonzero(shifts == one) for shifts, one in zip(axis_shifts, shift, strict=True)]
        phases = [offset[tap] % axis.stride for offset, tap, axis in zip(offsets, taps, axes, strict=True)]
        tables[shift] = np.full([axis.stride for axis in axes], -1)
        tables[shift][np.ix_(*phases)] = numbers[np.ix_(*taps)]
    return tables


class PhaseGroup:
    """The shape of arrays by window and phase, (windows, phases, windows, phases), and the way from them to elements.

    Each strided axis has one more axis for its phases, unless it is in `separate`: then the arrays are for the one
    phase that `separate` maps it to.
    """

    def __init__(
        self, axes: Sequence[Axis], taps: dict[Index, np.ndarray], separate: dict[int, int], block_stride: int = 1
    ) -> None:
        """`taps` are from `taps_by_shift`; those of shifts without a tap in these phases are dropped."""
        self.axes, self.separate, self.block_stride = axes, separate, block_stride
        self.window_dims: list[int] = []  # the dimension of the windows of each axis
        self.phase_dims: list[int] = []  # the dimensions of the phases
        shape: list[int] = []
        for i, axis in enumerate(axes):
            self.window_dims.append(len(shape))
            shape.append(axis.output)
            if axis.stride > 1 and i not in separate:
                self.phase_dims.append(len(shape))
                shape.append(axis.stride)
        self.shape = tuple(shape)
        here = tuple(slice(separate[i], separate[i] + 1) if i in separate else slice(None) for i in range(len(axes)))
        self.taps = {shift: table[here] for shift, table in taps.items() if (table[here] >= 0).any()}
        self.periods = [self._periods(i) for i in range(len(axes))]

    def _periods(self, i: int) -> int:
        """How many values m takes along an axis: size / stride, rounded up."""
        axis = self.axes[i]
        return axis.size if axis.is_identity else max(-(-(axis.size - self.separate.get(i, 0)) // axis.stride), 0)

    def repeat(self, array: jax.Array) -> jax.Array:
        """An array of the windows, the same for every phase."""
        return lax.broadcast_in_dim(array, self.shape, self.window_dims) if self.phase_dims else array

    def by_phase(self, numbers: np.ndarray, dtype: np.dtype) -> jax.Array:
        """A number for each phase, the same for every window."""
        flat = numbers.ravel()
        if (flat == flat[0]).all():
            return lax.broadcast(flat[0].astype(dtype), self.shape)
        table = numbers.reshape([self.shape[i] for i in self.phase_dims]).astype(dtype)
        distance = flat[1] - flat[0]
        if flat.size > LARGE_TABLE and (np.diff(flat) == distance).all():
            computed = lax.iota(dtype, flat.size) * distance.astype(dtype) + flat[0].astype(dtype)
            table = computed.reshape(table.shape)
        return lax.broadcast_in_dim(table, self.shape, self.phase_dims)

    def align(self, array: jax.Array, shift: Index, fill: int) -> jax.Array:
        """From an entry for each window to one for each m: that of window `m + shift`, or `fill` if there is none."""
        config = [(0, 0, 0)] * array.ndim
        for dim, axis, periods, offset in zip(self.window_dims, self.axes, self.periods, shift, strict=True):
            if not axis.is_identity:
                config[dim] = (-offset, periods + offset - axis.output, 0)
        return pad(array, config, fill)

    def interleave(self, array: jax.Array, fill: int) -> jax.Array:
        """From an entry for each m and phase to an entry for each element; `fill` at elements of other phases."""
        for i in reversed(range(len(self.axes))):  # one axis after the other, which JAX allows on a sharded array
            dim = self.window_dims[i]
            if dim + 1 in self.phase_dims:
                merged = array.shape[dim] * array.shape[dim + 1]
                array = array.reshape(*array.shape[:dim], merged, *array.shape[dim + 2 :])
        config = []
        for i, axis in enumerate(self.axes):
            between = axis.stride - 1 if i in self.separate else 0
            phase = self.separate.get(i, 0)
            length = (self.periods[i] - 1) * axis.stride + 1 if between else array.shape[i]
            config.append((0, 0, 0) if axis.is_identity else (phase, axis.size - phase - length, between))
        return pad(array, config, fill)


def phase_groups(step: Step, arrangement: Arrangement) -> Iterator[PhaseGroup]:
    """All phases of a step together, except along axes where they are computed one by one.

    These are the strided axes after the first `arrangement.joint_phase_axes`, and those with phases that no tap covers:
    such phases are not computed.
    """
    axes = step.geometry.axes
    taps = taps_by_shift(axes)
    strided = [i for i, axis in enumerate(axes) if axis.stride > 1 and axis.output > 1]
    separate = [] if arrangement.joint_phase_axes is None else strided[arrangement.joint_phase_axes :]
    separate = sorted({*separate, *(i for i in strided if len(phases_with_taps(axes[i])) < axes[i].stride)})
    for phase in product(*(phases_with_taps(axes[i]) for i in separate)):
        group = PhaseGroup(axes, taps, dict(zip(separate, phase, strict=True)), step.block_stride)
        if group.taps:
            yield group


def phases_with_taps(axis: Axis) -> list[int]:
    """The phases of an axis in which an element is covered by a window."""
    phases = {(j * axis.dilation - axis.low) % axis.stride for j in range(min(axis.window, axis.stride))}
    return sorted(phase for phase in phases if phase < axis.size)
