"""max_pool, the public function, and its derivative. One example at a time; `jax.vmap` lifts it over the batch.

    _max_pool :: (geometry; x)           -> values
    _select   :: (geometry; x)           -> (values, winners)
    _backward :: (geometry; winners, ct) -> ct of x

`select` already has the type of a forward rule, so the wiring is one line. The winners are the whole residual: once
they are known, max pooling is linear, and neither x nor the values are needed again.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jpool.geometry import Geometry, resolve
from jpool.routing import gather, route
from jpool.selection import largest, select


def max_pool(
    x: jax.Array | np.ndarray,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: str | int | Sequence[int | Sequence[int]] = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
    channel_axis: int | None = -1,
) -> jax.Array:
    """Takes the maximum of every window of ONE example, and sends each cotangent back to the element that won.

    A batch is `jax.vmap(lambda x: jpool.max_pool(x, ...))(batch)`; every example is then pooled, and differentiated, by
    itself. Works under jit, vmap, grad, scan, cond, remat, and for second derivatives, in any nesting.

    Which element wins a window decides its value and its gradient alike:

    ========================================  =========================================================================
    tie                                       the first in row-major order wins (torch's and Caffe's rule)
    NaN                                       propagates; the first NaN of the window wins
    -inf, or the lowest integer               a real element always beats padding, so no cotangent is lost
    window with no real element               the value is the lowest of the dtype (-inf for floats); no gradient
    16-bit and 8-bit floats                   where windows overlap, gradients add up in float32 and are rounded once
    integers, unsigned, bool                  pooled exactly; not differentiable, as everywhere in JAX
    subnormal numbers                         compared as the device compares them (XLA:CPU and TPU: equal to zero)
    ========================================  =========================================================================

    The derivative is reverse mode (`jax.custom_vjp`). It saves one small integer per output element (uint8 for windows
    of up to 255 taps, uint16 up to 65,535, else uint32), and neither pass scatters, so it is deterministic. Forward
    mode on its own (`jax.jvp`, `jax.jacfwd`, `jax.linearize`) is refused by JAX; `jax.hessian` works.

    Args:
      x: one example: `(*spatial, channels)`, `(channels, *spatial)` or `(*spatial,)`, as `channel_axis` says. A JAX or
        NumPy array of any real dtype.
      window_shape: ints >= 1, one per spatial axis; their number says how many axes are spatial. An int is refused.
      strides: elements from one window to the next, an int or one per spatial axis. None is 1 on every axis, as in JAX,
        Flax and Equinox; torch and Keras default to the window, so write `strides=window_shape` for theirs.
      padding: "VALID" (none), "SAME" or "SAME_LOWER" (ceil(size / stride) windows; an odd element of padding goes after
        or before the input: lax's words and rules), an int, or per spatial axis an int or a pair (low, high); >= 0.
      window_dilation: elements from one tap of a window to the next, an int or one per spatial axis; None is 1.
      ceil_mode: rounds the number of windows up instead of down, by torch's and ONNX's rule: the last window may hang
        over the end, but must start inside the input or its low padding. No effect under "SAME" and "SAME_LOWER".
      channel_axis: -1 for channels last (Flax, Haiku), 0 for channels first (Equinox, torch), None for no channels.

    Returns:
      The maxima, with the dtype and layout of x. A spatial axis of size n has
      `(n + low + high - (window - 1) * dilation - 1) // stride + 1` windows, rounded as `ceil_mode` says.

    Raises:
      TypeError: x is not an array of real numbers, or an argument is not of the type above (traced values included).
      ValueError: an argument has the wrong length, sign or word, x has the wrong rank (a batch without `jax.vmap`,
        say), or a window is larger than the padded input.

    Example:
      >>> import jax, jpool
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 5.0, 2.0, 0.0], [3.0, 4.0, 2.0, 2.0]])
      >>> jpool.max_pool(x, (2, 2), 2, channel_axis=None)
      Array([[5., 2.]], dtype=float32)
      >>> jax.grad(lambda x: jpool.max_pool(x, (2, 2), 2, channel_axis=None).sum())(x)
      Array([[0., 1., 1., 0.],
             [0., 0., 0., 0.]], dtype=float32)
    """
    x = _example("max_pool", x)
    geometry = resolve(
        "max_pool",
        x.shape,
        window_shape,
        strides,
        padding,
        window_dilation=window_dilation,
        ceil_mode=ceil_mode,
        channel_axis=channel_axis,
    )
    return _max_pool_jitted(geometry, x)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _select(geometry: Geometry, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`select` with a derivative of its own, for those who differentiate through the forward rule: `jax.hessian`."""
    return select(geometry, x)


@_select.defjvp
def _select_tangent(geometry: Geometry, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> Any:
    values, winners = _select(geometry, *primals)
    no_tangent = np.zeros(winners.shape, jax.dtypes.float0)
    return (values, winners), (gather(geometry, winners, *tangents), no_tangent)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _max_pool(geometry: Geometry, x: jax.Array) -> jax.Array:
    return largest(geometry, x)


def _backward(geometry: Geometry, winners: jax.Array, ct: jax.Array) -> tuple[jax.Array | None]:
    if ct.dtype == jax.dtypes.float0:  # integers have no cotangent
        return (None,)
    return (_route(geometry, winners, ct),)


@partial(jax.jit, static_argnums=0, inline=True)  # so that outside jit, too, it is one program
def _route(geometry: Geometry, winners: jax.Array, ct: jax.Array) -> jax.Array:
    # Without the barrier XLA, given both passes in one program, may find winners again for every read of them.
    return route(geometry, jax.lax.optimization_barrier(winners), ct)


_max_pool.defvjp(_select, _backward)
_max_pool_jitted = jax.jit(_max_pool, static_argnums=0, inline=True)


def _example(function: str, x: Any) -> jax.Array:
    """Returns x as a JAX array of real numbers, or raises the error that says why not."""
    if not isinstance(x, (jax.Array, np.ndarray, np.generic)) and not hasattr(x, "__jax_array__"):
        raise TypeError(f"{function}: x must be a JAX or NumPy array; got {type(x).__name__}: {x!r:.80}.")
    unfit = f"{function}: x must be an array of numbers (floats, integers or bool); got {type(x).__name__} of dtype "
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError) as error:  # objects, strings, dates, masked arrays, long doubles
        raise TypeError(f"{unfit}{x.dtype}, which JAX cannot hold.") from error
    if array.dtype != np.bool_ and not jnp.issubdtype(array.dtype, jnp.number):
        raise TypeError(f"{unfit}{array.dtype}.")
    if jnp.iscomplexobj(array):
        raise TypeError(
            f"{function}: x must be an array of real numbers; got dtype {array.dtype}. Complex numbers have no order: "
            "pool their magnitude, or real and imaginary part."
        )
    return array
