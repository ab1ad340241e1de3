"""What `experiments.programs` compiles, from shapes only: the benchmark's pools, and functions related to max_pool."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jpool
from experiments.common.pools import POOLS, jax_pools
from experiments.relatives import IMAGES, lax_pool

Function = Callable[..., Any]
RESNET = POOLS["ResNet 3x3/2 pad 1"].x


class Question(NamedTuple):
    """One computation, compiled from each contender's function for arguments of these shapes."""

    name: str
    contenders: dict[str, Function]  # jpool comes first
    shapes: tuple[Any, ...]
    kept: tuple[Any, ...] = ()  # shapes of residuals, written by the forward pass and read by the backward pass

    @property
    def lower_bound(self) -> int:
        """Lower bound of the bytes: each argument read, each result written, each kept array written and read, once."""
        results = jax.tree.leaves(jax.eval_shape(self.contenders["jpool"], *self.shapes))
        return sum(map(size_of, (*self.shapes, *results))) + 2 * sum(map(size_of, self.kept))


def size_of(array: Any) -> int:
    """The bytes of an array."""
    return math.prod(array.shape) * array.dtype.itemsize


def shaped(shape: Sequence[int], dtype: Any = "float32") -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, without its data."""
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))


def passes(batched: Function) -> Function:
    """Both passes of a batch: (x, cotangent of the values) -> (values, cotangent of x)."""

    def forward_and_backward(x: jax.Array, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, backward = jax.vjp(batched, x)
        return values, backward(ct)[0]

    return forward_and_backward


def both(name: str, batched: dict[str, Function], shape: Sequence[int], taps: int, dtype: str = "float32") -> Question:
    """A question about both passes; the winners (which element is the maximum) are kept between them."""
    x = shaped(shape, dtype)
    values = jax.eval_shape(batched["jpool"], x)
    winners = shaped(values.shape, np.min_scalar_type(taps))
    return Question(name, {library: passes(function) for library, function in batched.items()}, (x, values), (winners,))


def questions() -> Iterator[Question]:
    """The pools of the benchmark, then the functions related to max_pool."""
    for name, pool in POOLS.items():
        yield both(name, jax_pools(pool, "last"), pool.x, math.prod(pool.window))
    yield both("31x31/1 SAME", ours((31, 31), 1, "SAME"), (4, 64, 64, 64), 31 * 31)
    yield both("ResNet, bfloat16", jax_pools(POOLS["ResNet 3x3/2 pad 1"], "last"), RESNET, 9, "bfloat16")
    first = (RESNET[0], RESNET[-1], *RESNET[1:-1])
    yield both("ResNet, channels first", jax_pools(POOLS["ResNet 3x3/2 pad 1"], "first"), first, 9)
    yield both("3x3/2, dilation 2", ours((3, 3), 2, window_dilation=2), RESNET, 9)
    for ties in ("last", "split", "none"):
        yield both(f'VGG, ties="{ties}"', ours((2, 2), 2, ties=ties), POOLS["VGG 2x2/2"].x, 4)
    yield both(
        "VGG, min_pool",
        {"jpool": jax.vmap(partial(jpool.min_pool, window_shape=(2, 2), strides=2))},
        POOLS["VGG 2x2/2"].x,
        4,
    )
    for name in ("VGG 2x2/2", "ResNet 3x3/2 pad 1", "Inception 3x3/1 pad 1", "SPPF 5x5/1 pad 2"):
        pool = POOLS[name]
        yield Question(f"{name}, forward only", jax_pools(pool, "last"), (shaped(pool.x),))
    resnet: dict[str, Any] = {"window_shape": (3, 3), "strides": 2, "padding": 1}
    yield Question(
        "max_pool_with_argmax, forward",
        {"jpool": jax.vmap(partial(jpool.max_pool_with_argmax, **resnet))},
        (shaped(IMAGES),),
    )
    yield Question(
        "forward_mode, values and tangent",
        {"jpool": tangent(partial(jpool.max_pool, **resnet, forward_mode=True)), "lax": tangent(lax_pool)},
        (shaped(IMAGES), shaped(IMAGES)),
    )
    yield unpooling("max_unpool with the geometry", resnet)
    yield unpooling("max_unpool without it", {})
    yield both(
        "adaptive_max_pool 30x30 to 7x7",
        {"jpool": jax.vmap(partial(jpool.adaptive_max_pool, output_shape=(7, 7)))},
        (16, 30, 30, 64),
        30,
    )
    yield both(
        "global_max_pool",
        {"jpool": jax.vmap(jpool.global_max_pool), "jnp.max": lambda x: x.max((1, 2))},
        IMAGES,
        56 * 56,
    )


def ours(window: tuple[int, ...], strides: int, padding: Any = "VALID", **options: Any) -> dict[str, Function]:
    """max_pool of a batch, and lax's equivalent where there is one."""
    functions: dict[str, Function] = {
        "jpool": jax.vmap(partial(jpool.max_pool, window_shape=window, strides=strides, padding=padding, **options))
    }
    if not options:
        functions["lax"] = lambda x: lax.reduce_window(
            x, -jnp.inf, lax.max, (1, *window, 1), (1, *(strides,) * len(window), 1), padding
        )
    return functions


def tangent(function: Function) -> Function:
    """Values and their tangent."""
    return jax.vmap(lambda x, t: jax.jvp(function, (x,), (t,)))


def unpooling(name: str, geometry: dict[str, Any]) -> Question:
    """Both passes of unpooling."""
    pooled = (16, 28, 28, 64)

    def run(values: jax.Array, argmax: jax.Array, ct: jax.Array) -> Any:
        unpool = jax.vmap(lambda values, argmax: jpool.max_unpool(values, argmax, IMAGES[1:3], **geometry))
        out, backward = jax.vjp(lambda values: unpool(values, argmax), values)
        return out, backward(ct)[0]

    shapes = shaped(pooled), shaped(pooled, "int32"), shaped(IMAGES)
    return Question(name, {"jpool": run}, shapes, (shaped(pooled, "uint8"),))  # winners, encoded by argmax
