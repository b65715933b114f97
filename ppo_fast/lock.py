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


class Lock:
    """The right to write in a directory.

    Args:
        path: the lock file; made by :meth:`take`, and never removed, since somebody may be waiting for it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def take(self) -> None:
        """Take the lock, at once or not at all; taking it again does nothing.

        Raises:
            ConfigError: another process has it.
            OSError: the file cannot be made.
        """
        if self._fd is not None:
            return
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        self._fd = fd
        try:
            _try_lock(fd)
        except (BlockingIOError, PermissionError):
            holder = os.read(fd, 20).decode(errors="replace").strip()
            self.release()
            raise ConfigError(
                f"run_dir {str(self._path.parent)!r} is being written by another trainer (process {holder or '?'})"
            ) from None
        except OSError as err:  # some network file systems have no locks
            log.warning("%s cannot be locked, so nothing keeps a second trainer out: %s", self._path, err.strerror)
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let go; the file stays."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None

    def __del__(self) -> None:
        self.release()
