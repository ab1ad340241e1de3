"""A training run: its state at any step, how it continues from there, and how it is saved.

begin  :: (options, optimizer, checkpoints)          -> Run, before its first step or at the newest checkpoint
steps  :: (options, digits, optimizer, Run)          -> an iterator of Runs, one after each remaining step
follow :: (options, iterator of Runs, checkpoints)   -> the last Run, or an exception if it stops early

`options` are those of train_digits.
"""

import math
import signal
import time
from argparse import Namespace
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from optax import GradientTransformation as Optimizer

import jpool
from experiments.digits import lenet, loop
from experiments.digits.data import Digits
from experiments.training import cluster
from experiments.training.checkpoints import Checkpoints
from experiments.training.progress import Epoch, bar, say
from experiments.training.stops import SKIPS, Stopped, signals_recorded

ADVICE = "try a smaller --learning-rate or --skip-nonfinite"


class Run(NamedTuple):
    """Everything that a run needs to continue as if it had never stopped."""

    state: jpool.TrainState
    losses: list[float]  # of the current epoch
    reports: list[Epoch]  # of the completed epochs
    metrics: Any = None  # jpool.Metrics, of the step just taken


def begin(options: Namespace, optimizer: Optimizer, mesh: Mesh | None, checkpoints: Checkpoints | None) -> Run:
    """The run at its newest checkpoint, or before its first step if there is none."""
    init_key, _ = jax.random.split(jax.random.key(options.seed))
    state = cluster.replicate(mesh, jpool.TrainState.create(lenet.init(init_key), optimizer))
    if checkpoints is None or checkpoints.last is None:
        return Run(state, [], [])
    state, history = checkpoints.load(state)
    say(f"continuing after step {state.step}")
    return Run(state, history["losses"], [Epoch(*report) for report in history["reports"]])


def steps(options: Namespace, digits: Digits, optimizer: Optimizer, run: Run, mesh: Mesh | None) -> Iterator[Run]:
    """Takes the remaining steps and yields the run after each, whose buffers are donated to the next step."""
    images, labels, test_images, test_labels = loop.on_device(digits)
    state, losses, reports, _ = run
    step = jpool.make_train_step(lenet.loss, optimizer, microbatch_size=options.microbatch, mesh=mesh)
    _, order_key = jax.random.split(jax.random.key(options.seed))
    for key in jax.random.split(order_key, options.epochs)[len(reports) :]:
        done, start = len(losses), time.perf_counter()
        # A Python loop: inside lax.scan, XLA:CPU compiles the gradient of a convolution to code ten times slower.
        for batch in islice(loop.epoch(key, images, labels, options.batch_size), done, None):
            state, metrics = step(state, *cluster.split(mesh, batch))
            losses = [*losses, float(metrics.loss)]
            if len(losses) == len(images) // options.batch_size:
                finite = np.array([loss for loss in losses if math.isfinite(loss)] or [math.nan], np.float32)
                step_ms = (time.perf_counter() - start) / (len(losses) - done) * 1000
                accuracy = loop.accuracy(lenet.NETWORK, cluster.local_copy(state.params), test_images, test_labels)
                losses, reports = [], [*reports, Epoch(float(finite.mean()), accuracy, step_ms)]
            yield Run(state, losses, reports, metrics)


def follow(options: Namespace, runs: Iterator[Run], run: Run, total: int, checkpoints: Checkpoints | None) -> Run:
    """Follows a run to its end, `total` steps, with a checkpoint before the first step and after every epoch.

    Raises:
      Stopped: a signal has arrived in one of the processes, and the run is saved; or a loss, gradient or parameter is
        not finite; or a checkpoint cannot be written.
      KeyboardInterrupt: a second Ctrl-C; nothing is saved then.
    """
    in_a_row = 0  # steps that are not finite
    with bar(total, int(run.state.step)) as progress, signals_recorded() as received:
        save(run, checkpoints)
        for run in runs:
            step, (loss, norm) = int(run.state.step), map(float, run.metrics)
            in_a_row = 0 if math.isfinite(loss) and math.isfinite(norm) else in_a_row + 1
            if in_a_row > (SKIPS if options.skip_nonfinite else 0):
                raise Stopped(f"the loss is {loss} and the norm of the gradient {norm} in step {step}; {ADVICE}")
            number = cluster.largest(max(received, default=0))
            if number or not run.losses:
                save(run, checkpoints)  # before anything is printed, which fails if the terminal is closed
            if number:
                raise Stopped(f"stopped by {signal.Signals(number).name} after step {step}", 128 + number)
            progress.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            progress.update()
            if not run.losses:
                say(f"epoch {len(run.reports):{len(str(options.epochs))}}/{options.epochs}  {run.reports[-1]}")
    return run


def save(run: Run, checkpoints: Checkpoints | None) -> None:
    """Saves a run whose parameters are finite: the loss and the gradient of a step are from before its update."""
    step = int(run.state.step)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(cluster.local_copy(run.state.params))):
        raise Stopped(f"the parameters are not finite after step {step}; {ADVICE}")
    if checkpoints is not None:
        checkpoints.save(step, run.state, {"losses": run.losses, "reports": run.reports})
