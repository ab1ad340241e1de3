"""Checkpoints of a training run, written and read by orbax: whole or not at all, of this run or of none.

A checkpoint holds the parameters, the optimiser's state, the number of steps and the key of the data's order; beside
them stand what run it is of, what was reported so far, and a digest of all numbers. One that is not written to its end
does not count, so a run that is killed while writing leaves the checkpoint before.
"""

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import cluster

KEPT = 2  # the newest, and the one before


class CheckpointError(Exception):
    """A directory that cannot be used, a checkpoint that cannot be read or written; one sentence."""


class Checkpoints:
    """The checkpoints of one run in one directory, by the number of steps taken."""

    def __init__(self, directory: Path, run: dict[str, Any], *, resume: bool) -> None:
        """Opens the directory, or makes it; with checkpoints in it, only to resume, and only those of the same run.

        Args:
          directory: of nothing but checkpoints.
          run: what makes a run what it is, by option, as JSON has it: another run's checkpoints are refused.
          resume: whether to go on from the newest checkpoint there.
        """
        self.directory, self.run = directory.absolute(), json.loads(json.dumps(run))
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells everything it does
        try:
            others = [path.name for path in directory.iterdir() if not re.match(r"\d+($|\.)", path.name)]
        except FileNotFoundError:
            others = []
        except OSError as error:
            raise CheckpointError(f"{directory} cannot be a directory of checkpoints: {error.strerror}") from error
        if others:
            raise CheckpointError(
                f"{directory} holds {others[0]!r}, which is no checkpoint; give a directory of its own"
            )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
            self.manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise CheckpointError(f"{directory} cannot be written to: {error.strerror or error}") from error
        self.last: int | None = self.manager.latest_step()
        if self.last is not None and not resume:
            raise CheckpointError(
                f"{directory} holds a checkpoint of step {self.last}; give --resume to go on from it, or another place"
            )

    @property
    def newest(self) -> Path | None:
        """Where the last good checkpoint lies."""
        return None if self.last is None else self.directory / str(self.last)

    def load(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint's arrays, placed as those of `like`, and what is said beside them; None without one."""
        if self.last is None:
            return None
        place = f"the checkpoint {self.newest}"
        about = self._restore(place, "about", ocp.args.JsonRestore())
        if not isinstance(about, dict) or not {"run", "digest", "beside"} <= set(about):
            raise CheckpointError(f"{place} cannot be read: what stands beside its numbers is not of this program")
        for option, value in self.run.items():
            if about["run"].get(option) != value:
                theirs = about["run"].get(option)
                raise CheckpointError(f"{place} is of another run: {option} is {theirs!r} there and {value!r} here")
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        arrays = self._restore(place, "arrays", ocp.args.StandardRestore(shapes))
        if digest(arrays) != about["digest"]:
            raise CheckpointError(f"{place} is damaged: its numbers are not those that were written")
        return arrays, about["beside"]

    def save(self, step: int, arrays: Any, beside: dict[str, Any]) -> None:
        """Writes a checkpoint, unless there is one of this step."""
        if step == self.last:
            return
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)), shutil.disk_usage(self.directory).free
        about = {"run": self.run, "digest": digest(arrays), "beside": beside}
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about))
        try:
            if cluster.anywhere(free < 2 * needed):
                raise OSError(f"it takes {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free")
            if not self.manager.save(step, args=items):
                raise OSError("orbax has not written it")
        except Exception as error:  # tensorstore has errors of its own
            before = "there is none before it" if self.last is None else f"the last good one is {self.newest}"
            reason = cluster.first_line(error)
            raise CheckpointError(
                f"no checkpoint of step {step} could be written to {self.directory} ({reason}); {before}"
            ) from error
        self.last = step

    def close(self) -> None:
        """Waits for what is being written."""
        self.manager.close()

    def _restore(self, place: str, item: str, how: Any) -> Any:
        try:
            return self.manager.restore(self.last, args=ocp.args.Composite(**{item: how}))[item]
        except Exception as error:  # of many kinds, depending on what is missing
            reason = f"{type(error).__name__}: {cluster.first_line(error)}"
            raise CheckpointError(
                f"{place} cannot be read, it is truncated or not of this program ({reason}); once it is moved away, "
                "--resume goes on from the one before"
            ) from error


def digest(arrays: Any) -> str:
    """Of every number, in order."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()
