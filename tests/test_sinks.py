"""Sinks: what they are given arrives, one that fails stops nothing, and nothing is written before the start."""

from __future__ import annotations

import errno
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from ppo_fast import sinks
from ppo_fast.errors import BackendError
from ppo_fast.sinks import Metrics, Sinks
from ppo_fast.sinks.console import ConsoleSink, line
from ppo_fast.sinks.files import JsonlSink
from ppo_fast.sinks.progress import Progress, clock
from ppo_fast.sinks.tensorboard import TensorBoardSink, tag

CONFIG = {"env": "Ant-v5", "total_timesteps": 1000}


def row(iteration: int, env_steps: int, **more: Any) -> Metrics:
    """Return a row of metrics with round numbers: 2 s per 100 steps."""
    return {
        "iteration": iteration,
        "env_steps": env_steps,
        "wall_s": env_steps / 50,
        "sps": 12_345.6,
        "episode_return": 321.4,
        "episode_length": 99.5,
        "approx_kl": 0.0123,
        "time/physics": 6.0,
        "time/act": 1.0,
        "time/update": 2.0,
        "time/advantage": 1.0,
        **more,
    }


def evaluation(env_steps: int, *returns: float) -> dict[str, Any]:
    return {"env_steps": env_steps, "wall_s": env_steps / 50, "returns": list(returns), "lengths": [5] * len(returns)}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the fan-out -----------------------------------------------------------------------------------------------------
class Recorder:
    """Keeps every call; raises in the one named ``fails``."""

    def __init__(self, fails: str = "", error: BaseException | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails, self.error = fails, error or RuntimeError("no\nnetwork")

    def _take(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] == self.fails:
            raise self.error

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        self._take("start", config, info)

    def log(self, metrics: Metrics) -> None:
        self._take("log", metrics)

    def evaluation(self, record: dict[str, Any]) -> None:
        self._take("evaluation", record)

    def close(self) -> None:
        self._take("close")


def drive(fan: Sinks) -> None:
    fan.start(CONFIG, {"a": 1})
    fan.log({"env_steps": 1})
    fan.log({"env_steps": 2})
    fan.evaluation({"env_steps": 2})
    fan.close()


ALL = [
    ("start", CONFIG, {"a": 1}),
    ("log", {"env_steps": 1}),
    ("log", {"env_steps": 2}),
    ("evaluation", {"env_steps": 2}),
    ("close",),
]


@pytest.mark.parametrize("fails", ["start", "log", "evaluation", "close"])
def test_a_failing_sink_is_named_once_closed_and_dropped(fails: str, caplog: pytest.LogCaptureFixture) -> None:
    before, bad, after = Recorder(), Recorder(fails), Recorder()
    drive(Sinks([before, bad, after]))
    assert before.calls == after.calls == ALL
    first = [call[0] for call in ALL].index(fails)
    assert bad.calls[: first + 1] == ALL[: first + 1]
    assert [call[0] for call in bad.calls[first + 1 :]] == ["close"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == "Recorder failed and is switched off: RuntimeError: no network"


def test_an_interrupt_is_no_failure_of_a_sink() -> None:
    with pytest.raises(KeyboardInterrupt):
        drive(Sinks([Recorder("log", KeyboardInterrupt())]))


def test_closing_twice_closes_once() -> None:
    sink = Recorder()
    fan = Sinks([sink])
    fan.close()
    fan.close()
    assert sink.calls == [("close",)]


# --- metrics.jsonl and evaluations.jsonl -----------------------------------------------------------------------------
def test_rows_are_on_disk_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    assert not list(tmp_path.iterdir())
    sink.start(CONFIG, {})
    sink.log(row(1, 100, episode_return=None))
    sink.evaluation(evaluation(100, 1.5, -2.0))
    assert lines(tmp_path / "metrics.jsonl") == [row(1, 100, episode_return=None)]
    assert lines(tmp_path / "evaluations.jsonl") == [evaluation(100, 1.5, -2.0)]
    sink.log(row(2, 200))
    sink.close()
    assert [r["env_steps"] for r in lines(tmp_path / "metrics.jsonl")] == [100, 200]


def test_rows_that_a_full_disk_refused_are_written_before_a_checkpoint_is(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    sink.start(CONFIG, {})
    there = sink._files["metrics"]._file

    class Full:
        def write(self, _: bytes) -> int:
            raise OSError(errno.ENOSPC, "no space left")

    sink._files["metrics"]._file = Full()  # type: ignore[assignment]
    sink.log(row(1, 100))
    sink._files["metrics"]._file = there
    assert not lines(tmp_path / "metrics.jsonl")
    sink.sync()
    assert lines(tmp_path / "metrics.jsonl") == [row(1, 100)]


def test_a_resumed_run_cuts_back_to_the_checkpoint_and_what_a_kill_cut_short(tmp_path: Path) -> None:
    old = [row(i, 100 * i) for i in (1, 2, 3, 4)]
    text = "".join(json.dumps(r) + "\n" for r in old)
    (tmp_path / "metrics.jsonl").write_text(text + json.dumps(row(5, 500))[:40])
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(evaluation(s, 1.0)) + "\n" for s in (200, 400)))
    sink = JsonlSink(tmp_path, resumed_at=200)
    sink.start(CONFIG, {})
    sink.log(row(3, 290))
    sink.evaluation(evaluation(290, 7.0))
    sink.close()
    assert lines(tmp_path / "metrics.jsonl") == [old[0], old[1], row(3, 290)]
    assert lines(tmp_path / "evaluations.jsonl") == [evaluation(200, 1.0), evaluation(290, 7.0)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluations.jsonl", "metrics.jsonl"]


def test_a_finished_run_that_is_resumed_has_its_last_evaluation_once(tmp_path: Path) -> None:
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(evaluation(s, 1.0)) + "\n" for s in (500, 1010)))
    sink = JsonlSink(tmp_path, resumed_at=1010)  # of 1000: nothing is left but the final evaluation
    sink.start(CONFIG, {})
    sink.evaluation(evaluation(1010, 2.0))
    sink.close()
    assert lines(tmp_path / "evaluations.jsonl") == [evaluation(500, 1.0), evaluation(1010, 2.0)]


@pytest.mark.parametrize("garbage", [b"\xff\xfe\x00", b"null\n5\n[]\n", b"\x00" * 4096, b"{"])
def test_garbage_between_rows_does_not_stop_a_resumption(tmp_path: Path, garbage: bytes) -> None:
    good = [(json.dumps(row(i, 100 * i)) + "\n").encode() for i in (1, 2)]
    (tmp_path / "metrics.jsonl").write_bytes(good[0] + garbage + b"\n" + good[1])
    sink = JsonlSink(tmp_path, resumed_at=200)
    sink.start(CONFIG, {})
    sink.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == good[0] + good[1]


# --- TensorBoard -----------------------------------------------------------------------------------------------------
def scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_has_every_number_under_its_group(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    assert not list(tmp_path.iterdir())
    sink.start(CONFIG, {"resumed_at": None})
    sink.log(row(1, 100, episode_return=None, policy_loss=-0.5))
    sink.log(row(2, 200, episode_return=8.0, policy_loss=-0.25))
    sink.evaluation(evaluation(200, 1.0, 2.0, 6.0))
    sink.close()
    found = scalars(tmp_path / "tensorboard")
    assert found["rollout/episode_return"] == [(200, 8.0)]
    assert found["loss/policy_loss"] == [(100, -0.5), (200, -0.25)]
    assert found["evaluation/return"] == [(200, 3.0)]  # (1 + 2 + 6) / 3
    assert found["time/physics"] == [(100, 6.0), (200, 6.0)]
    assert [step for step, _ in found["time/sps"]] == [100, 200]
    assert not [name for name in found if name.endswith("env_steps")]


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    for resumed_at, values in ((None, {100: 1.0, 200: 2.0, 300: 3.0}), (200, {290: 2.9, 400: 4.0})):
        sink = TensorBoardSink(tmp_path)
        sink.start(CONFIG, {"resumed_at": resumed_at})
        for step, value in values.items():
            sink.log({"env_steps": step, "episode_return": value})
        sink.close()
    steps = [step for step, _ in scalars(tmp_path / "tensorboard")["rollout/episode_return"]]
    assert steps == [100, 200, 290, 400]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("time/act", "time/act"), ("sps", "time/sps"), ("approx_kl", "loss/approx_kl"), ("episodes", "rollout/episodes")],
)
def test_tags_have_a_group(name: str, expected: str) -> None:
    assert tag(name) == expected


# --- Weights & Biases ------------------------------------------------------------------------------------------------
class FakeWandb(types.ModuleType):
    """Stands for the package: keeps what reaches it."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.axis = ""
        self.finished = 0

    def init(self, **options: Any) -> FakeWandb:
        self.started.append(options)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert name == "*"
        self.axis = step_metric

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_config_rows_and_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (sink,) = sinks.make(["wandb"], tmp_path / "my-run")
    assert not fake.started
    sink.start(CONFIG, {"kernels": "cpp"})
    sink.log({"env_steps": 100, "episode_return": None, "approx_kl": 0.5, "sps": 10.0})
    sink.evaluation(evaluation(100, 1.0, 5.0))
    sink.close()
    (started,) = fake.started
    assert (started["name"], started["dir"]) == ("my-run", str(tmp_path / "my-run"))
    assert started["config"] == {**CONFIG, "info": {"kernels": "cpp"}}
    assert fake.logged == [
        {"rollout/env_steps": 100, "loss/approx_kl": 0.5, "time/sps": 10.0},
        {"evaluation/return": 3.0, "rollout/env_steps": 100},
    ]
    assert fake.axis == "rollout/env_steps"
    assert fake.finished == 1


def test_a_wandb_that_cannot_start_is_dropped_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)

    def refuse(**options: Any) -> FakeWandb:
        raise RuntimeError("No API key configured")

    monkeypatch.setattr(fake, "init", refuse)
    recorder = Recorder()
    drive(Sinks([*sinks.make(["wandb"], tmp_path), recorder]))
    assert recorder.calls == ALL
    assert caplog.messages == ["WandbSink failed and is switched off: RuntimeError: No API key configured"]
    assert fake.finished == 0


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_sink_whose_package_is_missing_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    missing = {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}[name]
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delattr("torch.utils.tensorboard", raising=False)
    with pytest.raises(BackendError, match=f"--log {name}: .*pip install {name}, or leave it out"):
        sinks.make([name], tmp_path)
    assert not list(tmp_path.iterdir())


# --- plain lines -----------------------------------------------------------------------------------------------------
def shown_after(*rows: Metrics) -> str:
    progress = Progress(1000)
    for each in rows:
        progress.take(each)
    return line(progress)


def test_a_progress_line_says_how_far_how_fast_and_where_time_goes() -> None:
    assert "ETA -" in shown_after(row(1, 150))  # nothing to go by yet but a row with the compilation in it
    # From there 100 steps in 2 s, so the other 750 take 15 s; phases 6 + 1 + 2 + 1 = 10 s; 12,345.6 rounds to 12,346.
    expected = "250 steps 25.0% ETA 0:15 12,346 SPS return 321 physics 60% act 10% update 20% KL 0.0123"
    assert " ".join(shown_after(row(1, 150), row(2, 250)).split()) == expected


def test_before_the_first_episode_ends_there_is_no_return() -> None:
    assert "return      -" in shown_after(row(1, 250, episode_return=None))


def test_a_resumed_run_estimates_from_what_it_did_itself() -> None:
    first = {**row(9, 800), "wall_s": 70.0}
    assert "ETA -" in shown_after(first)  # nothing to go by yet
    # 100 steps in 4 s since the resumption, whatever the 800 before it took: 100 steps to go take 4 s.
    assert "ETA 0:04" in shown_after(first, {**row(10, 900), "wall_s": 74.0})


def test_plain_lines_are_few_and_the_last_one_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    written: list[str] = []
    sink = ConsoleSink(1000, written.append)
    for i in range(1, 11):  # ten iterations, a second apart
        sink.log(row(i, 100 * i))
        now[0] += 1.0
    assert [line.split()[0] for line in written] == ["100", "600", "1,000"]


def test_an_evaluation_is_written_at_once() -> None:
    written: list[str] = []
    ConsoleSink(1000, written.append).evaluation(evaluation(500, 1.0, 3.0))
    (words,) = written
    assert "500 steps  evaluation over 2 episodes: mean 2.0, std 1.4, min 1.0, max 3.0" in words


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599.4, "59:59"), (7384, "2:03:04")]
)
def test_a_clock_shows_minutes_and_hours(seconds: float, text: str) -> None:
    assert clock(seconds) == text
