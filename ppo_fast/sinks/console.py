"""Progress in the terminal: one line that stays current on a TTY, plain lines every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ppo_fast.sinks import Metrics

_PLAIN_EVERY_S = 5.0


class ConsoleSink:
    """Show steps, share done, ETA, SPS, where the time goes, and returns.

    Args:
        total_timesteps: 100 %.
        write: prints one line.
        status: replaces the current status line on a TTY; None elsewhere.
    """

    def __init__(
        self, total_timesteps: int, write: Callable[[str], None], status: Callable[[str], None] | None
    ) -> None:
        self._total, self._write, self._status = total_timesteps, write, status
        self._shown = 0.0
        self._from: tuple[int, float] | None = None

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        """Say what taking up the run has cost; the command prints the banner."""
        if replay := (info.get("taken_up") or {}).get("seconds") is not None and info["taken_up"]:
            self._write(
                f"environments replayed: {replay['resets']:,} resets and {replay['steps']:,} steps in "
                f"{replay['seconds']:.1f} s"
            )

    def log(self, metrics: Metrics) -> None:
        """Show one iteration, at most every few seconds when lines are kept."""
        now = time.monotonic()
        done = int(metrics["env_steps"] or 0) >= self._total
        if self._status is None and not done and now - self._shown < _PLAIN_EVERY_S:
            return
        self._shown = now
        line = self.line(metrics)
        if self._status is None or done:
            self._write(line)
        else:
            self._status(line)

    def line(self, metrics: Metrics) -> str:
        """Return the progress line of one iteration."""
        steps, wall = int(metrics["env_steps"] or 0), float(metrics["wall_s"] or 0.0)
        if self._from is None:  # the first row holds the compilation, which says nothing of the time to come
            self._from = (steps, wall)
        rate = (steps - self._from[0]) / max(wall - self._from[1], 1e-9)
        eta = clock(max(self._total - steps, 0) / rate) if rate > 0 else "-"
        phases = {k.removeprefix("time/"): float(v or 0.0) for k, v in metrics.items() if k.startswith("time/")}
        whole = sum(phases.values()) or 1.0
        shares = " ".join(f"{name} {100 * phases.get(name, 0.0) / whole:.0f}%" for name in ("physics", "act", "update"))
        episode_return = metrics["episode_return"]
        shown = "-" if episode_return is None else f"{episode_return:.0f}"
        return (
            f"{steps:>11,} steps {100 * min(steps / self._total, 1):5.1f}%  ETA {eta}  "
            f"{metrics['sps']:>7,.0f} SPS  return {shown:>6}  {shares}  KL {metrics['approx_kl']:.4f}"
        )

    def evaluation(self, record: dict[str, Any]) -> None:
        """Show an evaluation; this line stays."""
        returns = np.array(record["returns"])
        std = returns.std(ddof=1) if len(returns) > 1 else 0.0
        self._write(
            f"{record['env_steps']:>11,} steps  evaluation over {len(returns)} episodes: "
            f"mean {returns.mean():.1f}, std {std:.1f}, min {returns.min():.1f}, max {returns.max():.1f}"
        )

    def close(self) -> None:
        """Nothing to free."""


def clock(seconds: float) -> str:
    """Return ``m:ss`` or ``h:mm:ss``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
