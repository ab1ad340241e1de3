"""What is timed and compiled: nine poolings of well-known networks and sizes, and the functions related to max_pool.

A case has the functions to compare, for a batch with its channels last unless its name says otherwise, and the shapes
of their arguments. Where there is a gradient, a function runs both passes: (x, .., cotangent) -> (values, cotangent of
x).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jpool

Function = Callable[..., Any]
IMAGES = (16, 56, 56, 64)
POOLED = (16, 28, 28, 64)
THREE: dict[str, Any] = {"window_shape": (3, 3), "strides": 2, "padding": 1}  # from IMAGES to POOLED


class Case(NamedTuple):
    """One computation; jpool's function comes first."""

    functions: Mapping[str, Function]
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    kept: tuple[jax.ShapeDtypeStruct, ...] = ()  # of what the forward pass saves for the backward pass

    @property
    def least_bytes(self) -> int:
        """Each argument read, each result written, each saved array written and read, once."""
        results = jax.tree.leaves(jax.eval_shape(self.functions["jpool"], *self.shapes))
        return sum(map(bytes_of, (*self.shapes, *results))) + 2 * sum(map(bytes_of, self.kept))


class Pool(NamedTuple):
    """A pooling layer of a network."""

    x: tuple[int, ...]  # (batch, *spatial, channels)
    window: tuple[int, ...]
    stride: int
    pad: int = 0

    def functions(self, **options: Any) -> dict[str, Function]:
        """The poolings of a batch: jpool's, and lax's, which Flax, Equinox and Haiku call."""
        ours = partial(jpool.max_pool, window_shape=self.window, strides=self.stride, padding=self.pad, **options)
        first = options.get("channel_axis") == 0
        around = lambda spatial, other: (other, other, *spatial) if first else (other, *spatial, other)  # noqa: E731
        axes = len(self.window)
        window, strides = around(self.window, 1), around((self.stride,) * axes, 1)
        padding = around(((self.pad, self.pad),) * axes, (0, 0))
        theirs = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)  # noqa: E731
        return {"jpool": jax.vmap(ours)} | ({} if options.keys() - {"channel_axis"} else {"lax": theirs})

    def case(self, dtype: str = "float32", **options: Any) -> Case:
        """Both passes."""
        x = self.x if options.get("channel_axis") != 0 else (self.x[0], self.x[-1], *self.x[1:-1])
        return both(self.functions(**options), shaped(x, dtype), math.prod(self.window))


POOLS = {
    "LeNet 2x2/2": Pool((100, 24, 24, 20), (2, 2), 2),
    "VGG 2x2/2": Pool((8, 112, 112, 128), (2, 2), 2),
    "AlexNet 3x3/2": Pool((32, 55, 55, 96), (3, 3), 2),
    "ResNet 3x3/2 pad 1": Pool((16, 112, 112, 64), (3, 3), 2, 1),
    "Inception 3x3/1 pad 1": Pool((16, 28, 28, 192), (3, 3), 1, 1),
    "SPPF 5x5/1 pad 2": Pool((8, 20, 20, 256), (5, 5), 1, 2),
    "SPP 13x13/1 pad 6": Pool((8, 20, 20, 256), (13, 13), 1, 6),
    "3-D U-Net 2x2x2/2": Pool((2, 64, 64, 64, 32), (2, 2, 2), 2),
    "1-D 4/4": Pool((32, 8192, 64), (4,), 4),
}


def shaped(shape: tuple[int, ...], dtype: str = "float32") -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, without its data."""
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def bytes_of(array: Any) -> int:
    """The bytes of an array."""
    return math.prod(array.shape) * array.dtype.itemsize


def passes(batched: Function) -> Function:
    """Both passes in one function: (x, .., cotangent of the values) -> (values, cotangent of x)."""

    def run(x: jax.Array, *others_and_ct: jax.Array) -> tuple[jax.Array, jax.Array]:
        *others, ct = others_and_ct
        values, backward = jax.vjp(lambda x: batched(x, *others), x)
        return values, backward(ct)[0]

    return run


def both(functions: Mapping[str, Function], x: jax.ShapeDtypeStruct, taps: int, *others: jax.ShapeDtypeStruct) -> Case:
    """A case with both passes, which saves a winner of so many taps for each window; of an unpooling, x has these."""
    values = jax.eval_shape(functions["jpool"], x, *others)
    winners = shaped(min(x.shape, values.shape, key=math.prod), np.min_scalar_type(taps).name)
    return Case({name: passes(one) for name, one in functions.items()}, (x, *others, values), (winners,))


def relatives() -> dict[str, Case]:
    """The functions related to max_pool, on IMAGES."""
    pool = {"max_pool": jax.vmap(partial(jpool.max_pool, **THREE))}
    of_all = lambda function, **options: {"jpool": jax.vmap(partial(function, **options))}  # noqa: E731
    x, values, argmax = shaped(IMAGES), shaped(POOLED), shaped(POOLED, "int32")
    unpool = of_all(jpool.max_unpool, spatial_shape=IMAGES[1:3])
    with_geometry = of_all(jpool.max_unpool, spatial_shape=IMAGES[1:3], **THREE)
    lax_pool = Pool(IMAGES, (3, 3), 2, 1).functions()["lax"]
    tangents = lambda batched: lambda x, t: jax.jvp(batched, (x,), (t,))  # noqa: E731
    forward_mode = of_all(jpool.max_pool, **THREE, forward_mode=True)
    return {
        **{
            f'ties="{ties}"': both(of_all(jpool.max_pool, **THREE, ties=ties) | pool, x, 9)
            for ties in ("last", "split", "none")
        },
        "min_pool": both(of_all(jpool.min_pool, **THREE) | pool, x, 9),
        "forward_mode=True, gradient": both(forward_mode | pool, x, 9),
        "forward_mode=True, tangent": Case(
            {"jpool": tangents(forward_mode["jpool"]), "lax": tangents(lax_pool)}, (x, x)
        ),
        "max_pool_with_argmax, forward": Case(of_all(jpool.max_pool_with_argmax, **THREE), (x,)),
        "max_unpool with the geometry": both(with_geometry | {"scatter": by_scatter}, values, 9, argmax),
        "max_unpool without it": both(unpool | {"scatter": by_scatter}, values, 9, argmax),
        "adaptive_max_pool 30x30 to 7x7": both(
            of_all(jpool.adaptive_max_pool, output_shape=(7, 7)), shaped((16, 30, 30, 64)), 30
        ),
        "global_max_pool": both(
            of_all(jpool.global_max_pool) | {"jnp.max": lambda x: x.max((1, 2))}, x, IMAGES[1] * IMAGES[2]
        ),
    }


def by_scatter(values: jax.Array, argmax: jax.Array) -> jax.Array:
    """Unpooling as users of JAX would write it; on a GPU it adds in no fixed order."""

    def one(values: jax.Array, argmax: jax.Array) -> jax.Array:
        channels = values.shape[-1]
        flat = jnp.zeros((IMAGES[1] * IMAGES[2], channels))
        at = argmax.reshape(-1, channels), jnp.arange(channels)
        return flat.at[at].add(values.reshape(-1, channels), mode="drop").reshape(*IMAGES[1:])

    return jax.vmap(one)(values, argmax)


def compiled_only() -> Iterator[tuple[str, Case]]:
    """More cases whose programs are worth reading."""
    resnet = POOLS["ResNet 3x3/2 pad 1"]
    yield "31x31/1 SAME", Pool((4, 64, 64, 64), (31, 31), 1, 15).case()
    yield "ResNet, bfloat16", resnet.case("bfloat16")
    yield "ResNet, channels first", resnet.case(channel_axis=0)
    yield "3x3/2, dilation 2", Pool(resnet.x, (3, 3), 2).case(window_dilation=2)
    for name in ("VGG 2x2/2", "ResNet 3x3/2 pad 1", "Inception 3x3/1 pad 1", "SPPF 5x5/1 pad 2"):
        yield f"{name}, forward only", Case(POOLS[name].functions(), (shaped(POOLS[name].x),))


def every_case() -> dict[str, Case]:
    """All cases by name."""
    return {name: pool.case() for name, pool in POOLS.items()} | dict(compiled_only()) | relatives()


def arrays_of(case: Case) -> list[jax.Array]:
    """Arguments: normal numbers; the indices that a pooling of IMAGES gives; the last argument in whole numbers.

    The last is a cotangent where there is one, and sums of whole numbers do not depend on their order.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(IMAGES, np.float32))
    argmax = jax.jit(jax.vmap(partial(jpool.max_pool_with_argmax, **THREE)))(x)[1]
    normal = lambda shape: jnp.asarray(rng.standard_normal(shape.shape, np.float32)).astype(shape.dtype)  # noqa: E731
    arrays = [argmax if shape.dtype == jnp.int32 else normal(shape) for shape in case.shapes]
    return arrays if len(arrays) == 1 else [*arrays[:-1], jnp.round(4 * arrays[-1])]
