"""``info --calibrate``, and that a run which is taken up keeps the learner that ``auto`` chose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import training
from commands import call
from training import one_thread  # noqa: F401

from ppo_fast import calibrate as calibration
from ppo_fast import info, native
from ppo_fast.calibrate import Timing, calibrate
from ppo_fast.config import Config
from ppo_fast.learners import choose
from ppo_fast.learners.choose import make_learner
from ppo_fast.models import ActorCritic

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = ActorCritic(3, 1, (8,))
CFG = Config(num_envs=4, num_steps=8, minibatch_size=16, update_epochs=2, total_timesteps=100)
SHAPES = ("--env", "Pendulum-v1", "--num-envs", "4", "--hidden-sizes", "8", "--minibatch-size", "64")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_SECONDS", 0.0)


@pytest.mark.usefixtures("native_core")
@pytest.mark.parametrize("model", [MODEL, ActorCritic(4, 1, (8,), num_actions=3)])
def test_every_learner_is_timed_the_fastest_first_and_auto_is_what_a_run_takes(model: ActorCritic) -> None:
    timings, choice = calibrate(CFG, model, torch.device("cpu"))
    assert {(timing.device, timing.learner, timing.update) for timing in timings} == {
        ("cpu", "native", "native"),
        ("cpu", "torch", "eager"),
    }
    times = [timing.us_per_minibatch or 0.0 for timing in timings]
    assert 0 < times[0] <= times[1]
    made, why = make_learner(model, model.init(1, -0.5), CFG, torch.device("cpu"))
    assert choice == f"{made.name} on cpu, update {made.mode} ({why})"
    assert Timing("cpu", "torch", "eager", 1.0).options() == "--device cpu --learner torch --update eager"
    assert Timing("cpu", "native", "native", 1.0).options() == "--device cpu --learner native"


def test_a_learner_that_is_missing_is_listed_last_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "lacks", lambda model: "it was left at home")
    timings, choice = calibrate(CFG, MODEL, torch.device("cpu"))
    assert [timing.learner for timing in timings] == ["torch", "native"]
    assert "it was left at home" in timings[1].why_not
    assert timings[1].us_per_minibatch is None
    assert choice.startswith("torch on cpu, update eager (no native learner: it was left at home")


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    shown = call(info.main, capsys, "--calibrate", *SHAPES)
    assert shown.code == 0
    assert "minibatch_size      64\n" in shown.out
    assert "--learner auto takes " in shown.out
    assert "The fastest here: --device cpu --learner " in shown.out
    found = json.loads(call(info.main, capsys, "--calibrate", "--json", *SHAPES).out)
    assert found["run"]["hidden_sizes"] == [8]
    assert (found["obs_dim"], found["act_dim"]) == (3, 1)
    assert {timing["learner"] for timing in found["timings"]} == {"native", "torch"}
    assert found["machine"]["cpus"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--env", "Ant-v5"), "env is the run's that --calibrate measures, and --calibrate was not given"),
        (("--calibrate", "--minibatch-size", "7"), "minibatch_size must divide"),
        (("--calibrate", "--preset", "slow"), "preset must be one of 'fast', 'sample'"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], words: str
) -> None:
    outcome = call(info.main, capsys, *args)
    assert outcome.code == 2
    assert words in outcome.err


@pytest.mark.usefixtures("native_core")
def test_a_run_that_is_taken_up_keeps_its_learner_where_auto_would_take_another(tmp_path: Path) -> None:
    options = {"checkpoint_every": 512, "update": "auto"}
    training.train(training.config(tmp_path / "run", **options, learner="torch"))
    first = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))[0]
    resumed = training.train(training.config(tmp_path / "run", **options, learner="auto", resume=str(first)))
    assert resumed.trainer.info["learner"]["name"] == "torch"
    assert resumed.trainer.info["learner"]["reason"] == "as when the run was begun"
    assert json.loads((tmp_path / "run" / "run_info.json").read_text())["learner"]["name"] == "torch"
    assert not resumed.trainer.info["taken_up"]["differs"]
    named = training.train(training.config(tmp_path / "run", **options, learner="native", resume=str(first)))
    assert named.trainer.info["learner"]["name"] == "native"  # what is asked for by name is had
    assert training.train(training.config(tmp_path / "new", **options, learner="auto")).trainer.learner.name == "native"


def test_a_run_begun_with_a_learner_that_is_missing_goes_on_with_another_aloud(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choose, "lacks", lambda model, device: "it was left at home")
    learner, why = make_learner(MODEL, MODEL.init(1, -0.5), CFG, torch.device("cpu"), begun_with="native")
    assert (learner.name, why) == ("torch", "no native learner: it was left at home")
    assert "updates run on torch" in caplog.text
