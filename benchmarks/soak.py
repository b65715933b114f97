"""Train for a long time and see that nothing grows, leaks or slows down.

python -m benchmarks.soak --minutes 60 --out FILE.json

The policy is frozen by a learning rate of next to nothing, so that the physics costs the same at any time; everything
else runs as in a training: updates, evaluations, checkpoints, rows, TensorBoard. Every 15 seconds training pauses for a
second in which EnvPool alone steps random actions, so that a machine that slows down is not taken for us. Passes if,
after a tenth of the time: resident memory grows by less than 1 %, the numbers of threads and of open files stay the
same, and CPU time per env step, over that of EnvPool alone, drifts by less than 5 % from the first third to the last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppo_fast import Trainer, envs, resolve

EVERY_S, CEILING_S = 15.0, 1.0


@dataclass
class Sample:
    """What was seen at one time."""

    seconds: float
    env_steps: int
    rss_mib: float
    threads: int
    files: int
    training_us: float  # CPU time per env step, all threads
    envpool_us: float  # the same of EnvPool alone


class Ceiling:
    """EnvPool alone under random actions."""

    def __init__(self, env_id: str, num_envs: int) -> None:
        self.env = envs.make(env_id, num_envs, seed=1, backend="envpool", purpose=1)
        n = num_envs
        self._obs, self._rewards = np.zeros((n, self.env.spec.obs_dim), np.float32), np.zeros(n, np.float32)
        self._flags = [np.zeros(n, np.bool_) for _ in range(3)]
        shape = (64, n, self.env.spec.act_dim)
        self._actions = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
        self.env.reset(self._obs)

    def cpu_us_per_step(self, seconds: float) -> float:
        """Step for so long; return the CPU time that an env step took."""
        start, cpu, steps = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            for actions in self._actions:
                self.env.step(actions, self._obs, self._rewards, *self._flags)
            steps += self._actions.shape[0] * self.env.num_envs
        return 1e6 * (time.process_time() - cpu) / steps


class Watch:
    """A sink that takes a sample now and then, and stops the trainer when the time is up."""

    def __init__(self, ceiling: Ceiling, minutes: float) -> None:
        self.ceiling, self.seconds = ceiling, 60 * minutes
        self.samples: list[Sample] = []
        self.trainer: Trainer

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        """Begin to count."""
        self.began = time.perf_counter()
        self._mark(0)

    def _mark(self, steps: int) -> None:
        self._since, self._cpu, self._steps = time.perf_counter(), time.process_time(), steps

    def log(self, row: dict[str, Any]) -> None:
        """Take a sample if it is time."""
        now = time.perf_counter()
        if now - self._since < EVERY_S:
            return
        steps = int(row["env_steps"])
        training = 1e6 * (time.process_time() - self._cpu) / (steps - self._steps)
        status = Path("/proc/self/status").read_text().split("\n")
        facts = dict(line.split(":\t", 1) for line in status if ":\t" in line)
        sample = Sample(
            round(now - self.began, 1),
            steps,
            int(facts["VmRSS"].split()[0]) / 1024,
            int(facts["Threads"]),
            len(os.listdir("/proc/self/fd")),
            training,
            self.ceiling.cpu_us_per_step(CEILING_S),
        )
        self.samples.append(sample)
        print(" ".join(f"{name} {value:,.6g}" for name, value in asdict(sample).items()), flush=True)
        if now - self.began > self.seconds:
            self.trainer.stop("the time is up")
        self._mark(steps)

    def evaluation(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def verdict(samples: list[Sample]) -> tuple[dict[str, float], list[str]]:
    """Return the figures that count, and what is wrong with them."""
    warm = samples[max(1, len(samples) // 10) :]
    third = max(1, len(warm) // 3)

    def drift(of: Callable[[Sample], float]) -> float:
        """From the first third to the last."""
        return float(np.median([of(s) for s in warm[-third:]]) / np.median([of(s) for s in warm[:third]])) - 1.0

    figures = {
        "memory_growth": drift(lambda sample: sample.rss_mib),
        "cpu_drift": drift(lambda sample: sample.training_us / sample.envpool_us),
        "threads": len({s.threads for s in warm}),
        "files": len({s.files for s in warm}),
    }
    wrong = []
    if figures["memory_growth"] >= 0.01:
        wrong.append(f"resident memory grew by {figures['memory_growth']:.2%}")
    if abs(figures["cpu_drift"]) >= 0.05:
        wrong.append(f"CPU time per env step, over EnvPool's, drifted by {figures['cpu_drift']:+.2%}")
    wrong += [f"the number of {name} changed" for name in ("threads", "files") if figures[name] > 1]
    return figures, wrong


def main() -> int:
    """Soak, print, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cfg = resolve(
            env=args.env, run_dir=str(Path(folder) / "run"), total_timesteps=10**11, learning_rate=1e-12,
            anneal_lr=False, eval_every=500_000, eval_episodes=4, checkpoint_every=250_000, quiet=True,
        )  # fmt: skip
        ceiling = Ceiling(args.env, cfg.num_envs)
        with closing(ceiling.env):
            watch = Watch(ceiling, args.minutes)
            watch.trainer = Trainer(cfg, [watch])
            watch.trainer.run()
    figures, wrong = verdict(watch.samples)
    report = {
        "minutes": args.minutes,
        "config": cfg.to_dict() | {"run_dir": ""},
        "info": watch.trainer.info,
        "figures": figures,
        "wrong": wrong,
        "samples": [asdict(sample) for sample in watch.samples],
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(figures))
    print("; ".join(wrong) or "nothing grows, leaks or slows down")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
