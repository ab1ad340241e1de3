"""A lock that one process at a time holds, and that the operating system releases when the process ends in any way."""

import fcntl
import os
import socket
from pathlib import Path


class TakenError(Exception):
    """Another process has the lock; the message names it."""


def take(path: Path) -> int:
    """Takes the lock until the process ends or closes the descriptor that is returned.

    The file names the process for the sentence that others print; whether it is locked, only the system knows. A file
    system without locks takes part unlocked.

    Raises:
      TakenError: another process has it.
      OSError: the file cannot be opened or written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process, and across machines on NFS
    except (BlockingIOError, PermissionError) as error:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise TakenError(holder or "another process") from error
    except OSError:
        return descriptor
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor
