"""EnvPool's families beside the tasks of Gymnasium's MuJoCo: one task of each under the contract, and a training step.

Axes: T steps · N environments.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import envpool
import numpy as np
import pytest
import training
from commands import call
from training import Recorder, one_thread  # noqa: F401

from ppo_fast import envs, play, train
from ppo_fast.envs import exact
from ppo_fast.envs.base import ActionRescaler
from ppo_fast.envs.envpool_task import envpool_task
from ppo_fast.errors import EnvError
from ppo_fast.kernels import env_seeds
from ppo_fast.run_dir import RunDir
from ppo_fast.trainer import Trainer

N = 3
# task: (D, A, K, layout) of what its spec says
TASKS: dict[str, tuple[int, int, int, str]] = {
    "WalkerWalk-v1": (24, 6, 0, "height 1, orientations 14, velocity 9"),  # DeepMind Control
    "CheetahRun-v1": (17, 6, 0, "position 8, velocity 9"),
    "FetchReach-v4": (16, 4, 0, "achieved_goal 3, desired_goal 3, observation 10"),  # Gymnasium-Robotics
    "MetaWorld/DrawerClose-v3": (39, 4, 0, ""),
    "PandaPickCube-v1": (66, 8, 0, ""),  # MuJoCo Playground
    "CartPole-v1": (4, 1, 2, ""),
    "Pendulum-v1": (3, 1, 0, ""),
    "LunarLander-v3": (8, 1, 4, ""),
    "BipedalWalker-v3": (24, 4, 0, ""),
    "Highway-v0": (25, 1, 5, "5 x 5"),
}


FAMILIES = [name for name in TASKS if name not in ("CheetahRun-v1", "CartPole-v1", "Pendulum-v1", "BipedalWalker-v3")]


def some_actions(spec: envs.EnvSpec, steps: int) -> np.ndarray:
    return exact._random_actions(np.random.default_rng(1), spec, steps)


def outputs(env: Any) -> dict[str, np.ndarray]:
    flags = {name: np.zeros(N, np.bool_) for name in ("terminated", "truncated", "valid")}
    return {
        "obs": np.full((N, env.spec.obs_dim), np.nan, np.float32),
        "rewards": np.full(N, np.nan, np.float32),
        **flags,
    }


def in_order(tree: Any) -> np.ndarray:
    """Flatten EnvPool's own observations as the documentation says: by name, at every level, row by row."""
    if isinstance(tree, dict):
        return np.concatenate([in_order(tree[name]) for name in sorted(tree)], axis=1)
    return np.asarray(tree).reshape(N, -1)


@pytest.mark.parametrize("env_id", TASKS)
def test_answers_are_those_of_envpool_s_own_interface(env_id: str) -> None:
    spec = envs.spec(env_id, "envpool")
    assert (spec.obs_dim, spec.act_dim, spec.num_actions, spec.obs_layout) == TASKS[env_id]
    actions, steps = some_actions(spec, 45), 45
    theirs = envpool.make(
        env_id, env_type="gymnasium", num_envs=N, batch_size=N, num_threads=1, seed=env_seeds(7, 0, N).tolist()
    )
    dtype = envpool_task(env_id).action_dtype
    with closing(envs.make(env_id, N, seed=7, backend="envpool", num_threads=1)) as env:
        out = outputs(env)
        env.reset(out["obs"])
        np.testing.assert_array_equal(out["obs"], in_order(theirs.reset()[0]).astype(np.float32))
        was_done = np.zeros(N, np.bool_)
        for t in range(steps):
            env.step(actions[t], **out)
            chosen = actions[t][:, 0] if spec.num_actions else ActionRescaler(spec, N)(actions[t])
            obs, rewards, terminated, truncated, _ = theirs.step(chosen.astype(dtype))
            np.testing.assert_array_equal(out["obs"], in_order(obs).astype(np.float32))
            np.testing.assert_array_equal(out["rewards"], np.where(was_done, 0, rewards))
            np.testing.assert_array_equal(out["terminated"], terminated)
            np.testing.assert_array_equal(out["truncated"], truncated)
            np.testing.assert_array_equal(out["valid"], ~was_done)  # a reset row follows a done, and nothing else
            was_done = terminated | truncated
        assert np.isfinite(out["obs"]).all()


@pytest.mark.parametrize("env_id", ["WalkerWalk-v1", "CartPole-v1", "Highway-v0", "LunarLander-v3"])
def test_whatever_comes_back_first_is_what_it_was(env_id: str) -> None:
    """Step the same environments asynchronously, in batches of 2, and synchronously."""
    options: dict[str, Any] = {"seed": 3, "backend": "envpool", "num_threads": 2}
    together, apart = envs.make(env_id, N, **options), envs.make_stream(env_id, N, batch_size=2, **options)
    assert apart.mode == "asynchronous, 2 of 3"
    with closing(together), closing(apart):
        out, first = outputs(together), outputs(together)["obs"]
        together.reset(out["obs"])
        apart.reset(first)
        np.testing.assert_array_equal(first, out["obs"])
        for row in some_actions(together.spec, 60):
            together.step(row, **out)
            discrete = together.spec.num_actions
            apart.send(
                np.arange(N, dtype=np.int32), (row if discrete else ActionRescaler(together.spec, N)(row)).astype(float)
            )
            seen: list[int] = []
            while len(seen) < N:
                got = apart.recv()
                for name in out:
                    np.testing.assert_array_equal(getattr(got, name).astype(out[name].dtype), out[name][got.env_ids])
                seen += got.env_ids.tolist()
            assert sorted(seen) == list(range(N))


def test_a_time_limit_of_deepmind_control_truncates_and_is_bootstrapped() -> None:
    with closing(envs.make("CheetahRun-v1", N, seed=1, num_threads=1)) as env:
        assert env.spec.max_episode_steps == 1000
        out = outputs(env)
        env.reset(out["obs"])
        for _ in range(1000):
            assert not out["truncated"].any()
            env.step(np.zeros((N, 6), np.float32), **out)
        assert out["truncated"].all()
        assert out["valid"].all()
        assert not out["terminated"].any()
        env.step(np.zeros((N, 6), np.float32), **out)
        assert not out["valid"].any()
        assert not out["rewards"].any()  # EnvPool repeats the last reward here


@pytest.mark.parametrize(
    ("env_id", "said"),
    [
        ("Pong-v5", r"its observation space Box\(0, 255, \(4, 84, 84\), uint8\) is not supported; .* no images"),
        ("Taxi-v3", r"its observation space Discrete\(500\) is not supported"),
        ("TicTacToe-v1", "it has 2 players, and only environments with one are supported"),
        ("MiniGrid-Empty-5x5-v0", r"its observation space Dict\(.* is not supported"),
        ("BigfishEasy-v0", "EnvPool cannot make it: ImportError: .*Qt|its observation space"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_made(env_id: str, said: str) -> None:
    with pytest.raises(EnvError, match=f"{env_id}: {said}") as caught:
        envs.make(env_id, 2, seed=1, backend="envpool")
    assert "\n" not in str(caught.value)


# From the command line to a parameter that changed


def options_of(env_id: str) -> dict[str, Any]:
    return {"env": env_id, "env_backend": "envpool", "num_envs": 4, "total_timesteps": 300, "env_threads": 1}


@pytest.mark.parametrize("env_id", FAMILIES)
def test_each_family_trains_a_step(env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppo_fast.parts.why_not_exact", lambda *_: "a test")  # which has tests of its own
    run = training.train(training.config(tmp_path / "run", **options_of(env_id)))
    assert len(run.rows) >= 1
    assert all(np.isfinite(row["policy_loss"]) for row in run.rows)
    before = run.trainer.model.init(1, -0.5)
    assert not np.array_equal(before.numpy(), run.trainer.learner.flat.numpy())
    assert np.isfinite(run.result.final.returns).all()


# Going on


def test_what_a_short_experiment_cannot_vouch_for_is_tried_over_a_whole_episode() -> None:
    # Engines of the lander draw random numbers in every step: a replay, which leaves out ended episodes, misses them.
    assert exact.replays_exactly("LunarLander-v3")
    said = "a replay of LunarLander-v3 did not give the same observations"
    assert exact.why_not_exact(envs.spec("LunarLander-v3", "envpool"), 4) == said
    assert exact.why_not_exact(envs.spec("CheetahRun-v1"), 4) == ""


def test_a_run_that_was_taken_up_ends_as_one_that_was_not(tmp_path: Path) -> None:
    options = {**options_of("CartPole-v1"), "total_timesteps": 1200}
    whole = training.train(training.config(tmp_path / "whole", **options))
    cfg = training.config(tmp_path / "parts", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "draw", lambda self: None)
        trainer = Trainer(cfg, [Recorder(lambda row: trainer.stop("a test") if row["iteration"] == 3 else None)])
        trainer.run()
    rest = training.train(training.config(tmp_path / "parts", resume="auto", **options))
    assert rest.trainer.info["taken_up"]["why_restarted"] == ""
    assert rest.rows[0]["iteration"] == 4
    assert rest.fingerprint()["parameters"] == whole.fingerprint()["parameters"]


def test_what_only_envpool_has_is_not_filmed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {**options_of("CheetahRun-v1"), "checkpoint_every": 0}
    run = training.train(training.config(tmp_path / "run", **options))
    shown = call(play.main, capsys, str(run.result.run_dir), "--video", str(tmp_path / "a.mp4"))
    assert shown.code == 2
    assert "video of 'CheetahRun-v1' cannot be made: Gymnasium films, and only EnvPool has it" in shown.err
    assert "no video, since only EnvPool has this environment" in train.ending(run.result)
