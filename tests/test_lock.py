"""A lock is one process's at a time; a file system that has none is told of. Who holds it, and kills: test_kill.py."""

from __future__ import annotations

import errno
import logging
import sys
from pathlib import Path

import pytest

from ppo_fast import lock as lock_module
from ppo_fast.errors import ConfigError
from ppo_fast.lock import Lock, NoLocksError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")


def test_one_has_it_until_it_lets_go(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / ".lock"), Lock(tmp_path / ".lock")
    with pytest.raises(ValueError, match=r"\.lock has not been taken"):
        first.fileno()
    assert first.try_take()
    assert first.try_take()
    assert first.fileno() > 2
    assert not second.try_take()
    with pytest.raises(ConfigError, match="is being written by another trainer"):
        second.take()
    first.release()
    assert second.try_take()


def test_without_locks_a_run_goes_on_aloud_and_others_can_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(fd: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock_module, "_try_lock", no_locks)
    lock = Lock(tmp_path / ".lock")
    with pytest.raises(NoLocksError, match="No locks available"):
        lock.try_take()
    with caplog.at_level(logging.WARNING):
        lock.take()
    assert "cannot be locked, so nothing keeps a second trainer out: No locks available" in caplog.text
