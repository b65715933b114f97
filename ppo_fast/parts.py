"""What changes while a run goes on. All of it is in a checkpoint, so that a run which is taken up goes on to the bit.

Axes: N environments · D observation.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo_fast.batch import Rollout
from ppo_fast.checkpoint import Checkpoint
from ppo_fast.config import Config
from ppo_fast.distributed import ALONE, Peers
from ppo_fast.envs.base import EnvSpec
from ppo_fast.envs.episodes import EpisodeTracker
from ppo_fast.envs.exact import why_not_exact
from ppo_fast.envs.replay import EpisodeLog
from ppo_fast.errors import CheckpointError, PPOFastError
from ppo_fast.evaluation import EVALUATION
from ppo_fast.learners.base import Learner
from ppo_fast.learners.choose import make_learner
from ppo_fast.models import ActorCritic
from ppo_fast.normalizers import ObsNormalizer, RewardScaler
from ppo_fast.rollout import Worker, make_worker
from ppo_fast.state import TrainState, make_model, pack, pack_policy, unpack, unpack_arrays, unpack_policy
from ppo_fast.timing import PhaseTimer

log = logging.getLogger(__name__)

RETURN_WINDOW = 100  # episodes behind `episode_return`, as in the benchmarks of CleanRL and rl_games

# Options on which it depends what an environment does when it is replayed.
_ENVIRONMENT = ("seed", "num_envs")
_OWN = ("reward_scaler.discounted", "episodes.", "replay.")  # tensors of which each process has its own


@dataclass
class Parts:
    """The parts of a run, each of which knows its own state; ``log`` is None where environments cannot be replayed."""

    model: ActorCritic
    learner: Learner
    normalizer: ObsNormalizer
    scaler: RewardScaler
    episodes: EpisodeTracker
    recent: deque[tuple[float, int]]  # return and length of the last episodes
    state: TrainState
    log: EpisodeLog | None
    why_not_exact: str  # why there is no log
    obs_to_meet: NDArray[np.float32] | None = None  # (N, D) what the replay of the log must give; None for a reset
    why_restarted: str = ""  # why a run that was taken up starts new episodes
    peers: Peers = ALONE

    def count(self, rollout: Rollout, worker_steps: int) -> int:
        """Take in a rollout that has been learned from, or the warm-up, of every process.

        Returns:
            How many episodes ended in it.
        """
        returns, lengths = self.episodes.update(rollout.rewards, rollout.done, rollout.valid)
        own = np.concatenate([[rollout.num_valid], returns, lengths])  # float64, in which every count is exact
        all_own = [np.frombuffer(word) for word in self.peers.gather_bytes(own.tobytes())]
        returns = np.concatenate([each[1 : len(each) // 2 + 1] for each in all_own])
        lengths = np.concatenate([each[len(each) // 2 + 1 :] for each in all_own]).astype(np.int64)
        self.recent.extend(zip(returns.tolist(), lengths.tolist(), strict=True))
        if self.log is not None:
            self.log.add(rollout.actions, rollout.valid)
        self.state.env_steps += sum(int(each[0]) for each in all_own)
        self.state.worker_steps = worker_steps
        return len(returns)

    def episode_means(self) -> dict[str, float | None]:
        """Return mean return and length of the last episodes; None before the first has ended."""
        columns = zip(*self.recent, strict=True) if self.recent else (None, None)
        names = ("episode_return", "episode_length")
        return {n: None if c is None else float(np.mean(c)) for n, c in zip(names, columns, strict=True)}

    def pack(self, obs: NDArray[np.float32]) -> dict[str, Any]:
        """Return what :func:`ppo_fast.checkpoint.save` takes as ``model``, ``train`` and ``state``.

        Args:
            obs: (N, D) float32, the observations that the next rollout starts from.
        """
        replay = {} if self.log is None else {**self.log.state(), "obs": obs}
        train = pack(
            learner=self.learner.state(),
            reward_scaler=self.scaler.state(),
            episodes=self.episodes.state_dict(),
            replay=replay,
        )
        return {
            "model": pack_policy(self.model, self.learner.flat, self.normalizer),
            "train": {**train, **self._of_others(train)},
            "state": {**vars(self.state), "recent_episodes": list(self.recent), "world_size": self.peers.size},
        }

    def _of_others(self, train: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what only the other processes know, as ``rank1/name``; :meth:`pack` is called by all."""
        if self.peers.size == 1:
            return {}
        own = {name: tensor for name, tensor in train.items() if name.startswith(_OWN)}
        words = self.peers.gather_bytes(safetensors.torch.save(own) if self.peers.rank else b"")
        return {
            f"rank{rank}/{name}": tensor
            for rank, word in enumerate(words)
            if word
            for name, tensor in safetensors.torch.load(word).items()
        }

    def load(self, saved: Checkpoint, cfg: Config) -> None:
        """Take up a checkpoint; ``why_restarted`` says whether the environments can go on where they were.

        Args:
            saved: verified.
            cfg: the options under which the run goes on.

        Raises:
            CheckpointError: its parts are not those of this run.
        """
        with self.peers.together():
            self._load(saved, cfg)

    def _load(self, saved: Checkpoint, cfg: Config) -> None:
        train = saved.train
        if rank := self.peers.rank:  # the first process's own tensors go by their plain names
            shared = {name: tensor for name, tensor in train.items() if not name.startswith(_OWN)}
            train = shared | {
                name.removeprefix(f"rank{rank}/"): tensor
                for name, tensor in train.items()
                if name.startswith(f"rank{rank}/")
            }
        try:
            flat = unpack_policy(saved.model, self.model, self.normalizer)
            replay = unpack_arrays(train, "replay")
            self.why_restarted = self.why_not_exact or _why_restart(saved, cfg, replay, self.peers)
            self.learner.flat.copy_(flat)
            self.learner.load(unpack(train, "learner"))
            self.scaler.load(unpack_arrays(train, "reward_scaler"), running=not self.why_restarted)
            self.recent.clear()
            self.recent.extend((float(r), int(n)) for r, n in saved.state["recent_episodes"])
            if not all(math.isfinite(r) and 0 <= n < 2**53 for r, n in self.recent):
                raise ValueError("recent_episodes are no returns and lengths")
            self._load_state(saved.state)
            if self.why_restarted or self.log is None:
                self.restart_episodes()
            else:
                self.episodes.load_state_dict(unpack_arrays(train, "episodes"))
                self.log.load(replay)
                if self.log.resets.max() > self.state.worker_steps + 1:
                    raise ValueError("more resets than steps")
                self.obs_to_meet = np.asarray(replay["obs"], np.float32)
        except PPOFastError as err:
            raise CheckpointError(f"{saved.path} does not fit this run: {err}") from err
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as err:
            raise CheckpointError(f"{saved.path} does not fit this version: {err}") from err

    def restart_episodes(self) -> None:
        """Forget the running episodes: the environments are going to be others, with seeds of their own."""
        self.episodes.reset()
        self.scaler.reset()
        self.state.env_purpose = self.state.iteration + EVALUATION if self.state.env_steps else 0
        self.obs_to_meet = None
        if self.log is not None:
            self.log = EpisodeLog(self.log.resets.size, self.log.act_dim, self.log.max_episode_steps)

    def require_equal(self) -> None:
        """Have all processes compare parameters, optimizer and statistics.

        Raises:
            PeerError: they are not the same to the bit.
        """
        if self.peers.size > 1:
            shared = pack(
                own={"flat": self.learner.flat},
                learner=self.learner.state(),
                normalizer=self.normalizer.moments.state(),
                scaler=self.scaler.moments.state(),
            )
            data = b"".join(tensor.numpy().tobytes() for tensor in shared.values())
            self.peers.require_equal(f"parameters and statistics after iteration {self.state.iteration}", data)

    def arrays(self) -> dict[str, Tensor]:
        """Return the parameters by name, for a report."""
        return {name: tensor.detach().cpu() for name, tensor in self.model.unflatten(self.learner.flat).items()}

    def _load_state(self, values: dict[str, Any]) -> None:
        known = {f.name: values[f.name] for f in fields(TrainState) if f.name in values}
        if values["format_version"] == 1:  # it has only counters, and the schedules went by them
            known |= {"evaluated_at": values["env_steps"], "saved_at": values["env_steps"]}
        for name, value in known.items():
            default = getattr(TrainState, name)
            if value is None and default is None:
                continue
            is_float = name in ("wall_s", "best_return", "lr_scale")
            kind = isinstance(value, float) or type(value) is int if is_float else type(value) is int
            if not kind or not abs(value) < 2**53 or (value < 0 and name != "best_return"):  # NaN too
                raise ValueError(f"{name} is {value!r:.50}")
        if known.get("lr_scale", 1.0) == 0.0:
            raise ValueError("lr_scale is 0")
        vars(self.state).update(vars(TrainState(**known)))


def make_parts(
    cfg: Config, spec: EnvSpec, device: torch.device, peers: Peers = ALONE, saved: Checkpoint | None = None
) -> tuple[Parts, str]:
    """Make what a run of ``cfg`` begins with; return it, and why it has the learner that it has.

    Of a run that is taken up from ``saved``, ``--learner auto`` is what it was; all else waits for :meth:`Parts.load`.

    Raises:
        ConfigError, BackendError: the networks or the learner cannot be had.
    """
    with peers.together():
        model = make_model(cfg, spec)
        flat, before = model.init(cfg.seed, cfg.log_std_init), learner_of(saved)
        learner, why_learner = make_learner(model, flat, cfg, device, peers, begun_with=before)
        why_not = why_not_exact(spec, cfg.num_envs)
    if peers.size > 1:  # the seed alone would do on processors of one kind
        initial = peers.first(lambda: learner.flat.cpu().numpy().tobytes())
        learner.flat.copy_(torch.frombuffer(bytearray(initial), dtype=torch.float32))
        why_not = peers.agreed(why_not)
    parts = Parts(
        model,
        learner,
        ObsNormalizer(spec.obs_dim, clip=cfg.clip_obs, enabled=cfg.norm_obs, peers=peers),
        RewardScaler(cfg.num_envs, gamma=cfg.gamma, clip=cfg.clip_reward, enabled=cfg.norm_reward, peers=peers),
        EpisodeTracker(cfg.num_envs),
        deque(maxlen=RETURN_WINDOW),
        TrainState(),
        None if why_not else EpisodeLog(cfg.num_envs, spec.act_dim, spec.max_episode_steps),
        why_not,
        peers=peers,
    )
    return parts, why_learner


def learner_of(saved: Checkpoint | None) -> str:
    """Return the learner of the run that was saved, empty if there was none or it does not say."""
    said = saved.state.get("numerics") if saved else None
    return str(said.get("learner", "")) if isinstance(said, dict) else ""


def make_worker_at(
    parts: Parts, cfg: Config, actor: str, device: torch.device, timer: PhaseTimer
) -> tuple[Worker, dict[str, Any]]:
    """Make the environments and the worker that drives them, and bring them to where ``parts`` are.

    Environments whose replay does not give the observations that it must start new episodes, and that is said aloud.

    Returns:
        The worker, whose environments are the caller's to close, and what a replay did and cost.
    """
    start = time.perf_counter()
    expected = parts.obs_to_meet
    with parts.peers.together():
        worker = make_worker(
            cfg, actor, parts.model, parts.normalizer, device, timer, purpose=parts.state.env_purpose,
            log=None if expected is None else parts.log, first_env=parts.peers.rank * cfg.num_envs,
        )  # fmt: skip
    worker.steps_done = parts.state.worker_steps
    if expected is None or parts.log is None:
        return worker, {"why_restarted": parts.why_restarted}
    if not parts.peers.any(worker.buffers.obs[-1].tobytes() != expected.tobytes()):
        return worker, {
            "resets": int(parts.log.resets.sum()),
            "steps": int(parts.log.lengths.sum()),
            "seconds": round(time.perf_counter() - start, 3),
        }
    worker.env.close()
    parts.why_restarted = "a replay did not give the observations that were saved"
    log.warning("environments start new episodes, so the run does not go on bit-exactly: %s", parts.why_restarted)
    parts.restart_episodes()
    return make_worker_at(parts, cfg, actor, device, timer)


def _why_restart(saved: Checkpoint, cfg: Config, replay: dict[str, Any], peers: Peers) -> str:
    """Return why environments that can be replayed cannot take up those of ``saved``; empty if they can."""
    if saved.state.get("world_size", 1) != peers.size:
        return "the number of processes changed"
    if not replay:
        return "the checkpoint has no log of them"
    now = cfg.to_dict()
    changed = [name for name in _ENVIRONMENT if saved.state["config"].get(name) != now[name]]
    return f"{' and '.join(changed)} changed" if changed else ""
