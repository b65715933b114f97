"""``python -m ppo_fast.play``: evaluation of what was trained, and a film of it that never harms this process."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from commands import Outcome, call, files_below, with_a_best_one
from fakes import CountingEnv
from training import config, train, use_fake_envs

from ppo_fast import evaluation, play, video
from ppo_fast.checkpoint import locate
from ppo_fast.errors import CheckpointError, NonFiniteError, ShapeError
from ppo_fast.evaluation import EpisodeStats, load_policy

Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run ``python -m ppo_fast.play`` in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *args: call(play.main, capsys, *args)


def is_refused(outcome: Outcome, *said: str) -> None:
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("ppo_fast.play: error: ")
    for fragment in said:
        assert fragment in line


# --- evaluation ------------------------------------------------------------------------------------------------------
def test_mean_spread_and_interval_are_those_of_the_episodes() -> None:
    stats = EpisodeStats(np.array([1.0, 2.0, 3.0, 6.0]), np.array([1, 1, 1, 1]))
    # mean 12 / 4; deviations -2 -1 0 3, so variance (4 + 1 + 0 + 9) / 3; half-width 1.96 * std / sqrt(4).
    assert stats.mean == 3.0
    assert stats.std == pytest.approx((14 / 3) ** 0.5, rel=1e-15)
    assert stats.ci95 == pytest.approx(1.96 * (14 / 3) ** 0.5 / 2, rel=1e-15)
    one = EpisodeStats(np.array([5.0]), np.array([7]))
    assert (one.mean, one.std, one.ci95) == (5.0, 0.0, 0.0)


def test_it_prints_mean_and_interval_of_one_whole_episode_per_environment(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_envs(monkeypatch, CountingEnv)
    train(config(tmp_path / "r", num_envs=4, num_steps=16, minibatch_size=32, total_timesteps=100))
    outcome = command("r", "--episodes", "4")
    # Environment e pays 1000 e + t for t = 1 ... length, with lengths 5, 3, 1, 7: only the first episode counts, and
    # neither the reset rows (-777 each) nor the episodes that follow in the shorter ones.
    returns = [0 + 15, 3 * 1000 + 6, 1 * 2000 + 1, 7 * 3000 + 28]
    mean, std = statistics.mean(returns), statistics.stdev(returns)
    half = 1.96 * std / 4**0.5
    assert outcome.code == 0
    assert f"return {mean:.1f} +- {half:.1f} (95 % CI of the mean over 4 episodes)" in outcome.out
    assert f"std {std:.1f}, min 15.0, max 21028.0; length 4" in outcome.out  # (5 + 3 + 1 + 7) / 4
    assert outcome.out.startswith("CountingEnv-v0, r/checkpoints/step_")


def test_a_nan_return_is_a_report_and_no_number(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_envs(monkeypatch, CountingEnv)
    train(config(tmp_path / "r", num_envs=4, num_steps=16, minibatch_size=32, total_timesteps=100))
    use_fake_envs(monkeypatch, lambda n: CountingEnv(n, nan_reward_at=(2, 3)))
    outcome = command("r", "--episodes", "4")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "ppo_fast.play: stopped: evaluation: the returns of episodes [3] are not finite\n"
    with pytest.raises(NonFiniteError):
        evaluation.evaluate(load_policy(tmp_path / "r"), "any", episodes=4)


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_the_same_seed_gives_the_same_episodes_and_another_does_not(
    command: Command, trained: Path, backend: str
) -> None:
    first, again, other = (
        command(str(trained), "--episodes", "5", "--env-backend", backend, "--seed", seed).out
        for seed in ("3", "3", "4")
    )
    assert first == again
    assert first != other


def test_it_evaluates_what_the_run_evaluated_at_its_end(command: Command, trained: Path) -> None:
    last = json.loads((trained / "evaluations.jsonl").read_text().splitlines()[-1])
    out = command(str(trained), "--episodes", "2", "--seed", "1").out  # the run's own seed and number
    returns = last["returns"]
    shown = f"return {statistics.mean(returns):.1f} +- {1.96 * statistics.stdev(returns) / 2**0.5:.1f} "
    assert shown in out


def test_a_policy_is_normalise_network_rescale(trained: Path) -> None:
    saved = locate(trained)
    policy = load_policy(trained)
    tensors = {name: tensor.double().numpy() for name, tensor in saved.model.items()}
    count, mean, m2 = (tensors[f"obs_normalizer.{part}"] for part in ("count", "mean", "m2"))
    obs = np.random.default_rng(0).normal(size=(50, 4))
    x = np.clip((obs - mean) / np.sqrt(m2 / count + 1e-8), -10, 10)
    for layer in (0, 1):
        x = np.tanh(x @ tensors[f"actor.{layer}.weight"].T + tensors[f"actor.{layer}.bias"])
    x = x @ tensors["actor.2.weight"].T + tensors["actor.2.bias"]
    expected = np.clip(x, -1, 1) * 3.0  # InvertedPendulum's force is in [-3, 3]
    np.testing.assert_allclose(policy(obs), expected, rtol=0, atol=1e-5)  # 3 * float32 rounding of four layers
    np.testing.assert_array_equal(policy(obs[0]), policy(obs[:1])[0])
    assert policy(obs).dtype == np.float32
    with pytest.raises(ShapeError, match=r"obs must have shape \(N, 4\), got \(50, 3\)"):
        policy(obs[:, :3])


def test_a_checkpoint_directory_is_played_as_well_as_a_run(command: Command, trained: Path) -> None:
    oldest = min((trained / "checkpoints").iterdir())
    outcome = command(str(oldest), "--episodes", "2")
    assert outcome.code == 0
    assert outcome.out.startswith(f"InvertedPendulum-v5, {oldest}\n")


def test_the_best_checkpoint_is_played_where_it_is_asked_for(command: Command, trained: Path, tmp_path: Path) -> None:
    oldest = with_a_best_one(trained, tmp_path / "run")
    outcome = command("run", "--best", "--episodes", "2")
    assert outcome.code == 0
    assert outcome.out.startswith(f"InvertedPendulum-v5, run/checkpoints/{oldest.name}\n")
    is_refused(command(str(oldest), "--best"), "the best is one of a run's checkpoints, and", "is a single one")


def test_a_damaged_newest_is_named_and_passed_over_but_not_renamed(
    command: Command, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(trained, tmp_path / "r")
    *_, previous, newest = sorted((tmp_path / "r" / "checkpoints").iterdir())
    (newest / "model.safetensors").write_bytes(b"")
    before = files_below(tmp_path)
    outcome = command("r", "--episodes", "2")
    assert outcome.code == 0
    assert outcome.out.startswith(f"InvertedPendulum-v5, r/checkpoints/{previous.name}\n")
    assert f"damaged checkpoint passed over: r/checkpoints/{newest.name}/model.safetensors" in caplog.text
    assert files_below(tmp_path) == before


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], ["RUN"]),
        (["nowhere"], ["no run or checkpoint at 'nowhere'"]),
        (["a-file"], ["'a-file' is no run directory or checkpoint"]),
        (["."], ["'.' is no run directory or checkpoint"]),
        (["RUN", "--episodes", "0"], ["episodes must be at least 1, got 0"]),
        (["RUN", "--episodes", "many"], ["episodes must be an integer, got 'many'"]),
        (["RUN", "--seed", "-1"], ["seed must be in [0, 2**64), got -1"]),
        (
            ["RUN", "--env-backend", "mujoco"],
            ["env_backend must be one of 'auto', 'envpool', 'gymnasium', got 'mujoco'"],
        ),
        (["RUN", "--episode", "3"], ["unknown option '--episode'", "'--episodes'"]),
        (["RUN", "--video", "film.gif"], ["video must be a path that ends in .mp4", "got 'film.gif'"]),
        (["RUN", "--video", "nowhere/film.mp4"], ["in a directory that exists", "got 'nowhere/film.mp4'"]),
        (["RUN", "--video", "a-file/film.mp4"], ["in a directory that exists", "got 'a-file/film.mp4'"]),
        (["RUN", "--video", "folder.mp4"], ["got 'folder.mp4'"]),
        (["RUN", "--video"], ["video must be a string, got ''"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    command: Command, trained: Path, tmp_path: Path, args: list[str], said: list[str]
) -> None:
    (tmp_path / "a-file").write_text("x")
    (tmp_path / "folder.mp4").mkdir()
    before = files_below(tmp_path)
    outcome = command(*[str(trained) if arg == "RUN" else arg for arg in args])
    is_refused(outcome, *said)
    assert outcome.out == ""
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved.state.pop("config"),
        lambda saved: saved.state["config"].update(unknown_option=1),
        lambda saved: saved.state["config"].update(hidden_sizes=[32, 32]),
        lambda saved: saved.state.pop("env_spec"),
        lambda saved: saved.state["env_spec"].update(obs_dim=5),
        lambda saved: saved.state["env_spec"].update(action_low=["low"]),
        lambda saved: saved.model.pop("actor.log_std"),
        lambda saved: saved.model.pop("obs_normalizer.mean"),
        lambda saved: saved.model.update({"actor.log_std": saved.model["actor.log_std"].double()}),
    ],
)
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(trained: Path, change: Callable[[Any], object]) -> None:
    saved = locate(trained)
    change(saved)
    with pytest.raises(CheckpointError, match="does not hold a policy of this version"):
        evaluation.policy_from(saved)


# --- the film --------------------------------------------------------------------------------------------------------
def renderers() -> list[str]:
    """Return the OpenGL libraries that can render without a screen here."""
    found = []
    for library in ("libEGL.so.1", "libOSMesa.so.8", "libOSMesa.so"):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        found.append(library)
    return found


def test_the_printed_video_command_films_a_whole_episode(trained: Path, tmp_path: Path) -> None:
    if not renderers():
        pytest.skip("neither libEGL nor libOSMesa is installed, so nothing can render without a screen")
    target = tmp_path / "film.mp4"
    command = [sys.executable, "-m", "ppo_fast.play", str(trained), "--episodes", "2", "--video", str(target)]
    env = {**os.environ, "PYTHONPATH": str(Path(play.__file__).parents[1]), "MUJOCO_GL": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"video {target}"
    frames = imageio_ffmpeg.read_frames(str(target))
    facts = next(frames)
    width, height = facts["size"]
    pictures = [np.frombuffer(frame, np.uint8).reshape(height, width, 3).astype(int) for frame in frames]

    import gymnasium

    from ppo_fast.reference.rng import env_seeds

    # The same episode without a camera: one picture of every state, the first and the last included.
    policy, env = load_policy(trained), gymnasium.make("InvertedPendulum-v5")
    obs, _ = env.reset(seed=int(env_seeds(1, 0, 1, purpose=1)[0]))
    states, ended = 1, False
    while not ended:
        obs, _, terminated, truncated, _ = env.step(policy(obs))
        states, ended = states + 1, terminated or truncated
    env.close()
    assert len(pictures) == min(states, video.MAX_STEPS + 1)
    assert facts["fps"] == 25  # InvertedPendulum: 2 simulator steps of 0.02 s each
    assert all(picture.std() > 10 for picture in pictures)  # a scene, and no blank
    assert np.abs(pictures[0] - pictures[-1]).max() > 50  # in which something moves
    assert os.listdir(tmp_path) == ["film.mp4"]


def test_without_a_renderer_it_is_one_line_and_no_file(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    monkeypatch.setattr(video, "RENDERERS", ("rubbish",))
    monkeypatch.setenv("PYTHONPATH", str(Path(play.__file__).parents[1]))
    outcome = command(str(trained), "--episodes", "2", "--video", "film.mp4")
    is_refused(outcome, "no video, since no renderer works here", "nonsense: ", "rubbish: ", "apt-get install libegl1")
    assert "return " in outcome.out  # the evaluation is done and shown all the same
    assert not files_below(tmp_path)


class Child:
    """Stands for the process that renders: writes half a film, then fails as ``how`` says; may succeed at last."""

    def __init__(self, how: str, fails: int = 100) -> None:
        self.how, self.fails = how, fails
        self.renderers: list[str] = []

    def __call__(self, command: list[str], *, env: dict[str, str], timeout: float, **options: Any) -> Any:
        assert command[:3] == [sys.executable, "-m", "ppo_fast.video"]
        assert timeout == video.TIMEOUT_S
        self.renderers.append(env["MUJOCO_GL"])
        failing = len(self.renderers) <= self.fails
        if self.how != "writes nothing":
            Path(command[4]).write_bytes(b"half" if failing else b"whole")
        if failing and self.how == "hangs":
            raise subprocess.TimeoutExpired(command, timeout)
        code = {"dies": -11, "fails": 1, "hangs": 0, "writes nothing": 0}[self.how] if failing else 0
        return subprocess.CompletedProcess(command, code, "", "first\nlast words\n" if self.how == "fails" else "")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("dies", "egl: exit code -11"),
        ("fails", "egl: last words"),
        ("hangs", "egl: no answer in 600 s"),
        ("writes nothing", "egl: exit code 0, and no film"),
    ],
)
def test_a_child_that_fails_leaves_the_old_film_untouched(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, said: str
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(video, "RENDERERS", ("egl", "osmesa"))
    (tmp_path / "film.mp4").write_bytes(b"old")
    child = Child(how)
    monkeypatch.setattr(subprocess, "run", child)
    is_refused(command(str(trained), "--episodes", "2", "--video", "film.mp4"), said)
    assert child.renderers == ["egl", "osmesa"]
    assert files_below(tmp_path) == {"film.mp4": b"old"}


def test_the_renderer_asked_for_is_tried_first_and_the_first_that_works_is_used(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(video, "RENDERERS", ("egl", "osmesa"))
    child = Child("dies", fails=1)
    monkeypatch.setattr(subprocess, "run", child)
    outcome = command(str(trained), "--episodes", "2", "--video", "film.mp4")
    assert (outcome.code, outcome.out.splitlines()[-1]) == (0, "video film.mp4")
    assert child.renderers == ["osmesa", "egl"]
    assert files_below(tmp_path) == {"film.mp4": b"whole"}
