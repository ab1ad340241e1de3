"""Small functions of arrays: reading at static indices, tables as arrays, the value of padding, the dtype of sums."""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.pooling.integers import arguments
from jpool.pooling.integers.geometry import Geometry


def take(array: jax.Array, i: int, index: np.ndarray) -> jax.Array:
    """The array at static indices along axis i; they are traced only if many windows cover an element."""
    if array.shape[i] == 1:
        return lax.broadcast_in_dim(array, (*array.shape[:i], len(index), *array.shape[i + 1 :]), range(array.ndim))
    others = tuple(k for k in range(array.ndim) if k != i)
    numbers = lax.GatherDimensionNumbers(offset_dims=others, collapsed_slice_dims=(i,), start_index_map=(i,))
    sizes = [1 if k == i else n for k, n in enumerate(array.shape)]
    in_bounds = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(array, index.astype(np.uint32).reshape(-1, 1), numbers, sizes, mode=in_bounds)


def sum_of_tables(tables: Iterable[tuple[int, np.ndarray]], shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    """An array whose element at (a, b, ..) is the sum of the numbers at a, b, .. in the tables (axis, numbers)."""
    constant, total = 0, None
    for i, numbers in tables:
        if isinstance(numbers, np.ndarray) and (numbers == numbers[:1]).all():
            constant += int(numbers[:1].sum())  # 0 if it is empty
        else:
            along = lax.broadcast_in_dim(numbers.astype(dtype), shape, (i,))
            total = along if total is None else lax.add(total, along)
    if total is None:
        return lax.full(shape, constant, dtype)
    return lax.add(total, lax.full_like(total, constant)) if constant else total


def flat_indices(example_shape: tuple[int, ...], channel_axis: int | None) -> jax.Array:
    """The flat row-major index of every element in the spatial grid of its channel, int32."""
    spatial = arguments.without_channels(example_shape, channel_axis)
    grid = lax.iota(jnp.int32, math.prod(spatial)).reshape(spatial)
    return lax.broadcast_in_dim(grid, example_shape, arguments.spatial_axes(len(example_shape), channel_axis))


def padding_value(geometry: Geometry, dtype: np.dtype) -> np.ndarray:
    """The value of padding, to which no element loses: -inf, or the lowest number of a dtype without it, or False.

    For the minimum: inf, the highest number, True.
    """
    if dtype == np.bool_:
        return np.array(geometry.minimum, dtype)
    limits = jnp.finfo(dtype) if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype)
    limit = np.array(limits.max if geometry.minimum else limits.min, dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        return limit
    infinity = np.array(np.inf if geometry.minimum else -np.inf, dtype)
    return infinity if np.isinf(infinity.astype(np.float32)) else limit


def to_accumulator(array: jax.Array) -> jax.Array:
    """Floats of less than 32 bits as float32, so that a sum is rounded once; integers wrap around as they are."""
    narrow = array.dtype.itemsize < 4 and jnp.issubdtype(array.dtype, jnp.floating)
    return lax.convert_element_type(array, jnp.float32) if narrow else array
