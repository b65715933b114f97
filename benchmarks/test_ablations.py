"""The changes of the ablations do what their names say."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppo_fast import presets
from ppo_fast.cli import parse_config
from ppo_fast.reference.advantage import gae
from ppo_fast.trainer import Trainer

from . import ablations

TINY: dict[str, Any] = {
    "env": "HalfCheetah-v5", "num_envs": 2, "num_steps": 600, "minibatch_size": 100, "update_epochs": 2,
    "eval_every": 0, "eval_episodes": 1, "checkpoint_every": 0, "total_timesteps": 3600, "log": (), "quiet": True,
}  # fmt: skip


def changed(tmp_path: Path, name: str) -> tuple[Trainer, list[dict[str, Any]]]:
    """Return a trainer with the change of a variant, and what its learner was given, iteration by iteration."""
    trainer = Trainer(presets.resolve(**TINY, run_dir=str(tmp_path / "run")))
    learn, given = trainer.learner.update, []

    def spy(rollout: Any) -> dict[str, float]:
        rows = torch.from_numpy(rollout.norm_obs[:-1].reshape(-1, trainer.model.obs_dim).copy())
        now = trainer.model.value(trainer.model.params(trainer.learner.flat), rows).detach()
        names = ("rewards", "scaled_rewards", "terminated", "truncated", "done", "valid", "advantages", "returns")
        arrays = {each: getattr(rollout, each).copy() for each in names}
        given.append(
            {**arrays, "values_all": rollout.values_all.copy(), "now": now.numpy().reshape(rollout.valid.shape)}
        )
        return learn(rollout)

    trainer.learner.update = spy  # type: ignore[method-assign]
    change = ablations.VARIANTS[name].change
    assert change is not None
    trainer.learner.update = change(trainer)  # type: ignore[method-assign]
    trainer.run()
    return trainer, given


def judged(row: dict[str, Any], values: Any, terminated: Any) -> tuple[Any, Any]:
    return gae(
        row["scaled_rewards"], values[:-1], values[1:], terminated, row["done"], gamma=0.99, gae_lambda=0.95
    )  # fmt: skip


def test_time_limits_that_cut(tmp_path: Path) -> None:
    _, given = changed(tmp_path, "no bootstrap at time limits")
    assert any(row["truncated"].any() for row in given)
    for row in given:
        cut = row["truncated"]
        np.testing.assert_allclose(row["returns"][cut], row["scaled_rewards"][cut], rtol=1e-5, atol=1e-5)
        advantages, _ = judged(row, row["values_all"], row["done"])
        np.testing.assert_allclose(row["advantages"], advantages, rtol=1e-5, atol=1e-5)


def test_normalised_values_keep_what_the_critic_says_and_normalise_its_targets(tmp_path: Path) -> None:
    _, given = changed(tmp_path, "values normalised")
    assert len(given) >= 2
    count, mean, squares, std = 0, 0.0, 0.0, 1.0
    for row in given:
        values = row["values_all"] * std + mean
        advantages, returns = judged(row, values, row["terminated"])
        np.testing.assert_allclose(row["advantages"], advantages, rtol=1e-3, atol=1e-4)
        seen = returns[row["valid"]].astype(np.float64)
        count, total, squares = count + seen.size, mean * count + seen.sum(), squares + (seen**2).sum()
        mean = total / count
        std = np.sqrt(squares / count - mean**2)
        np.testing.assert_allclose(row["returns"][row["valid"]], (seen - mean) / std, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(row["now"] * std + mean, values[:-1], rtol=1e-3, atol=1e-3)


def test_more_critic_epochs_move_the_critic_alone(tmp_path: Path) -> None:
    trainer = Trainer(presets.resolve(**TINY, run_dir=str(tmp_path / "run")))
    flats: list[Any] = []
    learn = trainer.learner.update

    def spy(rollout: Any) -> dict[str, float]:
        metrics = learn(rollout)
        flats.append(trainer.learner.flat.clone())
        return metrics

    trainer.learner.update = spy  # type: ignore[method-assign]
    more = ablations.more_critic_epochs(trainer)

    def update(rollout: Any) -> dict[str, float]:
        metrics = more(rollout)
        flats.append(trainer.learner.flat.clone())
        return metrics

    trainer.learner.update = update  # type: ignore[method-assign]
    trainer.run()
    assert len(flats) >= 4
    for before, after in zip(flats[::2], flats[1::2], strict=True):
        old, new = trainer.model.unflatten(before), trainer.model.unflatten(after)
        moved = {name for name in old if not torch.equal(old[name], new[name])}
        assert moved == {name for name in old if name.startswith("critic.")}


def test_the_table_tells_the_gain_and_its_interval() -> None:
    base, *_ = ablations.VARIANTS
    results = [
        {"task": "Ant-v5", "variant": name, "seed": seed, "evaluations": [[1, 0.0]] * 18 + [[2, level + seed]] * 2}
        for name, level in ((base, 100.0), ("advantages recomputed", 200.0))
        for seed in (1, 2, 3)
    ]
    first, second = ablations.table(results)[2:]
    assert "102 ± 1 | 101 | - | 101, 102, 103" in first
    assert "202 ± 1 | 201 | +100 (+9" in second


def test_the_kl_stop_is_the_one_thing_that_differs_on_every_task() -> None:
    stop = next(variant for name, variant in ablations.VARIANTS.items() if name.startswith("KL stop"))
    for task in ablations.TASKS:
        flags = ["--env", task, "--preset", "sample", *stop.flags_on(task)]
        base, changed = presets.resolve(env=task, preset="sample"), parse_config(flags, prog="", description="")
        assert {name for name, value in changed.to_dict().items() if value != base.to_dict()[name]} == {"target_kl"}


def test_a_variant_that_diverges_does_not_keep_the_others_from_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def keep(path: Path, *_: object, **about: object) -> None:
        made.append(about["seed"])
        if about["seed"] == 1:
            raise subprocess.CalledProcessError(1, "train")

    monkeypatch.setattr(ablations, "keep", keep)
    args = [
        "ablations",
        "--out",
        str(tmp_path),
        "--tasks",
        "Ant-v5",
        "--variants",
        "preset sample",
        "--seeds",
        "1",
        "2",
    ]
    monkeypatch.setattr("sys.argv", args)
    assert ablations.main() == 1
    assert made == [1, 2]
    assert "Ant-v5_preset_sample_seed1: " in capsys.readouterr().err
