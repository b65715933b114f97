"""``python -m ppo_fast.reference``: train with the readable PPO, and print what it learns."""

from __future__ import annotations

import sys
from typing import Any

import torch
import tyro

from .ppo import PPO, Settings


def main() -> int:
    """Parse the options, train, evaluate."""
    settings = tyro.cli(Settings, prog="python -m ppo_fast.reference", description=PPO.__doc__)
    batch = settings.num_envs * settings.num_steps
    if batch % settings.minibatch_size:
        print(
            f"ppo_fast.reference: error: minibatch_size must divide num_envs * num_steps = {batch}, "
            f"got {settings.minibatch_size}",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(1)
    ppo = PPO(settings)

    def report(row: dict[str, Any]) -> None:
        shown = "-" if row["episode_return"] is None else f"{row['episode_return']:.1f}"
        sps = row["env_steps"] / row["wall_s"]
        line = f"{row['env_steps']:>10,} steps  {sps:>7,.0f} SPS  return {shown:>8}  KL {row['approx_kl']:.4f}"
        print(line, flush=True)

    ppo.run(report)
    returns = ppo.evaluate()
    print(f"evaluation over {len(returns)} episodes: {returns.mean():.1f} +- {returns.std():.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
