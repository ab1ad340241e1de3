"""What an example may be: an array of real numbers, whose places have numbers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpool import arguments
from jpool.geometry import Geometry, resolve


def real_array(function: str, name: str, x: Any) -> jax.Array:
    """Returns the argument called `name` as a JAX array of real numbers, or raises the error that says why not."""
    if not isinstance(x, (jax.Array, np.ndarray, np.generic)) and not hasattr(x, "__jax_array__"):
        raise TypeError(f"{function}: {name} must be a JAX or NumPy array; got {type(x).__name__}: {x!r:.80}.")
    unfit = (
        f"{function}: {name} must be an array of numbers (floats, integers or bool); got {type(x).__name__} of dtype "
    )
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError) as error:  # objects, strings, dates, masked arrays, long doubles
        raise TypeError(f"{unfit}{getattr(x, 'dtype', 'unknown')}, which JAX cannot hold.") from error
    if array.dtype != np.bool_ and not jnp.issubdtype(array.dtype, jnp.number):
        raise TypeError(f"{unfit}{array.dtype}.")
    if jnp.issubdtype(array.dtype, jnp.integer) and jnp.iinfo(array.dtype).bits < 4:
        raise TypeError(f"{unfit}{array.dtype}, which XLA does not compare: take int8 or uint8.")
    if jnp.iscomplexobj(array):
        raise TypeError(
            f"{function}: {name} must be an array of real numbers; got dtype {array.dtype}. Complex numbers have no "
            "order: pool their magnitude, or real and imaginary part."
        )
    return array


def index_array(function: str, call: str, argmax: Any, sizes: tuple[int, ...], channel_axis: int | None) -> jax.Array:
    """Returns argmax, places in a grid of those sizes, as int32; -1 is none, and what is outside if it is not known.

    Raises the error that says why not; `call` is how a batch calls the function.
    """
    array = real_array(function, "argmax", argmax)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"{function}: argmax must be an array of integers, as from max_pool_with_argmax; got dtype {array.dtype}."
        )
    arguments.example_shape(
        function, array.shape, "spatial_shape", sizes, channel_axis, name="argmax", call=call, empty=True
    )
    arguments.grid(function, "spatial_shape", sizes)
    count = math.prod(sizes)
    if not isinstance(array, jax.core.Tracer):  # known now: what is outside is an error, not lost
        known = argmax if isinstance(argmax, np.ndarray) else np.asarray(array)  # as given: JAX may narrow it
        known = known if known.dtype.kind == "u" else known.astype(np.int64)
        outside = known[(known < -1) | (known >= count)] if known.dtype.kind == "i" else known[known >= count]
        if outside.size:
            raise ValueError(
                f"{function}: argmax must hold places 0 to {count - 1} of spatial_shape {sizes}, or -1 for none; got "
                f"{outside.flat[0]}. Give the shape that was pooled, and places counted per channel and example "
                "(torch's convention)."
            )
    wide = array if array.dtype.itemsize > 4 else array.astype(jnp.int32)  # what wraps around is negative
    return jnp.where((wide >= 0) & (wide <= count - 1), wide, -1).astype(jnp.int32)


def channels_last(array: jax.Array, channel_axis: int | None) -> jax.Array:
    """The array with its channel axis last; one is made if it has none."""
    return array[..., None] if channel_axis is None else jnp.moveaxis(array, channel_axis, -1)


def channels_back(array: jax.Array, channel_axis: int | None) -> jax.Array:
    """Undoes `channels_last`."""
    return array[..., 0] if channel_axis is None else jnp.moveaxis(array, -1, channel_axis)


def places(example_shape: tuple[int, ...], channel_axis: int | None) -> jax.Array:
    """The flat row-major place of every element in the spatial grid of its channel, int32."""
    spatial = arguments.spatial_part(example_shape, channel_axis)
    grid = lax.iota(jnp.int32, math.prod(spatial)).reshape(spatial)
    axes = [i for i in range(len(example_shape)) if channel_axis is None or i != channel_axis % len(example_shape)]
    return lax.broadcast_in_dim(grid, example_shape, axes)


def resolved(
    function: str,
    x: Any,
    window_shape: Any,
    strides: Any,
    padding: Any,
    window_dilation: Any,
    ceil_mode: Any,
    channel_axis: Any,
    ties: Any,
    forward_mode: Any,
    *,
    minimum: bool = False,
) -> tuple[Geometry, jax.Array]:
    """Everything checked: the geometry, and x as an array."""
    x = real_array(function, "x", x)
    arguments.flag(function, "forward_mode", forward_mode)
    geometry = resolve(
        function,
        x.shape,
        window_shape,
        strides,
        padding,
        window_dilation=window_dilation,
        ceil_mode=ceil_mode,
        channel_axis=channel_axis,
        ties=ties,
        minimum=minimum,
    )
    return geometry, x
