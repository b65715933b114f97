"""Scores of runs: what is read from their directories, and statistics over seeds against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppo_fast import scores
from ppo_fast.errors import ConfigError
from ppo_fast.plotting import draw_runs
from ppo_fast.scores import RunScores, bootstrap_interval, iqm, mean_curve


def run(seed: int = 1, means: Any = (1.0, 2.0, 3.0), env: str = "Hopper-v5", **fields: Any) -> RunScores:
    size = len(means)
    steps = np.arange(1, size + 1) * 50_000.0
    values = {
        "path": Path("r"), "env": env, "algo": "ppo", "preset": "fast", "seed": seed, "total_timesteps": 50_000 * size,
        "steps": steps, "wall_s": steps / 1000, "means": np.asarray(means, float), "sampled": 0.5,
        "gymnasium": math.nan,
    }  # fmt: skip
    return RunScores(**{**values, **fields})


def write(path: Path, means: list[float], *, metrics: bool = True, **config: Any) -> Path:
    path.mkdir(parents=True)
    options = {"env": "Hopper-v5", "preset": "fast", "seed": 3, "total_timesteps": 100_000, **config}
    (path / "config.json").write_text(json.dumps(options))
    rows = [
        {"env_steps": 50_000 * (i + 1), "wall_s": 10.0 * (i + 1), "returns": [mean - 1, mean + 1]}
        for i, mean in enumerate(means)
    ]
    (path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if metrics:
        (path / "metrics.jsonl").write_text('{"episode_return": 7.0}\n{"episode_return": 8.0}\n')
    return path


def test_a_run_directory_is_read(tmp_path: Path) -> None:
    read = scores.read_run(write(tmp_path / "a", [10.0, 20.0], algo="trpo"))
    assert (read.env, read.algo, read.preset, read.seed, read.sampled) == ("Hopper-v5", "trpo", "fast", 3, 8.0)
    assert read.steps.tolist() == [50_000, 100_000]
    assert read.wall_s.tolist() == [10, 20]
    assert read.means.tolist() == [10, 20]
    assert read.finished
    old = scores.read_run(write(tmp_path / "b", [10.0], metrics=False))
    assert old.algo == "ppo"  # runs from before there was a choice
    assert math.isnan(old.sampled)
    assert math.isnan(old.gymnasium)
    (tmp_path / "b" / "gymnasium.json").write_text('{"returns": [3.0, 5.0], "lengths": [1, 1]}')
    assert scores.read_run(tmp_path / "b").gymnasium == 4
    for steps, expected in ((50_000, 4.0), (40_000, math.nan)):  # of the last evaluation's policy, and of an older one
        kept = {"env_steps": steps, "returns": [3.0, 5.0], "lengths": [1, 1]}
        (tmp_path / "b" / "gymnasium.json").write_text(json.dumps(kept))
        assert scores.read_run(tmp_path / "b").gymnasium == pytest.approx(expected, nan_ok=True)
    assert not old.finished


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run at '.*missing'"):
        scores.read_run(tmp_path / "missing")
    broken = write(tmp_path / "c", [1.0])
    (broken / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="c is not the directory of a run"):
        scores.read_run(broken)


def test_the_final_score_is_the_mean_of_the_last_tenth() -> None:
    assert run(means=[1, 2, 3]).final == 3  # at least one
    assert run(means=range(20)).final == 18.5  # two of twenty
    assert run(means=range(60)).final == 56.5  # six of sixty


def test_time_to_a_mark_is_when_the_mean_of_three_evaluations_passes_it() -> None:
    r = run(means=[0, 9, 0, 3, 6, 9, 3])  # means of three: 3, 4, 3, 6, 6
    assert r.time_to(3) == 150
    assert r.time_to(3.5) == 200
    assert r.time_to(6) == 300
    assert r.time_to(6.5) is None
    assert run(means=[9, 9]).time_to(1) is None


def test_iqm_leaves_out_a_quarter_at_either_end() -> None:
    assert iqm(np.array([100.0, 2, 3, -50])) == 2.5
    assert iqm(np.array([5.0, 1, 2, 3, 100])) == pytest.approx(10 / 3)
    assert iqm(np.array([1.0, 2, 6])) == 3


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # 95 % intervals of the mean from 20 normal scores: the percentile bootstrap of so few covers about 93 %. Of 400
    # trials 93 % +- 3 x 1.3 % are expected.
    rng, covered = np.random.default_rng(1), 0
    for trial in range(400):
        low, high = bootstrap_interval([rng.normal(size=20)], lambda x: float(x.mean()), samples=500, seed=trial)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 400 <= 0.97


def test_runs_are_resampled_within_their_task() -> None:
    # Two tasks whose runs all agree: whatever is drawn, half the scores are 0 and half are 10.
    groups = [np.zeros(5), np.full(5, 10.0)]
    assert bootstrap_interval(groups, lambda x: float(x.mean())) == (5.0, 5.0)
    low, high = bootstrap_interval([np.concatenate(groups)], lambda x: float(x.mean()))
    assert low < 4 < 6 < high


def test_the_table_has_a_line_per_task_and_says_what_is_missing() -> None:
    runs = [run(seed, [1000.0 * seed] * 4, env="HalfCheetah-v5") for seed in (2, 4, 6, 8)]
    runs += [run(1, [5.0, 6.0], total_timesteps=10**9)]
    lines = scores.table(runs)
    cheetah, hopper = (next(line for line in lines if env in line) for env in ("HalfCheetah", "Hopper"))
    cells = [cell.strip() for cell in cheetah.split("|")[1:-1]]
    assert cells[:4] == ["HalfCheetah-v5", "ppo, fast", "0.20M", "4"]
    assert cells[4] == "5,000 ± 2,582"
    assert cells[5].startswith("5,000 (")
    assert cells[6:9] == ["2,000", "0", "-"]
    assert "50% above 4,000; 5,000: 2 of 4, 150 s; 6,500: 1 of 4, 150 s" in cells[9]
    assert "1 unfinished" in hopper
    assert "| 6.0 |" in hopper  # a run alone has no spread


def test_only_seeds_share_a_line() -> None:
    runs = [
        run(seed, (level,), options={"seed": seed, "run_dir": f"{seed}", "gamma": gamma, "hidden_sizes": sizes})
        for seed, level, gamma, sizes in (
            (1, 1.0, 0.99, [64, 64]), (2, 3.0, 0.99, [64, 64]), (1, 7.0, 0.9, [64, 64]), (1, 9.0, 0.9, [32]),
        )
    ]  # fmt: skip
    both = {key[2]: task.finals.tolist() for key, task in scores.by_task(runs).items()}
    assert both == {
        "fast, gamma 0.99, hidden_sizes 64-64": [1, 3],
        "fast, gamma 0.9, hidden_sizes 64-64": [7],
        "fast, gamma 0.9, hidden_sizes 32": [9],
    }
    assert [key[2] for key in scores.by_task(runs[:2])] == ["fast"]  # in which there is nothing to tell apart
    old = run(3, (5.0,))  # from before there were these options
    assert [key[2] for key in scores.by_task([*runs[:2], old])] == ["fast"]
    assert {key[2] for key in scores.by_task([*runs, old])} == {"fast", *both}
    assert len(scores.table(runs)) == 2 + 3


def test_the_table_tells_how_runs_stood_on_their_way() -> None:
    runs = [run(seed, [10.0 * seed, 100.0 * seed, 1000.0 * seed]) for seed in (1, 2, 3)]
    lines = scores.table(runs, at=(100_000, 10**9))
    assert len(lines) == 4
    assert "0.10M" in lines[2]
    assert "200 ± 100" in lines[2]
    assert "2,000 ± 1,000" in lines[3]


def test_a_mean_curve_stays_where_all_runs_are() -> None:
    curves = [(np.array([0.0, 10.0]), np.array([0.0, 10.0])), (np.array([2.0, 8.0]), np.array([4.0, 16.0]))]
    grid, mean, low, high = mean_curve(curves, points=7)
    assert (grid[0], grid[-1]) == (2, 8)
    np.testing.assert_allclose(mean, 1.5 * grid)
    np.testing.assert_allclose(low, grid)
    np.testing.assert_allclose(high, 2 * grid)


def test_curves_without_a_stretch_in_common_have_no_mean() -> None:
    curves = [(np.array([0.0, 1.0]), np.array([5.0, 6.0])), (np.array([2.0, 3.0]), np.array([7.0, 8.0]))]
    assert [array.shape for array in mean_curve(curves)] == [(0,)] * 4


def test_results_are_json_without_nan(tmp_path: Path) -> None:
    text = json.dumps(scores.to_json([run(sampled=math.nan), run(means=[])]), allow_nan=False)
    assert json.loads(text)[0]["sampled"] is None
    assert json.loads(text)[1]["final"] is None


def test_the_picture_is_a_png_that_grows_with_the_tasks(tmp_path: Path) -> None:
    from PIL import Image

    draw_runs([run(1), run(2), run(1, algo="trpo")], tmp_path / "one.png")
    draw_runs([run(1), run(2), run(1, env="Ant-v5")], tmp_path / "two.png")
    one, two = (Image.open(tmp_path / name) for name in ("one.png", "two.png"))
    assert one.size[0] == two.size[0]
    assert two.size[1] == pytest.approx(2 * one.size[1], rel=0.02)
