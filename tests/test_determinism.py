"""The same seed gives the same run, to the bit, whatever does not belong to the algorithm; another seed another run.

Every comparison is of ``Run.fingerprint()``: parameters, optimizer, statistics, and every metric but the timing.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from training import Run, config, one_thread  # noqa: F401

from ppo_fast import envs
from ppo_fast.envs.lifecycle import CheckedEnv
from ppo_fast.trainer import Trainer


def run(path: Path, **options: Any) -> Run:
    return training.train(config(path, **options))


@pytest.fixture(scope="module")
def baseline(stack: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Hopper on EnvPool, seed 1, a few iterations; made under default generators."""
    return run(tmp_path_factory.mktemp("baseline") / "run", **stack)


def test_same_seed_gives_the_same_run(baseline: Run, stack: dict[str, Any], tmp_path: Path) -> None:
    again = run(tmp_path / "run", **stack)
    assert len(again.rows) >= 4
    assert again.fingerprint() == baseline.fingerprint()
    assert again.result.final.returns.tolist() == baseline.result.final.returns.tolist()
    keys = {"env_steps", "returns", "lengths"}
    assert [{k: e[k] for k in keys} for e in again.evaluations] == [
        {k: e[k] for k in keys} for e in baseline.evaluations
    ]


def test_another_seed_gives_another_run_from_the_first_row_on(
    baseline: Run, stack: dict[str, Any], tmp_path: Path
) -> None:
    other = run(tmp_path / "run", seed=2, **stack).fingerprint()
    for name, value in baseline.fingerprint().items():
        assert other[name] != value, name
    for name in ("policy_loss", "value_loss", "approx_kl", "episode_return"):
        assert other["rows"][0][name] != baseline.rows[0][name], name


def test_initial_parameters_are_those_of_the_seed(tmp_path: Path) -> None:
    first, same, other = (Trainer(config(tmp_path / "run", seed=seed)).learner.flat for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_global_generators_neither_steer_a_run_nor_are_moved_by_it(
    baseline: Run, stack: dict[str, Any], tmp_path: Path
) -> None:
    random.seed(77)
    np.random.seed(77)  # noqa: NPY002 - the legacy generator is what must not matter
    torch.manual_seed(77)
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()  # noqa: NPY002
    assert run(tmp_path / "run", **stack).fingerprint() == baseline.fingerprint()
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tobytes() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_evaluations_do_not_touch_training(baseline: Run, stack: dict[str, Any], tmp_path: Path) -> None:
    evaluated = run(tmp_path / "run", eval_every=300, eval_episodes=3, **stack)
    assert len(evaluated.evaluations) >= 3 > len(baseline.evaluations)
    assert evaluated.fingerprint() == baseline.fingerprint()


@pytest.fixture
def beginnings(monkeypatch: pytest.MonkeyPatch) -> list[set[bytes]]:
    """The first observations of the environments that are made from now on, one set for each reset of a pool."""
    seen: list[set[bytes]] = []
    reset = CheckedEnv.reset

    def first(self: CheckedEnv, obs: np.ndarray) -> None:
        reset(self, obs)
        seen.append({row.tobytes() for row in obs})

    monkeypatch.setattr(CheckedEnv, "reset", first)
    return seen


@pytest.mark.parametrize("env_backend", ["envpool", "gymnasium"])
def test_evaluation_and_a_resumed_run_begin_elsewhere_than_training(
    beginnings: list[set[bytes]],
    tmp_path: Path,
    stack: dict[str, Any],
    env_backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ppo_fast.parts.why_not_exact", lambda *_: "a test wants new episodes")
    options: dict[str, Any] = {"env_backend": env_backend, "eval_episodes": 8, **stack}
    run(tmp_path / "run", **options)
    run(tmp_path / "run", resume="auto", total_timesteps=2000, **options)
    fresh, evaluation, resumed, second_evaluation = beginnings
    assert [len(rows) for rows in beginnings] == [8] * 4  # as many environments, each with a beginning of its own
    assert fresh.isdisjoint(evaluation)
    assert resumed.isdisjoint(fresh | evaluation)
    assert second_evaluation == evaluation


def test_checkpoints_do_not_touch_training(baseline: Run, stack: dict[str, Any], tmp_path: Path) -> None:
    saved = run(tmp_path / "run", checkpoint_every=300, **stack)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) >= 2
    assert saved.fingerprint() == baseline.fingerprint()


@pytest.mark.parametrize("num_threads", [1, 2, 3])  # 3 for 8 environments: the native actor's step synchronously
def test_number_of_simulator_threads_does_not_matter(
    baseline: Run, stack: dict[str, Any], tmp_path: Path, num_threads: int
) -> None:
    assert envs.resolve_backend("Hopper-v5", "auto")[0] == "envpool"
    assert run(tmp_path / "run", env_threads=num_threads, **stack).fingerprint() == baseline.fingerprint()


@pytest.mark.usefixtures("native_core")
def test_number_of_learner_threads_does_not_matter(tmp_path: Path) -> None:
    options: dict[str, Any] = {"learner": "native", "update": "auto", "num_envs": 32, "minibatch_size": 512}
    one, four = (run(tmp_path / str(n), learner_threads=n, total_timesteps=4000, **options) for n in (1, 4))
    assert (one.trainer.learner.threads, four.trainer.learner.threads) == (1, 4)  # two networks, two lanes of rows
    assert one.fingerprint() == four.fingerprint()


def test_kernel_backend_does_not_matter(baseline: Run, stack: dict[str, Any], tmp_path: Path, backend: str) -> None:
    chosen = run(tmp_path / "run", kernels=backend, **stack)
    assert chosen.trainer.info["kernels"]["active"] == backend
    assert chosen.fingerprint() == baseline.fingerprint()


def test_gymnasium_vectorisation_does_not_matter(tmp_path: Path, stack: dict[str, Any]) -> None:
    options: dict[str, Any] = {"env_backend": "gymnasium", "num_envs": 2, "num_steps": 64, "total_timesteps": 500}
    options |= stack
    sync = run(tmp_path / "sync", vectorization="sync", **options)
    with_processes = run(tmp_path / "async", vectorization="async", **options)
    assert with_processes.fingerprint() == sync.fingerprint()


@pytest.mark.parametrize("norm_adv", ["none", "batch"])
def test_options_of_the_loss_do_matter(baseline: Run, stack: dict[str, Any], tmp_path: Path, norm_adv: str) -> None:
    assert run(tmp_path / "run", norm_adv=norm_adv, **stack).fingerprint() != baseline.fingerprint()
