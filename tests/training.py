"""What the tests of the learner and of the trainer share: small runs, random rollouts, and the 2x rule.

Axes: T steps · N envs · B = T·N rows · D observation · A action · P parameters.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppo_fast import envs
from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.envs.base import VectorEnv
from ppo_fast.lockstep import rules
from ppo_fast.lockstep.teacher import reference_parameters
from ppo_fast.models import ActorCritic
from ppo_fast.reference import losses
from ppo_fast.reference.policy import ActorCritic as ReferenceNet
from ppo_fast.run_dir import RunDir
from ppo_fast.trainer import RunResult, Trainer

try:
    from ppo_fast import _core
except ImportError:  # the fixture native_core says why
    LEVELS = ["baseline"]
else:
    LEVELS = _core.simd_levels()  #: SIMD levels that this processor runs, best first

TIMING = ("wall_s", "sps", "startup_s")  # and everything under time/


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run torch in one thread, as a training run does; tests import this fixture.

    No run draws its picture, which takes longer than a short run itself, unless the test is marked ``draws``.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr(RunDir, "draw", lambda self: None)
    yield
    torch.set_num_threads(before)


# Small runs


def config(run_dir: Path, **options: Any) -> Config:
    """Return the options of a run of about a tenth of a second: 8 environments x 32 steps, 4 minibatches of 64."""
    defaults: dict[str, Any] = {
        "env": "Hopper-v5",
        "num_envs": 8,
        "num_steps": 32,
        "minibatch_size": 64,
        "update_epochs": 2,
        "total_timesteps": 1200,
        "learning_rate": 1e-3,
        "learner": "torch",
        "update": "eager",
        "device": "cpu",
        "eval_every": 0,
        "eval_episodes": 1,
        "checkpoint_every": 0,
        "log": (),
        "quiet": True,
    }
    return Config(run_dir=str(run_dir), **{**defaults, **options})


class Recorder:
    """A sink that keeps what it is given, and calls ``on_row`` with each row."""

    def __init__(self, on_row: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.on_row = on_row

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        pass

    def log(self, metrics: dict[str, Any]) -> None:
        self.rows.append(dict(metrics))
        if self.on_row:
            self.on_row(metrics)

    def evaluation(self, record: dict[str, Any]) -> None:
        self.evaluations.append(dict(record))

    def close(self) -> None:
        pass


@dataclass
class Run:
    """A finished run: its trainer, its result and its rows."""

    trainer: Trainer
    result: RunResult
    rows: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that the same seed must give again, to the bit, as comparable values."""
        learner = {name: value.numpy().tobytes() for name, value in self.trainer.learner.state().items()}
        moments = {name: value.tobytes() for name, value in self.trainer.normalizer.moments.state().items()}
        scaler = {name: value.tobytes() for name, value in self.trainer.scaler.state().items()}
        return {
            "parameters": self.trainer.learner.flat.numpy().tobytes(),
            "learner": learner,
            "normalizer": moments,
            "scaler": scaler,
            "rows": [untimed(row) for row in self.rows],
        }


def untimed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a metrics row without what depends on the clock."""
    return {name: value for name, value in row.items() if name not in TIMING and not name.startswith("time/")}


def train(cfg: Config, *extra_sinks: Any) -> Run:
    """Run ``cfg`` to its end, without drawing the picture."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "draw", lambda self: None)
        trainer = Trainer(cfg, [recorder, *extra_sinks])
        result = trainer.run()
    return Run(trainer, result, recorder.rows, recorder.evaluations)


def use_fake_envs(patch: pytest.MonkeyPatch, make: Callable[[int], VectorEnv]) -> list[VectorEnv]:
    """Have trainer and evaluation step ``make(num_envs)``; return the list to which every one made is added."""
    made: list[VectorEnv] = []

    def fake_make(env_id: str, num_envs: int, **options: Any) -> VectorEnv:
        made.append(make(num_envs))
        return made[-1]

    patch.setattr(envs, "make", fake_make)
    patch.setattr(envs, "spec", lambda *_: make(1).spec)
    patch.setattr(envs, "resolve_backend", lambda *_: ("fake", "a test"))
    return made


def jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file with nothing of the package."""
    return [json.loads(line) for line in path.read_text().splitlines()]


# Random rollouts and the reference loss

OBS_DIM, ACT_DIM = 11, 3
FLOAT_FIELDS = ("norm_obs", "actions", "log_probs", "advantages", "returns", "values")


def random_parameters(model: ActorCritic, seed: int) -> Tensor:
    """Return initial parameters shaken, so that no bias is 0 and the actor's head matters, (P,)."""
    noise = torch.randn(model.num_params, generator=torch.Generator().manual_seed(seed))
    return model.init(seed, -0.5) + 0.1 * noise


def random_rollout(
    model: ActorCritic, flat: Tensor, seed: int, *, num_steps: int = 16, num_envs: int = 8, reset_rows: float = 0.15
) -> Rollout:
    """Return a rollout whose ratios under ``flat`` spread over both sides of the clip range, with reset rows in it."""
    rng = np.random.default_rng(seed)
    t, n = num_steps, num_envs
    rollout = Rollout.allocate(t, n, model.obs_dim, model.act_dim)
    rollout.norm_obs[:] = rng.normal(size=rollout.norm_obs.shape)
    rollout.obs[:] = rollout.norm_obs
    net = reference_net(model, flat, torch.float64)
    with torch.no_grad():
        head, _ = net(torch.from_numpy(rollout.norm_obs[:-1].astype(np.float64)).reshape(t * n, -1))
        if model.num_actions:
            actions = torch.from_numpy(rng.integers(model.num_actions, size=(t * n, 1)).astype(np.float64))
        else:
            actions = head + net.log_std.exp() * torch.from_numpy(rng.normal(size=(t * n, model.act_dim)))
        log_probs = net.log_prob(head, actions).numpy()
    rollout.actions[:] = actions.numpy().reshape(rollout.actions.shape)
    rollout.log_probs[:] = (log_probs + rng.normal(scale=0.25, size=t * n)).reshape(t, n)
    rollout.returns[:] = rng.normal(size=(t, n))
    rollout.values_all[:-1] = rollout.returns + rng.normal(scale=0.4, size=(t, n))
    rollout.advantages[:] = rng.normal(loc=0.3, scale=2.0, size=(t, n))
    rollout.valid[:] = rng.random((t, n)) >= reset_rows
    return rollout


def valid_rows(rollout: Rollout, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the rows that count, the others DROPPED, in ``dtype``."""
    keep = rollout.valid.reshape(-1)
    arrays = {name: getattr(rollout, name) for name in FLOAT_FIELDS}
    arrays["norm_obs"] = rollout.norm_obs[:-1]
    return {k: torch.from_numpy(v.reshape(keep.size, *v.shape[2:])[keep]).to(dtype) for k, v in arrays.items()}


def reference_net(model: ActorCritic, flat: Tensor, dtype: torch.dtype) -> ReferenceNet:
    """Return the reference's networks with the parameters ``flat`` (P,)."""
    net = ReferenceNet(
        model.obs_dim, model.act_dim, 0.0, 0, hidden_sizes=model.hidden_sizes, activation=model.activation,
        shared_trunk=model.shared_trunk, num_actions=model.num_actions,
    ).to(dtype)  # fmt: skip
    with torch.no_grad():
        for name, parameter in reference_parameters(net).items():
            parameter.copy_(model.unflatten(flat)[name])
    return net


@dataclass(frozen=True)
class Loss:
    """Which PPO loss; names as in the command line."""

    norm_adv: bool = True
    clip_vloss: bool = False
    ent_coef: float = 0.0
    clip_coef: float = 0.2
    vf_coef: float = 0.5


def reference_gradient(
    net: ReferenceNet, rows: Mapping[str, Tensor], loss: Loss
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the gradient by name and the metrics of a loss built of ``reference.losses``, on rows that all count."""
    head, values = net(rows["norm_obs"])
    log_ratio = net.log_prob(head, rows["actions"]) - rows["log_probs"]
    advantages = losses.normalize_advantages(rows["advantages"]) if loss.norm_adv else rows["advantages"]
    objective = losses.clipped_surrogate(log_ratio.exp(), advantages, loss.clip_coef)
    if loss.clip_vloss:
        value_loss = losses.clipped_value_loss(values, rows["values"], rows["returns"], loss.clip_coef)
    else:
        value_loss = losses.value_loss(values, rows["returns"])
    entropy = net.entropy(head)
    net.zero_grad()
    (-objective + loss.vf_coef * value_loss - loss.ent_coef * entropy).backward()
    gradient = {name: parameter.grad.clone() for name, parameter in reference_parameters(net).items()}
    metrics = {
        "policy_loss": -objective,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": losses.approx_kl(log_ratio),
        "clip_frac": ((log_ratio.exp() - 1).abs() > loss.clip_coef).to(log_ratio.dtype).mean(),
    }
    return gradient, {name: float(value.detach()) for name, value in metrics.items()}


class TwoTimesRule(rules.TwoTimesRule):
    """The 2x rule, as an assertion."""

    def check(self) -> None:
        """Fail unless the rule holds over 32 batches or more."""
        complaint = self.complaint()
        assert not complaint, f"error over twice that of the float32 reference: {complaint}"


# Threads


def ticks_during(call: Callable[[], Any]) -> tuple[int, float]:
    """Return how often this thread ran while another was in ``call``, and how long that took."""
    started, took = threading.Event(), []

    def work() -> None:
        started.set()
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    ticks = 0
    while thread.is_alive():
        time.sleep(0.002)
        ticks += 1
    return ticks, took[0]
