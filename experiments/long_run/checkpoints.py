"""Checkpoints of a training run, written and read by orbax; incomplete ones are ignored, other runs' refused.

A checkpoint holds the parameters, the optimiser's state, the number of steps and the random key for the order of the
data. Stored with these arrays are the run's options, its history (losses and reports so far), a digest of the arrays,
and a digest of all this. A run that is killed while writing a checkpoint resumes from the one before.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.long_run import cluster, lock

KEPT = 2  # the newest and the one before it; a third is written before the oldest is removed
SPARE = 1_000_000  # bytes for the names and shapes of the arrays


class CheckpointError(Exception):
    """A directory cannot be used, or a checkpoint cannot be read or written; the message is one sentence."""


class Checkpoints:
    """The checkpoints of one run in one directory, by the number of steps taken."""

    def __init__(self, directory: Path, run: dict[str, Any], *, resume: bool) -> None:
        """Opens or makes the directory; checkpoints in it are refused without `resume`, or by `load` if of another run.

        Args:
          directory: holds nothing but checkpoints.
          run: the options that determine the numbers of a run, as JSON; checkpoints with other options are refused.
          resume: whether to continue from the newest checkpoint there.
        """
        self.directory, self.run = directory.absolute(), json.loads(json.dumps(run))
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs what it does, and every error that it raises
        try:
            str(self.directory).encode()
        except UnicodeEncodeError as error:  # letters that the terminal's encoding lacks; orbax needs Unicode
            raise CheckpointError(
                f"{directory} is not readable as ASCII; set PYTHONUTF8=1, or give another DIR"
            ) from error
        try:
            # Names with a dot in front are the lock, and what file managers and network file systems leave behind.
            others = [path.name for path in directory.iterdir() if not re.match(r"\.|\d+($|\.)", path.name)]
        except FileNotFoundError:
            others = []
        except OSError as error:
            raise CheckpointError(f"{directory} cannot be a directory of checkpoints: {error.strerror}") from error
        if others:
            raise CheckpointError(
                f"{directory} holds {others[0]!r}, which is not a checkpoint; give a directory for checkpoints only"
            )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.lock = lock.take(directory / ".lock") if cluster.is_main_process() else None
            options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
            self.manager = ocp.CheckpointManager(self.directory, options=options)
        except lock.TakenError as error:
            raise CheckpointError(
                f"{directory} is in use by {error}; wait until it ends, or give another DIR"
            ) from error
        except OSError as error:
            raise CheckpointError(f"{directory} cannot be written to: {error.strerror or error}") from error
        self.last: int | None = self.manager.latest_step()
        if self.last is not None and not resume:
            raise CheckpointError(
                f"{directory} holds a checkpoint of step {self.last}; give --resume to continue from it, or another DIR"
            )

    @property
    def newest(self) -> Path | None:
        """The path of the last good checkpoint."""
        return None if self.last is None else self.directory / str(self.last)

    def load(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint's arrays, with the shardings of `like`, and its history; None without a checkpoint."""
        if self.last is None:
            return None
        name = f"the checkpoint {self.newest}"
        about = self._restore(name, "about", ocp.args.JsonRestore())
        if not isinstance(about, dict) or set(about) != {"run", "digest", "beside", "checksum"}:
            raise CheckpointError(f"{name} cannot be read: what is stored with its arrays is not of this program")
        if about["checksum"] != checksum(about):
            raise CheckpointError(f"{name} is damaged: its options or its history are not those that were written")
        for option, value in self.run.items():
            if about["run"].get(option) != value:
                theirs = about["run"].get(option)
                raise CheckpointError(f"{name} is of another run: {option} is {theirs!r} there and {value!r} here")
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        arrays = self._restore(name, "arrays", ocp.args.StandardRestore(shapes))
        if digest(arrays) != about["digest"]:
            raise CheckpointError(f"{name} is damaged: its numbers are not those that were written")
        return arrays, about["beside"]

    def save(self, step: int, arrays: Any, history: dict[str, Any]) -> None:
        """Writes a checkpoint, unless there is one of this step."""
        if step == self.last:
            return
        about = {"run": self.run, "digest": digest(arrays), "beside": history}
        about["checksum"] = checksum(about)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)) + len(json.dumps(about)) + SPARE
        free = shutil.disk_usage(self.directory).free
        too_little = cluster.any_process(free < needed)
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about))
        try:
            if too_little:
                raise OSError(
                    f"it takes {needed / 1e6:.1f} MB beside those before it, and {free / 1e6:.1f} MB are free"
                )
            if not self.manager.save(step, args=items):
                raise OSError("orbax did not write it")
        except Exception as error:  # tensorstore raises its own types
            before = "there is none before it" if self.last is None else f"the last good one is {self.newest}"
            reason = reason_of(error)
            raise CheckpointError(
                f"no checkpoint of step {step} could be written to {self.directory} ({reason}); {before}"
            ) from error
        self.last = step

    def close(self) -> None:
        """Waits for pending writes, and lets other runs use the directory."""
        self.manager.close()
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def _restore(self, name: str, item: str, arguments: Any) -> Any:
        try:
            return self.manager.restore(self.last, args=ocp.args.Composite(**{item: arguments}))[item]
        except Exception as error:  # its type depends on what is missing
            reason = f"{type(error).__name__}: {reason_of(error)}"
            raise CheckpointError(
                f"{name} cannot be read: it is truncated or was not written by this program ({reason}); move it "
                "away, and --resume continues from the one before"
            ) from error


def digest(arrays: Any) -> str:
    """A hash of all arrays, in order."""
    hashed = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        hashed.update(np.ascontiguousarray(leaf).tobytes())
    return hashed.hexdigest()


def checksum(about: dict[str, Any]) -> str:
    """A hash of everything that is stored with the arrays, and of their digest."""
    text = json.dumps({name: value for name, value in about.items() if name != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def reason_of(error: Exception) -> str:
    """The operating system's words where an error has them, which tensorstore writes after long paths."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE):
        if os.strerror(number) in str(error):
            return os.strerror(number)
    return cluster.first_line(error)
