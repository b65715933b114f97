"""Native acts, torch learns: parameters cross to the actor once per rollout, and the first ratio says which crossed.

Axes: T steps · N envs · D observation · A action · P parameters.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import training
from fakes import PlaybackStream
from torch import Tensor
from training import one_thread  # noqa: F401

from ppo_fast import kernels
from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.errors import BackendError, ConfigError
from ppo_fast.learners.choose import make_learner
from ppo_fast.learners.graph_learner import GraphLearner
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.learners.ppo_step import Minibatch, ppo_loss
from ppo_fast.learners.precision import matmul_precision, require_precision
from ppo_fast.learners.torch_learner import TorchLearner
from ppo_fast.models import ActorCritic
from ppo_fast.normalizers import ObsNormalizer
from ppo_fast.rollout import NativeRolloutWorker, choose_actor
from ppo_fast.timing import PhaseTimer

MODEL = ActorCritic(17, 6)
STEPS, ENVS = 8, 16
BOUNDS = {"float32": 1e-5, "tf32": 1e-2, "bf16": 1e-2}


class OnDevice:
    """Parameters as they look from the host: each copy of them is counted, and may be an old one."""

    def __init__(self, flat: Tensor, *, stale: bool = False) -> None:
        self._flat, self._stale = flat, stale
        self._first = flat.detach().cpu().clone()
        self.copies = 0

    def cpu(self) -> Tensor:
        self.copies += 1
        return self._first if self._stale else self._flat.detach().cpu().clone()


def make_worker() -> NativeRolloutWorker:
    obs = np.random.default_rng(1).normal(size=(8 * STEPS + 1, ENVS, MODEL.obs_dim))
    env = PlaybackStream(obs, [-1.0] * MODEL.act_dim, [1.0] * MODEL.act_dim, order=1)
    normalizer = ObsNormalizer(MODEL.obs_dim, clip=10.0)
    return NativeRolloutWorker(env, MODEL, normalizer, num_steps=STEPS, seed=1, timer=PhaseTimer())


def make(update: str, precision: str, device: torch.device) -> PPOLearner:
    cfg = Config(
        num_envs=ENVS, num_steps=STEPS, minibatch_size=64, update_epochs=2, learning_rate=3e-3, learner="torch",
        update=update, precision=precision, anneal_lr=False,
    )  # fmt: skip
    return (GraphLearner if update == "graph" else TorchLearner)(MODEL, MODEL.init(1, -0.5), cfg, device)


def first_ratios(learner: PPOLearner, rollout: Rollout) -> np.ndarray:
    """Return π(a|s) / π_old(a|s) of the rows of the first minibatch: minus the loss of each under an advantage of 1."""
    hp = dataclasses.replace(learner.hp, norm_adv_minibatch=False, vf_coef=0.0, ent_coef=0.0, clip_coef=0.9)
    batch = {**learner.stage(rollout), "advantages": np.ones(STEPS * ENVS, np.float32)}
    order = kernels.permutation(STEPS * ENVS, seed=learner.cfg.seed, stream=learner.epochs_done)[:64]
    found = []
    with matmul_precision(learner.cfg.precision):
        for row in order[batch["valid"][order] > 0]:
            fields = {name: torch.from_numpy(array[row : row + 1]).to(learner.device) for name, array in batch.items()}
            one = torch.ones((), device=learner.device)
            found.append(-float(ppo_loss(learner.model, hp, learner.flat, one, Minibatch(**fields))[0]))
    return np.array(found)


def worst(learner: PPOLearner, flat: Any) -> list[float]:
    """Return max |ratio − 1| in the first minibatch of each of four iterations; ``flat`` is what the actor gets."""
    worker, found = make_worker(), []
    for _ in range(4):
        rollout = worker.collect(flat)
        kernels.gae(
            rollout.rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.done,
            gamma=0.99, gae_lambda=0.95, out=(rollout.advantages, rollout.returns),
        )  # fmt: skip
        found.append(float(np.abs(first_ratios(learner, rollout) - 1).max()))
        learner.update(rollout)
        worker.normalizer.update(rollout.obs[:-1], rollout.valid)
    return found


@pytest.mark.usefixtures("native_core", "one_thread")
@pytest.mark.parametrize(
    ("where", "update", "precision"),
    [
        ("cpu", "eager", "float32"),
        ("cpu", "graph", "float32"),
        ("cpu", "graph", "bf16"),
        *itertools.product(["cuda"], ["eager", "graph"], ["float32", "tf32", "bf16"]),
    ],
)
def test_the_first_ratio_is_near_one_and_with_an_old_copy_of_the_parameters_it_is_not(
    where: str, update: str, precision: str
) -> None:
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    bound = BOUNDS[precision]
    learner = make(update, precision, torch.device(where))
    fresh = OnDevice(learner.flat)
    assert max(worst(learner, fresh)) <= bound
    assert fresh.copies == 4  # one per rollout, however many steps that has

    learner = make(update, precision, torch.device(where))
    first, *later = worst(learner, OnDevice(learner.flat, stale=True))
    assert first <= bound  # nothing has been learned yet
    assert min(later) > bound


def test_native_acts_on_the_cpu_whatever_the_learners_device(native_core: None) -> None:
    for device in ("cpu", "cuda"):
        assert choose_actor(Config(), MODEL, torch.device(device))[0] == "native"
        assert choose_actor(Config(actor="torch"), MODEL, torch.device(device)) == ("torch", "")
    assert "cuda" in choose_actor(Config(), MODEL, torch.device("cuda"))[1]


# Precision


def test_bf16_is_of_the_hidden_layers_alone() -> None:
    flat = training.random_parameters(MODEL, 1)
    params, obs = MODEL.params(flat), torch.randn(32, MODEL.obs_dim, generator=torch.Generator().manual_seed(1))
    exact, rounded = MODEL.forward(params, obs), MODEL.forward(params, obs, torch.bfloat16)
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.float32
        assert 0 < float((a - b).norm() / a.norm()) < 0.05
        assert not torch.equal(b, b.bfloat16().float())  # the last layer is float32
    assert all(torch.equal(a, b) for a, b in zip(exact, MODEL.forward(params, obs, torch.float32), strict=True))
    cast = params.with_hidden(torch.bfloat16)
    dtypes = [weight.dtype for net in (cast.actor, cast.critic) for weight, _ in net]
    assert dtypes == [torch.bfloat16, torch.bfloat16, torch.float32] * 2
    assert cast.log_std is params.log_std


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("update", ["eager", "graph"])
def test_an_update_in_bf16_keeps_float32_state_and_goes_the_same_way(update: str) -> None:
    learners = [make(update, precision, torch.device("cpu")) for precision in ("float32", "bf16")]
    rollout = training.random_rollout(MODEL, learners[0].flat, 2, num_steps=STEPS, num_envs=ENVS)
    start = learners[0].flat.clone()
    for learner in learners:
        learner.update(rollout)
    single, half = ((learner.flat - start).double() for learner in learners)
    assert learners[1].flat.dtype == learners[1].exp_avg.dtype == torch.float32
    assert not torch.equal(single, half)
    assert float(torch.dot(single, half) / single.norm() / half.norm()) > 0.9


def test_tf32_is_on_within_the_products_of_a_run_that_asks_for_it_and_nowhere_else() -> None:
    before = torch.get_float32_matmul_precision()
    for precision, inside in (("float32", "highest"), ("tf32", "high"), ("bf16", "highest")):
        with matmul_precision(precision):
            assert torch.get_float32_matmul_precision() == inside
        assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "tf32", "device": "cpu"}, r"precision 'tf32' is for NVIDIA GPUs, .* 'float32', 'bf16'"),
        ({"precision": "bf16", "learner": "native"}, r"precision 'bf16' belongs to the torch learner, .*'float32'"),
        ({"precision": "bf16", "learner_threads": 2}, r"learner_threads 2 belongs .* torch's precision 'bf16'"),
        ({"precision": "bf16", "algo": "trpo"}, r"precision belongs to PPO"),
        ({"precision": "fp8"}, r"precision must be one of"),
    ],
)
def test_a_precision_that_would_be_ignored_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(**options)


def test_a_precision_that_the_device_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, flat = torch.device("cpu"), MODEL.init(1, -0.5)
    with pytest.raises(ConfigError, match="precision 'tf32' is for NVIDIA GPUs, and the device is cpu"):
        make_learner(MODEL, flat, Config(precision="tf32"), cpu)  # device auto, and there is no GPU
    assert make_learner(MODEL, flat, Config(precision="bf16", update="eager"), cpu)[0].name == "torch"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    for precision in ("tf32", "bf16"):
        with pytest.raises(BackendError, match=f"--precision {precision}: Tesla T4 has none; .* Ampere"):
            require_precision(precision, torch.device("cuda"))
    require_precision("float32", torch.device("cuda"))
