"""Show a policy in a window, as Gymnasium draws it, in real time.

OpenGL without a usable screen can end a process without an exception. So a child process shows the window, and this one
reads its exit code.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppo_fast.errors import BackendError

INSTEAD = "film it instead with --video FILE.mp4, or play it on a machine with a screen"
MAX_STEPS = 10_000  # of an episode without a time limit
SIZE = {"width": 1024, "height": 768}
LATE_S = 0.1  # a slow machine does not catch up by more


def require_screen() -> None:
    """Raise ``BackendError`` where no window can be opened."""
    if why := why_no_screen():
        raise BackendError(f"no window, since {why}; {INSTEAD}")


def why_no_screen(environment: Mapping[str, str] = os.environ) -> str:
    """Say why no window can be opened; empty if nothing is known against it."""
    if sys.platform != "linux" or environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"):
        return ""
    return "there is no screen (neither DISPLAY nor WAYLAND_DISPLAY is set)"


def show(checkpoint: Path, *, episodes: int, seed: int) -> None:
    """Show up to so many episodes with the mean action; each prints its return. Closing the window or Esc ends it.

    Raises:
        BackendError: no window can be opened, or it broke down.
    """
    require_screen()
    command = [sys.executable, "-m", "ppo_fast.window", str(checkpoint), str(episodes), str(seed)]
    environment = {**os.environ, "MUJOCO_GL": "glfw"}
    child = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace")
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise BackendError(f"no window: {reason}; {INSTEAD}")


def play(checkpoint: Path, episodes: int, seed: int) -> None:
    """Show the window in this process."""
    from ppo_fast.envs.gymnasium import make_rendered
    from ppo_fast.evaluation import load_policy
    from ppo_fast.kernels import env_seeds

    policy = load_policy(checkpoint)
    env = make_rendered(policy.spec, "human", **SIZE)
    frame_s = 1.0 / env.metadata.get("render_fps", 50)
    seeds = env_seeds(seed, 0, episodes, purpose=1)  # of the first episode, that of a film
    closed: Callable[[], bool] | None = None
    for episode in range(episodes):
        obs, _ = env.reset(seed=int(seeds[episode]))
        closed = closed or _watch(env)
        total, due = 0.0, time.perf_counter()
        for _ in range(policy.spec.max_episode_steps or MAX_STEPS):
            if closed():
                env.close()
                return
            due = max(due + frame_s, time.perf_counter() - LATE_S)
            time.sleep(max(0.0, due - time.perf_counter()))
            obs, reward, terminated, truncated, _ = env.step(policy(obs))
            total += float(reward)
            if terminated or truncated:
                break
        print(f"episode {episode + 1}: return {total:.1f}", flush=True)
    env.close()


def _watch(env: Any) -> Callable[[], bool]:
    """Return what tells whether the person has closed the window."""
    viewer = getattr(getattr(env.unwrapped, "mujoco_renderer", None), "viewer", None)
    if viewer is None:
        return _closed_by_pygame
    viewer._hide_menu = True  # it covers the robot; H shows it
    return _closed_by_glfw(viewer)


def _closed_by_glfw(viewer: Any) -> Callable[[], bool]:
    """Note closing and Esc, of which Gymnasium's viewer would destroy the window under its own hands."""
    import glfw

    closed: list[bool] = []

    def close(window: Any) -> None:
        closed.append(True)
        glfw.set_window_should_close(window, False)

    def key(window: Any, which: int, scancode: int, action: int, mods: int) -> None:
        if which == glfw.KEY_ESCAPE:
            closed.append(True)
        else:
            viewer._key_callback(window, which, scancode, action, mods)

    glfw.set_window_close_callback(viewer.window, close)
    glfw.set_key_callback(viewer.window, key)
    return lambda: bool(closed)


def _closed_by_pygame() -> bool:
    pygame: Any = sys.modules.get("pygame")
    return pygame is not None and pygame.display.get_init() and bool(pygame.event.peek(pygame.QUIT))


if __name__ == "__main__":
    play(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
