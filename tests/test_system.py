"""What a run says of the sources it was made by."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ppo_fast import kernels, system
from ppo_fast.kernels import _select


def git(*args: str, folder: Path) -> None:
    subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *args], cwd=folder, check=True)


def test_commit_names_the_checkout_and_whether_it_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "package" / "system.py"
    source.parent.mkdir()
    source.write_text("1")
    monkeypatch.setattr(system, "__file__", str(source))
    assert system.commit() is None
    git("init", "-q", folder=tmp_path)
    git("add", ".", folder=tmp_path)
    git("commit", "-q", "-m", "m", folder=tmp_path)
    clean = system.commit()
    assert clean is not None
    assert len(clean) == 12
    git("tag", "-a", "v1", "-m", "m", folder=tmp_path)
    assert system.commit() == clean
    source.write_text("2")
    assert system.commit() == f"{clean}-dirty"


def test_what_a_run_tells_of_the_backends_loads_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    active = kernels.active()
    loaded: list[str] = []
    monkeypatch.setattr(_select, "_load", loaded.append)
    facts = system.build_info(all_backends=False)["kernels"]
    assert facts["active"] == active
    assert not loaded, "Numba's import takes two seconds of every start"
