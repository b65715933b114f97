"""The comparison without the peers: its arithmetic, the pipes, and our own side of it on tiny sizes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from .._measure import Sample
from . import child, race
from .__main__ import main
from .cases import OURS, PEERS, RECIPES, RL_GAMES, SETTINGS
from .table import Lane, gap_closed, markdown, rows
from .venvs import CONSTRAINTS, requirements

JOB = {"options": {"num_envs": 4, "num_steps": 8, "minibatch_size": 16, "update_epochs": 3}}  # 6 optimizer steps


def lane(name: str, trainer: str, *rates: int, launch_s: float | None = None, warm_up: int = 0) -> Lane:
    return Lane(name, trainer, [Sample(2 * rate, 2.0) for rate in rates], launch_s, warm_up)


def test_the_gap_closed_is_what_we_take_of_what_the_peer_leaves() -> None:
    assert gap_closed(9_000, 6_000, 10_000) == 0.75  # 3000 of 4000
    assert gap_closed(5_000, 6_000, 10_000) == -0.25  # slower than the peer
    assert gap_closed(9_000, 10_000, 10_000) is None


def test_rows_by_hand() -> None:
    lanes = [
        lane("sync", "", 7_000, 8_000, 9_000),
        lane("async", "", 10_000, 10_000, 1_000),  # median 10,000: the ceiling, whatever its worst round
        lane("ours", OURS, 9_000, 8_000, 9_500, launch_s=6.0, warm_up=18_000),
        lane("theirs", "rl_games", 5_000, 6_000, 6_500, launch_s=21.0, warm_up=6_000),
    ]
    sync, ceiling, ours, theirs = rows("section", lanes)
    assert [row["of_ceiling"] for row in (sync, ceiling, ours, theirs)] == [0.8, 1.0, 0.9, 0.6]
    assert [row["ppo_fast_over_this"] for row in (sync, ceiling, ours, theirs)] == [None, None, None, 1.5]
    assert [row["gap_closed"] for row in (sync, ceiling, ours, theirs)] == [None, None, None, 0.75]
    assert ours["env_steps_per_s"] == {"median": 9_000, "min": 8_000, "max": 9_500}
    assert theirs["seconds_per_1m_steps"] == pytest.approx(1e6 / 6_000)
    assert [row["startup_s"] for row in (ceiling, ours, theirs)] == [None, 4.0, 20.0]  # 6 - 18000/9000, 21 - 6000/6000
    assert ours["samples"][0] == {"env_steps": 18_000, "seconds": 2.0, "phases": {}}


def test_without_a_ceiling_or_ourselves_only_the_rates_are_known() -> None:
    (row,) = rows("settings", [lane("theirs", "rl_games", 5_000)])
    assert (row["of_ceiling"], row["ppo_fast_over_this"], row["gap_closed"]) == (None, None, None)


def test_the_table_keeps_rows_that_we_lose() -> None:
    lanes = [lane("EnvPool", "", 10_000), lane("ours", OURS, 4_000), lane("theirs", "rl_games", 5_000)]
    build = {"machine": {"cpu": "a CPU", "cpus": 2}}
    noise = {"noisy": True, "reasons": ["somebody compiled"]}
    result = {"build": build, "commit": "abc", "date": "2026-01-01", "noise": noise, "rows": rows("Ant-v5", lanes)}
    lines = markdown(result)
    assert "| theirs | 5,000 | [5,000 - 5,000] | 0.50 | 0.80 | -0.20 | 200 | - |  |" in lines
    assert "**Noisy**: somebody compiled." in lines


def test_every_recipe_says_what_every_trainer_needs() -> None:
    for recipe in RECIPES:
        names = {frozenset(recipe.options(env_id)) - {"clip_reward"} for env_id in RL_GAMES}
        assert len(names) == 1
        assert all(any(setting.best for setting in SETTINGS[trainer]) for trainer in recipe.trainers)


@pytest.mark.parametrize("peer", PEERS)
def test_every_requirement_is_pinned(peer: str) -> None:
    """By its own file, or by the versions that our tests run with; another torch would bring gigabytes of CUDA."""
    pinned = {line.partition("==")[0].lower() for line in CONSTRAINTS.read_text().splitlines() if "==" in line}
    lines = [line for line in requirements(peer).read_text().splitlines() if not line.startswith("#")]
    assert "torch" in lines
    for line in lines:
        assert "==" in line or re.sub(r"\[.*\]", "", line).lower() in pinned, line


# --- the pipes -------------------------------------------------------------------------------------------------------
@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trainer whose rollouts have 32 env steps, and whose updates make as many optimizer steps as its name says."""
    monkeypatch.setattr(child, "HERE", tmp_path)
    for steps in (6, 5):
        (tmp_path / f"run_{steps}.py").write_text(f"""
import itertools, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pace import Pace, job
print("some words of a trainer")
done = 0
pace = Pace(job(), lambda: {{"optimizer_steps": {steps} * done}})
for done in itertools.count(1):
    pace.iteration(32 * done)
""")
    (tmp_path / "run_broken.py").write_text("raise ValueError('no such task')")
    return tmp_path


def test_a_child_runs_as_far_as_it_is_let(fake: Path) -> None:
    trainer = child.Child("6", sys.executable, JOB, {}, fake / "run")
    try:
        assert trainer.warm_up.env_steps == 32 * child.WARM_UP
        assert trainer.advance(5).env_steps == 5 * 32
        assert trainer.advance(1).env_steps == 32
        assert trainer.facts == {"optimizer_steps": 6 * (child.WARM_UP + 6)}
        assert trainer.cpu_seconds() > 0.0
    finally:
        trainer.close()
    assert trainer.cpu_seconds() == 0.0


def test_a_trainer_that_works_less_than_its_recipe_is_refused(fake: Path) -> None:
    with pytest.raises(RuntimeError, match=f"5 made {5 * child.WARM_UP} optimizer steps where its recipe makes 12"):
        child.Child("5", sys.executable, JOB, {}, fake / "run")


def test_a_trainer_that_ends_shows_its_last_words(fake: Path) -> None:
    with pytest.raises(RuntimeError, match="ValueError: no such task"):
        child.Child("broken", sys.executable, JOB, {}, fake / "run")


# --- the race --------------------------------------------------------------------------------------------------------
class Runner:
    """A trainer that makes 1000 env steps and one second an iteration, and whose return is its env steps."""

    warm_up, warm_up_iterations = Sample(2000, 2.0), 2

    def __init__(self) -> None:
        self.steps, self.facts = self.warm_up.env_steps, dict[str, Any]()

    def advance(self, iterations: int) -> Sample:
        self.steps += 1000 * iterations
        self.facts = {"evaluation": [self.steps - 500.0, self.steps + 500.0]}
        return Sample(1000 * iterations, float(iterations))


def test_a_race_ends_at_the_mark_at_the_bound_or_with_the_budget() -> None:
    def seconds(mark: float, bound: float, budget: int) -> list[float]:
        return [each["seconds"] for each in race.race(Runner(), mark, bound, budget)]  # type: ignore[arg-type]

    # evaluations after 52, 102, 152, 202 thousand steps; the mean of the first three is 102,000, of the next 152,000
    assert seconds(102_000, 1e9, 10**9) == [52, 102, 152]
    assert seconds(102_001, 1e9, 10**9) == [52, 102, 152, 202]
    assert seconds(1e9, 100, 10**9) == [52, 102]
    assert seconds(1e9, 1e9, 102_001) == [52, 102]
    assert seconds(1e9, 1e9, 102_000) == [52]  # a trainer that has had all its steps is done, and would not answer


def test_the_table_of_the_race_counts_a_bound_as_such() -> None:
    def result(trainer: str, seed: int, level: float, bound: float = 50.0) -> dict[str, Any]:
        rows = [[50_000 * i, 10.0 * i, level * i] for i in range(1, 6)]
        if trainer == OURS:
            kept = {"evaluations": [[n, r] for n, _, r in rows], "evaluated_s": [s for _, s, _ in rows]}
        else:
            kept = {
                "evaluations": [{"env_steps": n, "seconds": s, "returns": [r]} for n, s, r in rows],
                "bound_s": bound,
            }
        return {"trainer": trainer, "env": "Hopper-v5", "seed": seed, **kept}

    ours = [result(OURS, seed, 1500.0) for seed in (1, 2, 3)]  # 3000 is the mean of evaluations 1 to 3: 30 s
    theirs = [result(PEERS[0], 1, 1000.0), result(PEERS[0], 2, 10.0), result(PEERS[0], 3, 10.0)]
    lines = race.table([*ours, *theirs])
    assert "| Hopper-v5 | 3,000 | ppo_fast | 30, 30, 30 | 30 | - |" in lines
    assert f"| Hopper-v5 | 3,000 | {PEERS[0]} | 40, not in 50, not in 50 | > 50 | < 0.60 |" in lines
    theirs[1:] = [result(PEERS[0], seed, 10.0, bound=300.0) for seed in (2, 3)]  # whose steps ended after 50 s
    assert race.table([*ours, *theirs]) == lines


# --- our own side ----------------------------------------------------------------------------------------------------
def test_smoke(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--smoke", "--env", "Ant-v5"]) == 0
    table = capsys.readouterr().out
    assert all(f"| Ant-v5, {recipe.title} |" in table for recipe in RECIPES)
    assert table.count("| ppo_fast: as it comes |") == len(RECIPES)


def test_a_task_without_a_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--smoke", "--env", "Swimmer-v5"])
    assert "env must be one of Ant-v5, HalfCheetah-v5" in capsys.readouterr().err
