"""Checkpoints of a training run, written and read by orbax.

Orbax writes a checkpoint to a temporary directory and renames it when it is complete. So a run that is killed, or that
fails while it saves, continues from the checkpoint before. Beside the arrays a checkpoint stores a digest of them, the
options that determine the numbers of the run, and its history, the losses and reports so far.
"""

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.training.stops import Stopped

WITHOUT = "move it away, and --resume continues from the one before"


class Checkpoints:
    """The checkpoints of one run in one directory, by the number of steps taken."""

    def __init__(self, directory: Path, run: dict[str, Any], *, resume: bool) -> None:
        """Opens a directory; checkpoints in it are refused without `resume`, or by `load` if they are of another run.

        Args:
          directory: exists, and holds nothing but checkpoints.
          run: the options that determine the numbers of a run, as JSON; checkpoints with other options are refused.
          resume: whether to continue from the newest checkpoint there.
        """
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs what it does, and every error that it raises
        self.directory, self.run = directory.absolute(), run
        # Names with a dot in front are the lock, and what file managers and network file systems leave behind.
        others = [path.name for path in directory.iterdir() if not re.match(r"\.|\d+($|\.)", path.name)]
        if others:
            raise Stopped(f"{directory} holds {others[0]!r}, which is not a checkpoint; give another directory")
        # The system releases the lock of a run that is killed.
        self.lock = filelock.FileLock(directory / ".lock", blocking=False)
        try:
            if jax.process_index() == 0:
                self.lock.acquire()
        except filelock.Timeout as error:
            raise Stopped(f"{directory} is in use by another run; wait for it, or give another directory") from error
        # A third is written before the oldest is removed.
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(self.directory, options=options)
        self.last: int | None = self.manager.latest_step()
        if self.last is not None and not resume:
            self.close()
            raise Stopped(f"{self.newest} is a checkpoint; continue with --resume, or give another directory")

    @property
    def newest(self) -> Path | None:
        """The path of the last good checkpoint."""
        return None if self.last is None else self.directory / str(self.last)

    def load(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """The newest checkpoint's arrays, with the shardings of `like`, and its history."""
        about = self._restore("about", ocp.args.JsonRestore())
        for option, value in self.run.items():
            theirs = about.get("run", {}).get(option)
            if theirs != value:
                raise Stopped(f"{self.newest} is of another run: {option} is {theirs} there and {value} here")
        arrays = self._restore("arrays", ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)))
        if digest(arrays) != about["digest"]:
            raise Stopped(f"{self.newest} is damaged: its numbers are not those that were saved")
        return arrays, about["history"]

    def save(self, step: int, arrays: Any, history: dict[str, Any]) -> None:
        """Writes a checkpoint, unless there is one of this step."""
        if step == self.last:
            return
        about = ocp.args.JsonSave({"run": self.run, "digest": digest(arrays), "history": history})
        try:
            if not self.manager.save(step, args=ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), about=about)):
                raise OSError("orbax did not write it")
        except Exception as error:  # tensorstore raises its own types
            raise Stopped(f"no checkpoint of step {step} could be written: {first_line(error)}") from error
        self.last = step

    def close(self) -> None:
        """Lets other runs use the directory."""
        self.manager.close()
        self.lock.release()

    def _restore(self, item: str, arguments: Any) -> Any:
        try:
            return self.manager.restore(self.last, args=ocp.args.Composite(**{item: arguments}))[item]
        except Exception as error:  # its type depends on what is missing
            raise Stopped(f"{self.newest} cannot be read: {first_line(error)}; {WITHOUT}") from error


def digest(arrays: Any) -> str:
    """A hash of all arrays, in order."""
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays))).hexdigest()


def first_line(error: Exception) -> str:
    """An error in one line, shortened."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
