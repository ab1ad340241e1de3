"""The same computations in torch, if it is installed and runs on the same kind of device."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed import cases
from experiments.speed.cases import Pool
from experiments.speed.timing import Call


def is_here() -> bool:
    """Whether torch can be compared."""
    if not importlib.util.find_spec("torch"):
        return False
    import torch

    return jax.default_backend() == "cpu" or torch.cuda.is_available()


def calls(function: Callable[..., Any], arrays: Sequence[jax.Array], *, gradient: bool, moved: bool) -> dict[str, Call]:
    """The function of torch on the same numbers, contiguous, and with `moved` also with the channels last in memory.

    Args:
      function: of all arrays, or of all but the last, which is the cotangent of its result, if there is a gradient.
      arrays: channels last, which torch wants first, if they are `moved`.
      gradient: whether to compute the gradient with respect to the first array as well.
      moved: see arrays.
    """
    import torch

    layouts = {"torch": torch.contiguous_format}
    if moved:
        arrays = [jnp.moveaxis(array, -1, 1) for array in arrays]
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(arrays[0].ndim)
        layouts |= {"torch, channels last": last} if last is not None else {}
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"

    def call(layout: Any) -> Call:
        x, *others = (tensor(array).to(device) for array in arrays)
        x = x.contiguous(memory_format=layout)
        others = [other.contiguous(memory_format=layout) if other.ndim == x.ndim else other for other in others]
        if not gradient:
            return partial(function, x, *others)
        *others, ct = others
        x.requires_grad_(True)
        return lambda: torch.autograd.grad(function(x, *others), x, ct)

    return {name: call(layout) for name, layout in layouts.items()}


def tensor(array: Any) -> Any:
    """A tensor of torch, whose indices have 64 bits; bfloat16 is unknown to NumPy."""
    import torch

    if array.dtype == np.int32:
        return torch.from_numpy(np.array(array, np.int64))
    return torch.from_numpy(np.array(array, np.float32)).to(getattr(torch, str(array.dtype)))


def pool_function(pool: Pool) -> Callable[[Any], Any]:
    """Torch's max pooling."""
    import torch

    function = getattr(torch.nn.functional, f"max_pool{len(pool.window)}d")
    return partial(function, kernel_size=pool.window, stride=pool.stride, padding=pool.pad)


def relative_functions() -> dict[str, Callable[..., Any]]:
    """Torch's equivalents of functions related to max_pool, by the name of the case."""
    import torch

    functional: Any = torch.nn.functional
    unpool = lambda values, at: functional.max_unpool2d(values, at, 3, 2, 1, cases.IMAGES[1:3])  # noqa: E731
    return {
        "max_pool_with_argmax, forward": lambda x: functional.max_pool2d(x, 3, 2, 1, return_indices=True),
        "max_unpool with the geometry": unpool,
        "max_unpool without it": unpool,
        "adaptive_max_pool 30x30 to 7x7": lambda x: functional.adaptive_max_pool2d(x, 7),
        "global_max_pool": lambda x: x.amax((2, 3)),
    }
