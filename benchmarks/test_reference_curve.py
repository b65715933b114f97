"""The reference's runs are kept once, evaluated when they are due, without what evaluation takes counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppo_fast.presets import resolve

from . import _runs, lineage, reference_curve
from ._training import reference_settings

KEPT = Path(__file__).parent / "results" / "2026-11-27_lineage" / "runs"


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
    reference_curve.train_reference(path, 7, steps=1000, every=400, **tiny)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="is of a run with other options"):
        reference_curve.train_reference(path, 7)
    line = reference_curve.table([kept])[2]
    assert line.startswith("| reference | ")
    reference_curve.draw([kept], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_reference_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="the reference knows norm_adv 'minibatch' alone, got 'batch'"):
        reference_settings(resolve(env="Hopper-v5", preset="sample"))


def test_a_run_that_is_kept_is_not_taken_for_one_with_other_options(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"config": resolve(env="Ant-v5", seed=3, eval_every=1000).to_dict()}))
    _runs.keep(path, ["ppo_fast.train"], {"env": "Ant-v5", "seed": 3, "eval-every": 1000}, [])
    for flags, said in (
        (["--gamma", "0.9"], "gamma 0.99, not 0.9"),
        (["--eval-every", "10"], "eval_every 1000, not 10"),
    ):
        with pytest.raises(SystemExit, match=f"is of a run with {said}; take another folder"):
            _runs.keep(path, ["ppo_fast.train"], {"env": "Ant-v5", "seed": 3, "eval-every": 1000}, flags)


def test_the_lineage_that_is_kept_has_the_options_that_it_would_have_today() -> None:
    """Presets have changed since; what they had then is pinned."""
    for path in sorted(KEPT.glob("*.json")):
        kept = json.loads(path.read_text())
        lineage.train(path, kept["task"], kept["algo"], kept["seed"], [])  # which makes nothing
