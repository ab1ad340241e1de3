"""The pooling layers of well-known networks, and each library's calls for them: forward only, or with the gradient."""

import importlib.util
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jpool

Call = Callable[[], Any]
Batched = Callable[[jax.Array], jax.Array]


class Pool(NamedTuple):
    """A pooling layer of a network."""

    x: tuple[int, ...]  # (batch, *spatial, channels)
    window: tuple[int, ...]
    stride: int
    pad: int = 0

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """(low, high) per spatial axis."""
        return ((self.pad, self.pad),) * len(self.window)

    @property
    def values(self) -> tuple[int, ...]:
        """The shape of the result, (batch, *spatial, channels)."""
        sizes = zip(self.x[1:-1], self.window, strict=True)
        return (self.x[0], *((size + 2 * self.pad - window) // self.stride + 1 for size, window in sizes), self.x[-1])

    def bytes_moved(self, itemsize: int) -> int:
        """The fewest bytes that both passes can move: x, values, winners; cotangents, winners, gradient."""
        winner = np.min_scalar_type(math.prod(self.window)).itemsize
        return 2 * (math.prod(self.x) * itemsize + math.prod(self.values) * (itemsize + winner))

    @property
    def operations(self) -> int:
        """The fewest compares, selects and adds of both passes: all elements of a window at once, or axis by axis."""
        taps = min(math.prod(self.window), sum(self.window))
        return math.prod(self.values) * (4 * (taps - 1) + 3 * taps)


POOLS = {
    "LeNet 2x2/2": Pool((100, 24, 24, 20), (2, 2), 2),
    "VGG 2x2/2": Pool((8, 112, 112, 128), (2, 2), 2),
    "AlexNet 3x3/2": Pool((32, 55, 55, 96), (3, 3), 2),
    "ResNet 3x3/2 pad 1": Pool((16, 112, 112, 64), (3, 3), 2, 1),
    "Inception 3x3/1 pad 1": Pool((16, 28, 28, 192), (3, 3), 1, 1),
    "SPPF 5x5/1 pad 2": Pool((8, 20, 20, 256), (5, 5), 1, 2),
    "SPP 13x13/1 pad 6": Pool((8, 20, 20, 256), (13, 13), 1, 6),
    "3-D U-Net 2x2x2/2": Pool((2, 64, 64, 64, 32), (2, 2, 2), 2),
    "WaveNet 4/4": Pool((32, 8192, 64), (4,), 4),
}


class Contender(NamedTuple):
    """The pooling of one library: the calls to time, and for JAX the program of both passes."""

    forward: Call
    both: Call
    program: Any = None


def contenders(pool: Pool, dtype: str, layout: str) -> dict[str, Contender]:
    """All installed libraries on the same numbers. jpool and lax must agree before anything is timed."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(pool.x, np.float32)
    ct = rng.integers(-8, 9, pool.values).astype(np.float32)  # whole numbers: sums do not depend on their order
    if layout == "first":
        x, ct = (np.ascontiguousarray(np.moveaxis(array, -1, 1)) for array in (x, ct))
    arrays = [jnp.asarray(array).astype(dtype) for array in (x, ct)]
    in_jax = {name: jax_contender(batched, *arrays) for name, batched in jax_pools(pool, layout).items()}
    mine, theirs = (jax.tree.leaves(in_jax[name].both()) for name in ("jpool", "lax"))
    for a, b in zip(mine, theirs, strict=True):
        if dtype == "float32" or a.shape != arrays[0].shape:  # narrow floats tie, and lax breaks ties by its own rule
            np.testing.assert_array_equal(a, b)
    return in_jax | torch_contenders(pool, x, ct, dtype, layout)


def jax_pools(pool: Pool, layout: str) -> dict[str, Batched]:
    """The JAX libraries' poolings of a batch. Flax supports only channels last, Equinox only channels first."""
    dimensions = len(pool.window)
    strides = (pool.stride,) * dimensions
    axis = -1 if layout == "last" else 0
    ours = partial(jpool.max_pool, window_shape=pool.window, strides=strides, padding=pool.padding, channel_axis=axis)

    def around(spatial: tuple[Any, ...], other: Any) -> tuple[Any, ...]:
        return (other, *spatial, other) if layout == "last" else (other, other, *spatial)

    def with_lax(x: jax.Array) -> jax.Array:
        window, steps, padding = around(pool.window, 1), around(strides, 1), around(pool.padding, (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, window, steps, padding)

    functions: dict[str, Batched] = {"jpool": jax.vmap(ours), "lax": with_lax}
    if layout == "last" and importlib.util.find_spec("flax"):
        from flax import linen

        functions["flax"] = lambda x: linen.max_pool(x, pool.window, strides, pool.padding)
    if layout == "first" and importlib.util.find_spec("equinox"):
        from equinox.nn import Pool as EquinoxPool

        functions["equinox"] = jax.vmap(EquinoxPool(-jnp.inf, lax.max, dimensions, pool.window, strides, pool.padding))
    return functions


def with_gradient(batched: Batched) -> Any:
    """One compiled program for both passes: (x, cotangent of the values) -> (values, cotangent of x)."""

    def both(x: jax.Array, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, backward = jax.vjp(batched, x)
        return values, backward(ct)[0]

    return jax.jit(both)


def jax_contender(batched: Batched, x: jax.Array, ct: jax.Array) -> Contender:
    """Both programs; the calls do not wait for their results."""
    forward, both = jax.jit(batched), with_gradient(batched)
    return Contender(lambda: forward(x), lambda: both(x, ct), lambda: both.lower(x, ct))


def torch_contenders(pool: Pool, x: np.ndarray, ct: np.ndarray, dtype: str, layout: str) -> dict[str, Contender]:
    """Torch on the same kind of device, in both of its memory layouts if x has its channels last."""
    if not importlib.util.find_spec("torch"):
        return {}
    import torch

    rank = len(pool.window)
    function = getattr(torch.nn.functional, f"max_pool{rank}d", None)
    on_gpu = jax.default_backend() == "gpu"
    if function is None or (on_gpu and not torch.cuda.is_available()):
        return {}
    formats = {"torch": torch.contiguous_format}
    if layout == "last":
        x, ct = (np.moveaxis(array, -1, 1) for array in (x, ct))
        formats |= {2: {"torch, last": torch.channels_last}, 3: {"torch, last": torch.channels_last_3d}}.get(rank, {})

    def contender(memory_format: Any) -> Contender:
        image, cotangent = (
            torch.from_numpy(array.copy()).to("cuda" if on_gpu else "cpu", getattr(torch, dtype))
            .contiguous(memory_format=memory_format) for array in (x, ct)
        )  # fmt: skip
        image.requires_grad_(True)

        def forward() -> Any:
            with torch.no_grad():
                return function(image, pool.window, pool.stride, pool.pad)

        def both() -> Any:
            return torch.autograd.grad(function(image, pool.window, pool.stride, pool.pad), image, cotangent)

        return Contender(forward, both)

    return {name: contender(memory_format) for name, memory_format in formats.items()}
