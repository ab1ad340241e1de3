"""Caffe's solvers in NumPy, as in its sources, and as chains of optax transformations; runs of both, to be compared."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.comparisons import caffe
from experiments.digits import loop

CLIP, DECAY, GAMMA, STEPSIZE, RMS_DECAY, DELTA = 2.0, 5e-4, 0.5, 20, 0.98, 1e-8
RATES = {"SGD": (0.01, 0.9), "AdaGrad": (0.01, 0.0), "RMSProp": (0.001, 0.0)}  # base_lr, momentum
Path = list[np.ndarray]  # all parameters in one array, after every step
PerExample = Callable[..., tuple[jax.Array, jax.Array]]  # (params, xs, labels) -> each example's loss and gradient


def scale_by_history() -> optax.GradientTransformation:
    """Caffe's AdaGrad. Optax adds eps inside the square root, which differs where gradients are tiny."""

    def update(updates: Any, history: Any, params: Any = None) -> tuple[Any, Any]:
        history = history + updates**2
        return updates / (jnp.sqrt(history) + DELTA), history

    return optax.GradientTransformation(jnp.zeros_like, update)


def chain(solver: str, splits: int, steps: int) -> optax.MultiSteps:
    """Caffe's solver in optax."""
    rate, momentum = RATES[solver]
    schedule = optax.piecewise_constant_schedule(rate, dict.fromkeys(range(STEPSIZE, steps, STEPSIZE), GAMMA))
    rule = {  # in SGD the rate is applied before the momentum: a new rate does not rescale the history
        "SGD": (optax.scale_by_schedule(schedule), optax.trace(momentum), optax.scale(-1.0)),
        "AdaGrad": (scale_by_history(), optax.scale_by_learning_rate(schedule)),
        "RMSProp": (optax.rmsprop(schedule, decay=RMS_DECAY, eps=DELTA, eps_in_sqrt=False),),
    }[solver]
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.add_decayed_weights(DECAY), *rule)
    return optax.MultiSteps(optimizer, splits, accumulator_dtype=jnp.float64)  # the default is float32


class Run(NamedTuple):
    """A run of Caffe's solver."""

    path: Path
    clipped: int  # in how many steps
    ratios: np.ndarray  # for every parameter: root of the history squared before the mean / after it


def of_caffe(solver: str, splits: int, per_example: PerExample, start: jax.Array, batches: list[loop.Batch]) -> Run:
    """Trains in NumPy; only the derivatives of the examples come from JAX."""
    rate, momentum = RATES[solver]
    # Caffe clips the sum of the k means, so the same clipping has k times the threshold.
    numbers = rate, GAMMA, STEPSIZE, momentum, DECAY, CLIP * splits, RMS_DECAY, DELTA
    theirs = caffe.Solver(solver, np.asarray(start), *numbers)
    keep, add = (RMS_DECAY, 1 - RMS_DECAY) if solver == "RMSProp" else (1, 1)
    before = after = np.zeros(start.size)
    path = []
    for batch in batches:
        gradients = [np.asarray(per_example(theirs.params, *part)[1]) for part in split(batch, splits)]
        theirs.step([part.sum(0) / len(part) for part in gradients])
        path.append(theirs.params)
        before = keep * before + add * np.square(np.concatenate(gradients)).mean(0)
        after = keep * after + add * np.concatenate(gradients).mean(0) ** 2
    return Run(path, theirs.clipped, np.sqrt(before[after > 0] / after[after > 0]))


def of_optax(solver: str, splits: int, per_example: PerExample, start: jax.Array, batches: list[loop.Batch]) -> Path:
    """Trains with `chain`."""
    optimizer, params, path = chain(solver, splits, len(batches)), start, []
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for batch in batches:
        for part in split(batch, splits):
            _, gradients = per_example(params, *part)
            updates, state = update(gradients.mean(0), state, params)
            params = optax.apply_updates(params, updates)
        path.append(np.asarray(params))
    return path


def split(batch: loop.Batch, splits: int) -> Iterator[loop.Batch]:
    """Sub-batches of equal size."""
    return zip(*(jnp.split(part, splits) for part in batch), strict=True)


def distances(path: Path, other: Path, start: jax.Array) -> np.ndarray:
    """The distance between two runs after every step, relative to their distance from the start."""
    norm = np.linalg.norm
    return np.array([norm(a - b) / norm(b - start) for a, b in zip(path, other, strict=True)])
