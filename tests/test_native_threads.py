"""Threads of the native learner: they show in no bit, they sleep outside updates, and a forked child does without.

Axes: T steps · N envs · B = T·N rows · M rows of a minibatch · P parameters.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from training import LEVELS, TwoTimesRule, one_thread, ticks_during  # noqa: F401

import ppo_fast
from ppo_fast import cpus
from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.errors import ConfigError
from ppo_fast.learners import choose
from ppo_fast.learners.native import NativeLearner
from ppo_fast.learners.ppo_step import LossConfig, Minibatch, eager_gradient
from ppo_fast.models import ActorCritic

pytestmark = pytest.mark.usefixtures("native_core", "one_thread")

MODEL = ActorCritic(training.OBS_DIM, training.ACT_DIM)
MODELS = [
    ActorCritic(training.OBS_DIM, training.ACT_DIM, (33, 17), "silu"),
    ActorCritic(training.OBS_DIM, training.ACT_DIM, (24,), "elu", shared_trunk=True),
    ActorCritic(training.OBS_DIM, 1, (24,), "relu", num_actions=5),
]
LANE = 256  # rows from which a minibatch gets another lane (csrc/ppo_state.hpp)


def make_learner(model: ActorCritic, rows: tuple[int, int], minibatch_size: int, **options: Any) -> NativeLearner:
    """Return a learner for rollouts of ``rows`` = (T, N)."""
    simd, flat = options.pop("simd", ""), options.pop("flat", None)
    flat = training.random_parameters(model, 1) if flat is None else flat
    steps, envs = rows
    defaults: dict[str, Any] = {
        "total_timesteps": 10**6,
        "update_epochs": 2,
        "norm_adv": "minibatch",
        "clip_vloss": True,
    }
    cfg = Config(num_steps=steps, num_envs=envs, minibatch_size=minibatch_size, **{**defaults, **options})
    return NativeLearner(model, flat, cfg, simd=simd)


def random_rollout(model: ActorCritic, rows: tuple[int, int], seed: int, reset_rows: float) -> Any:
    steps, envs = rows
    flat = training.random_parameters(model, 1)
    return training.random_rollout(model, flat, seed, num_steps=steps, num_envs=envs, reset_rows=reset_rows)


def after_updates(learner: NativeLearner, *, reset_rows: float = 0.15) -> dict[str, Any]:
    """Return all that two updates leave behind."""
    rows = (learner.cfg.num_steps, learner.cfg.num_envs)
    metrics = [learner.update(random_rollout(learner.model, rows, seed, reset_rows)) for seed in (1, 2)]
    return {"metrics": metrics, "flat": learner.flat.numpy().tobytes(), **{
        name: tensor.numpy().tobytes() for name, tensor in learner.state().items()
    }}  # fmt: skip


# --- no bit ----------------------------------------------------------------------------------------------------------
def check_threads(model: ActorCritic, rows: tuple[int, int], minibatch_size: int, **options: Any) -> None:
    reset_rows = options.pop("reset_rows", 0.15)
    found = {}
    for threads in (1, 2, 3, 5, 16):
        learner = make_learner(model, rows, minibatch_size, learner_threads=threads, **options)
        lanes = min(max(minibatch_size // LANE, 1), 8)
        assert learner.threads == min(threads, lanes * (1 if model.shared_trunk else 2))
        found[threads] = after_updates(learner, reset_rows=reset_rows)
    for threads, other in found.items():
        for name, value in other.items():
            assert value == found[1][name], (name, threads)


@pytest.mark.parametrize("minibatch_size", [64, 256, 512, 2048])
@pytest.mark.parametrize("model", [MODEL, *MODELS], ids=str)
def test_number_of_threads_changes_not_one_bit(model: ActorCritic, minibatch_size: int) -> None:
    check_threads(model, (64, 32), minibatch_size)


@pytest.mark.parametrize("simd", LEVELS)
def test_number_of_threads_changes_not_one_bit_on_any_level(simd: str) -> None:
    check_threads(MODEL, (32, 32), 512, simd=simd)


@pytest.mark.parametrize(("rows", "minibatch_size"), [((3, 347), 347), ((2, 521), 521), ((1, 769), 769), ((7, 3), 7)])
def test_odd_minibatches_do_not_see_threads_either(rows: tuple[int, int], minibatch_size: int) -> None:
    check_threads(MODELS[0], rows, minibatch_size)


@pytest.mark.parametrize("reset_rows", [0.9, 0.995, 1.0])
@pytest.mark.parametrize("minibatch_size", [32, 512, 1024])
def test_minibatches_and_lanes_with_few_rows_or_none_do_not_see_threads(minibatch_size: int, reset_rows: float) -> None:
    check_threads(MODEL, (32, 32), minibatch_size, reset_rows=reset_rows)


# --- lanes ------------------------------------------------------------------------------------------------------------
def autograd(
    model: ActorCritic, hp: LossConfig, batch: dict[str, Any], flat: torch.Tensor, dtype: torch.dtype
) -> tuple[dict[str, Any], Any]:
    keep = batch["valid"] > 0
    mb = Minibatch(**{name: torch.from_numpy(array[keep]).to(dtype) for name, array in batch.items()})
    gradient, sums = eager_gradient(model, hp, flat.to(dtype), 1.0 / mb.valid.sum(), mb)
    return {name: view.detach() for name, view in model.unflatten(gradient).items()}, sums


@pytest.mark.parametrize(
    ("model", "rows", "threads", "reset_rows"),
    [
        (MODEL, 512, 1, 0.15), (MODEL, 777, 3, 0.15), (MODEL, 2304, 3, 0.15),
        *((model, 777, 2, 0.15) for model in MODELS),
        (MODEL, 1024, 3, 0.8),  # some lanes, the first among them, have no rows
    ],
    ids=str,
)  # fmt: skip
def test_gradient_of_several_lanes_is_as_exact_as_eager(
    model: ActorCritic, rows: int, threads: int, reset_rows: float
) -> None:
    learner = make_learner(model, (1, rows), rows, learner_threads=threads, ent_coef=0.01)
    gradients, metrics = TwoTimesRule(), TwoTimesRule()
    for seed in range(32):
        flat = training.random_parameters(model, seed)
        batch = learner.stage(
            training.random_rollout(model, flat, seed, num_steps=1, num_envs=rows, reset_rows=reset_rows)
        )
        learner.flat.copy_(flat)
        gradient, sums = learner.gradient(batch, np.random.default_rng(seed).permutation(rows))
        single, single_sums = autograd(model, learner.hp, batch, flat, torch.float32)
        double, double_sums = autograd(model, learner.hp, batch, flat, torch.float64)
        gradients.add(model.unflatten(gradient), single, double)
        metrics.add(*({"sums": s[:4].numpy()} for s in (sums, single_sums, double_sums)))
        assert sums[5] == batch["valid"].sum()
    gradients.check()
    metrics.check()


def test_the_sum_of_the_lanes_is_that_of_one_lane_up_to_rounding() -> None:
    # An independent way to the same number: the mean gradient of 1024 rows from those of four lanes' worth of them.
    whole = make_learner(MODEL, (4, LANE), 4 * LANE, norm_adv="none")
    batch = whole.stage(random_rollout(MODEL, (4, LANE), 3, 0.0))
    order = np.random.default_rng(0).permutation(4 * LANE)
    parts = [whole.gradient(batch, order[LANE * i : LANE * (i + 1)])[0].double() for i in range(4)]
    mean = torch.stack(parts).mean(0)
    gradient = whole.gradient(batch, order)[0].double()
    assert float((gradient - mean).norm()) <= 1e-6 * float(mean.norm())


# --- how many --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("affinity", "quota", "asked", "threads"),
    [
        (3, math.inf, 0, 3),
        (64, math.inf, 0, 4),  # no more than two networks and two lanes of rows can use
        (3, 2.5, 0, 2),
        (3, 0.2, 0, 1),
        (1, math.inf, 0, 1),
        (1, 0.5, 3, 3),  # asked for by number
        (1, 0.5, 64, 4),
    ],
)
def test_threads_are_those_that_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float, asked: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    monkeypatch.setattr(cpus, "cpu_quota", lambda: quota)
    before = threading_tasks()
    learner = make_learner(MODEL, (32, 32), 512, learner_threads=asked)
    assert learner.threads == threads
    if before:
        assert threading_tasks() == before + threads - 1
        del learner
        assert threading_tasks() == before


def threading_tasks() -> int:
    """Return how many threads this process has; 0 where that cannot be seen."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else 0


@pytest.mark.parametrize(
    "options",
    [
        {"learner": "torch", "learner_threads": 2},
        {"learner": "auto", "update": "eager", "learner_threads": 2},
        {"learner": "auto", "update": "compile", "learner_threads": 2},
    ],
)
def test_threads_of_the_native_learner_for_torch_are_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="learner_threads 2 belongs to the native learner"):
        Config(**options)


def test_threads_of_the_native_learner_where_auto_takes_torch_are_an_error() -> None:
    cfg, flat = Config(learner_threads=2), training.random_parameters(MODEL, 1)
    with pytest.raises(ConfigError, match=r"learner_threads 2 .* auto takes torch \(as when the run was begun\)"):
        choose.make_learner(MODEL, flat, cfg, torch.device("cpu"), begun_with="torch")


@pytest.mark.parametrize("bad", [-1, 1.5, True, "2"])
def test_threads_are_a_whole_number(bad: Any) -> None:
    with pytest.raises(ConfigError, match="learner_threads must be"):
        Config(learner_threads=bad)


def test_the_trainer_asks_for_as_many(tmp_path: Path) -> None:
    cfg = training.config(tmp_path, learner="auto", update="auto", learner_threads=1)
    learner, _ = choose.make_learner(MODEL, training.random_parameters(MODEL, 1), cfg, torch.device("cpu"))
    assert learner.threads == 1


# --- what they do to others ------------------------------------------------------------------------------------------
def test_threads_sleep_outside_updates() -> None:
    learner = make_learner(MODEL, (32, 32), 1024, learner_threads=8)
    assert learner.threads == 8
    learner.update(random_rollout(MODEL, (32, 32), 1, 0.15))
    start = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - start < 8 * 0.02


def test_other_threads_run_during_an_update() -> None:
    model = ActorCritic(training.OBS_DIM, training.ACT_DIM, (512, 512))
    learner = make_learner(
        model, (64, 64), 4096, learner_threads=1, update_epochs=2, simd=LEVELS[-1], flat=torch.zeros(model.num_params)
    )
    rollout = Rollout.allocate(64, 64, model.obs_dim, model.act_dim)
    rollout.valid[:] = True
    ticks, seconds = ticks_during(lambda: learner.update(rollout))
    assert seconds > 0.05, "too short to tell"
    assert ticks >= 10  # a few while the batch is staged, if the core held the interpreter's lock


FORKS = """
import hashlib, os, sys
sys.path[:0] = [{tests!r}]
import test_native_threads as t, torch
torch.set_num_threads(1)
learner = t.make_learner(t.MODEL, (32, 32), 512, learner_threads=4)
assert learner.threads == 4
rollouts = [t.random_rollout(t.MODEL, (32, 32), seed, 0.15) for seed in (1, 2)]
learner.update(rollouts[0])
child = os.fork()
learner.update(rollouts[1])
print(hashlib.sha256(learner.flat.numpy().tobytes()).hexdigest(), flush=True)
if child:
    status = os.waitpid(child, 0)[1]
    learner.update(rollouts[0])
    print("parent", os.waitstatus_to_exitcode(status))
else:
    del learner  # and with it a team whose threads do not exist here
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_computes_alone_the_same_and_leaves_cleanly() -> None:
    root = str(Path(ppo_fast.__file__).parents[1])
    code = FORKS.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second, parent = done.stdout.splitlines()
    assert first == second
    assert parent == "parent 0"
