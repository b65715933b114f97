"""A run that was broken off and taken up, anywhere and any number of times, ends as one that never was: to the bit.

Here the end comes as an exception that no handler sees, which is quick; tests/test_kill.py kills real processes.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from training import Recorder, Run, config, one_thread, untimed  # noqa: F401

from ppo_fast import checkpoint
from ppo_fast.config import Config, from_dict
from ppo_fast.envs.envpool import EnvPoolVectorEnv
from ppo_fast.errors import CheckpointError, ConfigError
from ppo_fast.evaluation import load_policy
from ppo_fast.run_dir import RunDir
from ppo_fast.trainer import Trainer

DATA = Path(__file__).parent / "data"

# 21 iterations of Hopper, whose episodes of random actions take about 20 steps, with evaluations and a best checkpoint.
OPTIONS: dict[str, Any] = {
    "total_timesteps": 2650, "eval_every": 450, "eval_episodes": 2, "checkpoint_every": 250, "keep_checkpoints": 2,
    "num_envs": 8, "num_steps": 16, "minibatch_size": 32,
}  # fmt: skip


class Killed(BaseException):
    """Stands for the end of the process: no handler of errors sees it."""


def files_of(path: Path) -> dict[str, Any]:
    """Return what a run left in its directory, without what depends on the clock."""
    rows = [untimed(row) for row in training.jsonl(path / "metrics.jsonl")]
    evaluations = [untimed(row) for row in training.jsonl(path / "evaluations.jsonl")]
    found = {}
    for saved in map(checkpoint.load, checkpoint.find(path / "checkpoints")):
        state = {k: v for k, v in saved.state.items() if k not in ("wall_s", "config", "numerics", "versions")}
        tensors = {**saved.model, **saved.train}
        found[saved.path.name] = (state, {name: t.numpy().tobytes() for name, t in tensors.items()})
    return {"rows": rows, "evaluations": evaluations, "checkpoints": found}


def run_until(cfg: Any, dies: Callable[[pytest.MonkeyPatch], None]) -> bool:
    """Run ``cfg`` in a trainer into which ``dies`` has put an end; return whether it came."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "draw", lambda self: None)
        dies(patch)
        try:
            Trainer(cfg).run()
        except Killed:
            return True
    return False


def at(method: str, iteration: int | None = None, *, after: bool = False) -> Callable[[pytest.MonkeyPatch], None]:
    """Die in the first call of ``Trainer.method``, or that after so many iterations, before or after its work."""

    def arm(patch: pytest.MonkeyPatch) -> None:
        real = getattr(Trainer, method)

        def call(self: Trainer, *args: Any) -> Any:
            due = iteration is None or self.state.iteration == iteration
            if due and not after:
                raise Killed
            result = real(self, *args)
            if due:
                raise Killed
            return result

        patch.setattr(Trainer, method, call)

    return arm


@pytest.fixture(scope="module")
def whole(stack: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    """Return a run that was never broken off, and its files."""
    path = tmp_path_factory.mktemp("whole") / "run"
    run = training.train(config(path, **OPTIONS, **stack))
    return run, files_of(path)


def assert_ends_like(path: Path, cfg: Any, whole: tuple[Run, dict[str, Any]]) -> None:
    again = training.train(cfg)
    expected, files = whole
    found, wanted = again.fingerprint(), expected.fingerprint()
    assert {k: v for k, v in found.items() if k != "rows"} == {k: v for k, v in wanted.items() if k != "rows"}
    assert again.result.final is not None
    assert again.result.final.returns.tolist() == expected.result.final.returns.tolist()
    assert files_of(path) == files


# In the first, the last, and some between; in every one by the slow ones, and by the single run below.
ITERATIONS = [i if i in (1, 2, 7, 13, 20) else pytest.param(i, marks=pytest.mark.slow) for i in range(1, 21)]


@pytest.mark.parametrize("iteration", ITERATIONS)
def test_broken_off_in_any_iteration(
    whole: tuple[Run, dict[str, Any]], stack: dict[str, Any], tmp_path: Path, iteration: int
) -> None:
    cfg = config(tmp_path / "run", **OPTIONS, **stack)
    assert run_until(cfg, at("_advance", iteration - 1))  # the rollout and the update of this iteration are lost
    assert_ends_like(tmp_path / "run", dataclasses.replace(cfg, resume="auto"), whole)


@pytest.mark.parametrize(
    "end",
    [
        at("_warm_up"),
        at("_warm_up", after=True),
        at("_evaluate"),
        at("_evaluate", after=True),
        at("_between", 3, after=True),
        at("_finish"),
        at("_finish", after=True),
    ],
    ids=[
        "before warm-up", "after warm-up", "before evaluation", "between evaluation and checkpoint", "after checkpoint",
        "before the end", "after the end",
    ],
)  # fmt: skip
def test_broken_off_anywhere_else(
    whole: tuple[Run, dict[str, Any]], stack: dict[str, Any], tmp_path: Path, end: Callable[[pytest.MonkeyPatch], None]
) -> None:
    cfg = config(tmp_path / "run", **OPTIONS, **stack)
    assert run_until(cfg, end)
    assert_ends_like(tmp_path / "run", dataclasses.replace(cfg, resume="auto"), whole)


def test_broken_off_in_every_iteration_of_one_run(
    whole: tuple[Run, dict[str, Any]], stack: dict[str, Any], tmp_path: Path
) -> None:
    # Each attempt gets one iteration further than the one before and dies in the next.
    cfg = config(tmp_path / "run", **{**OPTIONS, "checkpoint_every": 1}, **stack)
    for iteration in range(1, 20):
        assert run_until(cfg, at("_advance", iteration))
        cfg = dataclasses.replace(cfg, resume="auto")
    again = training.train(cfg)
    assert again.trainer.learner.flat.equal(whole[0].trainer.learner.flat)
    assert [untimed(row) for row in training.jsonl(tmp_path / "run" / "metrics.jsonl")] == whole[1]["rows"]


def test_checkpoints_that_are_far_apart(
    whole: tuple[Run, dict[str, Any]], stack: dict[str, Any], tmp_path: Path
) -> None:
    # A checkpoint is all that counts: how often it is written changes nothing but which are there.
    cfg = config(tmp_path / "run", **{**OPTIONS, "checkpoint_every": 700}, **stack)
    for iteration in (3, 7, 12):
        assert run_until(cfg, at("_advance", iteration))
        cfg = dataclasses.replace(cfg, resume="auto")
    again = training.train(cfg)
    assert again.trainer.learner.flat.equal(whole[0].trainer.learner.flat)
    assert [untimed(row) for row in training.jsonl(tmp_path / "run" / "metrics.jsonl")] == whole[1]["rows"]


def stop_at(subject: Trainer, iteration: int, row: dict[str, Any]) -> None:
    if row["iteration"] == iteration:
        subject.stop("a test")


def test_stopped_instead_of_broken_off(
    whole: tuple[Run, dict[str, Any]], stack: dict[str, Any], tmp_path: Path
) -> None:
    # A stop saves at the next boundary, also where no checkpoint was due.
    cfg = config(tmp_path / "run", **{**OPTIONS, "checkpoint_every": 0}, **stack)
    for iteration in (2, 5, 11):
        subject = Trainer(cfg)
        subject.sinks._sinks.append(Recorder(partial(stop_at, subject, iteration)))
        result = subject.run()
        assert (result.stopped, result.final, result.state.iteration) == ("a test", None, iteration)
        assert checkpoint.load_newest(tmp_path / "run" / "checkpoints").state["iteration"] == iteration
        cfg = dataclasses.replace(cfg, resume="auto")
    again = training.train(cfg)
    assert again.trainer.learner.flat.equal(whole[0].trainer.learner.flat)
    found = files_of(tmp_path / "run")
    assert (found["rows"], found["evaluations"]) == (whole[1]["rows"], whole[1]["evaluations"])


def test_a_stop_during_an_evaluation_leaves_it_to_the_run_that_goes_on(
    whole: tuple[Run, dict[str, Any]], stack: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(tmp_path / "run", **OPTIONS, **stack)
    subject = Trainer(cfg)
    evaluate = Trainer._evaluate

    def stopped(self: Trainer) -> bool:
        self.stop("a test")
        return evaluate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_evaluate", stopped)
        result = subject.run()
    assert result.stopped
    assert not training.jsonl(tmp_path / "run" / "evaluations.jsonl")
    assert_ends_like(tmp_path / "run", dataclasses.replace(cfg, resume="auto"), whole)


@pytest.mark.parametrize("schedule", [{"anneal_lr": False}, {"target_kl": 0.001}])  # the second anneals
def test_learning_rates_and_epochs_go_on_through_five_resumes(
    tmp_path: Path, stack: dict[str, Any], schedule: dict[str, Any]
) -> None:
    expected = training.train(config(tmp_path / "whole", **OPTIONS, **schedule, **stack))
    cfg = config(tmp_path / "run", **OPTIONS, **schedule, **stack)
    for iteration in (2, 4, 7, 11, 14):
        assert run_until(cfg, at("_advance", iteration))
        cfg = dataclasses.replace(cfg, resume="auto")
    training.train(cfg)
    rows = training.jsonl(tmp_path / "run" / "metrics.jsonl")
    for name in ("learning_rate", "epochs", "approx_kl"):
        assert [row[name] for row in rows] == [row[name] for row in expected.rows], name
    if "target_kl" in schedule:
        assert len({row["epochs"] for row in rows}) > 1


def test_compiled_update(tmp_path: Path) -> None:
    options = {**OPTIONS, "total_timesteps": 1500, "eval_every": 0, "actor": "torch", "learner": "torch",
               "update": "compile"}  # fmt: skip
    expected = training.train(config(tmp_path / "whole", **options))
    assert expected.trainer.learner.mode == "compile"
    cfg = config(tmp_path / "run", **options)
    assert run_until(cfg, at("_advance", 3))
    again = training.train(dataclasses.replace(cfg, resume="auto"))
    assert again.trainer.learner.flat.equal(expected.trainer.learner.flat)


@pytest.mark.parametrize("change", [{"env_threads": 1}, {"env_threads": 3}, {"learner_threads": 1}])
def test_threads_may_change_on_the_way(tmp_path: Path, native_core: None, change: dict[str, Any]) -> None:
    stack: dict[str, Any] = {"actor": "native", "learner": "native", "update": "auto", "num_envs": 16,
                             "total_timesteps": 4000, "checkpoint_every": 1}  # fmt: skip
    expected = training.train(config(tmp_path / "whole", env_threads=2, **stack))
    cfg = config(tmp_path / "run", env_threads=2, **stack)
    assert run_until(cfg, at("_advance", 3))
    again = training.train(dataclasses.replace(cfg, resume="auto", **change))
    assert again.trainer.info["taken_up"]["why_restarted"] == ""
    assert again.trainer.learner.flat.equal(expected.trainer.learner.flat)


# What cannot go on exactly says so


def broken_off(path: Path, **options: Any) -> Any:
    cfg = config(path, **{**OPTIONS, **options})
    assert run_until(cfg, at("_advance", 4))
    return dataclasses.replace(cfg, resume="auto")


def test_gymnasium_restarts_its_episodes_and_says_so(tmp_path: Path) -> None:
    cfg = broken_off(tmp_path / "run", env_backend="gymnasium", num_envs=4)
    subject = Trainer(cfg)
    assert subject.info["resume"] == {"exact": False, "why_not": "Gymnasium's environments cannot be replayed"}
    assert subject.info["taken_up"]["why_restarted"] == "Gymnasium's environments cannot be replayed"
    assert subject.state.env_purpose == subject.state.iteration + 1 > 1  # seeds of their own
    assert not subject.scaler.discounted.any()
    subject.run()


def test_new_episodes_are_replayed_when_the_run_is_broken_off_again(tmp_path: Path) -> None:
    # The first resume changes the number of environments, so that episodes begin anew, with seeds of their own; what
    # comes after it is exact again.
    first = dataclasses.replace(broken_off(tmp_path / "a"), num_envs=16)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    subject = Trainer(first)
    assert subject.info["taken_up"]["why_restarted"] == "num_envs changed"
    del subject
    expected = training.train(first)
    second = dataclasses.replace(first, run_dir=str(tmp_path / "b"))
    assert run_until(second, at("_advance", 7))
    again = training.train(second)
    assert again.trainer.info["taken_up"]["why_restarted"] == ""
    assert again.trainer.learner.flat.equal(expected.trainer.learner.flat)


def test_another_seed_starts_new_episodes(tmp_path: Path) -> None:
    subject = Trainer(dataclasses.replace(broken_off(tmp_path / "run"), seed=2))
    assert subject.info["taken_up"]["why_restarted"] == "seed changed"
    subject.run()


def test_a_replay_that_differs_is_found_and_said_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = broken_off(tmp_path / "run", actor="torch")
    step = EnvPoolVectorEnv._replay_step
    subject = Trainer(cfg)
    monkeypatch.setattr(
        EnvPoolVectorEnv, "_replay_step", lambda self, ids, actions, obs: step(self, ids, actions * 0.99, obs)
    )
    subject.run()
    assert "does not go on bit-exactly: a replay did not give the observations" in caplog.text
    info = json.loads((tmp_path / "run" / "run_info.json").read_text())
    assert "did not give the observations" in info["taken_up"]["why_restarted"]


def test_another_machine_or_stack_is_said_aloud(tmp_path: Path) -> None:
    cfg = broken_off(tmp_path / "run", actor="torch", learner="torch")
    path = checkpoint.find(tmp_path / "run" / "checkpoints")[0]
    saved = checkpoint.load(path)
    state = {k: v for k, v in saved.state.items() if k != "format_version"}
    state["numerics"] = {**state["numerics"], "torch": "1.0", "cpu": "another"}
    checkpoint.save(
        path.parent, state["env_steps"], model=saved.model, train=saved.train, state=state, keep=3, best=None
    )
    differs = Trainer(cfg).info["taken_up"]["differs"]
    assert any(text.startswith("torch was '1.0', is ") for text in differs)
    assert any(text.startswith("cpu was 'another', is ") for text in differs)
    assert len(differs) == 2


def test_checkpoint_that_belongs_to_other_networks_is_refused(tmp_path: Path) -> None:
    cfg = broken_off(tmp_path / "run")
    path = checkpoint.find(tmp_path / "run" / "checkpoints")[0]
    saved = checkpoint.load(path)
    state = {k: v for k, v in saved.state.items() if k != "format_version"}
    for part, name, tensor in (
        ("model", "actor.0.weight", torch.zeros(3, 3)),
        ("train", "learner.exp_avg", torch.zeros(7)),
        ("train", "replay.resets", torch.ones(9, dtype=torch.int64)),
        ("train", "replay.obs", torch.zeros(8, 3)),
        ("train", "episodes.returns", torch.zeros(9, dtype=torch.float64)),
        ("train", "reward_scaler.discounted", torch.zeros(9, dtype=torch.float64)),
    ):
        parts = {"model": dict(saved.model), "train": dict(saved.train)}
        assert name in parts[part], name
        parts[part][name] = tensor
        checkpoint.save(path.parent, state["env_steps"], **parts, state=state, keep=3)
        if name == "replay.obs":  # a replay never gives them: found when the environments are made
            continue
        with pytest.raises(CheckpointError, match="does not fit this"):
            Trainer(cfg)


def test_a_run_that_is_made_longer_has_each_evaluation_once(tmp_path: Path, stack: dict[str, Any]) -> None:
    for seed in range(1, 5):
        cfg = config(tmp_path / str(seed), **{**OPTIONS, "seed": seed}, **stack)
        first = [row["env_steps"] for row in training.train(cfg).evaluations]
        training.train(dataclasses.replace(cfg, resume="auto", total_timesteps=3600))
        steps = [row["env_steps"] for row in training.jsonl(tmp_path / str(seed) / "evaluations.jsonl")]
        assert steps == sorted(set(steps))
        assert first[-1] in steps  # though the run had ended with it


@pytest.mark.parametrize(
    "change",
    [{"num_steps": 32}, {"learning_rate": 1e-4}, {"gamma": 0.5}, {"update_epochs": 3}, {"clip_obs": 5.0},
     {"anneal_lr": False}, {"total_timesteps": 4000}],
)  # fmt: skip
def test_an_option_that_changed_is_said_aloud(tmp_path: Path, change: dict[str, Any]) -> None:
    (differs,) = Trainer(dataclasses.replace(broken_off(tmp_path / "run"), **change)).info["taken_up"]["differs"]
    ((name, value),) = change.items()
    assert differs.startswith(f"{name} was ")
    assert differs.endswith(f", is {value!r}")


def test_options_without_effect_are_not_mentioned(tmp_path: Path) -> None:
    cfg = dataclasses.replace(broken_off(tmp_path / "run"), keep_checkpoints=5, env_threads=1, on_nan="rollback")
    assert Trainer(cfg).info["taken_up"]["differs"] == []


@pytest.mark.parametrize("line", ['{"env_steps": null}', '{"env_steps": "x"}', "[" * 200_000, "null", "\x00\xff", "{"])
def test_a_garbled_row_costs_that_row_alone(tmp_path: Path, line: str) -> None:
    cfg = broken_off(tmp_path / "run")
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        with open(tmp_path / "run" / name, "a") as file:
            file.write(line + "\n")
    training.train(cfg)
    rows = training.jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(training.jsonl(tmp_path / "run" / "evaluations.jsonl")) >= 4


HOSTILE_STATE = [
    ("env_steps", 2.5), ("env_steps", -1), ("env_steps", 10**400), ("iteration", "3"), ("iteration", True),
    ("worker_steps", -5), ("worker_steps", 2**63), ("wall_s", float("nan")), ("wall_s", -1e17), ("lr_scale", 0),
    ("lr_scale", -0.5), ("lr_scale", None), ("rollbacks", -(10**6)), ("best_step", 984.5), ("best_return", "high"),
    ("best_return", float("inf")), ("recent_episodes", [[1, float("inf")]]), ("recent_episodes", [[10**400, 3]]),
    ("recent_episodes", [[float("nan"), 3]]), ("recent_episodes", [[1, 10**400]]), ("recent_episodes", [1]),
    ("recent_episodes", None), ("config", None), ("config", {"hidden_sizes": [10**30]}), ("config", []),
]  # fmt: skip

HOSTILE_TENSORS = [
    ("learner.counters", torch.tensor([2**63 - 1, 0])), ("learner.counters", torch.tensor([-5, -5])),
    ("learner.counters", torch.tensor([1.0, float("inf")])), ("learner.counters", torch.tensor([1])),
    ("learner.exp_avg", torch.zeros(1)), ("learner.exp_avg_sq", -torch.ones(10119)),
    ("reward_scaler.count", torch.tensor([-1.0], dtype=torch.float64)),
    ("reward_scaler.mean", torch.tensor([float("nan")], dtype=torch.float64)),
    ("reward_scaler.m2", torch.tensor([1], dtype=torch.int8)),
    ("reward_scaler.discounted", torch.zeros(8, dtype=torch.int8)),
    ("episodes.returns", torch.full((8,), float("inf"), dtype=torch.float64)),
    ("episodes.lengths", torch.full((8,), -1)),
    ("replay.resets", torch.full((8,), 10**15)), ("replay.lengths", torch.full((8,), 2**62)),
    ("replay.actions", torch.full((1, 3), float("nan"))),
]  # fmt: skip


def forge(path: Path, train: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint of any contents under a seal that is right."""
    saved = checkpoint.load(path)
    name = path.name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "to_json", lambda value: json.dumps(value).encode())  # NaN and all
        state = {k: v for k, v in {**saved.state, **state}.items() if k != "format_version"}
        checkpoint.save(
            path.parent / "forged", 0, model=saved.model, train={**saved.train, **train}, state=state, keep=1
        )
    shutil.rmtree(path)
    (path.parent / "forged" / "step_000000000000").rename(path.parent / name)


def forged(tmp_path: Path, **what: Any) -> Any:
    cfg = broken_off(tmp_path / "run", keep_checkpoints=1, eval_every=0)
    (path,) = checkpoint.find(tmp_path / "run" / "checkpoints")
    forge(path, what.get("train", {}), what.get("state", {}))
    return cfg


@pytest.mark.parametrize(("name", "value"), HOSTILE_STATE, ids=lambda value: f"{value!r:.20}")
def test_state_of_a_forger_is_refused_in_a_sentence(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises((CheckpointError, ConfigError)) as error:
        Trainer(forged(tmp_path, state={name: value}))
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(("name", "value"), HOSTILE_TENSORS, ids=range(len(HOSTILE_TENSORS)))
def test_tensors_of_a_forger_are_refused_in_a_sentence(tmp_path: Path, name: str, value: torch.Tensor) -> None:
    with pytest.raises(CheckpointError, match="does not fit this") as error:
        Trainer(forged(tmp_path, train={name: value}))
    assert len(str(error.value)) < 600


def test_a_description_of_a_forger_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    numerics = {"torch": "1\n\x1b[2Jresumed: bit-exactly", "cpu": "x" * 10_000}
    for value in ("x", None, [], numerics):
        cfg = forged(tmp_path / f"{value!s:.3}", state={"numerics": value})
        differs = "".join(Trainer(cfg).info["taken_up"]["differs"])
        assert differs.isprintable()
        assert len(differs) < 600


# The best checkpoint


def test_best_checkpoint_stays_and_can_be_loaded(
    whole: tuple[Run, dict[str, Any]], stack: dict[str, Any], tmp_path: Path
) -> None:
    run = training.train(config(tmp_path / "run", **OPTIONS, **stack))
    means = {e["env_steps"]: float(np.mean(e["returns"])) for e in run.evaluations}
    best = max(means, key=lambda step: (means[step], -step))
    state = run.result.state
    assert (state.best_step, state.best_return) == (best, means[best])
    steps = {int(p.name[5:]) for p in checkpoint.find(tmp_path / "run" / "checkpoints")}
    assert best in steps
    assert len(steps - {best}) <= OPTIONS["keep_checkpoints"]
    assert checkpoint.locate(tmp_path / "run", best=True).state["env_steps"] == best


def test_best_before_any_evaluation_is_an_error(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", eval_every=0)
    with pytest.raises(CheckpointError, match="no evaluation has chosen a best checkpoint"):
        checkpoint.locate(tmp_path / "run", best=True)


# Checkpoints of former versions (how they were made: tests/data/README.md)


@pytest.mark.parametrize("version", [1])
def test_old_format_is_read_and_goes_on_with_new_episodes(tmp_path: Path, version: int) -> None:
    run = tmp_path / "run"
    shutil.copytree(DATA / f"run_format_{version}", run)
    saved = checkpoint.locate(run)
    assert saved.state["format_version"] == version
    policy = load_policy(run)
    expected = json.loads((DATA / f"run_format_{version}" / "expected.json").read_text())
    np.testing.assert_allclose(policy(np.array(expected["obs"])), expected["action"], rtol=1e-5)
    options = json.loads((run / "config.json").read_text())
    options |= {"run_dir": str(run), "resume": "auto", "total_timesteps": 2000}
    subject = Trainer(Config(**from_dict(options, source="config.json")))
    assert subject.info["taken_up"]["why_restarted"] == "the checkpoint has no log of them"
    assert subject.state.env_steps == saved.state["env_steps"]
    assert subject.run().state.env_steps >= 2000
    assert checkpoint.locate(run).state["format_version"] == checkpoint.FORMAT_VERSION


# Two trainers


def test_a_second_trainer_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    refused: list[str] = []

    def second(row: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"is being written by another trainer \(process \d+\)") as error:
            Trainer(config(tmp_path / "run", resume="auto"))
        refused.append(str(error.value))

    cfg = config(tmp_path / "run", total_timesteps=800, checkpoint_every=1)
    training.train(cfg, Recorder(second))
    assert refused
    Trainer(dataclasses.replace(cfg, resume="auto"))  # now it may


def test_two_that_start_in_one_new_directory(tmp_path: Path) -> None:
    first, second = (Trainer(config(tmp_path / "run", total_timesteps=800)) for _ in range(2))
    errors = []

    def meet(row: dict[str, Any]) -> None:
        if not errors:
            with pytest.raises(ConfigError, match="another trainer") as error:
                second.run()
            errors.append(error)

    first.sinks._sinks.append(Recorder(meet))
    first.run()
    assert errors
