"""``--overlap learner``: the next rollout is collected while the learner learns, one update behind and no more."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import training
from fakes import PlaybackStream
from torch import Tensor
from training import one_thread, untimed  # noqa: F401

from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.errors import BackendError, ConfigError, NonFiniteError
from ppo_fast.models import ActorCritic
from ppo_fast.normalizers import ObsNormalizer
from ppo_fast.rollout import NativeRolloutWorker, RolloutWorker, choose_actor
from ppo_fast.run_info import require_alike
from ppo_fast.schedule import Schedule
from ppo_fast.timing import PhaseTimer
from ppo_fast.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def config(path: Path, **options: Any) -> Config:
    """Return a run of about 10 iterations that overlaps."""
    return training.config(path, **{"overlap": "learner", "total_timesteps": 2800, **options})


class Watch:
    """Note the parameters that acted in each rollout, and those that each update began and ended with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.acted: list[bytes] = []
        self.updates: list[tuple[bytes, bytes]] = []
        self.threads: list[bool] = []  # of each update, whether it ran in another thread
        learn = Schedule._update
        in_turn = Schedule.learn

        def watched_update(schedule: Schedule, rollout: Rollout) -> dict[str, float]:
            self.threads.append(threading.current_thread() is not threading.main_thread())
            return learn(schedule, rollout)

        def watched(schedule: Schedule, rollout: Rollout, *, ahead: bool) -> dict[str, float]:
            before = schedule.learner.flat.numpy().tobytes()
            if not ahead:
                self.threads.append(False)
            metrics = in_turn(schedule, rollout, ahead=ahead)
            self.updates.append((before, schedule.learner.flat.numpy().tobytes()))
            return metrics

        monkeypatch.setattr(Schedule, "_update", watched_update)
        monkeypatch.setattr(Schedule, "learn", watched)
        for kind in (NativeRolloutWorker, RolloutWorker):
            collect = kind.collect

            def noted(worker: Any, flat: Tensor, collect: Any = collect) -> Rollout:
                self.acted.append(flat.numpy().tobytes())
                return collect(worker, flat)

            monkeypatch.setattr(kind, "collect", noted)


# The lag


def test_a_rollout_is_acted_by_the_parameters_before_the_update_beside_it(
    tmp_path: Path, stack: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    run = training.train(config(tmp_path / "run", **stack))
    iterations = len(run.rows)
    acted = watch.acted[1:]  # the first is the warm-up, which is not learned from
    begun, ended = zip(*watch.updates, strict=True)
    assert len(acted) == len(begun) == iterations
    assert begun[1:] == ended[:-1]
    assert len(set(begun)) == iterations  # every update moved the parameters
    assert acted[0] == begun[0]  # nothing was learned before
    assert acted[1:] == list(begun[:-1])  # θ_k acted in rollout k + 1, which improves θ_{k+1}: one update of lag
    assert watch.threads == [True] * (iterations - 1) + [False]  # beside the last update there is nothing to collect


def test_without_overlap_there_is_no_lag_and_no_thread(
    tmp_path: Path, stack: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    training.train(config(tmp_path / "run", overlap="none", **stack))
    assert watch.acted[1:] == [begun for begun, _ in watch.updates]
    assert not any(watch.threads)


def test_learning_and_collecting_go_on_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update, collect = Schedule._update, RolloutWorker.collect
    learning, collecting = threading.Event(), threading.Event()
    met = []

    def waits_for_the_worker(schedule: Schedule, rollout: Rollout) -> dict[str, float]:
        learning.set()
        met.append(collecting.wait(30))
        collecting.clear()
        return update(schedule, rollout)

    def waits_for_the_learner(worker: Any, flat: Tensor) -> Rollout:
        if threading.active_count() > threads:
            collecting.set()
            met.append(learning.wait(30))
            learning.clear()
        return collect(worker, flat)

    trainer = Trainer(config(tmp_path / "run", actor="torch"))
    threads = threading.active_count()
    monkeypatch.setattr(Schedule, "_update", waits_for_the_worker)
    monkeypatch.setattr(RolloutWorker, "collect", waits_for_the_learner)
    trainer.run()
    assert len(met) > 10
    assert all(met)


# Bits


def test_two_overlapped_runs_are_the_same_to_the_bit_and_not_those_in_turn(
    tmp_path: Path, stack: dict[str, Any]
) -> None:
    first, second = (training.train(config(tmp_path / name, **stack)).fingerprint() for name in "ab")
    assert first == second
    in_turn = training.train(config(tmp_path / "c", overlap="none", **stack)).fingerprint()
    assert in_turn["parameters"] != first["parameters"]
    assert in_turn["rows"][0] == first["rows"][0]  # the first rollout has no lag, and all begins alike


def test_a_checkpoint_finds_nothing_ahead_and_a_run_that_is_taken_up_there_ends_to_the_bit(
    tmp_path: Path, stack: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**stack, "checkpoint_every": 900, "eval_every": 1300, "keep_checkpoints": 9}
    between, at_saves, elsewhere = Trainer._between, list[bool](), list[bool]()

    def watched(trainer: Trainer) -> None:
        before, ahead = trainer.state.saved_at, trainer.schedule.is_ahead
        between(trainer)
        (elsewhere if trainer.state.saved_at == before else at_saves).append(ahead)

    monkeypatch.setattr(Trainer, "_between", watched)
    whole = training.train(config(tmp_path / "run", **options))
    assert len(at_saves) >= 2
    assert not any(at_saves)
    assert sum(elsewhere) > 3
    end, last_rows = whole.fingerprint(), [untimed(row) for row in whole.rows]
    for path in sorted((tmp_path / "run" / "checkpoints").glob("step_*"))[:2]:
        resumed = training.train(config(tmp_path / "run", resume=str(path), **options))
        assert not resumed.trainer.info["taken_up"]["differs"]
        rows = [untimed(row) for row in resumed.rows]
        assert rows == last_rows[-len(rows) :]
        assert {**resumed.fingerprint(), "rows": 0} == {**end, "rows": 0}


def test_where_the_overlap_is_drained_is_told_when_it_changes(tmp_path: Path) -> None:
    options = {"checkpoint_every": 900, "keep_checkpoints": 9}
    for overlap, told in (("learner", ["eval_every was 0, is 1300"]), ("none", [])):
        path = tmp_path / overlap
        training.train(config(path, overlap=overlap, **options))
        first = sorted((path / "checkpoints").glob("step_*"))[0]
        resumed = Trainer(config(path, overlap=overlap, resume=str(first), eval_every=1300, **options))
        assert resumed.info["taken_up"]["differs"] == told
        resumed.run_dir.release()


def test_a_stop_learns_from_what_was_collected_and_saves(tmp_path: Path) -> None:
    cfg = config(tmp_path / "run")
    recorder = training.Recorder()
    trainer = Trainer(cfg, [recorder])
    recorder.on_row = lambda row: trainer.stop("a test") if row["iteration"] == 3 else None
    result = trainer.run()
    assert result.stopped
    assert [row["iteration"] for row in recorder.rows] == [1, 2, 3, 4]
    assert result.state.env_steps == recorder.rows[-1]["env_steps"]
    assert trainer.saver.is_saved()
    again = training.train(config(tmp_path / "run", resume="auto"))
    assert again.rows[0]["iteration"] == 5
    told = "it ended with nothing collected ahead, as --overlap learner would have had"
    assert again.trainer.info["taken_up"]["differs"] == [told]
    assert again.result.state.env_steps >= 2800


# What goes wrong beside an update


def test_nan_in_the_rollout_ahead_does_not_take_the_update_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, calls = RolloutWorker.collect, []

    def breaks(worker: Any, flat: Tensor) -> Rollout:
        calls.append(flat)
        if len(calls) == 4:
            raise NonFiniteError("rewards has 1 non-finite rows", [(1, 2)])
        return collect(worker, flat)

    monkeypatch.setattr(RolloutWorker, "collect", breaks)
    recorder = training.Recorder()
    with pytest.raises(NonFiniteError, match="rewards has 1"):
        Trainer(config(tmp_path / "run", actor="torch"), [recorder]).run()
    assert [row["iteration"] for row in recorder.rows] == [1, 2]  # warm-up, two rollouts, and the one that broke
    assert (tmp_path / "run" / "nonfinite.json").exists()


def break_third_update(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    """Have the third update begin with NaN; return what is learned from, as it comes."""
    update, learned = Schedule._update, list[Rollout]()

    def breaks(schedule: Schedule, rollout: Rollout) -> dict[str, float]:
        learned.append(rollout)
        if len(learned) == 3:
            schedule.learner.flat[0] = torch.nan
        return update(schedule, rollout)

    monkeypatch.setattr(Schedule, "_update", breaks)
    return learned


def test_the_report_of_nan_is_of_the_rollout_that_was_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = break_third_update(monkeypatch)
    with pytest.raises(NonFiniteError):
        Trainer(config(tmp_path / "run", actor="torch")).run()
    told = json.loads((tmp_path / "run" / "nonfinite.json").read_text())["arrays"]
    for name in ("obs", "advantages", "returns"):
        array = getattr(learned[-1], name)
        assert (told[name]["min"], told[name]["max"]) == (float(array.min()), float(array.max())), name
    assert told["advantages"]["max"] > 0  # those of the rollout ahead are not known yet


def test_torch_s_actor_does_not_work_beside_a_learner_that_switches_the_process_to_tf32(tmp_path: Path) -> None:
    model, device = ActorCritic(3, 2, (4,)), torch.device("cpu")
    cfg = config(tmp_path, precision="tf32", actor="torch", device="auto")
    with pytest.raises(BackendError, match="--overlap learner: with --precision tf32 torch's actor"):
        choose_actor(cfg, model, device)
    for other in ({"overlap": "none"}, {"precision": "bf16"}):
        assert choose_actor(dataclasses.replace(cfg, **other), model, device) == ("torch", "")


def test_a_rollback_forgets_what_was_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_third_update(monkeypatch)
    run = training.train(config(tmp_path / "run", on_nan="rollback", checkpoint_every=700))
    assert run.result.state.rollbacks == 1
    assert run.result.state.env_steps >= 2800
    assert torch.isfinite(run.trainer.learner.flat).all()


def test_an_error_of_the_learner_is_raised_when_both_have_ended() -> None:
    model = ActorCritic(3, 2, (4,))
    worker = SimpleNamespace(num_steps=4, steps_done=4, buffers=Rollout.allocate(4, 2, 3, 2))
    ended = []
    worker.normalizer = ObsNormalizer(3, clip=10.0)
    worker.collect = lambda flat: ended.append("worker") or worker.buffers
    learner = SimpleNamespace(flat=model.init(1, 0.0))

    def update(rollout: Rollout) -> dict[str, float]:
        raise RuntimeError("out of luck")

    learner.update = update
    with pytest.raises(RuntimeError, match="out of luck"):
        Schedule(worker, learner, PhaseTimer()).learn(worker.buffers, ahead=True)  # type: ignore[arg-type]
    assert ended == ["worker"]


# Two buffers


@pytest.mark.usefixtures("native_core")
def test_swapped_buffers_hold_what_one_buffer_would() -> None:
    model = ActorCritic(5, 2, (8,))
    flat = training.random_parameters(model, 1)
    obs = np.random.default_rng(1).normal(size=(3 * 6 + 1, 4, 5))
    found: list[list[dict[str, bytes]]] = []
    for overlapped in (False, True):
        env = PlaybackStream(obs, [-1.0, -1.0], [1.0, 1.0], order=1)
        worker = NativeRolloutWorker(env, model, ObsNormalizer(5, clip=10.0), num_steps=6, seed=1, timer=PhaseTimer())
        learner: Any = SimpleNamespace(flat=flat, update=lambda rollout: {"passes": 1.0})
        schedule = Schedule(worker, learner, PhaseTimer())
        found.append([])
        for k in range(3):
            rollout = schedule.rollout()
            assert schedule.steps_done == 6 * (k + 1)
            schedule.learn(rollout, ahead=overlapped and k < 2)
            assert schedule.steps_done == 6 * (k + 1)
            found[-1].append({name: array.tobytes() for name, array in vars(rollout).items() if name != "first_env"})
    assert found[0] == found[1]


# What it is not for


def test_what_cannot_overlap_is_refused() -> None:
    with pytest.raises(ConfigError, match="overlap belongs to PPO"):
        Config(overlap="learner", algo="reinforce")
    peers: Any = SimpleNamespace(size=2, gather_bytes=lambda word: [word, word])
    with pytest.raises(ConfigError, match="overlap 'learner' is for one process, and there are 2"):
        require_alike(Config(overlap="learner"), peers)
