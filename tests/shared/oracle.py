"""Max pooling and its gradient from the definition, in NumPy loops: no jax, no jpool, nothing clever.

Tests compare every result of the library with this file, by equality. A position is the tuple of the coordinates of an
element of x, or of padding around x.
"""

from itertools import product

import numpy as np


def spans(size, window, stride, pad, dilation, ceil_mode):
    """For every window along one axis, the coordinates that it reads; those of padding are negative or past the end."""
    reach = dilation * (window - 1) + 1
    if pad in ("SAME", "SAME_LOWER"):
        count = int(np.ceil(size / stride))
        total = max(0, (count - 1) * stride + reach - size)
        low = int(np.floor(total / 2) if pad == "SAME" else np.ceil(total / 2))
    else:
        low, high = (0, 0) if pad == "VALID" else pad
        rounding = np.ceil if ceil_mode else np.floor
        count = int(rounding((size + low + high - reach) / stride)) + 1
        if ceil_mode and (count - 1) * stride >= size + low:
            count -= 1
    return [[o * stride - low + j * dilation for j in range(window)] for o in range(count)]


def winners_among(x, positions, ties, minimum):
    """The winners among the positions that one window reads, in their order; no winner if all of them are padding."""
    real = [position for position in positions if all(0 <= i < n for i, n in zip(position, x.shape, strict=True))]
    nans = [position for position in real if np.isnan(x[position])]
    if nans:
        return [] if ties == "none" else nans[:1]
    extreme = (min if minimum else max)((x[position] for position in real), default=None)
    best = [position for position in real if x[position] == extreme]
    return {"first": best[:1], "last": best[-1:], "split": best, "none": best if len(best) == 1 else []}[ties]


def padding(dtype, minimum):
    """The value of padding."""
    if dtype == np.bool_:
        return minimum
    if np.issubdtype(dtype, np.integer):
        return np.iinfo(dtype).max if minimum else np.iinfo(dtype).min
    return np.inf if minimum else -np.inf


def windows(x, window_shape, strides=None, padding="VALID", *, window_dilation=None, ceil_mode=False, channel_axis=-1):
    """For every output element, the positions that its window reads, in row-major order."""
    rank = len(window_shape)
    per_axis = lambda value: value if isinstance(value, tuple) else (value,) * rank  # noqa: E731
    strides, dilation, pads = per_axis(strides or 1), per_axis(window_dilation or 1), per_axis(padding)
    pads = [pad if isinstance(pad, (str, tuple)) else (pad, pad) for pad in pads]
    channels_first = x if channel_axis is None else np.moveaxis(x, channel_axis, 0)
    sizes = channels_first.shape[channels_first.ndim - rank :]
    axes = [spans(*axis, ceil_mode) for axis in zip(sizes, window_shape, strides, pads, dilation, strict=True)]
    if channel_axis is not None:
        axes.insert(channel_axis % x.ndim, [[c] for c in range(x.shape[channel_axis])])
    return combinations(axes)


def adaptive_windows(x, output_shape, channel_axis=-1):
    """The same for adaptive pooling: of n elements, window i of o reads floor(i n / o) to ceil((i + 1) n / o) - 1."""
    outputs = list(output_shape)
    if channel_axis is not None:
        outputs.insert(channel_axis % x.ndim, x.shape[channel_axis])
    axes = [
        [list(range(int(np.floor(i * n / o)), int(np.ceil((i + 1) * n / o)))) for i in range(o)]
        for n, o in zip(x.shape, outputs, strict=True)
    ]
    return combinations(axes)


def combinations(axes):
    """For every output element, the combinations of the coordinates that its window reads along every axis."""
    positions = np.full([len(axis) for axis in axes], None, object)
    for output in np.ndindex(*positions.shape):
        positions[output] = list(product(*(axis[o] for axis, o in zip(axes, output, strict=True))))
    return positions


def pool(x, windows, ties="first", minimum=False):
    """Returns the values and, for every output element, the list of its winners' positions in x."""
    values = np.full(windows.shape, padding(x.dtype, minimum), x.dtype)
    winners = np.full(windows.shape, None, object)
    for output in np.ndindex(*values.shape):
        winners[output] = winners_among(x, windows[output], ties, minimum)
        # Under "none" a window with a tie has a value, too, although it has no winner.
        for position in winners_among(x, windows[output], "last" if ties == "last" else "first", minimum):
            values[output] = x[position]
    return values, winners


def share(shape, winners, ct):
    """The gradient if a window may have several winners: each receives an equal share of its cotangent."""
    gradient = np.zeros(shape, np.float64)
    for output in np.ndindex(*winners.shape):
        for position in winners[output]:
            gradient[position] += ct[output] / len(winners[output])
    return gradient


def gather(winners, t):
    """The tangent: the mean of t over the winners of a window; 0 without a winner."""
    tangent = np.zeros(winners.shape, np.float64)
    for output in np.ndindex(*winners.shape):
        if winners[output]:
            tangent[output] = np.mean([t[position] for position in winners[output]], dtype=np.float64)
    return tangent


def flat(winners, shape, channel_axis=-1):
    """The argmax, if windows have up to one winner: its row-major index in the spatial grid; -1 without a winner."""
    indices = np.full(winners.shape, -1, np.int32)
    spatial = list(shape)
    if channel_axis is not None:
        spatial.pop(channel_axis)
    for output in np.ndindex(*winners.shape):
        for position in winners[output]:
            coordinates = list(position)
            if channel_axis is not None:
                coordinates.pop(channel_axis)
            indices[output] = 0
            for coordinate, size in zip(coordinates, spatial, strict=True):
                indices[output] = indices[output] * size + coordinate
    return indices
