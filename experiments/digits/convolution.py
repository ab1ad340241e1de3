"""The convolution of ONE example, with a derivative that stays fast when each example has its own weight gradient.

    convolve  :: (x, w)     -> y
    _backward :: ((x, w), ct) -> (ct of x, ct of w)

Under `vmap(grad)`, the weight gradient that JAX derives becomes a convolution with one group per example. XLA runs it
slowly, and wrongly over a batch that is sharded automatically. One small matrix product for each element of the kernel
avoids both. The gradient of the input is the forward convolution of the padded cotangent (ct, the gradient of the loss
with respect to y) with the flipped kernel.
"""

import jax
import jax.numpy as jnp
from jax import lax


def convolve_by_lax(x: jax.Array, w: jax.Array) -> jax.Array:
    """The same function with JAX's derivative."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x[None], w, (1, 1), "VALID", dimension_numbers=layout)[0]


@jax.custom_vjp
def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """Stride 1, no padding: x (h, w, channels in), w (kh, kw, channels in, out) -> (h - kh + 1, w - kw + 1, out)."""
    return convolve_by_lax(x, w)


def _forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, w), (x, w)


def _backward(saved: tuple[jax.Array, jax.Array], ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    (rows, columns), (height, width) = w.shape[:2], ct.shape[:2]
    padded = jnp.pad(ct, ((rows - 1, rows - 1), (columns - 1, columns - 1), (0, 0)))
    ct_x = convolve(padded, w[::-1, ::-1].swapaxes(2, 3))
    patches = [[x[i : i + height, j : j + width] for j in range(columns)] for i in range(rows)]  # by kernel element
    ct_w = jnp.stack([jnp.stack([jnp.einsum("hwi,hwo->io", part, ct) for part in row]) for row in patches])
    return ct_x, ct_w


convolve.defvjp(_forward, _backward)
