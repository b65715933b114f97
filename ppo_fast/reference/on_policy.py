"""What the algorithms share, in the order in which it is told: act, judge, learn, repeat. They differ in learning.

These trainers are written to be read. They step Gymnasium's own vector environments in this process, use eager torch,
and no compiled code of this package; the fast trainer is compared with them. Where both could choose, they choose
alike: the same networks and initial values, noise and minibatch orders from the same counter-based generator, the same
treatment of time limits and of reset rows.

T steps · N envs · D observation · A actions · B = T·N rows · M rows of a minibatch · V rows that count.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .advantage import gae
from .moments import update_moments
from .policy import ActorCritic
from .rng import env_seeds
from .shuffle import permutation

Array = npt.NDArray[Any]
Rows = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """Options that every algorithm has; names and meanings are those of ``ppo_fast.train``."""

    env: str = "InvertedPendulum-v5"
    num_envs: int = 8
    num_steps: int = 256
    minibatch_size: int = 64
    total_timesteps: int = 100_000
    seed: int = 1
    learning_rate: float = 3e-4
    anneal_lr: bool = True
    gamma: float = 0.99
    gae_lambda: float = 0.95
    max_grad_norm: float = 0.5
    log_std_init: float = -0.5
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: Literal["tanh", "relu", "elu", "silu"] = "tanh"


class RunningNormalizer:
    """Running mean and variance of what it is shown, and the map to mean 0 and variance 1."""

    def __init__(self, dim: int) -> None:
        self.count, self.mean, self.m2 = np.zeros(1), np.zeros(dim), np.zeros(dim)

    def update(self, rows: Array, valid: Array) -> None:
        """Take in the rows (B, dim) that count."""
        update_moments(self.count, self.mean, self.m2, rows, valid)

    @property
    def std(self) -> Array:
        """Standard deviation; 1 before the first row."""
        std: Array = np.sqrt(self.m2 / self.count + 1e-8) if self.count[0] else np.ones_like(self.m2)
        return std

    def __call__(self, rows: Array) -> Array:
        """Normalise rows (..., dim), bounded to ±10."""
        normal: Array = np.clip((rows - self.mean) / self.std, -10, 10)
        return normal.astype(np.float32)


class OnPolicy(ABC):
    """An algorithm and everything it remembers from one iteration to the next.

    Args:
        settings: its options.
        shared_trunk: let actor and critic share their hidden layers.
    """

    def __init__(self, settings: Settings, *, shared_trunk: bool = False) -> None:
        self.settings: Any = settings
        s = settings
        self.envs = gymnasium.make_vec(s.env, s.num_envs, vectorization_mode="sync")  # next-step autoreset
        space = self.envs.single_action_space
        self.obs_dim = self.envs.single_observation_space.shape[0]
        self.choices = space.nvec if isinstance(space, gymnasium.spaces.MultiDiscrete) else ()
        self.num_actions = int(space.n) if isinstance(space, gymnasium.spaces.Discrete) else 0
        if len(self.choices):
            self.num_actions = int(np.prod(self.choices))  # of all combinations, one is chosen
        self.act_dim = 1 if self.num_actions else space.shape[0]
        self.action_space = space

        self.net = ActorCritic(
            self.obs_dim, self.act_dim, s.log_std_init, s.seed, hidden_sizes=s.hidden_sizes, activation=s.activation,
            shared_trunk=shared_trunk, num_actions=self.num_actions,
        )  # fmt: skip
        self.obs_normalizer = RunningNormalizer(self.obs_dim)
        self.return_normalizer = RunningNormalizer(1)
        self.discounted_return = np.zeros(s.num_envs)

        seeds = [int(seed) for seed in env_seeds(s.seed, 0, s.num_envs)]
        self.obs, _ = self.envs.reset(seed=seeds)
        self.just_ended = np.zeros(s.num_envs, bool)  # the next transition of these is a reset, not a step
        self.steps_done = 0  # per environment
        self.env_steps = 0  # real transitions of all environments
        self.steps_before = 0  # what env_steps was when the last rollout began
        self.epochs_done = 0
        self.episode_return = np.zeros(s.num_envs)
        self.finished: list[float] = []

    # --- act ---------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def rollout(self) -> dict[str, Array]:
        """Take T steps in every environment with the current policy; statistics are frozen meanwhile."""
        s = self.settings
        self.steps_before = self.env_steps
        rows: dict[str, list[Array]] = defaultdict(list)
        for _ in range(s.num_steps):
            norm_obs = self.obs_normalizer(self.obs)
            head, value = self.net(torch.from_numpy(norm_obs))
            action = self.net.sample(head, s.seed, self.steps_done)
            log_prob = self.net.log_prob(head, action)

            valid = ~self.just_ended
            next_obs, reward, terminated, truncated, _ = self.envs.step(self.to_env(action.numpy()))
            reward = np.where(valid, reward, 0.0)
            done = terminated | truncated
            self.count_episodes(reward, done, valid)
            for key, value_t in (
                ("obs", self.obs), ("norm_obs", norm_obs), ("actions", action.numpy()), ("log_probs", log_prob.numpy()),
                ("rewards", reward), ("terminated", terminated), ("done", done), ("valid", valid),
                ("values", value.numpy()),
            ):  # fmt: skip
                rows[key].append(value_t.copy())
            self.obs, self.just_ended = next_obs, done
            self.steps_done += 1
        # After an end at t the observation at t+1 is that episode's true last one, so one more value closes every gap.
        rows["values"].append(self.net(torch.from_numpy(self.obs_normalizer(self.obs)))[1].numpy())
        batch = {key: np.stack(value_t) for key, value_t in rows.items()}
        self.env_steps += int(batch["valid"].sum())
        return batch

    def to_env(self, action: Array) -> Array:
        """Clip to [-1, 1] and stretch to the range of the environment, where it has one; or name an index's action."""
        if len(self.choices):  # an index counts all combinations, the last choice fastest
            return np.stack(np.unravel_index(action[..., 0].astype(np.int64), self.choices), axis=-1)
        if self.num_actions:
            return action[..., 0].astype(np.int64) + int(self.action_space.start)
        low, high = self.action_space.low.astype(np.float64), self.action_space.high.astype(np.float64)
        bounded = np.isfinite(low) & np.isfinite(high)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        unit = (np.clip(action.astype(np.float64), -1, 1) + 1) / 2
        stretched: Array = np.where(bounded, low + unit * (high - low), action)
        return stretched.astype(np.float32)

    def count_episodes(self, reward: Array, done: Array, valid: Array) -> None:
        """Add up the raw rewards of each episode."""
        self.episode_return += reward
        self.finished += self.episode_return[done & valid].tolist()
        self.episode_return[done] = 0.0

    # --- judge -------------------------------------------------------------------------------------------------------
    def scale_rewards(self, batch: dict[str, Array]) -> Array:
        """Divide rewards by the running standard deviation of the discounted return, so that values stay near 1."""
        passed_through = np.zeros_like(batch["rewards"])
        for t in range(self.settings.num_steps):
            counts, ends = batch["valid"][t], batch["done"][t]
            grown = self.discounted_return * self.settings.gamma + batch["rewards"][t]
            self.discounted_return = np.where(counts, grown, self.discounted_return)
            passed_through[t] = self.discounted_return
            self.discounted_return = np.where(ends, 0.0, self.discounted_return)
        self.return_normalizer.update(passed_through.reshape(-1, 1), batch["valid"].reshape(-1))
        scaled: Array = np.clip(batch["rewards"] / self.return_normalizer.std[0], -10, 10)
        return scaled.astype(np.float32)

    def judge(self, batch: dict[str, Array]) -> None:
        """Scale the rewards, then add advantages and value targets."""
        batch["scaled_rewards"] = self.scale_rewards(batch)
        self.estimate(batch)

    def estimate(self, batch: dict[str, Array]) -> None:
        """Add advantages and value targets, given values and scaled rewards."""
        s = self.settings
        values, next_values = batch["values"][:-1], batch["values"][1:]
        batch["advantages"], batch["returns"] = gae(
            batch["scaled_rewards"], values, next_values, batch["terminated"], batch["done"],
            gamma=s.gamma, gae_lambda=s.gae_lambda,
        )  # fmt: skip

    # --- learn -------------------------------------------------------------------------------------------------------
    def learn(self, batch: dict[str, Array]) -> dict[str, float]:
        """Improve the networks, then show the rollout's observations to the normaliser."""
        learned = self.improve(batch)
        self.obs_normalizer.update(batch["obs"].reshape(-1, self.obs_dim), batch["valid"].reshape(-1))
        return learned

    @abstractmethod
    def improve(self, batch: dict[str, Array]) -> dict[str, float]:
        """Learn from the batch; return numbers about it, ``approx_kl`` among them."""

    def rows(self, batch: dict[str, Array]) -> Rows:
        """Lay the T·N transitions out as B rows."""
        size = batch["valid"].size
        keys = ("norm_obs", "actions", "log_probs", "advantages", "returns", "valid")
        return {key: torch.from_numpy(batch[key].reshape(size, *batch[key].shape[2:])) for key in keys}

    def minibatches(self, rows: Rows) -> Iterator[Rows]:
        """Shuffle the rows, deal them out in minibatches, and keep of each those that count, if there are any."""
        order = permutation(len(rows["valid"]), self.settings.seed, self.epochs_done)
        self.epochs_done += 1
        for chosen in order.reshape(-1, self.settings.minibatch_size):
            index = torch.from_numpy(chosen[rows["valid"].numpy()[chosen]])
            if len(index):
                yield {key: value[index] for key, value in rows.items()}

    def annealed(self, rate: float) -> float:
        """Return the learning rate of now: it falls to 0 over total_timesteps, if it is to."""
        return rate * (1 - self.progress()) if self.settings.anneal_lr else rate

    def descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """Take one step of the optimizer, with the gradient's norm bounded."""
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        optimizer.step()

    # --- repeat ------------------------------------------------------------------------------------------------------
    def progress(self) -> float:
        """Return the share of total_timesteps that had been taken before the last rollout."""
        share: float = self.steps_before / self.settings.total_timesteps
        return share

    def warm_up(self) -> None:
        """Show the normalisers one rollout of the initial policy before anything is learned."""
        batch = self.rollout()
        self.obs_normalizer.update(batch["obs"].reshape(-1, self.obs_dim), batch["valid"].reshape(-1))
        self.scale_rewards(batch)

    def run(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Train until total_timesteps; ``report`` receives a row of numbers per iteration."""
        start = time.perf_counter()
        self.warm_up()
        while self.env_steps < self.settings.total_timesteps:
            batch = self.rollout()
            self.judge(batch)
            learned = self.learn(batch)
            recent = self.finished[-100:]
            report(
                {
                    "env_steps": self.env_steps,
                    "wall_s": time.perf_counter() - start,
                    "episode_return": float(np.mean(recent)) if recent else None,
                    **learned,
                }
            )
        self.envs.close()

    @torch.no_grad()
    def evaluate(self, episodes: int = 10) -> Array:
        """Return the undiscounted returns of episodes with the most likely actions and frozen statistics."""
        env = gymnasium.make(self.settings.env)
        returns = np.zeros(episodes)
        for episode in range(episodes):
            obs, _ = env.reset(seed=int(env_seeds(self.settings.seed, episode, 1, purpose=1)[0]))
            done = False
            while not done:
                head, _ = self.net(torch.from_numpy(self.obs_normalizer(obs)))
                obs, reward, terminated, truncated, _ = env.step(self.to_env(self.net.mode(head).numpy()))
                returns[episode] += float(reward)
                done = terminated or truncated
        env.close()
        return returns
