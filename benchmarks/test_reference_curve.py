"""The reference's runs are kept once, evaluated when they are due, without what evaluation takes counted."""

from __future__ import annotations

import json
from pathlib import Path

from . import reference_curve


def test_a_run_of_the_reference_is_kept_and_told(tmp_path: Path) -> None:
    path = tmp_path / "reference_seed7.json"
    tiny = {"num_envs": 4, "num_steps": 32, "minibatch_size": 64, "update_epochs": 1}
    reference_curve.train_reference(path, 7, steps=1000, every=400, **tiny)
    kept = json.loads(path.read_text())
    steps = [row[0] for row in kept["evaluations"]]
    assert [step // 400 for step in steps[:-1]] == [1, 2]  # the first iteration beyond each mark, and the end
    assert steps[-1] >= 1000
    assert all(len(row) == 1 + reference_curve.EPISODES for row in kept["evaluations"])
    assert kept["evaluated_s"][-1] == kept["wall_s"]
    assert (kept["config"]["seed"], kept["config"]["num_envs"]) == (7, 4)
    before = path.stat().st_mtime_ns
    reference_curve.train_reference(path, 7)
    assert path.stat().st_mtime_ns == before
    line = reference_curve.table([kept])[2]
    assert line.startswith("| reference | ")
    reference_curve.draw([kept], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
