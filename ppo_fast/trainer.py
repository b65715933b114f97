"""The training loop: rollout, advantage, update, and the bookkeeping around them."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ppo_fast import checkpoint, envs, kernels, sinks
from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.distributed import Peers, connect
from ppo_fast.errors import LostError, NonFiniteError
from ppo_fast.evaluation import EpisodeStats, Policy, spec_to_json
from ppo_fast.examiner import Examiner
from ppo_fast.metrics import explained_variance
from ppo_fast.parts import make_parts, make_worker_at
from ppo_fast.rollout import check_advantages, choose_actor
from ppo_fast.run_dir import RunDir
from ppo_fast.run_info import describe, differences, facts, numerics, require_alike, require_alike_ways
from ppo_fast.saver import Saver
from ppo_fast.schedule import Schedule
from ppo_fast.sinks import Metrics, Sink, Sinks
from ppo_fast.state import TrainState
from ppo_fast.system import choose_device
from ppo_fast.timing import PhaseTimer

log = logging.getLogger(__name__)

MAX_ROLLBACKS = 3


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind: finished, or stopped by :meth:`Trainer.stop`."""

    policy: Policy
    state: TrainState
    final: EpisodeStats | None  # None if stopped
    run_dir: Path
    stopped: str = ""  # by what


class Trainer:
    """Train a policy as ``cfg`` says. Nothing is written before :meth:`run`.

    Args:
        cfg: the resolved options.
        callbacks: hear of every row beside the files and what ``cfg.log`` names; see :class:`ppo_fast.Callback`.
        started: ``time.perf_counter()`` when the program began, for ``startup_s``.
        peers: the processes that train together; None: those among which this one was started.

    Raises:
        ConfigError, EnvError, BackendError, CheckpointError: whatever can be known before the first step.
    """

    def __init__(
        self,
        cfg: Config,
        callbacks: Sequence[Sink] = (),
        *,
        started: float | None = None,
        peers: Peers | None = None,
    ) -> None:
        self.cfg = cfg
        self._started = time.perf_counter() if started is None else started
        self.peers = connect() if peers is None else peers
        require_alike(cfg, self.peers)
        with self.peers.together():
            if cfg.kernels is not None:
                kernels.use(cfg.kernels)
            kernels.active()  # a backend that cannot be had shows now
            self.device = choose_device(cfg.device, self.peers)
            torch.set_num_threads(cfg.torch_threads)
            self.spec = envs.spec(cfg.env, cfg.env_backend, cfg.env_kwargs)
        self.run_dir, saved = RunDir.open(cfg, self.peers)
        try:
            self._make(saved, callbacks)
        except BaseException:
            self.run_dir.release()
            raise

    def _make(self, saved: checkpoint.Checkpoint | None, callbacks: Sequence[Sink]) -> None:
        cfg = self.cfg
        with self.peers.together():  # of which the first writes for all
            files = [] if self.peers.rank else [self.run_dir.jsonl(), *sinks.make(cfg.log, self.run_dir.path)]
        self.sinks = Sinks([*files, *callbacks])
        self.parts, why_learner = make_parts(cfg, self.spec, self.device, self.peers, saved)
        self.model, self.learner, self.state = self.parts.model, self.parts.learner, self.parts.state
        self.normalizer, self.scaler = self.parts.normalizer, self.parts.scaler
        with self.peers.together():
            self.actor, why_actor = choose_actor(cfg, self.model, self.device)
            self.info = describe(cfg, self.device, self.parts, why_learner, self.actor, why_actor)
        self.info["env_spec"] = spec_to_json(self.spec)
        require_alike_ways(self.info, self.peers)
        self.timer = PhaseTimer()
        self.examiner = Examiner(cfg, self.spec, self.parts)
        self.saver = Saver(self.run_dir.checkpoints, cfg, self.parts, facts(self.info), self.timer, self.sinks.sync)
        self.final: EpisodeStats | None = None
        self._stop = ""
        self.can_stop = False  # true once there is something that a stop could save
        if saved is not None:
            self._restore(saved)

    # --- the loop ----------------------------------------------------------------------------------------------------
    def run(self) -> RunResult:
        """Alternate rollout and update until ``total_timesteps`` real env steps have been taken, or :meth:`stop`.

        Raises:
            NonFiniteError: NaN or infinity in an action, a reward, an observation, an advantage, a loss or a parameter;
                ``nonfinite.json`` in the run directory tells where, and no statistic has taken it in.
            LostError: the last checkpoint could not be written.
        """
        cfg, state, timer = self.cfg, self.state, self.timer
        with contextlib.ExitStack() as stack:
            stack.callback(self.run_dir.release)
            stack.callback(self.sinks.close)
            self._make_worker()
            stack.callback(lambda: self.worker.env.close())
            self._begin()
            while self.schedule.is_ahead or (state.env_steps < cfg.total_timesteps and not self._stopped()):
                try:
                    if state.env_steps == 0:
                        self._warm_up()
                    self.learner.set_progress(state.env_steps / cfg.total_timesteps, state.lr_scale)
                    with timer("rollout"), self.peers.together():
                        rollout = self.schedule.rollout()  # under a frozen policy and frozen statistics
                    with timer("advantage"):
                        self.scaler.update(rollout.rewards, rollout.done, rollout.valid)
                        self.scaler.scale(rollout.rewards, out=rollout.scaled_rewards)
                        kernels.gae(
                            rollout.scaled_rewards, rollout.values, rollout.next_values, rollout.terminated,
                            rollout.done, gamma=cfg.gamma, gae_lambda=cfg.gae_lambda,
                            out=(rollout.advantages, rollout.returns),
                        )  # fmt: skip
                        with self.peers.together():
                            check_advantages(rollout, self.schedule.steps_done)
                    due = self._stop or self.saver.something_due(state.env_steps + rollout.num_valid)
                    ahead = cfg.overlap == "learner" and not due  # an evaluation and a checkpoint find nothing ahead
                    self._advance(rollout, self.schedule.learn(rollout, ahead=ahead))
                    self._between()
                except NonFiniteError as err:
                    self._roll_back(err)
            return self._finish()

    def stop(self, why: str) -> None:
        """Have :meth:`run` save and return at the next boundary of two iterations; may be called from a signal handler.

        Args:
            why: for :class:`RunResult`, not empty.
        """
        self._stop = why

    def _stopped(self) -> str:
        """Return by what the run is stopped, the same in all processes, whichever was told; empty if it is not."""
        return self.peers.agreed(self._stop)

    def _make_worker(self) -> None:
        """Make the environments, and bring them to where the run goes on."""
        self.worker, replay = make_worker_at(self.parts, self.cfg, self.actor, self.device, self.timer)
        self.schedule = Schedule(self.worker, self.learner, self.timer)
        if "taken_up" in self.info:
            self.info["taken_up"] |= replay

    def _begin(self) -> None:
        """Start the clock; a run that is taken up does first what it owes."""
        self.run_dir.create(self.cfg, self.info)
        self.sinks.start(self.cfg.to_dict(), self.info)
        # The clock counts compilation, which the learner has done before the first step; so start-up does not.
        self._startup_s = time.perf_counter() - self._started - self.learner.compile_s
        self._clock = time.perf_counter() - self.state.wall_s - self.learner.compile_s
        self._row_started = time.perf_counter() - self.learner.compile_s
        self.can_stop = True
        if self.state.env_steps:
            self._between()

    def _warm_up(self) -> None:
        """Give the statistics a rollout that is not learned from."""
        with self.peers.together():
            rollout = self.worker.collect(self.learner.flat)
        self.normalizer.update(rollout.obs[:-1], rollout.valid)
        self.scaler.update(rollout.rewards, rollout.done, rollout.valid)
        self.parts.count(rollout, self.worker.steps_done)

    def _advance(self, rollout: Rollout, learned: dict[str, float]) -> None:
        """Count the iteration, and log one row."""
        bad = [name for name, value in learned.items() if not math.isfinite(value)]
        if bad or not self.learner.is_finite():
            raise NonFiniteError(f"the update made {', '.join(bad) or 'the parameters'} non-finite")
        before = self.state.env_steps if self.state.iteration else 0
        finished = self.parts.count(rollout, self.schedule.steps_done)
        self.state.iteration += 1
        self.parts.require_equal()
        now = time.perf_counter()
        self.state.wall_s = now - self._clock
        row: Metrics = {
            "iteration": self.state.iteration,
            "env_steps": self.state.env_steps,
            "wall_s": round(self.state.wall_s, 6),
            "sps": round((self.state.env_steps - before) / (now - self._row_started), 3),
            **self.parts.episode_means(),
            "episodes": finished,
            **learned,
            "explained_var": explained_variance(rollout, self.peers),
        }
        if self.state.iteration == 1:
            row["startup_s"] = round(self._startup_s, 3)
        self._row_started = now
        seconds = self.timer.take()
        seconds.pop("rollout", None)  # its parts, physics and act, are counted
        row |= {f"time/{phase}": round(value, 6) for phase, value in seconds.items()}
        self.sinks.log(row)

    # --- between two iterations --------------------------------------------------------------------------------------
    def _between(self) -> None:
        """Evaluate and save if it is time; the evaluation comes first, so that no checkpoint owes one."""
        state, best = self.state, (self.state.best_return, self.state.best_step)
        improved = self.saver.due(self.cfg.eval_every, state.evaluated_at) and self._evaluate()
        if not self.saver.save_if_due(self.worker.buffers.obs[-1], also=improved):
            state.best_return, state.best_step = best

    def _finish(self) -> RunResult:
        state, unsaved = self.state, ""
        if state.env_steps and not self.saver.is_saved():
            unsaved = self.saver.save_last(self.worker.buffers.obs[-1])
        self.final = None
        known = state.evaluated_at
        # Saved once more if the evaluation is news, of which a run that is made longer must know.
        if not self._stopped() and (self._evaluate() or unsaved or state.evaluated_at != known):
            unsaved = self.saver.save_last(self.worker.buffers.obs[-1])
        stopped = "" if self.final else self._stopped()  # after the last evaluation a signal stops nothing any more
        if not stopped:
            self.run_dir.draw()
        if unsaved:
            raise LostError(f"{unsaved}; the end of the run is not saved")
        return RunResult(self.policy(), state, self.final, self.run_dir.path, stopped)

    def _roll_back(self, error: NonFiniteError) -> None:
        """Go back to the newest good checkpoint at half the learning rate, or raise ``error``."""
        state, done, scale = self.state, self.state.rollbacks, self.state.lr_scale
        self._report(error)
        may = self.cfg.on_nan == "rollback" and done < MAX_ROLLBACKS
        if not may or (saved := self.run_dir.newest()) is None:
            self.run_dir.report()
            raise error
        self.worker.env.close()
        self._restore(saved)
        state.rollbacks, state.lr_scale = done + 1, scale / 2
        log.warning(
            "rolled back to step %d at %g of the learning rate, rollback %d of %d: %s",
            state.env_steps, state.lr_scale, state.rollbacks, MAX_ROLLBACKS, error,
        )  # fmt: skip
        self.sinks.rewind(state.env_steps)
        self._make_worker()
        self.saver.save_if_due(self.worker.buffers.obs[-1], also=True)  # else a kill would forget the rollback

    def _report(self, error: NonFiniteError) -> None:
        self.run_dir.report_nonfinite(error, self.state, self.schedule.subject, self.parts.arrays())

    # --- what the loop calls -----------------------------------------------------------------------------------------
    def policy(self) -> Policy:
        """Return a copy of the current policy with its normaliser."""
        return self.examiner.policy()

    def _evaluate(self) -> bool:
        """Evaluate on other environments, with the run's clock standing still; return whether it is the best yet.

        A stop breaks it off, and the run that is taken up makes it again.
        """
        start, state = time.perf_counter(), self.state
        try:
            stats = self.examiner.examine(lambda: bool(self._stop))
        except NonFiniteError as err:
            self._report(err)
            raise
        if stats is None:
            return False
        self.final, state.evaluated_at = stats, state.env_steps
        record = {"env_steps": state.env_steps, "wall_s": round(state.wall_s, 6), **stats.to_json()}
        self.sinks.evaluation(record)
        paused = time.perf_counter() - start
        self._clock += paused
        self._row_started += paused
        return state.mark_best(stats.mean)

    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        """Take up a checkpoint; the environments follow when the worker is made."""
        self.parts.load(saved, self.cfg)
        self.info["resumed_at"] = self.state.env_steps
        self.info["taken_up"] = {
            "why_restarted": self.parts.why_restarted,
            "differs": differences(saved.state, numerics(self.info), self.cfg),
        }
