"""``examples/ray_tune.py``: by Ray where it is installed, and its trials without Ray everywhere."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "ray_tune.py"


def test_a_trial_tells_of_its_evaluations_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[dict[str, Any]] = []

    class Tuner:
        def __init__(self, train: Callable[[dict[str, Any]], None], *, param_space: dict[str, Any], **_: Any) -> None:
            self.train, self.space = train, param_space

        def fit(self) -> Tuner:
            self.train(self.space)
            self.train(self.space | {"total_timesteps": 4000})  # it was over; so it is one that goes on
            return self

        def get_best_result(self) -> types.SimpleNamespace:
            return types.SimpleNamespace(metrics=told[-1], config=self.space, path="the trial's directory")

    def take(*args: Any, **options: Any) -> Any:
        return args[0] if args else options

    where = types.SimpleNamespace(get_trial_dir=lambda: str(tmp_path))
    tune: Any = types.ModuleType("ray.tune")
    tune.__dict__.update(
        Tuner=Tuner, TuneConfig=take, RunConfig=take, FailureConfig=take, with_resources=take, report=told.append,
        get_context=lambda: where, randint=take, loguniform=take, choice=lambda values: values[0],
    )  # fmt: skip
    schedulers: Any = types.ModuleType("ray.tune.schedulers")
    schedulers.MedianStoppingRule = take
    ray: Any = types.ModuleType("ray")
    ray.tune = tune
    for name, module in (("ray", ray), ("ray.tune", tune), ("ray.tune.schedulers", schedulers)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "argv", ["ray_tune.py", str(tmp_path), "1", "3000"])
    runpy.run_path(str(EXAMPLE))
    rows = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert [each["env_steps"] for each in told] == [row["env_steps"] for row in rows]
    assert [each["train_s"] for each in told] == [row["wall_s"] for row in rows]
    assert told[-1]["evaluation_return"] == sum(rows[-1]["returns"]) / len(rows[-1]["returns"])
    assert json.loads((tmp_path / "run" / "run_info.json").read_text())["resumed_at"] == told[-2]["env_steps"]
    assert f"best: {told[-1]['evaluation_return']:.1f}, " in capsys.readouterr().out


def test_by_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray.tune", reason="Ray is not installed: pip install 'ray[tune]'")
    command = [sys.executable, str(EXAMPLE), str(tmp_path / "out"), "2", "10000"]
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(EXAMPLE.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=env)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^best: [\d.]+, .*'env': 'Hopper-v5'", done.stdout, re.MULTILINE)
    runs = sorted((tmp_path / "out" / "hopper").glob("train_*/run"))
    assert len(runs) == 2
    for run in runs:
        rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
        reported = [json.loads(line) for line in (run.parent / "result.json").read_text().splitlines()]
        assert [each["env_steps"] for each in reported] == [row["env_steps"] for row in rows]
        assert rows[-1]["env_steps"] >= 10_000
