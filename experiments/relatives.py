"""How long the functions related to max_pool take: tie rules, forward mode, argmax, unpooling, adaptive and global.

    python -m experiments.relatives

Each is compared with an equivalent: max_pool itself, lax, JAX's scatter, or torch. Both passes run in one compiled
program unless the row's name specifies one; float32, channels last, batched by `jax.vmap`; medians of rounds in turn.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jpool
from experiments.common import command, timing

Function = Callable[..., Any]
IMAGES = (16, 56, 56, 64)
pool = partial(jpool.max_pool, window_shape=(3, 3), strides=2, padding=1)
pool_with_argmax = partial(jpool.max_pool_with_argmax, window_shape=(3, 3), strides=2, padding=1)


def both(function: Function, *arrays: jax.Array) -> timing.Call:
    """Value and gradient for the first array, for a batch."""

    @jax.jit
    def run(x: jax.Array, *rest: jax.Array) -> Any:
        values, backward = jax.vjp(lambda x: jax.vmap(function)(x, *rest), x)
        return values, backward(values)[0]

    return lambda: run(*arrays)


def once(function: Function, *arrays: jax.Array) -> timing.Call:
    """The function itself, for a batch."""
    run = jax.jit(jax.vmap(function))
    return lambda: run(*arrays)


def tangent(function: Function, x: jax.Array) -> timing.Call:
    """Value and tangent."""
    return once(lambda x: jax.jvp(function, (x,), (x,)), x)


def lax_pool(x: jax.Array) -> jax.Array:
    """The function that Flax, Equinox and Haiku call."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (3, 3, 1), (2, 2, 1), ((1, 1), (1, 1), (0, 0)))


def by_scatter(values: jax.Array, argmax: jax.Array) -> jax.Array:
    """Unpooling as users of JAX would write it; on a GPU it adds in no fixed order."""
    channels = values.shape[-1]
    at, channel = argmax.reshape(-1, channels), jnp.arange(channels)
    flat = jnp.zeros((IMAGES[1] * IMAGES[2], channels)).at[at, channel].add(values.reshape(-1, channels), mode="drop")
    return flat.reshape(*IMAGES[1:])


def questions(x: jax.Array) -> dict[str, dict[str, timing.Call]]:
    """The calls to time in turn: jpool's, then the others'."""
    values, argmax = jax.block_until_ready(jax.jit(jax.vmap(pool_with_argmax))(x))
    part = x[:, :30, :30]
    unpool = partial(jpool.max_unpool, spatial_shape=IMAGES[1:3])
    default = {"max_pool": both(pool, x)}
    return {
        **{f'ties="{t}"': {"jpool": both(partial(pool, ties=t), x)} | default for t in ("last", "split", "none")},
        "min_pool": {"jpool": both(lambda x: jpool.min_pool(x, (3, 3), 2, 1), x)} | default,
        "forward_mode=True, gradient": {"jpool": both(partial(pool, forward_mode=True), x)} | default,
        "forward_mode=True, tangent": {
            "jpool": tangent(partial(pool, forward_mode=True), x), "lax": tangent(lax_pool, x)
        },
        "max_pool_with_argmax, forward": {"jpool": once(pool_with_argmax, x), **torch_calls("argmax", x)},
        "max_unpool with the geometry": {
            "jpool": both(partial(unpool, window_shape=(3, 3), strides=2, padding=1), values, argmax),
            "scatter": both(by_scatter, values, argmax), **torch_calls("unpool", values, argmax),
        },
        "max_unpool without it": {
            "jpool": both(unpool, values, argmax), "scatter": both(by_scatter, values, argmax),
            **torch_calls("unpool", values, argmax),
        },
        "adaptive_max_pool 30x30 to 7x7": {
            "jpool": both(lambda x: jpool.adaptive_max_pool(x, (7, 7)), part), **torch_calls("adaptive", part)
        },
        "global_max_pool": {
            "jpool": both(jpool.global_max_pool, x), "jnp.max": both(lambda x: x.max((0, 1)), x),
            **torch_calls("global", x),
        },
    }  # fmt: skip


def torch_calls(question: str, x: jax.Array, argmax: jax.Array | None = None) -> dict[str, timing.Call]:
    """Torch's equivalent, contiguous and channels last, if torch is installed and JAX runs on the CPU."""
    if not importlib.util.find_spec("torch") or jax.default_backend() != "cpu":
        return {}
    import torch

    functional: Any = torch.nn.functional

    def first(array: jax.Array) -> Any:
        return torch.from_numpy(np.moveaxis(np.asarray(array), -1, 1).copy())

    at = None if argmax is None else first(argmax).long()
    functions = {
        "argmax": lambda t: functional.max_pool2d(t, 3, 2, 1, return_indices=True),
        "unpool": lambda t: functional.max_unpool2d(t, at, 3, 2, 1, IMAGES[1:3]),
        "adaptive": lambda t: functional.adaptive_max_pool2d(t, 7),
        "global": lambda t: t.amax((2, 3)),
    }

    def call(memory_format: Any) -> timing.Call:
        image = first(x).contiguous(memory_format=memory_format)

        def run() -> None:
            if question == "argmax":
                functions[question](image)
            else:
                out = functions[question](image.requires_grad_())
                torch.autograd.grad(out, image, out.detach())

        return run

    formats = {"torch": torch.contiguous_format, "torch, channels last": torch.channels_last}
    return {name: call(layout) for name, layout in formats.items() if not (name != "torch" and question == "unpool")}


def main(arguments: list[str] | None = None) -> None:
    """Times every function and prints the table."""
    rounds = command.rounds_of(__file__, __doc__, 15, arguments)
    x = jax.random.normal(jax.random.key(0), IMAGES)
    print(f"windows of 3x3, stride 2, padding 1, on {IMAGES}; {timing.versions()}\n")
    print("| function | jpool ms | other | ms | jpool / other |\n|---|---:|---|---:|---:|")
    for name, calls in questions(x).items():
        ms = timing.medians(calls, rounds)
        ours = ms.pop("jpool")
        others = [f"{other} | {theirs:.2f} | {ours / theirs:.2f}" for other, theirs in ms.items()] or ["- | - | -"]
        print(*(f"| {name} | {ours:.2f} | {other} |" for other in others), sep="\n", flush=True)


if __name__ == "__main__":
    main()
