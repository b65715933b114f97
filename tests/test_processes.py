"""A whole run by several processes: threads here, which say what real ones say (tests/test_torchrun.py)."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training
from peers import ThreadPeers, all_of, in_threads
from training import Recorder, config, one_thread, untimed  # noqa: F401

from ppo_fast import checkpoint, examiner
from ppo_fast import trainer as trainer_module
from ppo_fast.config import Config
from ppo_fast.errors import CheckpointError, ConfigError, NonFiniteError, PeerError, PPOFastError
from ppo_fast.evaluation import EpisodeStats
from ppo_fast.rollout.finite import check_finite
from ppo_fast.run_dir import RunDir
from ppo_fast.trainer import RunResult, Trainer

OPTIONS: dict[str, Any] = {
    "num_envs": 4, "num_steps": 16, "minibatch_size": 32, "total_timesteps": 1500, "eval_every": 600,
    "eval_episodes": 2, "checkpoint_every": 400, "keep_checkpoints": 2,
}  # fmt: skip
Prepare = Callable[[Trainer], None]


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunDir, "draw", lambda self: None)


@dataclasses.dataclass
class Part:
    """What one process of a run saw."""

    trainer: Trainer
    result: RunResult
    rows: list[dict[str, Any]]
    digests: list[bytes]  # after each iteration


def shared_state(trainer: Trainer) -> bytes:
    """Return parameters, optimizer and statistics, which are the same in every process."""
    arrays = [trainer.learner.flat, *trainer.learner.state().values()]
    moments = [*trainer.normalizer.moments.state().values(), *trainer.scaler.moments.state().values()]
    return b"".join([*(tensor.numpy().tobytes() for tensor in arrays), *(array.tobytes() for array in moments)])


def work(cfg: Config, prepare: Prepare = lambda trainer: None) -> Callable[[ThreadPeers], Part]:
    """Return what a process does: train as ``cfg`` says, after ``prepare`` had its trainer."""

    def run(peers: ThreadPeers) -> Part:
        digests: list[bytes] = []
        recorder = Recorder(lambda row: digests.append(shared_state(trainer)))
        trainer = Trainer(cfg, [recorder], peers=peers)
        prepare(trainer)
        return Part(trainer, trainer.run(), [untimed(row) for row in recorder.rows], digests)

    return run


def files_of(path: Path) -> dict[str, Any]:
    """Return what a run left in its directory, without what depends on the clock."""
    rows = [untimed(row) for row in training.jsonl(path / "metrics.jsonl")]
    evaluations = [untimed(row) for row in training.jsonl(path / "evaluations.jsonl")]
    saved = checkpoint.load_newest(path / "checkpoints")
    state = {k: v for k, v in saved.state.items() if k not in ("wall_s", "config", "numerics", "versions")}
    tensors = {name: t.numpy().tobytes() for name, t in {**saved.model, **saved.train}.items()}
    return {"rows": rows, "evaluations": evaluations, "state": state, "tensors": tensors}


def test_processes_are_equal_after_every_iteration_and_the_first_writes(tmp_path: Path, stack: dict[str, Any]) -> None:
    cfg = config(tmp_path / "run", **{**OPTIONS, **stack})
    first, second = all_of(2, work(cfg))
    assert first.digests == second.digests
    assert len(first.digests) == first.result.state.iteration > 5
    assert first.rows == second.rows == [untimed(row) for row in training.jsonl(tmp_path / "run" / "metrics.jsonl")]
    state = first.result.state
    assert state.env_steps >= 1500
    both = [part.trainer.parts.episodes.state_dict()["lengths"] for part in (first, second)]
    assert both[0].tolist() != both[1].tolist()  # other environments
    assert first.trainer.normalizer.moments.count[0] == state.env_steps  # every transition once
    assert first.result.final is not None
    assert second.result.final is not None
    assert first.result.final.returns.tolist() == second.result.final.returns.tolist()
    saved = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    assert saved.state["world_size"] == 2
    own = {name.removeprefix("rank1/") for name in saved.train if name.startswith("rank1/")}
    assert own == {
        "reward_scaler.discounted", "episodes.returns", "episodes.lengths",
        "replay.resets", "replay.lengths", "replay.actions", "replay.obs",
    }  # fmt: skip
    info = json.loads((tmp_path / "run" / "run_info.json").read_text())
    assert info["processes"] == {"count": 2, "backend": "threads"}


def test_an_iteration_says_no_more_than_the_model_counts(tmp_path: Path) -> None:
    """Gradients, two exchanges per epoch, and nine more, one of which has its size sent first (docs/scaling.md)."""
    calls: dict[int, list[int]] = {0: [], 1: []}

    def work_of(peers: ThreadPeers) -> None:
        cfg = config(tmp_path / "run", **{**OPTIONS, "eval_every": 0, "checkpoint_every": 0, "update_epochs": 3})
        Trainer(cfg, [Recorder(lambda row: calls[peers.rank].append(peers.calls))], peers=peers).run()

    all_of(2, work_of)
    per_iteration = set(np.diff(calls[0]).tolist())
    assert per_iteration == {3 * 2 + 2 * 3 + 8}


@pytest.mark.slow
def test_four_processes_are_equal_after_every_iteration(tmp_path: Path, stack: dict[str, Any]) -> None:
    parts = all_of(4, work(config(tmp_path / "run", **{**OPTIONS, **stack})))
    assert all(part.digests == parts[0].digests for part in parts)


def test_two_processes_step_the_environments_of_one(tmp_path: Path, stack: dict[str, Any]) -> None:
    """Seeds and noise go by the global index of an environment."""

    def warm_up(name: str, num_envs: int) -> Callable[[ThreadPeers], Any]:
        def run(peers: ThreadPeers) -> Any:
            cfg = config(tmp_path / name, **{**OPTIONS, **stack, "num_envs": num_envs, "norm_obs": False})
            trainer = Trainer(cfg, peers=peers)
            trainer._make_worker()
            rollout = trainer.worker.collect(trainer.learner.flat)
            copies = {field: getattr(rollout, field).copy() for field in ("obs", "actions", "rewards", "valid")}
            trainer.worker.env.close()
            trainer.run_dir.release()
            return copies

        return run

    (whole,) = all_of(1, warm_up("whole", 8))
    first, second = all_of(2, warm_up("parts", 4))
    for name in whole:
        if stack["actor"] == "native":
            assert first[name].tobytes() == whole[name][:, :4].tobytes(), name
            assert second[name].tobytes() == whole[name][:, 4:].tobytes(), name
        else:  # whose last bit may depend on how many rows are computed at once; later ones on that
            np.testing.assert_allclose(first[name][0], whole[name][0, :4], rtol=1e-5)
            np.testing.assert_allclose(second[name][0], whole[name][0, 4:], rtol=1e-5)


class Killed(BaseException):
    """Stands for the end of every process."""


def die_at(iteration: int) -> Prepare:
    def arm(trainer: Trainer) -> None:
        advance = trainer._advance

        def call(*args: Any) -> None:
            if trainer.state.iteration == iteration:
                raise Killed
            advance(*args)

        trainer._advance = call  # type: ignore[method-assign]

    return arm


def test_a_run_that_was_killed_goes_on_to_the_bit(tmp_path: Path, stack: dict[str, Any]) -> None:
    options = {**OPTIONS, **stack}
    all_of(2, work(config(tmp_path / "whole", **options)))
    cfg = config(tmp_path / "run", **options)
    assert all(isinstance(each, BaseException) for each in in_threads(2, work(cfg, die_at(6))))
    first, second = all_of(2, work(dataclasses.replace(cfg, resume="auto")))
    for part in (first, second):
        assert part.trainer.info["taken_up"]["differs"] == []
        assert part.trainer.info["taken_up"]["why_restarted"] == ""
        assert part.trainer.info["resumed_at"] > 0
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_with_new_episodes(tmp_path: Path, before: int, after: int) -> None:
    cfg = config(tmp_path / "run", **{**OPTIONS, "total_timesteps": 800})
    halt: Prepare = lambda trainer: trainer.stop("a test") if trainer.peers.rank == 0 else None  # noqa: E731
    all_of(before, work(cfg, lambda trainer: trainer.sinks._sinks.append(Recorder(lambda row: halt(trainer)))))
    (first, *_) = all_of(after, work(dataclasses.replace(cfg, resume="auto")))
    taken_up = first.trainer.info["taken_up"]
    assert taken_up["why_restarted"] == "the number of processes changed"
    assert f"processes was {before}, is {after}" in taken_up["differs"]
    assert first.trainer.state.env_purpose > 1
    assert first.trainer.normalizer.moments.count[0] == first.result.state.env_steps  # not counted anew by each


# --- what befalls one befalls all ------------------------------------------------------------------------------------
def poison(trainer: Trainer, *, rank: int, iteration: int, times: list[int]) -> None:
    """Have one process meet a NaN reward in environment 2, as the worker finds it."""
    make = trainer._make_worker

    def make_worker() -> None:
        make()
        collect = trainer.worker.collect

        def collected(flat: Any) -> Any:
            rollout = collect(flat)
            if trainer.peers.rank == rank and trainer.state.iteration == iteration and times[0]:
                times[0] -= 1
                trainer.worker.env.close()
                rollout.rewards[3, 2] = np.nan
                rollout.valid[3, 2] = True
                check_finite(rollout, trainer.worker.steps_done)
            return rollout

        trainer.worker.collect = collected  # type: ignore[method-assign]

    trainer._make_worker = make_worker  # type: ignore[method-assign]


def test_nan_in_one_process_stops_all_at_the_same_iteration(tmp_path: Path) -> None:
    cfg = config(tmp_path / "run", **OPTIONS)
    reached: dict[int, int] = {}

    def prepare(trainer: Trainer) -> None:
        poison(trainer, rank=1, iteration=4, times=[1])
        trainer.sinks._sinks.append(Recorder(lambda row: reached.update({trainer.peers.rank: row["iteration"]})))

    first, second = in_threads(2, work(cfg, prepare))
    assert isinstance(first, NonFiniteError)
    assert isinstance(second, NonFiniteError)
    assert reached == {0: 4, 1: 4}
    assert str(second) == f"rewards has 1 non-finite rows, the first at (step {16 * 5 + 3}, env 6)"  # the global index
    assert str(first) == f"process 1: {second}"
    written = json.loads((tmp_path / "run" / "nonfinite-1.json").read_text())
    assert written["env_ids"] == [6]
    assert json.loads((tmp_path / "run" / "nonfinite.json").read_text())["error"] == str(first)


def test_nan_in_one_process_rolls_all_back(tmp_path: Path) -> None:
    cfg = config(tmp_path / "run", **{**OPTIONS, "on_nan": "rollback"})
    first, second = all_of(2, work(cfg, lambda trainer: poison(trainer, rank=1, iteration=4, times=[1])))
    assert first.result.state.rollbacks == second.result.state.rollbacks == 1
    assert first.digests == second.digests
    assert first.trainer.learner.learning_rate == second.trainer.learner.learning_rate
    steps = [row["env_steps"] for row in training.jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert steps == sorted(set(steps))


def test_one_that_is_told_to_stop_stops_all_and_nothing_is_lost(tmp_path: Path) -> None:
    cfg = config(tmp_path / "run", **OPTIONS)

    def prepare(trainer: Trainer) -> None:
        def told(row: dict[str, Any]) -> None:
            if trainer.peers.rank == 1 and row["iteration"] == 3:
                trainer.stop("SIGTERM")

        trainer.sinks._sinks.append(Recorder(told))

    first, second = all_of(2, work(cfg, prepare))
    for part in (first, second):
        assert part.result.stopped == "SIGTERM"
        assert part.result.final is None
        assert part.result.state.iteration == 3
    saved = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    assert saved.state["env_steps"] == first.result.state.env_steps
    all_of(2, work(dataclasses.replace(cfg, resume="auto")))
    all_of(2, work(config(tmp_path / "whole", **OPTIONS)))
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def test_an_evaluation_that_is_broken_off_is_so_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated = examiner.evaluate
    trainers: list[Trainer] = []

    def stopped_within(*args: Any, **options: Any) -> EpisodeStats:
        next(trainer for trainer in trainers if trainer.peers.rank == 0).stop("SIGINT")
        return evaluated(*args, **options)

    monkeypatch.setattr(examiner, "evaluate", stopped_within)
    for part in all_of(2, work(config(tmp_path / "run", **OPTIONS), trainers.append)):
        assert (part.result.stopped, part.result.final) == ("SIGINT", None)
        assert part.result.state.evaluated_at == 0


def test_a_process_that_comes_to_other_numbers_is_named(tmp_path: Path) -> None:
    def prepare(trainer: Trainer) -> None:
        advance = trainer._advance

        def call(*args: Any) -> None:
            if trainer.peers.rank == 1 and trainer.state.iteration == 2:
                trainer.learner.flat[5] *= 1 + 2**-20
            advance(*args)

        trainer._advance = call  # type: ignore[method-assign]

    for error in in_threads(2, work(config(tmp_path / "run", **OPTIONS), prepare)):
        assert isinstance(error, PeerError)
        assert str(error) == "parameters and statistics after iteration 3 of process 1 are not those of process 0"


# --- what cannot be done is said by all ------------------------------------------------------------------------------
def complaints(size: int, cfg_of: Callable[[int], Config]) -> list[PPOFastError]:
    errors = in_threads(size, lambda peers: Trainer(cfg_of(peers.rank), peers=peers))
    assert all(isinstance(error, PPOFastError) for error in errors), errors
    return errors  # type: ignore[return-value]


def test_options_must_be_equal(tmp_path: Path) -> None:
    for error in complaints(3, lambda rank: config(tmp_path / "run", **OPTIONS, gamma=0.98 if rank == 2 else 0.99)):
        assert isinstance(error, ConfigError)
        assert str(error).startswith("gamma is 0.99 in process 0 and 0.98 in process 2: start all processes with the")
    assert not (tmp_path / "run").exists()


def test_actor_and_learner_must_be_of_one_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = trainer_module.describe

    def other(cfg: Config, device: Any, parts: Any, *rest: Any) -> dict[str, Any]:
        info = described(cfg, device, parts, *rest)
        return info | ({"actor": {**info["actor"], "name": "another"}} if parts.peers.rank else {})

    monkeypatch.setattr(trainer_module, "describe", other)
    for error in complaints(2, lambda rank: config(tmp_path / "run", **OPTIONS, actor="torch")):
        assert str(error).startswith("actor is 'torch' in process 0 and 'another' in process 1")


def test_the_first_rollout_of_all_must_be_shorter_than_the_run(tmp_path: Path) -> None:
    for error in complaints(2, lambda rank: config(tmp_path / "run", **{**OPTIONS, "total_timesteps": 128})):
        assert "total_timesteps must be above 2 processes * num_envs * num_steps = 128" in str(error)


def test_a_directory_that_is_taken_is_refused_by_all_and_freed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    first, second = complaints(2, lambda rank: config(tmp_path / "run", **OPTIONS))
    assert "already holds a run" in str(first)
    assert str(second) == f"process 0: {first}"


def test_a_checkpoint_that_one_process_cannot_see_is_refused_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(tmp_path / "run", **{**OPTIONS, "total_timesteps": 400, "eval_every": 0})
    all_of(2, work(cfg))
    load, first_thread = checkpoint.load, list[threading.Thread]()

    def seen_from_the_first_alone(path: Path) -> checkpoint.Checkpoint:
        if threading.current_thread() is not first_thread[0]:
            raise CheckpointError(f"{path} cannot be read: No such file or directory")
        return load(path)

    def take_up(peers: ThreadPeers) -> Trainer:
        if peers.rank == 0:
            first_thread.append(threading.current_thread())
        peers.gather_bytes(b"")
        return Trainer(dataclasses.replace(cfg, resume="auto"), peers=peers)

    monkeypatch.setattr(checkpoint, "load", seen_from_the_first_alone)
    first, second = in_threads(2, take_up)
    assert isinstance(first, CheckpointError)
    assert isinstance(second, CheckpointError)
    assert str(first) == f"process 1: {second}"
    assert "No such file or directory; every process must see the run directory, on a shared file" in str(second)
    monkeypatch.undo()
    for part in all_of(2, take_up):
        part.run_dir.release()  # the lock is free: a further trainer got it
