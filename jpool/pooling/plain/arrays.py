"""Small functions of arrays: constants, padding, and the dtype of sums."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool.pooling.integers.geometry import Geometry


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


def filled(like: jax.Array, number: np.ndarray | float) -> jax.Array:
    """One number everywhere, with the shape and dtype of an array."""
    return lax.broadcast(np.asarray(number, like.dtype), like.shape)


def spread_along(i: int, numbers: np.ndarray, like: jax.Array) -> jax.Array:
    """Broadcasts numbers or bools along axis i, or one for all, to the shape of `like`; numbers take its dtype."""
    dtype = bool if numbers.dtype == bool else like.dtype
    if numbers.size == 1:
        return lax.broadcast(numbers.astype(dtype).reshape(()), like.shape)
    return lax.broadcast_in_dim(numbers.astype(dtype), like.shape, (i,))


def pad(array: jax.Array, config: list[tuple[int, int, int]], value: int | np.ndarray) -> jax.Array:
    """`lax.pad`, except that an array without padding is returned as it is."""
    if all(entry == (0, 0, 0) for entry in config):
        return array
    return lax.pad(array, np.asarray(value, array.dtype), config)


def to_accumulator(array: jax.Array) -> jax.Array:
    """Floats of less than 32 bits as float32, so that a sum is rounded once; integers wrap around as they are."""
    narrow = array.dtype.itemsize < 4 and jnp.issubdtype(array.dtype, jnp.floating)
    return lax.convert_element_type(array, jnp.float32) if narrow else array
