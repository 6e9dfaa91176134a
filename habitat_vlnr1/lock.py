"""One writer at a time: a folder that a process writes into is locked until the process ends, however it ends.

The lock is the kernel's (`flock`, through the package filelock), so that of a process that was killed is gone with it;
nothing has to be deleted by hand. Between machines it holds where the file system passes locks on: NFS 4, Lustre
mounted with `flock`, GPFS, CephFS. Where there are no locks at all, filelock takes a marker file instead, and that
cannot tell a dead holder on another machine from a live one; its path is in the message.
"""

from __future__ import annotations

import json
import os
import socket
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from habitat_vlnr1.errors import RunError
from habitat_vlnr1.files import write_atomically

WAIT = 10.0
"""Seconds that a start waits for the holder: children of a killed process (data loaders) outlive it by a few."""


class FolderInUse(RunError):
    """Another process writes there; the message says which, and what to do."""


class FolderLock:
    """Held from its making to `release`.

    Args:
        folder: made if it is not there.
        name: of what is locked in it; a folder that several fill together has a lock for each one's part.
        patient: wait for a holder as long as it takes, with a line that says so: for what it makes once for all.

    Raises:
        FolderInUse: another process holds it.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str = "run", *, patient: bool = False):
        self.folder, self._patient = Path(folder), patient
        self.folder.mkdir(parents=True, exist_ok=True)
        self._holder = self.folder / f".{name}.holder.json"
        self._lock = self._acquire(self.folder / f".{name}.lock")
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now().isoformat(" ", "seconds")}
        write_atomically(self._holder, json.dumps(mine).encode())

    def _acquire(self, path: Path) -> FileLock:
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(timeout=WAIT)
        except Timeout:
            busy = f"{self.folder} is being written by {self._who(path)}"
            if not self._patient:
                raise FolderInUse(
                    f"{busy}: wait for its end, or end it (the lock {path} goes with the process), or choose another "
                    "folder"
                ) from None
            print(f"{busy}: waiting for its end", flush=True)
            lock.acquire(poll_interval=0.5)
        return lock

    def alone(self, others: str, but: str) -> None:
        """Make sure that of the folder's locks whose names match `others`, none is held but those that match `but`.

        Raises:
            FolderInUse: one is.
        """
        for path in sorted(self.folder.glob(f".{others}.lock")):
            if not path.match(f".{but}.lock") and path != Path(self._lock.lock_file):
                self._acquire(path).release()

    @staticmethod
    def _who(path: Path) -> str:
        try:
            holder = json.loads(path.with_suffix(".holder.json").read_text(encoding="utf-8"))
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):  # it has just begun, or just ended
            return "another process"

    def release(self) -> None:
        """Let others in; harmless when repeated."""
        if self._lock.is_locked:
            self._holder.unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
