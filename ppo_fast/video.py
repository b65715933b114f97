"""Film one episode of a policy.

MuJoCo's renderers can end a process that has no usable OpenGL, without an exception. So a child process renders, and
this one reads its exit code.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ppo_fast.errors import BackendError

log = logging.getLogger(__name__)

# What needs no screen; what MUJOCO_GL names is tried first.
RENDERERS = ("egl", "osmesa") if sys.platform == "linux" else ("glfw",)
MAX_STEPS = 1000
TIMEOUT_S = 600


def can_be_filmed(env_id: str) -> bool:
    """Return whether Gymnasium, which renders, has the environment: EnvPool's renderer needs a window system."""
    from ppo_fast.envs.registry import find_spec

    return find_spec(env_id) is not None


def film(checkpoint: Path, target: Path, *, seed: int) -> Path:
    """Write one episode with the mean action to ``target`` (mp4), trying each renderer in a child process.

    Returns:
        ``target``, which is whole, or was not touched if an error is raised.

    Raises:
        BackendError: no renderer works; the message says why for each and what to install.
    """
    asked = os.environ.get("MUJOCO_GL")
    reasons = []
    tmp = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        for renderer in dict.fromkeys(((asked,) if asked else ()) + RENDERERS):
            failure = _render_in_child(checkpoint, tmp, seed, renderer)
            if failure is None:
                os.replace(tmp, target)
                return target
            reasons.append(f"{renderer}: {failure}")
    finally:
        tmp.unlink(missing_ok=True)
    raise BackendError(
        f"no video, since no renderer works here ({'; '.join(reasons)}). On Debian or Ubuntu: apt-get install libegl1 "
        "libosmesa6"
    )


def _render_in_child(checkpoint: Path, target: Path, seed: int, renderer: str) -> str | None:
    """Run :func:`render` in a process of its own; return None, or in one line why it failed."""
    command = [sys.executable, "-m", "ppo_fast.video", str(checkpoint), str(target), str(seed)]
    environment = {**os.environ, "MUJOCO_GL": renderer}
    try:
        child = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer in {TIMEOUT_S} s"
    if child.returncode == 0 and target.exists():
        return None
    log.info("renderer %s failed:\n%s", renderer, child.stderr)
    return (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]


def render(checkpoint: Path, target: Path, seed: int) -> None:
    """Render in this process; MUJOCO_GL says with what."""
    import imageio_ffmpeg
    import numpy as np

    from ppo_fast.envs.gymnasium import make_filmed
    from ppo_fast.evaluation import load_policy
    from ppo_fast.kernels import env_seeds

    policy = load_policy(checkpoint)
    env = make_filmed(policy.spec)
    if _has_camera(
        env, "track"
    ):  # the default camera of some tasks (Ant) stands still, and the robot leaves the picture
        env.close()
        env = make_filmed(policy.spec, camera_name="track")
    obs, _ = env.reset(seed=int(env_seeds(seed, 0, 1, purpose=1)[0]))
    frame = np.asarray(env.render())
    height, width = frame.shape[:2]
    writer = imageio_ffmpeg.write_frames(
        str(target), (width, height), fps=env.metadata["render_fps"], macro_block_size=2, output_params=["-f", "mp4"]
    )
    writer.send(None)
    for _ in range(MAX_STEPS):
        writer.send(np.ascontiguousarray(frame))
        obs, _, terminated, truncated, _ = env.step(policy(obs))
        frame = np.asarray(env.render())
        if terminated or truncated:
            break
    writer.send(np.ascontiguousarray(frame))
    writer.close()
    env.close()


def _has_camera(env: Any, name: str) -> bool:
    """Return whether the environment's MuJoCo model has a camera of that name; False where it has no such model."""
    model = getattr(env.unwrapped, "model", None)
    if model is None or not hasattr(model, "ncam"):
        return False
    return any(model.camera(i).name == name for i in range(model.ncam))


if __name__ == "__main__":
    render(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
