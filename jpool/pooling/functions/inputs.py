"""The array arguments: checked, and as JAX arrays."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jpool.checks import check_flag
from jpool.jax_extensions import is_traced
from jpool.pooling.integers import arguments
from jpool.pooling.integers.geometry import Geometry, resolve
from jpool.pooling.plain.ties import check_ties


def resolve_pooling(
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
) -> tuple[Geometry, jax.Array]:
    """All arguments of a pooling, checked: the geometry, and x as a JAX array."""
    x = real_array(function, "x", x)
    check_flag(function, "forward_mode", forward_mode)
    geometry = resolve(function, x.shape, window_shape, strides, padding, window_dilation, ceil_mode, channel_axis)
    check_ties(function, ties, tuple(map(int, window_shape)))
    check_unsharded(function, "x", x, geometry.pooled)
    arguments.check_elements_fit(function, geometry.padded_pooled_sizes)
    return geometry._replace(ties=ties), x


def real_array(function: str, name: str, x: Any, *, may_narrow: bool = False) -> jax.Array:
    """The argument called `name` as a JAX array of real numbers, or an error that says why it is not one.

    `may_narrow` allows integers that JAX narrows to 32 bits; who allows it has to check the argument as it was given.
    """
    if not isinstance(x, (jax.Array, np.ndarray, np.generic)) and not hasattr(x, "__jax_array__"):
        raise TypeError(
            f"{function}: {name} must be a JAX or NumPy array; got {type(x).__name__}: {x!r:.80}. Use jnp.asarray."
        )
    if isinstance(x, jax.Array) and not is_traced(x) and x.is_deleted():
        raise ValueError(
            f"{function}: {name} has been deleted, for example because it was donated to a jitted function; got an "
            f"array without a value, of shape {x.shape}. Use the array that the function returned, or donate a copy."
        )
    wrong = f"{function}: {name} must be an array of real numbers (floats, integers or bool); got {type(x).__name__} of"
    dtype = getattr(x, "dtype", None)
    if dtype is not None and _is_unsupported(dtype):  # before JAX makes an array of it, which can end the process
        raise TypeError(f"{wrong} dtype {dtype}, which XLA does not compare. Convert it to int8, uint8 or float16.")
    if not may_narrow:
        _check_narrowing(function, name, x)
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError) as error:  # objects, strings, dates, masked arrays, long doubles
        raise TypeError(
            f"{wrong} dtype {dtype}, which JAX cannot hold. Convert it, for example to float32 by x.astype, or fill "
            "what is masked or missing."
        ) from error
    if array.dtype != np.bool_ and not jnp.issubdtype(array.dtype, jnp.number):
        raise TypeError(f"{wrong} dtype {array.dtype}. Convert it to numbers first.")
    if jnp.iscomplexobj(array):
        raise TypeError(
            f"{wrong} dtype {array.dtype}. Complex numbers have no order: pool their magnitude, or real and imaginary "
            "part."
        )
    return array


def _is_unsupported(dtype: Any) -> bool:
    """Whether it has fewer than 4 bits, or 6: XLA has no comparisons, or no programs, for these. Or it has no zero."""
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.finfo(dtype).bits == 6 or dtype == jnp.float8_e8m0fnu
    return jnp.issubdtype(dtype, jnp.integer) and dtype.kind != "m" and jnp.iinfo(dtype).bits < 4


def is_pooled_dtype(dtype: Any) -> bool:
    """Whether arrays of this dtype of JAX can be pooled."""
    is_real = dtype == np.bool_ or jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
    return is_real and not _is_unsupported(dtype)


def _check_narrowing(function: str, name: str, x: Any) -> None:
    """Refuses integers of NumPy that JAX would replace by others, because it has only 32 bits unless it is told."""
    if isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "iu" and x.size:
        narrow = np.iinfo(jax.dtypes.canonicalize_dtype(x.dtype))
        for number in (x.min(), x.max()):
            if not narrow.min <= number <= narrow.max:
                raise ValueError(
                    f"{function}: {name} must hold integers that fit in {narrow.dtype}, JAX's widest without "
                    f'jax_enable_x64; got {number}. Use jax.config.update("jax_enable_x64", True), or smaller integers.'
                )


def check_same_devices(function: str, **arrays: jax.Array) -> None:
    """Refuses arrays that have been put on different devices."""
    placed = {name: array for name, array in arrays.items() if not is_traced(array) and array.committed}
    if len({frozenset(array.sharding.device_set) for array in placed.values()}) > 1:
        first, second = placed
        raise ValueError(
            f"{function}: {first} and {second} must be on the same devices; got {placed[first].sharding} and "
            f"{placed[second].sharding}. Move one of them: jax.device_put({second}, {first}.sharding)."
        )


def check_unsharded(function: str, name: str, array: jax.Array, axes: Iterable[int]) -> None:
    """Refuses an array that an Explicit mesh divides along one of these axes, which windows read across."""
    spec = jax.typeof(array).sharding.spec
    for i in axes:
        if spec[i] is not None:
            rest = ", ".join(repr(None if j in axes else along) for j, along in enumerate(spec))
            raise ValueError(
                f"{function}: {name} must be whole on each device along spatial axes, where the mesh is Explicit; got "
                f"type {jax.typeof(array)}. Collect it first, jax.sharding.reshard({name}, jax.P({rest})), or "
                "split the batch or the channels, or use a mesh of Auto axes."
            )


def index_array(
    function: str, call: tuple[str, str], argmax: Any, sizes: tuple[int, ...], channel_axis: int | None
) -> jax.Array:
    """Argmax as a JAX array: flat indices into a spatial grid of these sizes, or -1.

    An index outside the grid is an error if argmax is concrete. In a traced one `inside` makes it -1. `call` is as for
    `arguments.spatial_sizes`.
    """
    array = real_array(function, "argmax", argmax, may_narrow=True)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"{function}: argmax must be an array of integers, as from max_pool_with_argmax; got dtype {array.dtype}."
        )
    arguments.spatial_sizes(
        function, array.shape, "spatial_shape", sizes, channel_axis, name="argmax", call=call, may_be_empty=True
    )
    check_unsharded(function, "argmax", array, arguments.spatial_axes(array.ndim, channel_axis))
    arguments.check_indices_fit(function, "spatial_shape", sizes)
    count = math.prod(sizes)
    if (concrete := as_concrete(argmax, array)) is not None:
        signed = concrete if concrete.dtype.kind == "u" else concrete.astype(np.int64)
        outside = signed >= count if signed.dtype.kind == "u" else (signed < -1) | (signed >= count)
        if outside.any():
            raise ValueError(
                f"{function}: argmax must hold flat indices 0 to {count - 1} of spatial_shape {sizes}, or -1 for no "
                f"winner; got {concrete[outside][0]}. Give the shape that was pooled, and indices counted per channel "
                "and example (torch's convention)."
            )
    return array


def inside(indices: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """The indices as int32, and -1 for those outside a grid of these sizes."""
    wide = indices if indices.dtype.itemsize > 4 else indices.astype(jnp.int32)  # a large uint32 becomes negative
    return jnp.where((wide >= 0) & (wide <= math.prod(sizes) - 1), wide, -1).astype(jnp.int32)


def as_concrete(argument: Any, array: jax.Array) -> np.ndarray | None:
    """An array argument as it was given, or None if it is traced.

    `array` is the same as a JAX array: perhaps narrower, and inside `jax.jit` traced even if the argument is not.
    """
    given = argument if isinstance(argument, (jax.Array, np.ndarray, np.generic)) else array
    return None if is_traced(given) else np.asarray(given)
