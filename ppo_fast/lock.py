"""A file that one process at a time can hold; the system lets go of it when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

from ppo_fast.errors import ConfigError

log = logging.getLogger(__name__)

if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int) -> None:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


class NoLocksError(OSError):
    """The file system cannot lock a file."""


class Lock:
    """The right to write in a directory.

    Args:
        path: the lock file; made by :meth:`take`, and never removed, since somebody may be waiting for it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def take(self) -> None:
        """Take the lock of a run directory, at once or not at all; taking it again does nothing.

        Raises:
            ConfigError: another process has it.
            OSError: the file cannot be made.
        """
        try:
            if not self.try_take():
                holder = self._path.read_bytes()[:20].decode(errors="replace").strip()
                raise ConfigError(
                    f"run_dir {str(self._path.parent)!r} is being written by another trainer (process {holder or '?'})"
                )
        except NoLocksError as err:
            log.warning("%s cannot be locked, so nothing keeps a second trainer out: %s", self._path, err.strerror)

    def try_take(self) -> bool:
        """Take the lock if nobody has it; return whether this process has it now.

        Raises:
            NoLocksError: the file system has no locks.
            OSError: the file cannot be made.
        """
        if self._fd is not None:
            return True
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            _try_lock(fd)
        except (BlockingIOError, PermissionError):
            os.close(fd)
            return False
        except OSError as err:  # some network file systems
            os.close(fd)
            raise NoLocksError(err.errno, err.strerror, str(self._path)) from None
        self._fd = fd
        with contextlib.suppress(OSError):  # a full disk: the lock is what counts, not whose it is said to be
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
        return True

    def fileno(self) -> int:
        """Return the file descriptor that has the lock; a child that inherits it keeps the lock while it lives."""
        if self._fd is None:
            raise ValueError(f"{self._path} has not been taken")
        return self._fd

    def release(self) -> None:
        """Let go; the file stays."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None

    def __del__(self) -> None:
        self.release()
