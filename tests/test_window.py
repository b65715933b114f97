"""A policy in a window: on a virtual screen where there is one to start, and what is said where there is no screen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import call

from ppo_fast import play, window
from ppo_fast.envs import gymnasium as gymnasium_envs
from ppo_fast.window import why_no_screen

WIDTH, HEIGHT = 1100, 800  # of the virtual screen


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Start a virtual screen; return the environment of a process that draws on it."""
    if (server := shutil.which("Xvfb")) is None:
        pytest.skip("no virtual screen: Xvfb is not installed")
    command = [server, "-displayfd", "1", "-screen", "0", f"{WIDTH}x{HEIGHT}x24", "-fbdir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    yield {**os.environ, "DISPLAY": f":{process.stdout.readline().strip()}"}
    process.terminate()
    process.wait()


def picture(folder: Path) -> np.ndarray:
    """Return what the virtual screen shows, (HEIGHT, WIDTH, 4), which lies at the end of its file."""
    return np.fromfile(folder / "Xvfb_screen0", np.uint8)[-HEIGHT * WIDTH * 4 :].reshape(HEIGHT, WIDTH, 4)


def test_a_window_shows_the_robot_and_each_return_is_told(
    trained: Path, screen: dict[str, str], tmp_path: Path
) -> None:
    env = {**screen, "PYTHONPATH": str(Path(play.__file__).parents[1])}
    command = [sys.executable, "-m", "ppo_fast.play", str(trained), "--episodes", "2", "--render", "human"]
    command += ["--env-backend", "gymnasium"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:  # an episode of a policy that has learned nothing takes about a second
        shown = picture(tmp_path)[:768, :1024, :3]
        most = max(most, len(np.unique(shown.reshape(-1, 3), axis=0)))
        time.sleep(0.2)
    out, err = process.communicate()
    if process.returncode and ("libGL" in err or "GLX" in err):
        pytest.skip(f"no OpenGL on the virtual screen: {err.splitlines()[-1]}")
    assert process.returncode == 0, err
    assert most > 50  # a scene with light and shadow, and no blank
    told = out.splitlines()
    evaluated = re.search(r"min (\S+), max (\S+);", told[1])
    assert evaluated is not None
    returns = [float(re.fullmatch(rf"episode {i}: return (\S+)", line)[1]) for i, line in enumerate(told[2:], 1)]  # type: ignore[index]
    assert len(returns) == 2
    assert (min(returns), max(returns)) == tuple(float(value) for value in evaluated.groups())  # the same episodes


def test_without_a_screen_it_is_one_line_and_nothing_is_run(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    outcome = call(play.main, capsys, str(trained), "--render", "human")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert "no window, since there is no screen (neither DISPLAY nor WAYLAND_DISPLAY is set); film it" in outcome.err


def test_a_screen_that_does_not_answer_is_one_line(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISPLAY", ":9999")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(play.__file__).parents[1]))
    outcome = call(play.main, capsys, str(trained), "--episodes", "1", "--render", "human")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert re.match(r"ppo_fast\.play: error: no window: .*; film it instead with --video FILE\.mp4", outcome.err)


def test_screens_of_either_kind_are_known() -> None:
    assert why_no_screen({"DISPLAY": ":0"}) == why_no_screen({"WAYLAND_DISPLAY": "wayland-0"}) == ""
    assert (why_no_screen({}) != "") == (sys.platform == "linux")


class Drawn:
    """An environment of 20 steps, 50 of which are a second."""

    metadata = {"render_fps": 50}  # noqa: RUF012 (Gymnasium's own declaration)
    unwrapped = None

    def __init__(self) -> None:
        self.steps = self.closed = 0

    def reset(self, *, seed: int) -> Any:
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.zeros(4, np.float32), 1.0, self.steps % 20 == 0, False, {}

    def close(self) -> None:
        self.closed += 1


def test_it_is_shown_in_real_time_and_ends_when_it_is_closed(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env = Drawn()
    monkeypatch.setattr(gymnasium_envs, "make_rendered", lambda *args, **options: env)
    start = time.perf_counter()
    window.play(trained, 2, 1)
    assert time.perf_counter() - start >= 40 / 50 - 2 * window.LATE_S
    assert capsys.readouterr().out.splitlines() == ["episode 1: return 20.0", "episode 2: return 20.0"]
    assert env.closed == 1

    env = Drawn()
    monkeypatch.setattr(window, "_watch", lambda env: lambda: env.steps >= 30)
    window.play(trained, 5, 1)
    assert (env.steps, env.closed) == (30, 1)
    assert capsys.readouterr().out.splitlines() == ["episode 1: return 20.0"]


@pytest.mark.parametrize("how", ["close", "escape"])
def test_closing_is_noted_and_the_window_stays_whole_until_it_is_left(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    glfw = pytest.importorskip("glfw")
    callbacks: dict[str, Callable[..., None]] = {}
    stay: list[bool] = []
    for name in ("close", "key"):
        setter = f"set_{'window_close' if name == 'close' else name}_callback"
        monkeypatch.setattr(glfw, setter, lambda _, callback, name=name: callbacks.__setitem__(name, callback))
    monkeypatch.setattr(glfw, "set_window_should_close", lambda _, value: stay.append(not value))
    keys: list[int] = []
    viewer: Any = SimpleNamespace(window="w", _key_callback=lambda window, key, *_: keys.append(key))
    closed = window._closed_by_glfw(viewer)
    callbacks["key"]("w", glfw.KEY_H, 0, 0, 0)
    assert (closed(), keys) == (False, [glfw.KEY_H])
    if how == "close":
        callbacks["close"]("w")
        assert stay == [True]
    else:
        callbacks["key"]("w", glfw.KEY_ESCAPE, 0, 0, 0)
    assert closed()
    assert keys == [glfw.KEY_H]  # Gymnasium's own would destroy the window
