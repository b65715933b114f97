"""Symptoms: each at its threshold, with what to try; once while it lasts; none in runs that learned."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from ppo_fast.config import FIELDS
from ppo_fast.sinks.symptoms import SymptomSink
from ppo_fast.symptoms import LONG, RULES, WINDOW, Symptoms

CONFIG = {"algo": "ppo", "num_envs": 10, "max_grad_norm": 0.5}
INFO = {"env_spec": {"act_dim": 3, "num_actions": 0, "max_episode_steps": 1000}, "learner": {"name": "torch"}}
DISCRETE = {"env_spec": {"act_dim": 1, "num_actions": 8, "max_episode_steps": None}, "learner": {"name": "native"}}

# What a run without a symptom shows: three standard normals have an entropy of 3 * 1.419.
GOOD = {
    "env_steps": 5000,
    "episode_return": 100.0,
    "approx_kl": 0.02,
    "clip_frac": 0.2,
    "entropy": 4.257,
    "explained_var": 0.9,
    "grad_norm": 5.0,
    "time/physics": 2.0,
    "time/update": 1.0,
}


def entropy(sigma: float) -> float:
    """Return the entropy of three independent normals: 3 * (1/2 log(2 pi e) + log sigma)."""
    return 3 * (0.5 * math.log(2 * math.pi * math.e) + math.log(sigma))


def found(rows: int = LONG, config: dict[str, Any] = CONFIG, info: dict[str, Any] = INFO, **values: Any) -> list[str]:
    """Return the names of what is wrong after so many equal rows."""
    symptoms = Symptoms(config, info)
    for _ in range(rows):
        symptoms.take({**GOOD, **values})
    return [symptom.name for symptom in symptoms.present]


def test_a_healthy_run_shows_nothing() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("name", "config", "info", "well", "ill"),
    [
        ("KL", {}, INFO, {"approx_kl": 0.1}, {"approx_kl": 0.11}),
        ("KL", {"target_kl": 0.01}, INFO, {"approx_kl": 0.03}, {"approx_kl": 0.031}),
        ("KL", {"adaptive_kl": 0.02}, INFO, {"approx_kl": 0.06}, {"approx_kl": 0.061}),
        ("KL", {"algo": "reinforce"}, INFO, {"approx_kl": 0.1}, {"approx_kl": 0.11}),
        ("clip fraction", {}, INFO, {"clip_frac": 0.5}, {"clip_frac": 0.51}),
        ("explained variance", {}, INFO, {"explained_var": 0.0}, {"explained_var": -0.01}),
        ("entropy", {}, INFO, {"entropy": entropy(0.021)}, {"entropy": entropy(0.019)}),
        ("entropy", {}, DISCRETE, {"entropy": 0.021 * math.log(8)}, {"entropy": 0.019 * math.log(8)}),
        ("no episode", {}, INFO, {"env_steps": 20_000}, {"env_steps": 20_001}),  # 10 environments, 2 limits of 1000
        ("no episode", {}, {**INFO, "processes": {"count": 4}}, {"env_steps": 80_000}, {"env_steps": 80_001}),
        ("no episode", {}, DISCRETE, {"env_steps": 100_000}, {"env_steps": 100_001}),  # no limit: 10,000 steps each
        ("gradient", {}, INFO, {"grad_norm": 50.0}, {"grad_norm": 50.1}),
        ("slow learner", {}, INFO, {"time/update": 2.0}, {"time/update": 2.1}),
    ],
)
def test_a_symptom_begins_beyond_its_threshold(
    name: str, config: dict[str, Any], info: dict[str, Any], well: dict[str, Any], ill: dict[str, Any]
) -> None:
    none = {"episode_return": None} if name == "no episode" else {}
    assert found(config={**CONFIG, **config}, info=info, **well, **none) == []
    assert found(config={**CONFIG, **config}, info=info, **ill, **none) == [name]


def test_the_bounded_step_of_trpo_is_not_judged_by_its_kl() -> None:
    assert found(config={**CONFIG, "algo": "trpo"}, approx_kl=0.2) == []


@pytest.mark.parametrize(
    ("returns", "expected"),
    [
        ([0.0, 100.0, 50.0], []),
        ([0.0, 100.0, 49.0], ["return fell"]),
        ([-30.0, -10.0, -15.0], []),
        ([-30.0, -10.0, -19.0], []),  # half as good as -10 is -15, but half the way back to the start is -20
        ([-30.0, -10.0, -21.0], ["return fell"]),
        ([90.0, 100.0, 94.0], []),  # a run that was taken up at a high return, by 6 down
    ],
)
def test_a_return_falls_when_it_loses_half_of_its_best(returns: list[float], expected: list[str]) -> None:
    symptoms = Symptoms(CONFIG, INFO)
    for value in returns:
        for _ in range(WINDOW):
            symptoms.take({**GOOD, "episode_return": value})
    assert [symptom.name for symptom in symptoms.present] == expected


def test_a_few_bad_rows_are_no_symptom_and_the_critic_gets_longer() -> None:
    assert found(rows=WINDOW - 1, approx_kl=9.0, clip_frac=1.0, grad_norm=1e6) == []
    assert found(rows=WINDOW, explained_var=-1.0) == []
    symptoms = Symptoms(CONFIG, INFO)
    for i in range(100):  # four of ten
        symptoms.take({**GOOD, "approx_kl": 9.0 if i % 10 < 4 else 0.02})
    assert symptoms.present == []


def test_the_gravest_comes_first() -> None:
    names = found(grad_norm=1e6, approx_kl=1.0, clip_frac=0.9, **{"time/update": 9.0})
    assert names == ["KL", "clip fraction", "gradient", "slow learner"]


@pytest.mark.parametrize(
    ("learner", "advised"),
    [
        ({"name": "torch", "reason": ""}, True),
        ({"name": "torch", "reason": "no native learner: the core was not built"}, False),
        ({"name": "native", "reason": ""}, False),
    ],
)
def test_the_native_learner_is_advised_where_torchs_was_chosen(learner: dict[str, str], advised: bool) -> None:
    symptoms = Symptoms(CONFIG, {**INFO, "learner": learner})
    for _ in range(LONG):
        symptoms.take({**GOOD, "time/update": 9.0})
    (slow,) = symptoms.present
    assert ("--learner native" in slow.remedy) == advised


def test_a_symptom_is_reported_once_and_again_only_after_it_was_gone() -> None:
    symptoms, arisen = Symptoms(CONFIG, INFO), []
    phases = [(0.5, 60), (0.02, 60), (0.5, 60)]
    for number, (kl, rows) in enumerate(phases):
        for _ in range(rows):
            arisen += [(number, symptom.name) for symptom in symptoms.take({**GOOD, "approx_kl": kl})]
        assert [symptom.name for symptom in symptoms.present] == (["KL"] if kl > 0.1 else [])
    assert arisen == [(0, "KL"), (2, "KL")]


def test_every_symptom_says_what_why_and_what_to_try_with_options_that_exist() -> None:
    seen: dict[str, str] = {}
    for algo in ("ppo", "reinforce", "trpo"):
        config = {**CONFIG, "algo": algo}
        symptoms = Symptoms(config, INFO)
        bad = {"approx_kl": 1.0, "clip_frac": 0.9, "explained_var": -1.0, "entropy": -99.0, "grad_norm": 1e6}
        for value in (100.0, 1.0):
            for _ in range(LONG):
                symptoms.take({**GOOD, **bad, "time/update": 9.0, "episode_return": value})
        silent = Symptoms(config, INFO)
        for _ in range(LONG):
            silent.take({**GOOD, "episode_return": None, "env_steps": 10**6})
        for symptom in [*symptoms.present, *silent.present]:
            assert symptom.what
            assert symptom.cause
            assert symptom.remedy
            seen[symptom.name] = f"{seen.get(symptom.name, '')} {symptom}"
    assert set(seen) == set(RULES)
    options = {word.replace("-", "_") for word in re.findall(r"--([a-z-]+)", " ".join(seen.values()))}
    assert options - {"best"} <= set(FIELDS)  # --best is of ppo_fast.play


def test_they_are_warnings_in_the_log_and_a_rewind_forgets_them(caplog: pytest.LogCaptureFixture) -> None:
    sink = SymptomSink()
    sink.start({**CONFIG, "target_kl": 0.01}, INFO)
    for _ in range(30):
        sink.log({**GOOD, "env_steps": 12_345, "approx_kl": 0.05})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("after 12,345 steps: KL is 5.0x its target of 0.01: ")
    assert "lower --learning-rate" in record.getMessage()
    assert [symptom.name for symptom in sink.present] == ["KL"]
    sink.rewind(100)
    assert sink.present == []


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
RUNS = sorted(path for kind in ("learning", "make-train") for path in RESULTS.glob(f"*_{kind}/**/metrics.jsonl"))


def test_the_runs_that_learned_are_there() -> None:
    assert len(RUNS) >= 13


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.parent.name)
def test_runs_that_learned_show_none_of_the_policy(path: Path) -> None:
    dims = {"Ant": 8, "Hal": 6}[path.parent.name[:3]]
    info = {"env_spec": {"act_dim": dims, "num_actions": 0, "max_episode_steps": 1000}}
    symptoms = Symptoms({**CONFIG, "num_envs": 64}, info)
    arisen = {s.name for text in path.read_text().splitlines() for s in symptoms.take(json.loads(text))}
    assert arisen <= {"slow learner"}


def test_the_documentation_has_a_row_for_each() -> None:
    page = (Path(__file__).parents[1] / "docs" / "watching.md").read_text()
    assert re.findall(r"^\| ([\w ]+) \|", page.split("| symptom |")[1], re.MULTILINE) == list(RULES)
