"""Geometries, winners and arrangements, for tests of the internals of pooling."""

import numpy as np

from jpool.pooling import cpu, gpu, tpu
from jpool.pooling.integers.geometry import resolve
from jpool.pooling.plain.all_steps import Platform

ARRANGEMENTS = {"cpu": cpu.PLATFORM, "gpu": gpu.PLATFORM, "tpu": tpu.PLATFORM, "plain": Platform()}


def resolved(shape, window, strides=None, padding="VALID", *, window_dilation=None, ceil_mode=False, channel_axis=-1):
    """The geometry of a call of max_pool, from its arguments."""
    return resolve("max_pool", shape, window, strides, padding, window_dilation, ceil_mode, channel_axis)


def geometry(case):
    """The geometry of a named case."""
    return resolved(case.shape, case.window, **case.arguments)


def winner_numbers(pooling, winners):
    """The oracle's winners as row-major tap numbers; the number of taps where a window has no winner."""
    windows, numbers = [axis.window for axis in pooling.axes], np.full(winners.shape, pooling.taps)
    for output in np.ndindex(*winners.shape):
        for winner in winners[output]:
            tap = [
                (coordinate - o * axis.stride + axis.low) // axis.dilation
                for coordinate, o, axis in zip(winner, output, pooling.axes, strict=True)
            ]
            numbers[output] = np.ravel_multi_index(tap, windows)
    return numbers
