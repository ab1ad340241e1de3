"""How long one forward and backward pass of max pooling takes, beside lax's and torch's, on the pools of real networks.

    python -m experiments.benchmark

All contenders run in one process, in turn, each waited for; what is printed is the median over the rounds. "floor" is
a copy with the inputs and outputs of the whole task, (x, ct) -> (ct + 1, x + 1): the same arrays are read and written,
the same memory is asked for, and nothing is compared.
"""

import argparse
import datetime
import math
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

import jpool

Call = Callable[[], Any]


class Pool(NamedTuple):
    """A pooling layer as it stands in a known network, channels last."""

    x: tuple[int, ...]  # (batch, *spatial, channels)
    window: tuple[int, ...]
    stride: int
    pad: int = 0

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """(low, high) per spatial axis."""
        return ((self.pad, self.pad),) * len(self.window)


POOLS = {
    "LeNet 2x2/2": Pool((100, 24, 24, 20), (2, 2), 2),
    "VGG 2x2/2": Pool((8, 112, 112, 128), (2, 2), 2),
    "AlexNet 3x3/2": Pool((32, 55, 55, 96), (3, 3), 2),
    "ResNet 3x3/2 pad 1": Pool((16, 112, 112, 64), (3, 3), 2, 1),
    "Inception 3x3/1 pad 1": Pool((16, 28, 28, 192), (3, 3), 1, 1),
    "SPPF 5x5/1 pad 2": Pool((8, 20, 20, 256), (5, 5), 1, 2),
}


def with_gradient(pool: Callable[[jax.Array], jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """One compiled program for both passes: (x, cotangent of the values) -> (values, cotangent of x)."""

    def both(x: jax.Array, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, backward = jax.vjp(pool, x)
        return values, backward(ct)[0]

    return jax.jit(both)


def ours(pool: Pool) -> Callable[[jax.Array], jax.Array]:
    """The max pooling of jpool on a batch."""
    return jax.vmap(partial(jpool.max_pool, window_shape=pool.window, strides=pool.stride, padding=pool.padding))


def theirs(pool: Pool) -> Callable[[jax.Array], jax.Array]:
    """The max pooling of lax on a batch, which is also Flax's, Equinox's and Haiku's."""
    window, strides = (1, *pool.window, 1), (1, *(pool.stride for _ in pool.window), 1)
    padding = ((0, 0), *pool.padding, (0, 0))
    return lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)


def torch_calls(pool: Pool, x: np.ndarray, ct: np.ndarray) -> dict[str, Call]:
    """The max pooling of torch in both memory layouts, where torch is installed and has this rank."""
    try:
        import torch
    except ImportError:
        return {}
    if len(pool.window) != 2:
        return {}
    shape_first = (0, 3, 1, 2)

    def call(layout: Any) -> Call:
        image, sent = (
            torch.from_numpy(a.transpose(shape_first).copy()).contiguous(memory_format=layout) for a in (x, ct)
        )
        image.requires_grad_(True)

        def both() -> None:
            values = torch.nn.functional.max_pool2d(image, pool.window, pool.stride, pool.pad)
            torch.autograd.grad(values, image, sent)

        return both

    return {"torch": call(torch.contiguous_format), "torch, channels last": call(torch.channels_last)}


def contenders(pool: Pool) -> dict[str, Call]:
    """What to time. Ours and lax's must agree first."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(pool.x, np.float32))
    our_step, their_step = with_gradient(ours(pool)), with_gradient(theirs(pool))
    shape = jax.eval_shape(ours(pool), x).shape
    ct = jnp.asarray(rng.integers(-8, 9, shape), jnp.float32)  # whole numbers: sums do not depend on their order
    for mine, their in zip(our_step(x, ct), their_step(x, ct), strict=True):
        np.testing.assert_array_equal(mine, their)
    floor = jax.jit(lambda x, ct: (ct + 1, x + 1))
    return {
        "jpool": lambda: our_step(x, ct),
        "lax": lambda: their_step(x, ct),
        "floor": lambda: floor(x, ct),
        **torch_calls(pool, np.asarray(x), np.asarray(ct)),
    }


def medians(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Milliseconds per call. The contenders take turns, so that a busy moment of the machine falls on all of them.

    Each runs twice in its turn and the second run counts, as in a loop: the first gets the memory that the contender
    before it left behind, and where that has other sizes, asking the system for new pages takes longer than pooling.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            jax.block_until_ready(call())
            begun = time.perf_counter()
            jax.block_until_ready(call())
            if turn >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - begun)
    return {name: float(np.median(each)) * 1000 for name, each in times.items()}


def versions() -> str:
    """What the figures depend on."""
    device = jax.devices()[0]
    parts = [f"{device.platform} ({device.device_kind}, {platform.machine()})", f"jax {jax.__version__}"]
    try:
        import torch

        parts.append(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    except ImportError:
        pass
    return ", ".join([*parts, f"Python {platform.python_version()}", str(datetime.date.today())])


def main(arguments: list[str] | None = None) -> None:
    """Times every chosen pool and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shapes", nargs="+", metavar="WORD", default=[""], help="only pools whose name holds a word")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender (default: %(default)s)")
    options = parser.parse_args(arguments)
    chosen = {name: pool for name, pool in POOLS.items() if any(w.lower() in name.lower() for w in options.shapes)}
    if not chosen:
        parser.error(f"argument --shapes: no pool is called so; there are {', '.join(POOLS)}")
    if options.rounds < 1:
        parser.error(f"argument --rounds: must be at least 1; got {options.rounds}")

    print(f"forward + backward in one program, float32, channels last; {versions()}\n")
    print(f"| {'pool':21} | jpool ms |  lax ms | torch ms | lax / jpool | jpool / torch | jpool / floor |")
    print(f"|{'-' * 23}|---------:|--------:|---------:|------------:|--------------:|--------------:|")
    ratios = []
    for name, pool in tqdm(chosen.items(), leave=False, disable=None):
        ms = medians(contenders(pool), options.rounds)
        torch_ms = min((ms[key] for key in ms if key.startswith("torch")), default=math.nan)
        ratios.append(ms["lax"] / ms["jpool"])
        tqdm.write(
            f"| {name:21} | {ms['jpool']:8.2f} | {ms['lax']:7.1f} | {torch_ms:8.2f} | {ratios[-1]:11.1f} |"
            f" {ms['jpool'] / torch_ms:13.2f} | {ms['jpool'] / ms['floor']:13.2f} |"
        )
    print(f"\ngeometric mean of lax / jpool: {math.exp(np.mean(np.log(ratios))):.1f}")


if __name__ == "__main__":
    main()
