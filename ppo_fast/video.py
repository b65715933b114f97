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

RENDERERS = ("egl", "osmesa")  # without a screen; what MUJOCO_GL names comes first
MAX_STEPS = 1000
TIMEOUT_S = 600


def film(checkpoint: Path, target: Path, *, seed: int) -> Path:
    """Write one episode with the mean action to ``target`` (mp4), trying each headless renderer in a child process.

    Raises:
        BackendError: none works; the message says why for each and what to install.
    """
    asked = os.environ.get("MUJOCO_GL")
    reasons = []
    for renderer in dict.fromkeys(((asked,) if asked else ()) + RENDERERS):
        command = [sys.executable, "-m", "ppo_fast.video", str(checkpoint), str(target), str(seed)]
        try:
            child = subprocess.run(
                command, env={**os.environ, "MUJOCO_GL": renderer}, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            reasons.append(f"{renderer}: no answer in {TIMEOUT_S} s")
            continue
        if child.returncode == 0:
            return target
        last = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        reasons.append(f"{renderer}: {last[0]}")
        log.info("renderer %s failed:\n%s", renderer, child.stderr)
    raise BackendError(
        f"no video, since no renderer works here ({'; '.join(reasons)}). On Debian or Ubuntu: apt-get install libegl1 "
        "libosmesa6"
    )


def render(checkpoint: Path, target: Path, seed: int) -> None:
    """Render in this process; MUJOCO_GL says with what."""
    import gymnasium
    import imageio_ffmpeg
    import numpy as np

    from ppo_fast.evaluation import load_policy
    from ppo_fast.kernels import env_seeds

    policy = load_policy(checkpoint)
    env = gymnasium.make(policy.spec.env_id, render_mode="rgb_array")
    tmp = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        obs, _ = env.reset(seed=int(env_seeds(seed, 0, 1, purpose=1)[0]))
        frame = np.asarray(env.render())
        height, width = frame.shape[:2]
        writer = imageio_ffmpeg.write_frames(
            str(tmp), (width, height), fps=env.metadata["render_fps"], macro_block_size=2, output_params=["-f", "mp4"]
        )
        writer.send(None)
        for _ in range(MAX_STEPS):
            writer.send(np.ascontiguousarray(frame))
            obs, _, terminated, truncated, _ = env.step(policy(obs))
            if terminated or truncated:
                break
            frame = np.asarray(env.render())
        writer.close()
        os.replace(tmp, target)
    finally:
        tmp.unlink(missing_ok=True)
        env.close()


if __name__ == "__main__":
    render(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
