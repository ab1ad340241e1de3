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


def winners_among(x, places, ties, least):
    """Those that win among the places of one window, in the order given; none if none of them lies in x."""
    real = [place for place in places if all(0 <= p < n for p, n in zip(place, x.shape, strict=True))]
    unequal = [place for place in real if np.isnan(x[place])]
    if unequal:
        return [] if ties == "none" else unequal[:1]
    extreme = (min if least else max)((x[place] for place in real), default=None)
    best = [place for place in real if x[place] == extreme]
    return {"first": best[:1], "last": best[-1:], "split": best, "none": best if len(best) == 1 else []}[ties]


def padding(dtype, least):
    """What padding is worth."""
    if dtype == np.bool_:
        return least
    if np.issubdtype(dtype, np.integer):
        return np.iinfo(dtype).max if least else np.iinfo(dtype).min
    return np.inf if least else -np.inf


def windows(x, window_shape, strides=None, padding="VALID", *, window_dilation=None, ceil_mode=False, channel_axis=-1):
    """For every output element the places that its window reads, in row-major order."""
    rank = len(window_shape)
    each = lambda value: (value,) * rank if not isinstance(value, tuple) else value  # noqa: E731
    strides, dilation, pads = each(strides or 1), each(window_dilation or 1), each(padding)
    pads = [pad if isinstance(pad, (str, tuple)) else (pad, pad) for pad in pads]
    channels_first = x if channel_axis is None else np.moveaxis(x, channel_axis, 0)
    sizes = channels_first.shape[channels_first.ndim - rank :]
    axes = [
        spans(*each_axis, ceil_mode) for each_axis in zip(sizes, window_shape, strides, pads, dilation, strict=True)
    ]
    if channel_axis is not None:
        axes.insert(channel_axis % x.ndim, [[c] for c in range(x.shape[channel_axis])])
    return places(axes)


def adaptive_windows(x, output_shape, channel_axis=-1):
    """The same for adaptive pooling: window i of o reads from floor(i n / o) to ceil((i + 1) n / o)."""
    outputs = list(output_shape)
    if channel_axis is not None:
        outputs.insert(channel_axis % x.ndim, x.shape[channel_axis])
    axes = [
        [list(range(int(np.floor(i * n / o)), int(np.ceil((i + 1) * n / o)))) for i in range(o)]
        for n, o in zip(x.shape, outputs, strict=True)
    ]
    return places(axes)


def places(axes):
    """Of the positions along every axis, their combinations."""
    found = np.full([len(axis) for axis in axes], None, object)
    for output in np.ndindex(*found.shape):
        found[output] = list(product(*(axis[o] for axis, o in zip(axes, output, strict=True))))
    return found


def pool(x, windows, ties="first", least=False):
    """Returns the values and, for every output element, the list of its winners' places in x."""
    values = np.full(windows.shape, padding(x.dtype, least), x.dtype)
    winners = np.full(windows.shape, None, object)
    for output in np.ndindex(*values.shape):
        winners[output] = winners_among(x, windows[output], ties, least)
        for place in winners_among(x, windows[output], "last" if ties == "last" else "first", least):
            values[output] = x[place]
    return values, winners


def max_pool(x, *arguments, **options):
    """Returns the values and, for every output element, the place of its first winner or None."""
    x = np.asarray(x)
    values, winners = pool(x, windows(x, *arguments, **options))
    one = np.full(values.shape, None, object)
    for output in np.ndindex(*values.shape):
        one[output] = winners[output][0] if winners[output] else None
    return values, one


def route(shape, winners, ct):
    """The gradient: every cotangent goes to the winner of its window. Added up in float64."""
    gradient = np.zeros(shape, np.float64)
    for output in np.ndindex(*winners.shape):
        if winners[output] is not None:
            gradient[winners[output]] += ct[output]
    return gradient


def share(shape, winners, ct):
    """The gradient where a window may have many winners: equal shares for all of them."""
    gradient = np.zeros(shape, np.float64)
    for output in np.ndindex(*winners.shape):
        for place in winners[output]:
            gradient[place] += ct[output] / len(winners[output])
    return gradient


def gather(winners, t):
    """The tangent: the mean of the winners' in t; 0 for none."""
    read = np.zeros(winners.shape, np.float64)
    for output in np.ndindex(*winners.shape):
        if winners[output]:
            read[output] = np.mean([t[place] for place in winners[output]], dtype=np.float64)
    return read


def flat(winners, shape, channel_axis=-1):
    """The argmax of one winner each: its position in the spatial grid, row-major; -1 for none."""
    found = np.full(winners.shape, -1, np.int32)
    spatial = list(shape)
    if channel_axis is not None:
        spatial.pop(channel_axis)
    for output in np.ndindex(*winners.shape):
        for place in winners[output]:
            spot = list(place)
            if channel_axis is not None:
                spot.pop(channel_axis)
            found[output] = 0
            for at, size in zip(spot, spatial, strict=True):
                found[output] = found[output] * size + at
    return found
