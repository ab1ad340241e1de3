"""A training run: its state at any step, how it continues from there, and what stops it.

begin   :: (optimizer, seed)                -> Run, before its first step
resumed :: (checkpoints, Run)               -> Run, at its newest checkpoint
train   :: (digits, optimizer, Run)         -> an iterator of Runs, one after each remaining step
follow  :: (iterator of Runs, checkpoints)  -> the last Run, or an exception if it stops early
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
from experiments.digits import lenet, loop
from experiments.digits.data import Digits
from experiments.long_run import cluster
from experiments.long_run.checkpoints import Checkpoints
from experiments.long_run.progress import Epoch, Finite, Interrupt, Progress


class Run(NamedTuple):
    """Everything that a run needs to continue as if it had never stopped."""

    state: jpool.TrainState
    order: jax.Array  # key data, which determines the order and the shifts of every epoch
    losses: list[Any]  # of the current epoch
    reports: list[Epoch]  # of the completed epochs
    metrics: Any = None  # jpool.Metrics, of the step just taken

    def arrays(self) -> dict[str, Any]:
        """The arrays of a checkpoint."""
        return {**self.state._asdict(), "order": self.order}

    def history(self) -> dict[str, Any]:
        """The losses and reports that a checkpoint stores with its arrays."""
        return {"losses": list(map(float, self.losses)), "reports": self.reports}


class NotFiniteError(Exception):
    """A loss, gradient or parameter is not finite; the message names the step and the last good checkpoint."""


class Stopped(Exception):  # noqa: N818  # not an error
    """A signal stopped the run, which can be resumed; holds a sentence and the number of the signal."""


def begin(optimizer: optax.GradientTransformation, seed: int, mesh: Mesh | None = None) -> Run:
    """The run before its first step."""
    init_key, order = jax.random.split(jax.random.key(seed))
    state = jpool.TrainState.create(lenet.init(init_key), optimizer)
    state, order = cluster.replicate(mesh, (state, jax.random.key_data(order)))
    return Run(state, order, [], [])


def resumed(checkpoints: Checkpoints, run: Run) -> Run:
    """The run at its newest checkpoint, or unchanged if there is none."""
    saved = checkpoints.load(run.arrays())
    if saved is None:
        return run
    arrays, history = saved
    order = arrays.pop("order")
    return Run(jpool.TrainState(**arrays), order, history["losses"], [Epoch(*report) for report in history["reports"]])


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
    """Takes the remaining steps and yields the run after each, whose buffers are donated to the next step."""
    images, labels, test_images, test_labels = loop.on_device(digits)
    state, order, losses, reports, _ = run
    step = jpool.make_train_step(lenet.loss, optimizer, microbatch_size=microbatch_size, mesh=mesh)
    count = len(images) // batch_size
    for key in jax.random.split(jax.random.wrap_key_data(cluster.local_copy(order)), epochs)[len(reports) :]:
        done, start = len(losses), time.perf_counter()
        # A Python loop: inside lax.scan, XLA:CPU compiles the gradient of a convolution to code ten times slower.
        for batch in islice(loop.epoch(key, images, labels, batch_size), done, None):
            state, metrics = step(state, *cluster.split(mesh, batch))
            losses = [*losses, metrics.loss]
            if len(losses) == count:
                values = np.array(losses, np.float32)  # not always finite in skipped steps
                loss = float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else math.nan
                step_ms = (time.perf_counter() - start) / (count - done) * 1000
                params = cluster.local_copy(state.params)
                accuracy = loop.accuracy(lenet.NETWORK, params, test_images, test_labels)
                losses, reports = [], [*reports, Epoch(loss, accuracy, step_ms)]
            yield Run(state, order, losses, reports, metrics)


def follow(
    runs: Iterator[Run], run: Run, progress: Progress, checkpoints: Checkpoints | None, *, skip_nonfinite: bool
) -> Run:
    """Follows a run to its end, with a checkpoint before the first step and after every epoch.

    Raises:
      NotFiniteError: a loss, gradient or parameter is not finite.
      Stopped: a signal has arrived; the run is saved first.
      CheckpointError: a checkpoint cannot be written.
      KeyboardInterrupt: a second signal has arrived, long enough after the first; holds its number.
    """
    finite = Finite(skip_nonfinite, int(run.state.step))

    def check(wrong: str | None) -> None:
        if wrong is not None:
            good = "no --checkpoint was given" if checkpoints is None else f"last good checkpoint: {checkpoints.newest}"
            way_out = "try a smaller --learning-rate" + ("" if skip_nonfinite else ", or --skip-nonfinite")
            raise NotFiniteError(f"{wrong}; {way_out}; {good}")

    def save(run: Run) -> None:
        check(finite.follow(None))  # the last step too must be finite
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(cluster.local_copy(run.state.params))):
            check(f"parameters are not finite after step {run.state.step}")
        if checkpoints is not None:
            with interrupt.delayed():
                checkpoints.save(int(run.state.step), run.arrays(), run.history())

    with Interrupt() as interrupt:
        save(run)
        for run in runs:
            check(finite.follow(run.metrics))
            progress.step(run.metrics, run.reports)
            if not run.losses:
                save(run)  # before anything is printed, which may fail
                progress.epoch(run.reports)
            if cluster.any_process(interrupt.received > 0):
                save(run)
                raise Stopped(f"stopped by a signal after step {run.state.step}", interrupt.received)
    return run
