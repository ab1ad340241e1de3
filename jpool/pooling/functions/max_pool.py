"""max_pool and min_pool, the public functions. They pool one example; `jax.vmap` maps them over a batch."""

from collections.abc import Sequence

import jax
import numpy as np

from jpool.pooling.derivative.vjp import pool
from jpool.pooling.functions.inputs import resolve_pooling


def max_pool(
    x: jax.Array | np.ndarray,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: str | int | Sequence[int | Sequence[int]] = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
    channel_axis: int | None = -1,
    ties: str = "first",
    forward_mode: bool = False,
) -> jax.Array:
    """Takes the maximum of every window of ONE example, and sends each cotangent back to the element that won.

    For a batch use `jax.vmap(lambda x: jpool.max_pool(x, ...))(batch)`: every example is pooled, and differentiated,
    separately. Works under jit, vmap, grad, scan, cond, remat, and for gradients of gradients, in any nesting.

    The element that wins a window supplies its value and receives its cotangent (the gradient of the loss with respect
    to that value):

    ========================================  =========================================================================
    tie                                       the first in row-major order wins (torch's and Caffe's rule); see `ties`
    NaN                                       propagates; the first NaN of the window wins
    -inf, or the lowest integer               a real element always beats padding, so no cotangent is lost
    window with no real element               the value is the lowest of the dtype (-inf where it has one); no gradient
    16-bit and 8-bit floats                   where windows overlap, gradients add up in float32 and are rounded once
    integers, unsigned, bool                  pooled exactly; not differentiable, as everywhere in JAX
    subnormal numbers                         compared as the device compares them (XLA:CPU and TPU: equal to zero)
    ========================================  =========================================================================

    The derivative is reverse mode (`jax.custom_vjp`). It saves one byte per output element for windows of up to 9 taps
    (positions of a window). Larger windows are pooled in steps, axis by axis and in blocks, and it saves one byte for
    each value of each step: two steps for 5x5, four for 13x13, six for 31x31. For one window over all of an axis it
    saves one number, of up to 4 bytes. Neither pass scatters, so it is deterministic.

    JAX refuses forward mode of a `jax.custom_vjp`: `jax.jvp`, `jax.jacfwd`, the map that
    `jax.linearize` returns, and reverse over forward such as `jax.jacrev(jax.jacfwd(f))`, raise a TypeError.
    `jax.hessian` works. With `forward_mode=True` all of them work; values, gradients and what is saved are the same,
    bit for bit.

    Args:
      x: one example: `(*spatial, channels)`, `(channels, *spatial)` or `(*spatial,)`, depending on `channel_axis`. A
        JAX or NumPy array of any real dtype.
      window_shape: ints >= 1, one per spatial axis; their number is the number of spatial axes. An int is refused.
      strides: elements from one window to the next, an int or one per spatial axis. None is 1 on every axis, as in JAX,
        Flax and Equinox; torch and Keras default to the window: write `strides=window_shape` for the same result.
      padding: "VALID" (none), "SAME" or "SAME_LOWER" (ceil(size / stride) windows; an odd element of padding goes after
        or before the input, as in lax), an int, or per spatial axis an int or a pair (low, high); >= 0.
      window_dilation: elements from one tap of a window to the next, an int or one per spatial axis; None is 1.
      ceil_mode: rounds the number of windows up instead of down, by torch's and ONNX's rule: the last window may hang
        over the end, but must start inside the input or its low padding. No effect under "SAME" and "SAME_LOWER".
      channel_axis: -1 for channels last (Flax, Haiku), 0 for channels first (Equinox, torch), None for no channels. A
        batch of maps without channels, (B, H, W), has as many axes as one example (H, W, C), and would silently be
        pooled as one. Map over it: `jax.vmap(lambda x: jpool.max_pool(x, (2, 2), channel_axis=None))(maps)`.
      ties: which element wins if several elements of a window are its maximum.

        - "first": the first in row-major order, as in torch and Caffe.
        - "last": the last.
        - "split": all of them, in equal shares, as in `jnp.max` and MLX. Saves a mask with a bit for each tap of a step
          (uint8 for up to 7, uint16 up to 15, else uint32). Every side of the window must be a product of numbers up
          to 31.
        - "none": no element, the textbook rule J_a = J_m if a > b else 0 read literally. The cotangent of a window with
          a tie, or with a NaN, is lost: after relu, that of every window of zeros.

        Under every rule except "none" the first NaN receives the whole cotangent, and the gradient of a window with a
        real element sums to its cotangent (for "split" up to rounding).
      forward_mode: whether to allow forward mode as well.

    Returns:
      The maxima, with the dtype and layout of x. A spatial axis of size n has
      `(n + low + high - (window - 1) * dilation - 1) // stride + 1` windows, rounded up with `ceil_mode`, else down.

    Raises:
      TypeError: x is not an array of real numbers, or another argument is not of the type above (a traced one is not).
      ValueError: an argument has the wrong length, sign or name, x has the wrong rank (a batch without `jax.vmap`,
        say), a window is larger than the padded input, or x holds integers that JAX narrows (64 bits, without
        `jax_enable_x64`).

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
    geometry, x = resolve_pooling(
        "max_pool", x, window_shape, strides, padding, window_dilation, ceil_mode, channel_axis, ties, forward_mode
    )
    return pool(geometry, x, bool(forward_mode))


def min_pool(
    x: jax.Array | np.ndarray,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: str | int | Sequence[int | Sequence[int]] = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
    channel_axis: int | None = -1,
    ties: str = "first",
    forward_mode: bool = False,
) -> jax.Array:
    """Takes the minimum of every window of ONE example, and sends each cotangent back to the element that won.

    `max_pool` with the comparison reversed: the same arguments, result, errors, derivative, and rules for ties and NaN.
    No element is negated, so unsigned integers and the lowest integer are right.

    ========================================  =========================================================================
    tie, NaN                                  as in `max_pool`: the first wins, or the rule selected by `ties` decides
    inf, or the highest integer               a real element always beats padding, so no cotangent is lost
    window with no real element               the value is the highest of the dtype (inf where it has one); no gradient
    ========================================  =========================================================================

    Args:
      x: one example, as for `max_pool`.
      window_shape: ints >= 1, one per spatial axis.
      strides: an int or one per spatial axis; None is 1 on every axis.
      padding: "VALID", "SAME", "SAME_LOWER", an int, or per spatial axis an int or a pair (low, high); >= 0.
      window_dilation: an int or one per spatial axis; None is 1.
      ceil_mode: rounds the number of windows up instead of down, by torch's and ONNX's rule.
      channel_axis: -1 for channels last, 0 for channels first, None for no channels.
      ties: "first", "last", "split" or "none".
      forward_mode: whether to allow forward mode (`jax.jvp`, `jax.jacfwd`, `jax.linearize`) as well.

    Returns:
      The minima, with the dtype and layout of x.

    Raises:
      TypeError: x is not an array of real numbers, or another argument is not of the type above (a traced one is not).
      ValueError: an argument, or the rank of x, is invalid.

    Example:
      >>> import jax, jpool
      >>> import jax.numpy as jnp
      >>> jpool.min_pool(jnp.array([7, 0, 200, 255], jnp.uint8), (2,), 2, channel_axis=None)
      Array([  0, 200], dtype=uint8)
      >>> jax.grad(lambda x: jpool.min_pool(x, (3,), channel_axis=None).sum())(jnp.array([1.0, 5.0, 2.0, 0.0]))
      Array([1., 0., 0., 1.], dtype=float32)
    """
    geometry, x = resolve_pooling(
        "min_pool", x, window_shape, strides, padding, window_dilation, ceil_mode, channel_axis, ties, forward_mode
    )
    return pool(geometry._replace(minimum=True), x, bool(forward_mode))
