"""A training run: all that it is at some step, how it goes on from there, and what makes it stop.

begin   :: (optimizer, seed)                -> Run, before its first step
resumed :: (checkpoints, Run)               -> Run, at its newest checkpoint
train   :: (digits, optimizer, Run)         -> Run after Run, one for each step that is left
follow  :: (Run after Run, checkpoints)     -> the last of them, or the sentence with which it stopped
"""

import math
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

import jpool
from experiments import cluster, lenet, loop
from experiments.checkpoints import Checkpoints
from experiments.data import Digits
from experiments.progress import Epoch, Finite, Interrupt, Progress


class Run(NamedTuple):
    """From it a run can go on as if it had never stopped."""

    state: jpool.TrainState
    order: jax.Array  # key data, from which the order and the shifts of every epoch follow
    losses: list[Any]  # of the epoch under way
    reports: list[Epoch]  # of the epochs before
    metrics: Any = None  # jpool.Metrics, of the step just taken

    def arrays(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {**self.state._asdict(), "order": self.order}

    def beside(self) -> dict[str, Any]:
        """What is written down beside it."""
        return {"losses": list(map(float, self.losses)), "reports": self.reports}


class NotFiniteError(Exception):
    """A loss or a gradient is not finite; the sentence says where, and where the last good checkpoint is."""


class Stopped(Exception):  # noqa: N818  # no error
    """Someone asked to stop, and the run can go on from there; a sentence, and the number of the signal."""


def begin(optimizer: optax.GradientTransformation, seed: int, mesh: Mesh | None = None) -> Run:
    """The run before its first step."""
    init_key, order = jax.random.split(jax.random.key(seed))
    state = jpool.TrainState.create(lenet.init(init_key), optimizer)
    state, order = cluster.everywhere(mesh, (state, jax.random.key_data(order)))
    return Run(state, order, [], [])


def resumed(checkpoints: Checkpoints, run: Run) -> Run:
    """The run at its newest checkpoint, or as it is where there is none."""
    found = checkpoints.load(run.arrays())
    if found is None:
        return run
    arrays, beside = found
    order = arrays.pop("order")
    return Run(jpool.TrainState(**arrays), order, beside["losses"], [Epoch(*report) for report in beside["reports"]])


def train(
    digits: Digits,
    optimizer: optax.GradientTransformation,
    run: Run,
    *,
    epochs: int,
    batch_size: int,
    microbatch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Iterator[Run]:
    """Takes the steps that are left, and after each yields the run, whose state the next step uses up."""
    images, labels, test_images, test_labels = loop.on_device(digits)
    state, order, losses, reports, _ = run
    step = jpool.make_train_step(lenet.loss, optimizer, microbatch_size=microbatch_size, mesh=mesh)
    count = len(images) // batch_size
    for key in jax.random.split(jax.random.wrap_key_data(cluster.here(order)), epochs)[len(reports) :]:
        done, begun = len(losses), time.perf_counter()
        # A Python loop: inside lax.scan, XLA:CPU compiles the gradient of a convolution to code ten times slower.
        for batch in islice(loop.epoch(key, images, labels, batch_size), done, None):
            state, metrics = step(state, *cluster.split(mesh, batch))
            losses = [*losses, metrics.loss]
            if len(losses) == count:
                finite = np.array(losses, np.float32)  # but those of steps that were left out
                loss = float(finite[np.isfinite(finite)].mean()) if np.isfinite(finite).any() else math.nan
                step_ms = (time.perf_counter() - begun) / (count - done) * 1000
                params = cluster.here(state.params)
                accuracy = loop.accuracy(lenet.NETWORK, params, test_images, test_labels)
                losses, reports = [], [*reports, Epoch(loss, accuracy, step_ms)]
            yield Run(state, order, losses, reports, metrics)


def follow(
    runs: Iterator[Run], run: Run, progress: Progress, checkpoints: Checkpoints | None, *, skip_nonfinite: bool
) -> Run:
    """Goes with a run to its end, with a checkpoint before the first step and after every epoch.

    Raises:
      NotFiniteError: a loss or gradient is not finite.
      Stopped: someone has asked to stop, which leaves a checkpoint.
      CheckpointError: a checkpoint cannot be written.
    """
    finite = Finite(skip_nonfinite, int(run.state.step))

    def check(wrong: str | None) -> None:
        if wrong is not None:
            good = (
                "no --checkpoint was asked for"
                if checkpoints is None
                else f"last good checkpoint: {checkpoints.newest}"
            )
            raise NotFiniteError(f"{wrong}; try a smaller --learning-rate, or --skip-nonfinite; {good}")

    def save(run: Run) -> None:
        check(finite.follow(None))  # nothing that is not finite is kept
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(cluster.here(run.state.params))):
            check(f"parameters are not finite after step {run.state.step}")
        if checkpoints is not None:
            checkpoints.save(int(run.state.step), run.arrays(), run.beside())

    with Interrupt() as interrupt:
        save(run)
        for run in runs:
            check(finite.follow(run.metrics))
            progress.step(run.metrics, run.reports)
            if not run.losses:
                progress.epoch(run.reports)
                save(run)
            if cluster.anywhere(interrupt.asked > 0):
                save(run)
                raise Stopped(f"stopped after step {run.state.step}, as asked", interrupt.asked)
    return run
