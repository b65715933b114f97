"""The live view: what it shows at any size, when there is one, and that it leaves a clean terminal."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import TINY
from rich.console import Console

from ppo_fast.sinks import Metrics
from ppo_fast.sinks.live import LiveSink, can_be_live
from ppo_fast.sinks.progress import KEPT, History, Pace, Progress
from ppo_fast.sinks.view import frame, sparkline
from ppo_fast.symptoms import Symptom

TITLE, PLACE = "Ant-v5 · PPO · preset fast · seed 1 · cpu (AMD EPYC)", "runs/ant"
ILL = Symptom("KL", "KL is 5.0x its target of 0.01", "the steps are too large", "lower --learning-rate")
ALSO = Symptom("slow learner", "70% of the time goes into updates", "it is slow", "a larger --minibatch-size")


def row(env_steps: int, **more: Any) -> Metrics:
    """Return a row of a run that takes 100 steps a second."""
    return {
        "env_steps": env_steps, "wall_s": env_steps / 100, "sps": 123.0, "episode_return": env_steps / 10,
        "episode_length": 77.0, "approx_kl": 0.0123, "clip_frac": 0.21, "entropy": 3.14, "explained_var": 0.87,
        "learning_rate": 2.5e-4, "grad_norm": 1.75, "time/physics": 8.0, "time/act": 0.5, "time/update": 1.5, **more,
    }  # fmt: skip


def evaluation(env_steps: int, *returns: float) -> dict[str, Any]:
    return {"env_steps": env_steps, "wall_s": env_steps / 100, "returns": list(returns), "lengths": [5] * len(returns)}


def progress(rows: int = 60) -> Progress:
    """Return that of a run of 10,000 steps with a row every 100."""
    made = Progress(10_000)
    for i in range(1, rows + 1):
        made.take(row(100 * i))
    return made


def shown(width: int, height: int, symptoms: Sequence[Symptom] = (), of: Progress | None = None) -> list[str]:
    lines = frame(TITLE, PLACE, of or progress(), symptoms, width=width, height=height)
    return ["".join(words for words, _ in line) for line in lines]


# --- what it shows ---------------------------------------------------------------------------------------------------
def test_a_large_terminal_shows_everything() -> None:
    run = progress()
    run.take_evaluation(evaluation(3000, 500.0, 700.0))
    run.take_evaluation(evaluation(6000, 100.0, 100.0))
    words = "\n".join(shown(200, 60, [ILL, ALSO], run))
    facts = [
        TITLE, PLACE, "60.0%", "6,000 of 10,000 steps", "0:40 to go", "1:00 so far",
        "100 steps/s", "physics 80% of the time", "act 5%", "update 15%",  # 8, 0.5 and 1.5 of 10 s
        "600   most 600   ▁", "77   most 77", "100.0 ± 0.0 at 6,000", "best 600.0 ± 141.4 at 3,000",
        "KL 0.0123", "clipped 21%", "entropy 3.14", "explained variance 0.87", "learning rate 2.5e-04",
        "gradient norm 1.75", ILL.what, ILL.cause, ILL.remedy, ALSO.what, ALSO.remedy,
    ]  # fmt: skip
    assert [fact for fact in facts if fact not in words] == []


@pytest.mark.parametrize("size", [(1, 1), (10, 3), (20, 5), (40, 9), (40, 11), (80, 23), (120, 39), (200, 59)])
def test_every_size_is_kept(size: tuple[int, int]) -> None:
    width, height = size
    for of in (progress(), progress(1)):
        lines = shown(width, height, [ILL, ALSO] * 3, of)
        assert len(lines) <= height
        assert max(map(len, lines)) <= width


def test_what_matters_most_is_on_a_small_terminal() -> None:
    lines = shown(40, 9, [ILL, ALSO])
    assert lines[0].startswith("Ant-v5 · PPO")
    assert "60.0%" in lines[1]
    assert f"▲ {ILL.what}" in lines
    for fact in ("100 steps/s", "return      600"):
        assert [line for line in lines if fact in line]
    assert PLACE not in lines


def test_before_the_first_episode_and_evaluation_it_says_so() -> None:
    run = Progress(10_000)
    run.take(row(100, episode_return=None, episode_length=None))
    words = " ".join(shown(80, 23, of=run))
    assert "no episode has ended yet" in words
    assert "none yet" in words
    assert "- to go" in words


def test_a_row_of_another_algorithm_shows_what_it_has() -> None:
    run = Progress(10_000)
    run.take({"env_steps": 100, "wall_s": 1.0, "sps": 100.0, "episode_return": None, "approx_kl": 0.01})
    assert [line for line in shown(80, 23, of=run) if "KL 0.0100" in line and "clipped" not in line]


def test_a_run_that_is_rolled_back_is_estimated_from_there() -> None:
    run = progress()
    run.rewind(2000)
    assert "no episode" not in " ".join(shown(80, 23, of=run))
    assert run.returns.latest == 200.0
    run.take(row(2100))
    run.take(row(2200))
    assert run.seconds_left == pytest.approx(78.0)  # 7,800 steps at 100 a second


def test_a_rollback_takes_evaluations_back_as_well() -> None:
    run = Progress(10_000)
    for steps, mean in ((100, 5.0), (200, 7.0), (300, 6.0)):
        run.take_evaluation({"env_steps": steps, "returns": [mean]})
    assert run.best is not None
    assert run.last is not None
    assert (run.best.mean, run.last.mean) == (7.0, 6.0)
    run.rewind(150)
    assert (run.best.mean, run.last.mean) == (5.0, 5.0)
    run.rewind(50)
    assert run.best is run.last is None


def test_a_sparkline_spans_from_lowest_to_highest() -> None:
    assert sparkline([0.0, 7.0, 3.0, 4.0]) == "▁█▄▅"
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert sparkline([]) == ""


def test_a_long_history_keeps_its_shape_and_its_extremes() -> None:
    history = History()
    for step in range(100_000):
        history.add(step, float(step))
    assert len(history._points) <= KEPT + 1
    assert (history.latest, history.highest) == (99_999.0, 99_999.0)
    values = history.values(10)
    assert values == pytest.approx([5000 + 10_000 * i for i in range(10)], abs=1000)  # means of tenths
    history.rewind(49_999)
    assert history.latest is not None
    assert 49_000 <= history.latest <= 49_999


# --- when there is one -----------------------------------------------------------------------------------------------
class Terminal(io.StringIO):
    """A terminal that keeps what is written."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def console(file: io.StringIO, **environ: str) -> Console:
    environ = {"TERM": "xterm-256color", **environ}
    return Console(file=file, width=80, height=24, highlight=False, soft_wrap=True, _environ=environ)


def test_only_a_terminal_that_can_show_it_gets_a_live_view() -> None:
    assert can_be_live(console(Terminal()))
    assert not can_be_live(console(io.StringIO()))
    assert not can_be_live(console(io.StringIO(), FORCE_COLOR="1"))
    assert not can_be_live(console(Terminal(), TERM="dumb"))
    ascii_only = Terminal()
    ascii_only.encoding = "ascii"  # type: ignore[misc]
    assert not can_be_live(console(ascii_only))


def live_sink(terminal: Terminal, symptoms: Sequence[Symptom] = (), **environ: str) -> LiveSink:
    sink = LiveSink(10_000, console(terminal, **environ), lambda: symptoms)
    sink.title, sink.place = TITLE, PLACE
    return sink


def test_no_color_asks_for_no_colours_and_not_for_no_view() -> None:
    coloured, plain = Terminal(), Terminal()
    for terminal, environ in ((coloured, {}), (plain, {"NO_COLOR": "1"})):
        sink = live_sink(terminal, **environ)
        sink.log(row(100))
        sink.close()
        assert TITLE in terminal.getvalue()
    colours = r"\x1b\[[\d;]*3[0-7]m"
    assert re.search(colours, coloured.getvalue())
    assert not re.search(colours, plain.getvalue())


def test_a_view_is_drawn_at_most_eight_times_a_second_and_takes_a_bounded_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pace, times = live_sink(Terminal())._draw_pace, []
    for tick in range(1000):  # 10 s
        now[0] = 100.0 + tick / 100
        if pace.due():
            times.append(now[0])
            pace.took(0.0003 if now[0] < 105 else 0.003)  # 0.3 % of the time is 0.1 s, then 1 s
    assert 35 <= sum(t < 105 for t in times) <= 40
    assert 4 <= sum(t >= 105 for t in times) <= 6


# --- what it does to the terminal ------------------------------------------------------------------------------------
def test_words_come_above_the_view_and_the_terminal_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        sink = live_sink(terminal)
        sink.log(row(100))
        for speak in (lambda: logging.getLogger("x").warning("a word of a log"), lambda: print("a printed word")):
            before = len(terminal.getvalue())
            speak()
            written = terminal.getvalue()[before:]
            assert written.startswith("\r\x1b[2K\x1b[1A")  # over the view, line by line
            assert written.index(" word") < written.index(TITLE)
        sink.evaluation(evaluation(100, 1.0, 3.0))
        assert "evaluation over 2 episodes: mean 2.0" in terminal.getvalue()
        sink.close()
        assert (sys.stdout, sys.stderr, handler.stream) == (terminal, terminal, terminal)
        assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")
    finally:
        logging.getLogger().removeHandler(handler)


def test_errors_of_a_user_who_sends_them_elsewhere_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stderr", elsewhere)
    sink = live_sink(terminal)
    sink.log(row(100))
    print("an error", file=sys.stderr)
    sink.close()
    assert elsewhere.getvalue() == "an error\n"


def test_a_view_that_fails_becomes_plain_lines_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("no\nview")

    terminal = Terminal()
    sink = live_sink(terminal)
    sink.log(row(100))
    monkeypatch.setattr("ppo_fast.sinks.live.frame", fail)
    monkeypatch.setattr(sink, "_draw_pace", Pace(0.0, float("inf")))
    for steps in (200, 300, 10_000):
        sink.log(row(steps))
    assert caplog.messages == ["the live view failed and is switched off, plain lines follow: RuntimeError: no view"]
    assert "10,000 steps 100.0%" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


def test_a_new_size_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    sink = live_sink(terminal)
    monkeypatch.setattr(sink, "_draw_pace", Pace(0.0, float("inf")))
    sink.log(row(100))
    sink._console.size = (40, 10)  # type: ignore[assignment]
    before = len(terminal.getvalue())
    sink.log(row(200))
    sink.close()
    written = terminal.getvalue()[before:]
    assert "\x1b[2J\x1b[H" in written
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written.split("\x1b[2J\x1b[H")[1].split("\r")[0]).splitlines()
    assert len(lines) <= 9
    assert max(map(len, lines)) <= 40


def test_what_interrupts_is_said_when_the_view_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    sink = live_sink(terminal)
    sink.log(row(100))
    sink.interrupt(lambda: print("\nSAVING", file=terminal))
    assert terminal.getvalue().endswith("\nSAVING\n")
    sink.log(row(10_000))  # the last one, as a line
    assert TITLE not in terminal.getvalue().split("SAVING")[1]
    assert "100.0%" in terminal.getvalue().split("SAVING")[1]

    drawn = Terminal()
    again = live_sink(drawn)

    def interrupted(*args: Any, **options: Any) -> Any:
        again.interrupt(lambda: print("\nSAVING", file=drawn))
        return frame(*args, **options)

    monkeypatch.setattr("ppo_fast.sinks.live.frame", interrupted)
    again.log(row(100))
    assert drawn.getvalue().count("SAVING") == 1
    assert drawn.getvalue().endswith("\nSAVING\n")


def test_an_interrupted_run_leaves_a_clean_terminal(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="pseudo-terminals of POSIX", exc_type=ImportError)
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "ppo_fast.train", *TINY, "--run-dir", "r", "--total-timesteps", "100000000"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environ, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written, deadline, sent = b"", time.monotonic() + 120, False
    try:
        while time.monotonic() < deadline:
            try:
                written += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not sent and "InvertedPendulum-v5 · PPO".encode() in written and b"of 100,000,000 steps" in written:
                process.send_signal(signal.SIGINT)
                sent = True
        assert process.wait(timeout=30) == 128 + signal.SIGINT
    finally:
        process.kill()
        os.close(ours)
    words = written.decode()
    assert words.rindex("\x1b[?25h") > words.rindex("\x1b[?25l")
    _, last = words.split("SIGINT: saving after this iteration; once more to leave at once")
    assert "stopped by SIGINT after" in last
    assert "--resume auto" in last
    assert "\x1b[1A" not in last  # nothing is drawn over it
