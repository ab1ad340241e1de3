"""pooled_shape, the public function: how many windows there are."""

from collections.abc import Sequence

from jpool.pooling.integers import arguments
from jpool.pooling.integers.geometry import resolve


def pooled_shape(
    spatial_shape: Sequence[int],
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: str | int | Sequence[int | Sequence[int]] = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> tuple[int, ...]:
    """Computes the number of windows along each spatial axis, without an array.

    Args:
      spatial_shape: ints >= 1, the sizes of the spatial axes of the example: without batch and channels.
      window_shape: ints >= 1, one per spatial axis, as for `max_pool`.
      strides: an int or one per spatial axis; None is 1 on every axis.
      padding: "VALID", "SAME", "SAME_LOWER", an int, or per spatial axis an int or a pair (low, high); >= 0.
      window_dilation: an int or one per spatial axis; None is 1.
      ceil_mode: rounds the number of windows up instead of down, by torch's and ONNX's rule.

    Returns:
      The spatial shape of the result of `max_pool`, and of the other functions that take these arguments.

    Raises:
      TypeError: an argument is not of the type above.
      ValueError: an argument has a wrong length, sign or name, or a window is larger than the padded input.

    Example:
      >>> import jpool
      >>> jpool.pooled_shape((112, 112), (3, 3), 2)
      (55, 55)
      >>> jpool.pooled_shape((112, 112), (3, 3), 2, ceil_mode=True)
      (56, 56)
    """
    name = "pooled_shape"
    sizes = arguments.sizes(name, "spatial_shape", spatial_shape)
    rank = len(arguments.window_sizes(name, window_shape))
    if len(sizes) != rank:
        raise ValueError(f"{name}: spatial_shape must have as many axes as window_shape, {rank}; got {sizes}.")
    return resolve(name, sizes, window_shape, strides, padding, window_dilation, ceil_mode, None).values_shape
