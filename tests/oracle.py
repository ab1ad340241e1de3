"""Max pooling and its gradient from the definition, in NumPy loops: no jax, no jpool, nothing clever.

Everything the library computes is compared with this file by equality.
"""

from itertools import product

import numpy as np


def spans(size, window, stride, pad, dilation, ceil_mode):
    """For every window along one axis the positions that it reads, padding included: negative, or past the end."""
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


def winner(x, places):
    """The place that wins among those of one window, in the order given; None if none of them lies in x."""
    best = None
    for place in places:
        if any(not 0 <= p < n for p, n in zip(place, x.shape, strict=True)):
            continue
        if best is None or (not np.isnan(x[best]) and (np.isnan(x[place]) or x[place] > x[best])):
            best = place
    return best


def lowest(dtype):
    """What padding is worth."""
    if dtype == np.bool_:
        return False
    if np.issubdtype(dtype, np.integer):
        return np.iinfo(dtype).min
    return -np.inf


def max_pool(x, window_shape, strides=None, padding="VALID", *, window_dilation=None, ceil_mode=False, channel_axis=-1):
    """Returns the values and, for every output element, the index of its winner in x or None."""
    rank = len(window_shape)
    each = lambda value: (value,) * rank if not isinstance(value, tuple) else value  # noqa: E731
    strides, dilation, pads = each(strides or 1), each(window_dilation or 1), each(padding)
    pads = [pad if isinstance(pad, (str, tuple)) else (pad, pad) for pad in pads]
    x = np.asarray(x)
    channels_first = x if channel_axis is None else np.moveaxis(x, channel_axis, 0)
    sizes = channels_first.shape[channels_first.ndim - rank :]
    axes = [
        spans(*each_axis, ceil_mode) for each_axis in zip(sizes, window_shape, strides, pads, dilation, strict=True)
    ]
    if channel_axis is not None:
        axes.insert(channel_axis % x.ndim, [[c] for c in range(x.shape[channel_axis])])
    values = np.full([len(axis) for axis in axes], lowest(x.dtype), x.dtype)
    winners = np.full(values.shape, None, object)
    for output in np.ndindex(*values.shape):
        winners[output] = winner(x, product(*(axis[o] for axis, o in zip(axes, output, strict=True))))
        if winners[output] is not None:
            values[output] = x[winners[output]]
    return values, winners


def route(shape, winners, ct):
    """The gradient: every cotangent goes to the winner of its window. Added up in float64."""
    gradient = np.zeros(shape, np.float64)
    for output in np.ndindex(*winners.shape):
        if winners[output] is not None:
            gradient[winners[output]] += ct[output]
    return gradient
