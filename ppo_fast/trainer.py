"""The training loop: rollout, advantage, update, and the bookkeeping around them."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppo_fast import checkpoint, envs, kernels, sinks
from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.envs.episodes import EpisodeTracker
from ppo_fast.errors import CheckpointError, NonFiniteError, PPOFastError
from ppo_fast.evaluation import EVALUATION, EpisodeStats, Policy, evaluate, spec_to_json
from ppo_fast.learners.choose import make_learner
from ppo_fast.native import simd_level
from ppo_fast.normalizers import ObsNormalizer, RewardScaler
from ppo_fast.rollout import choose_actor, make_worker
from ppo_fast.run_dir import RunDir
from ppo_fast.sinks import Metrics, Sink, Sinks
from ppo_fast.state import TrainState, make_model, pack, pack_policy, unpack, unpack_arrays, unpack_policy
from ppo_fast.system import build_info, choose_device
from ppo_fast.timing import PhaseTimer

log = logging.getLogger(__name__)

RETURN_WINDOW = 100  # episodes behind `episode_return`, as in the benchmarks of CleanRL and rl_games


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves behind."""

    policy: Policy
    state: TrainState
    final: EpisodeStats
    run_dir: Path


class Trainer:
    """Train a policy as ``cfg`` says. Nothing is written before :meth:`run`.

    Args:
        cfg: the resolved options.
        extra_sinks: receive every row beside the files and what ``cfg.log`` names.
        started: ``time.perf_counter()`` when the program began, for ``startup_s``.

    Raises:
        ConfigError, EnvError, BackendError, CheckpointError: whatever can be known before the first step.
    """

    def __init__(self, cfg: Config, extra_sinks: Sequence[Sink] = (), *, started: float | None = None) -> None:
        self.cfg = cfg
        self._started = time.perf_counter() if started is None else started
        if cfg.kernels is not None:
            kernels.use(cfg.kernels)
        kernels.active()  # a backend that cannot be had shows now
        self.device = choose_device(cfg.device)
        torch.set_num_threads(cfg.torch_threads)
        self.spec = envs.spec(cfg.env, cfg.env_backend)
        self.run_dir, saved = RunDir.open(cfg)
        self.sinks = Sinks([self.run_dir.jsonl(), *sinks.make(cfg.log, self.run_dir.path), *extra_sinks])

        self.model = make_model(cfg, self.spec)
        self.normalizer = ObsNormalizer(self.spec.obs_dim, clip=cfg.clip_obs, enabled=cfg.norm_obs)
        self.scaler = RewardScaler(cfg.num_envs, gamma=cfg.gamma, clip=cfg.clip_reward, enabled=cfg.norm_reward)
        self.learner, self.why_learner = make_learner(
            self.model, self.model.init(cfg.seed, cfg.log_std_init), cfg, self.device
        )
        self.actor, self.why_actor = choose_actor(cfg, self.model, self.device)
        self.state = TrainState()
        self.timer = PhaseTimer()
        self.episodes = EpisodeTracker(cfg.num_envs)
        self._recent: deque[tuple[float, int]] = deque(maxlen=RETURN_WINDOW)
        if saved is not None:
            self._restore(saved)
        self._marks = {"eval": self.state.env_steps, "checkpoint": self.state.env_steps}
        self.info = self._describe()
        self.final: EpisodeStats | None = None

    # --- the loop ----------------------------------------------------------------------------------------------------
    def run(self) -> RunResult:
        """Alternate rollout and update until ``total_timesteps`` real env steps have been taken.

        Raises:
            NonFiniteError: NaN or infinity in an action, a reward, an observation or a loss; ``nonfinite.json`` in the
                run directory tells where, and no statistic has taken it in.
        """
        cfg, state, timer = self.cfg, self.state, self.timer
        # The environments of a resumed run start elsewhere than those that the run began with.
        purpose = state.iteration + EVALUATION if state.iteration else 0
        self.worker = make_worker(cfg, self.actor, self.model, self.normalizer, self.device, timer, purpose=purpose)
        try:
            self.run_dir.create(cfg, self.info)
            self.sinks.start(cfg.to_dict(), self.info)
            self._begin()
            while state.env_steps < cfg.total_timesteps:
                self.learner.set_progress(state.env_steps / cfg.total_timesteps)
                with timer("rollout"):
                    rollout = self.worker.collect(self.learner.flat)  # the policy and the statistics are frozen
                with timer("advantage"):
                    self.scaler.update(rollout.rewards, rollout.done, rollout.valid)
                    self.scaler.scale(rollout.rewards, out=rollout.scaled_rewards)
                    kernels.gae(
                        rollout.scaled_rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.done,
                        gamma=cfg.gamma, gae_lambda=cfg.gae_lambda, out=(rollout.advantages, rollout.returns),
                    )  # fmt: skip
                with timer("update"):
                    learned = self.learner.update(rollout)
                    self.normalizer.update(rollout.obs[:-1], rollout.valid)
                self._advance(rollout, learned)
                if self._due("checkpoint", cfg.checkpoint_every):
                    with timer("checkpoint"):
                        self.save()
                if self._due("eval", cfg.eval_every):
                    self.evaluate()
            return self._finish()
        except NonFiniteError as err:
            self.run_dir.report_nonfinite(err, self.state, self.worker.buffers)
            raise
        finally:
            self.worker.env.close()
            self.sinks.close()

    def _begin(self) -> None:
        """Start the clock; on a fresh start, give the statistics a rollout that is not learned from."""
        self.worker.steps_done = self.state.worker_steps
        # The clock counts compilation, which the learner has done before the first step; so start-up does not.
        self._startup_s = time.perf_counter() - self._started - self.learner.compile_s
        self._clock = time.perf_counter() - self.state.wall_s - self.learner.compile_s
        self._row_started = time.perf_counter() - self.learner.compile_s
        if self.state.env_steps == 0:
            rollout = self.worker.collect(self.learner.flat)
            self.normalizer.update(rollout.obs[:-1], rollout.valid)
            self.scaler.update(rollout.rewards, rollout.done, rollout.valid)
            self._count(rollout)

    def _count(self, rollout: Rollout) -> int:
        returns, lengths = self.episodes.update(rollout.rewards, rollout.done, rollout.valid)
        self._recent.extend(zip(returns.tolist(), lengths.tolist(), strict=True))
        self.state.env_steps += rollout.num_valid
        self.state.worker_steps = self.worker.steps_done
        return len(returns)

    def _advance(self, rollout: Rollout, learned: dict[str, float]) -> None:
        """Count the iteration, and log one row."""
        bad = [name for name, value in learned.items() if not math.isfinite(value)]
        if bad or not self.learner.is_finite():
            raise NonFiniteError(f"the update made {', '.join(bad) or 'the parameters'} non-finite")
        before = self.state.env_steps if self.state.iteration else 0
        finished = self._count(rollout)
        self.state.iteration += 1
        now = time.perf_counter()
        self.state.wall_s = now - self._clock
        row: Metrics = {
            "iteration": self.state.iteration,
            "env_steps": self.state.env_steps,
            "wall_s": round(self.state.wall_s, 6),
            "sps": round((self.state.env_steps - before) / (now - self._row_started), 3),
            "episode_return": float(np.mean([r for r, _ in self._recent])) if self._recent else None,
            "episode_length": float(np.mean([n for _, n in self._recent])) if self._recent else None,
            "episodes": finished,
            **learned,
            "explained_var": explained_variance(rollout),
        }
        if self.state.iteration == 1:
            row["startup_s"] = round(self._startup_s, 3)
        self._row_started = now
        seconds = self.timer.take()
        seconds.pop("rollout", None)  # its parts, physics and act, are counted
        row |= {f"time/{phase}": round(value, 6) for phase, value in seconds.items()}
        self.sinks.log(row)

    def _due(self, what: str, every: int) -> bool:
        """Return whether ``every`` env steps have passed since the last time; the end has its own."""
        steps = self.state.env_steps
        if not every or steps >= self.cfg.total_timesteps or steps // every == self._marks[what] // every:
            return False
        self._marks[what] = steps
        return True

    def _finish(self) -> RunResult:
        if not checkpoint.path_of(self.run_dir.checkpoints, self.state.env_steps).exists():  # a finished run, resumed
            self.save()
        self.final = self.evaluate()
        self.run_dir.draw()
        return RunResult(self.policy(), self.state, self.final, self.run_dir.path)

    # --- what the loop calls -----------------------------------------------------------------------------------------
    def policy(self) -> Policy:
        """Return a copy of the current policy with its normaliser."""
        frozen = ObsNormalizer(self.spec.obs_dim, clip=self.cfg.clip_obs, enabled=self.cfg.norm_obs)
        frozen.moments.load(self.normalizer.moments.state())
        frozen.freeze()
        return Policy(self.model, self.learner.flat, frozen, self.spec)

    def evaluate(self) -> EpisodeStats:
        """Evaluate the current policy on environments of its own; the run's clock stands still meanwhile."""
        start = time.perf_counter()
        cfg = self.cfg
        stats = evaluate(
            self.policy(), cfg.env, episodes=cfg.eval_episodes, seed=cfg.seed, backend=cfg.env_backend,
            num_threads=cfg.env_threads,
        )  # fmt: skip
        record = {
            "env_steps": self.state.env_steps,
            "wall_s": round(self.state.wall_s, 6),
            "returns": stats.returns.tolist(),
            "lengths": stats.lengths.tolist(),
        }
        self.sinks.evaluation(record)
        paused = time.perf_counter() - start
        self._clock += paused
        self._row_started += paused
        return stats

    def save(self) -> Path:
        """Write a checkpoint of everything but the simulators' states, atomically."""
        return checkpoint.save(
            self.run_dir.checkpoints,
            self.state.env_steps,
            model=pack_policy(self.model, self.learner.flat, self.normalizer),
            train=pack(
                learner=self.learner.state(), reward_scaler=self.scaler.state(), episodes=self.episodes.state_dict()
            ),
            state={
                **vars(self.state),
                "recent_episodes": list(self._recent),
                "config": self.cfg.to_dict(),
                "env_spec": spec_to_json(self.spec),
                "versions": self.info["versions"],
            },
            keep=self.cfg.keep_checkpoints,
        )

    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        """Take up a checkpoint; the simulators start new episodes, so this is no bit-exact continuation."""
        try:
            self.learner.flat.copy_(unpack_policy(saved.model, self.model, self.normalizer))
            self.learner.load(unpack(saved.train, "learner"))
            self.scaler.load(unpack_arrays(saved.train, "reward_scaler"))
            self._recent.extend((float(r), int(n)) for r, n in saved.state["recent_episodes"])
            self.state = TrainState(**{name: saved.state[name] for name in vars(TrainState())})
        except PPOFastError as err:
            raise CheckpointError(f"{saved.path} does not fit this run: {err}") from err
        except (KeyError, TypeError, ValueError, RuntimeError) as err:
            raise CheckpointError(f"{saved.path} does not fit this version: {err}") from err

    def _describe(self) -> dict[str, Any]:
        cfg = self.cfg
        backend, reason = envs.resolve_backend(cfg.env, cfg.env_backend)
        workers = envs.workers(backend, cfg.num_envs, num_threads=cfg.env_threads, vectorization=cfg.vectorization)
        native = self.actor == "native"
        mode = envs.stream_mode(backend, cfg.num_envs, num_threads=workers) if native else "synchronous"
        return {
            **build_info(),
            "env_backend": {"name": backend, "reason": reason, "workers": workers, "mode": mode},
            "device": {"asked": self.cfg.device, "got": str(self.device)},
            "actor": {"name": self.actor, "reason": self.why_actor, "simd": simd_level() if native else None},
            "learner": {
                "name": self.learner.name,
                "reason": self.why_learner,
                "simd": self.learner.simd,
                "threads": self.learner.threads,
            },
            "update": {"mode": self.learner.mode, "why_eager": self.learner.why_eager},
            "torch_threads": torch.get_num_threads(),
            "num_params": self.model.num_params,
            "resumed_at": self.state.env_steps or None,
        }


def explained_variance(rollout: Rollout) -> float | None:
    """Return ``1 − Var(R − V) / Var(R)`` over the valid rows; None where the returns do not vary."""
    returns = rollout.returns[rollout.valid].astype(np.float64)
    values = rollout.values[rollout.valid].astype(np.float64)
    variance = returns.var() if returns.size else 0.0
    return float(1.0 - (returns - values).var() / variance) if variance > 0 else None
