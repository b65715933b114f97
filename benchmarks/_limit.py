"""The limit: what training could reach if its arithmetic ran at the peak of all CPUs and nothing else took time.

    limit = 1 / (1 / ceiling + FLOPs per env step / (CPUs · peak FLOP/s of one core))

Only multiplications of rows with weights count, two FLOPs for a multiply-add, without the padding of a vector's width.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ppo_fast.config import Config
from ppo_fast.models import ActorCritic


@dataclass(frozen=True)
class Flops:
    """Of one row through actor and critic."""

    forward: int
    backward: int  # the gradient by the weights, and by the inputs of all layers but the first


def count(
    obs_dim: int, head_dim: int, hidden_sizes: tuple[int, ...] = (64, 64), *, shared_trunk: bool = False
) -> Flops:
    """Count from the layer sizes; ``head_dim`` is the actor's output, and the critic has one.

    An affine layer from n to m takes 2nm forward, 2nm for its weights' gradient and 2nm for its input's.
    """
    trunk = (obs_dim, *hidden_sizes)
    first = obs_dim * hidden_sizes[0]
    inner = sum(n * m for n, m in itertools.pairwise(hidden_sizes))
    heads = trunk[-1] * (head_dim + 1)
    trunks = 1 if shared_trunk else 2
    forward = 2 * (trunks * (first + inner) + heads)
    return Flops(forward, forward + 2 * (trunks * inner + heads))


@dataclass(frozen=True)
class Work:
    """The arithmetic of one env step, and by what it is done."""

    acting: int  # FLOPs
    learning: int = 0
    threads: int = 1  # of the learner
    simd: str = ""  # level of the learner; empty: the best there is

    def limit(self, ceiling: float, cpus: int, peak: float) -> float:
        """Return the limit in env steps per second; ``peak`` is of one core, at the best level."""
        return 1.0 / (1.0 / ceiling + (self.acting + self.learning) / (cpus * peak))

    def of_peak(self, env_steps: int, seconds: float, peak: float) -> float:
        """Return what the learner's FLOP/s were of the peak of its threads; ``peak`` is of one core, at its level."""
        return self.learning * env_steps / seconds / (self.threads * peak)


def work(model: ActorCritic, cfg: Config, *, threads: int = 1, simd: str | None = None) -> Work:
    """Return the work of training: a forward pass to act, and ``update_epochs`` passes both ways to learn."""
    flops = count(model.obs_dim, model.head_dim, model.hidden_sizes, shared_trunk=model.shared_trunk)
    return Work(flops.forward, cfg.update_epochs * (flops.forward + flops.backward), threads, simd or "")
