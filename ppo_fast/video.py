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

from ppo_fast.errors import BackendError

log = logging.getLogger(__name__)

# What needs no screen; what MUJOCO_GL names is tried first.
RENDERERS = ("egl", "osmesa") if sys.platform == "linux" else ("glfw",)
MAX_STEPS = 1000
TIMEOUT_S, PROBE_TIMEOUT_S = 600, 60
MEND = "On Debian or Ubuntu: apt-get install libegl1 libosmesa6"


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
    reasons: list[str] = []
    tmp = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        for renderer in _renderers():
            failure = _in_child([str(checkpoint), str(tmp), str(seed)], renderer, TIMEOUT_S)
            if not failure and tmp.exists():
                os.replace(tmp, target)
                return target
            reasons.append(f"{renderer}: {failure or 'exit code 0, and no film'}")
    finally:
        tmp.unlink(missing_ok=True)
    raise BackendError(f"no video, since no renderer works here ({'; '.join(reasons)}). {MEND}")


def find_renderer() -> tuple[str, list[str]]:
    """Return the renderer that :func:`film` would use, empty if none works, and why those before it do not."""
    reasons: list[str] = []
    for renderer in _renderers():
        failure = _in_child([], renderer, PROBE_TIMEOUT_S)
        if not failure:
            return renderer, reasons
        reasons.append(f"{renderer}: {failure}")
    return "", reasons


def _renderers() -> list[str]:
    asked = os.environ.get("MUJOCO_GL")
    return list(dict.fromkeys(((asked,) if asked else ()) + RENDERERS))


def _in_child(arguments: list[str], renderer: str, timeout: int) -> str:
    """Run this module in a process of its own; return in one line why it failed, empty if it did not."""
    command = [sys.executable, "-m", "ppo_fast.video", *arguments]
    environment = {**os.environ, "MUJOCO_GL": renderer}
    try:
        child = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=timeout,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer in {timeout} s"
    if child.returncode == 0:
        return ""
    log.info("renderer %s failed:\n%s", renderer, child.stderr)
    return (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]


def probe() -> None:
    """Render a picture of nothing in this process; MUJOCO_GL says with what."""
    import mujoco

    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    with mujoco.Renderer(model, 16, 16) as renderer:
        renderer.update_scene(mujoco.MjData(model))
        renderer.render()


def render(checkpoint: Path, target: Path, seed: int) -> None:
    """Render in this process; MUJOCO_GL says with what."""
    import imageio_ffmpeg
    import numpy as np

    from ppo_fast.envs.gymnasium import make_rendered
    from ppo_fast.evaluation import load_policy
    from ppo_fast.kernels import env_seeds

    policy = load_policy(checkpoint)
    env = make_rendered(policy.spec, "rgb_array")
    obs, _ = env.reset(seed=int(env_seeds(seed, 0, 1, purpose=1)[0]))
    frame = np.asarray(env.render())
    height, width = frame.shape[:2]
    writer = imageio_ffmpeg.write_frames(
        str(target), (width, height), fps=env.metadata.get("render_fps", 50), macro_block_size=2,
        output_params=["-f", "mp4"],
    )  # fmt: skip
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


if __name__ == "__main__":
    if sys.argv[1:]:
        render(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    else:
        probe()
