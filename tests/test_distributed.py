"""Several processes that train together: what they say to each other, and the arithmetic of what they share.

Here processes are threads, which is quick; tests/test_torchrun.py starts real ones.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from peers import ThreadPeers, all_of, in_threads
from torch import Tensor
from training import Loss, TwoTimesRule, one_thread  # noqa: F401

from ppo_fast import distributed, kernels
from ppo_fast.batch import Rollout
from ppo_fast.config import FIELDS, Config
from ppo_fast.cpus import cpu_budget, cpu_quota, num_cpus
from ppo_fast.distributed import ALONE, Peers, connect
from ppo_fast.distributed.meeting import VARIABLES
from ppo_fast.errors import BackendError, CheckpointError, ConfigError, EnvError, NonFiniteError, PeerError
from ppo_fast.learners import choose
from ppo_fast.learners.native import NativeLearner
from ppo_fast.learners.ppo_base import Order, PPOLearner
from ppo_fast.learners.torch_learner import TorchLearner
from ppo_fast.metrics import explained_variance
from ppo_fast.models import ActorCritic
from ppo_fast.normalizers import Moments
from ppo_fast.sweep import SweepOptions


# --- what they say to each other -------------------------------------------------------------------------------------
def test_all_learn_what_one_says() -> None:
    def work(peers: Peers) -> Any:
        rank = peers.rank
        return (
            peers.any(rank == 2),
            peers.any(False),
            peers.agreed("" if rank == 0 else f"SIG{rank}"),
            peers.agreed(""),
            peers.first(lambda: f"made by {rank}".encode()),
            [each.tolist() for each in peers.gather(np.array([rank, 10.0]))],
        )

    expected = (True, False, "SIG1", "", b"made by 0", [[0, 10], [1, 10], [2, 10]])
    assert all_of(3, work) == [expected] * 3


def test_one_that_fails_has_all_fail_in_the_same_way() -> None:
    def work(peers: Peers) -> None:
        with peers.together():
            pass
        with peers.together():
            if peers.rank == 1:
                raise NonFiniteError("rewards has 1 non-finite row", [(3, 4)])

    first, second, third = in_threads(3, work)
    assert type(first) is type(second) is type(third) is NonFiniteError
    assert str(first) == str(third) == "process 1: rewards has 1 non-finite row"
    assert str(second) == "rewards has 1 non-finite row"
    assert isinstance(second, NonFiniteError)
    assert second.places == [(3, 4)]


def test_two_that_fail_differently_fail_as_the_first_does() -> None:
    class PrivateError(CheckpointError):
        pass

    def work(peers: Peers) -> None:
        with peers.together():
            raise PrivateError("damaged") if peers.rank == 0 else EnvError("unknown")

    first, second = in_threads(2, work)
    assert isinstance(first, PrivateError)
    assert (type(second), str(second)) == (CheckpointError, "process 0: damaged")


def test_what_the_first_cannot_make_fails_in_all() -> None:
    def make() -> bytes:
        raise ConfigError("no such directory")

    first, second = in_threads(2, lambda peers: peers.first(make))
    assert (str(first), str(second)) == ("no such directory", "process 0: no such directory")


def test_other_bytes_are_found_and_named() -> None:
    def work(peers: Peers) -> None:
        peers.require_equal("the options", b"equal")
        peers.require_equal("parameters after iteration 7", b"123" if peers.rank != 2 else b"124")

    for error in in_threads(4, work):
        assert isinstance(error, PeerError)
        assert str(error) == "parameters after iteration 7 of process 2 are not those of process 0"


def test_one_process_talks_to_itself() -> None:
    values = np.array([1.0, 2.0])
    ALONE.sum_(values)
    assert values.tolist() == [1.0, 2.0]
    assert (ALONE.any(True), ALONE.agreed("x"), ALONE.first(lambda: b"y")) == (True, "x", b"y")
    with pytest.raises(EnvError, match="as it is"), ALONE.together():
        raise EnvError("as it is")
    ALONE.require_equal("nothing", b"")
    ALONE.close()


# --- finding each other ----------------------------------------------------------------------------------------------
def variables(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    usual = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**usual, "MASTER_PORT": str(port), **values}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_nobody_meets_says_so_in_time(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    variables(monkeypatch, RANK=str(rank), LOCAL_RANK=str(rank))
    start = time.monotonic()
    with pytest.raises(PeerError, match=f"process {rank} of 2: .* 127.0.0.1:") as caught:
        connect(timeout_s=1.0)
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)
    assert distributed.RENDEZVOUS_S <= 60


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("WORLD_SIZE", "two", r"WORLD_SIZE must be an integer in \[1, 65536\)"),
        ("WORLD_SIZE", "0", "WORLD_SIZE must be an integer"),
        ("RANK", "2", r"RANK must be an integer in \[0, 2\)"),
        ("LOCAL_RANK", "-1", "LOCAL_RANK must be an integer"),
        ("LOCAL_WORLD_SIZE", "0", "LOCAL_WORLD_SIZE must be an integer"),
        ("MASTER_PORT", "x", "MASTER_PORT must be an integer"),
        ("MASTER_ADDR", "", "WORLD_SIZE is 2, but MASTER_ADDR is not set: start the processes with torchrun"),
    ],
)
def test_variables_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str) -> None:
    variables(monkeypatch, **{name: value})
    with pytest.raises(ConfigError, match=complaint):
        connect()


@pytest.mark.parametrize(("ways", "count"), [("cuda:nccl", 2), ("cpu:gloo,cuda:gloo", 3)])
def test_a_connection_of_someone_elses_that_does_not_fit_is_named(
    monkeypatch: pytest.MonkeyPatch, ways: str, count: int
) -> None:
    variables(monkeypatch)
    for name, value in (("is_initialized", True), ("get_backend_config", ways), ("get_world_size", count)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    with pytest.raises(ConfigError, match=f"initialised with '{ways}' for {count} processes: ppo_fast needs"):
        connect()


def test_a_run_of_one_process_never_calls_torch_distributed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*args: Any, **options: Any) -> None:
        raise AssertionError("torch.distributed was called")

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name in ("init_process_group", "all_reduce", "all_gather", "get_rank", "is_initialized", "is_available"):
        monkeypatch.setattr(torch.distributed, name, called)
    run = training.train(training.config(tmp_path / "run", total_timesteps=600))
    assert run.trainer.peers is ALONE


def test_one_process_of_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    variables(monkeypatch, WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    assert connect() is ALONE


def test_processes_of_a_machine_share_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    whole = min(num_cpus(), cpu_quota())
    assert cpu_budget() == max(1.0, whole)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cpu_budget() == max(1.0, whole / 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4096")
    assert cpu_budget() == 1.0


# --- moments ---------------------------------------------------------------------------------------------------------
def test_moments_are_those_of_all_rows_and_counted_once() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(1e4, [0.1, 3.0, 1e3], (3, 5, 40, 3))  # process, iteration, row, component
    valid = rng.random((3, 5, 40)) > 0.3
    valid[1, 0] = valid[:, 1] = False  # nothing new in one process, then in none

    def work(peers: Peers) -> list[Moments]:
        first, resumed = Moments(3), Moments(3)
        for i in range(5):
            if i == 3:
                resumed.load(first.state())
            for moments in (first, resumed) if i >= 3 else (first,):
                moments.update(rows[peers.rank, i], valid[peers.rank, i], peers)
        return [first, resumed]

    chosen = rows[valid]
    per_process = all_of(3, work)
    for moments in (each for pair in per_process for each in pair):
        assert moments.count[0] == len(chosen)
        np.testing.assert_allclose(moments.mean, chosen.mean(0), rtol=1e-12)
        assert [v.tobytes() for v in moments.state().values()] == [
            v.tobytes() for v in per_process[0][0].state().values()
        ]
    spread = chosen - 1e4
    np.testing.assert_allclose(per_process[0][0].m2, ((spread - spread.mean(0)) ** 2).sum(0), rtol=1e-10)


def test_moments_of_numbers_around_zero_agree_with_numpy_to_twelve_digits() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2, 4, 64, 5))
    valid = np.ones((2, 4, 64), np.bool_)

    def work(peers: Peers) -> Moments:
        moments = Moments(5)
        for i in range(4):
            moments.update(rows[peers.rank, i], valid[peers.rank, i], peers)
        return moments

    for moments in all_of(2, work):
        everything = rows.reshape(-1, 5)
        np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(moments.var, everything.var(0), rtol=1e-12)


def test_explained_variance_is_that_of_all_rows() -> None:
    rollout = training.random_rollout(MODEL, training.random_parameters(MODEL, 0), 0)
    whole = explained_variance(rollout)
    for part in all_of(2, lambda peers: explained_variance(half(rollout, peers.rank), peers)):
        assert part == pytest.approx(whole, rel=1e-12)


# --- gradients -------------------------------------------------------------------------------------------------------
MODEL = ActorCritic(training.OBS_DIM, training.ACT_DIM)
BETA1 = float(np.float32(1.0 - 0.9))  # exp_avg after one step from zero is this times the gradient


def half(rollout: Rollout, rank: int) -> Rollout:
    """Return the part of two processes, of which each has half of the environments."""
    envs = np.array_split(np.arange(rollout.valid.shape[1]), 2)[rank]
    part = Rollout.allocate(len(rollout.valid), len(envs), rollout.obs.shape[2], rollout.actions.shape[2])
    for name in (f.name for f in dataclasses.fields(Rollout) if f.name != "first_env"):
        getattr(part, name)[:] = getattr(rollout, name)[:, envs]
    return part


def make_learner(stack: dict[str, Any], flat: Tensor, peers: Peers, **options: Any) -> PPOLearner:
    kind = NativeLearner if stack["learner"] == "native" else TorchLearner
    defaults: dict[str, Any] = {
        "num_envs": 8 // peers.size, "num_steps": 16, "minibatch_size": 128 // peers.size, "update_epochs": 1,
        "anneal_lr": False,
    }  # fmt: skip
    return kind(MODEL, flat, Config(**{**defaults, **options}), torch.device("cpu"), peers=peers)


def by_name(vector: Tensor) -> dict[str, Tensor]:
    return {name: view.detach() for name, view in MODEL.unflatten(vector).items()}


@pytest.mark.parametrize(
    ("norm_adv", "more"),
    [("minibatch", {"clip_vloss": True, "ent_coef": 0.01}), ("batch", {}), ("none", {"ent_coef": 0.01})],
)
def test_two_processes_take_the_gradient_of_one_with_all_their_environments(
    stack: dict[str, Any], norm_adv: Any, more: dict[str, Any]
) -> None:
    loss = Loss(norm_adv=norm_adv != "none", **more)
    gradients, metrics = TwoTimesRule(), TwoTimesRule()
    options = {"norm_adv": norm_adv, "max_grad_norm": 1e30, **more}
    for seed in range(32):
        flat = training.random_parameters(MODEL, seed)
        rollout = training.random_rollout(MODEL, flat, seed)
        rollout.valid[:, :4] &= np.random.default_rng(seed).random((16, 4)) < 0.5  # the first has fewer rows that count
        if seed == 7:
            rollout.valid[:, :4] = False  # or none

        def work(peers: Peers, flat: Tensor = flat, rollout: Rollout = rollout) -> tuple[dict[str, float], PPOLearner]:
            learner = make_learner(stack, flat, peers, **options)
            return learner.update(half(rollout, peers.rank)), learner

        (reported, first), (same, second) = all_of(2, work)
        assert reported == same
        assert first.flat.numpy().tobytes() == second.flat.numpy().tobytes()
        (single, single_metrics), (double, double_metrics) = (
            training.reference_gradient(training.reference_net(MODEL, flat, t), training.valid_rows(rollout, t), loss)
            for t in (torch.float32, torch.float64)
        )
        gradients.add(by_name(first.state()["exp_avg"].double() / BETA1), single, double)
        metrics.add({name: reported[name] for name in double_metrics}, single_metrics, double_metrics)
    gradients.check()
    metrics.check()


def test_many_minibatches_keep_processes_equal_and_the_rule_of_kl_is_one(stack: dict[str, Any]) -> None:
    flat = training.random_parameters(MODEL, 3)
    rollouts = [training.random_rollout(MODEL, flat, seed, num_envs=4) for seed in (1, 2)]
    rollouts[1].valid[:] = False
    rollouts[1].valid[2, 3] = True  # most minibatches of the second process are empty, and some of both
    rollouts[0].valid[4:] = False
    options = {"minibatch_size": 4, "update_epochs": 5, "recompute_adv": True, "adaptive_kl": 1e-6}

    def work(peers: Peers, **more: Any) -> tuple[dict[str, float], dict[str, bytes], Order]:
        learner = make_learner(stack, flat, peers, **options, **more)
        taken = list[Order]()
        shuffle = learner._shuffle
        learner._shuffle = lambda batch, order: (taken.append(order), shuffle(batch, order))[1]  # type: ignore[method-assign]
        reported = learner.update(rollouts[peers.rank])
        state = {"flat": learner.flat, **learner.state()}
        return reported, {name: tensor.numpy().tobytes() for name, tensor in state.items()}, np.stack(taken)

    (reported, state, order), (same, other, another) = all_of(2, work)
    assert (reported, state) == (same, other)
    assert reported["epochs"] == 5
    assert reported["learning_rate"] == 3e-4  # of this update; the next one's is in the state
    expected = [kernels.permutation(64, seed=1, stream=epoch) for epoch in range(5)]
    assert order.tolist() == np.stack(expected).tolist()  # the first process takes the orders of a run of one
    assert order.tolist() != another.tolist()
    steps = int(np.frombuffer(state["counters"], np.int64)[0])
    assert 0 < steps < 5 * 16
    stopped = all_of(2, lambda peers: work(peers, target_kl=reported["approx_kl"] / 1e3))
    assert stopped[0][0] == stopped[1][0]
    assert stopped[0][0]["epochs"] < 5


def test_what_cannot_be_shared_is_refused() -> None:
    flat = training.random_parameters(MODEL, 1)
    pair = ThreadPeers(0, threading.Barrier(1), [None, None])
    with pytest.raises(BackendError, match=r"--update compile: .*several processes sum their gradients"):
        TorchLearner(MODEL, flat, Config(update="compile"), torch.device("cpu"), peers=pair)
    auto = TorchLearner(MODEL, flat, Config(total_timesteps=10**9), torch.device("cpu"), peers=pair)
    assert (auto.mode, auto.why_eager) == ("eager", "processes sum their gradients in the middle of a step")
    cfg = Config(algo="trpo", norm_adv="batch")
    with pytest.raises(ConfigError, match="TRPO trains in one process, and there are 2; PPO trains in several"):
        choose.make_learner(MODEL, flat, cfg, torch.device("cpu"), pair)


# --- the recipes -----------------------------------------------------------------------------------------------------
# Of sbatch's manual, those that the recipes use.
SBATCH = {"array", "cpus-per-task", "job-name", "nodes", "ntasks", "ntasks-per-node", "requeue", "signal", "time"}


def recipes(kind: str, name: str = "cluster.md") -> list[str]:
    page = (Path(__file__).parents[1] / "docs" / name).read_text()
    return re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_recipes_for_the_shell_parse_and_name_options_that_exist() -> None:
    found = [*recipes("bash"), *(recipe for recipe in recipes("bash", "sweeps.md") if "SBATCH" in recipe)]
    assert len(found) == 5
    for recipe in found:
        subprocess.run(["bash", "-n"], input=recipe, text=True, check=True)
        _, command, ours = re.split(r"-m ppo_fast\.(train|sweep)", recipe)
        own, _, of_runs = ours.partition(" -- ") if command == "sweep" else ("", "", ours)
        searched = re.findall(r"(\w+)=(?:log|range|choice):", own)
        assert [*names(of_runs), *searched]
        assert {*names(of_runs), *searched} <= set(FIELDS)
        assert set(names(own)) <= {field.name for field in dataclasses.fields(SweepOptions)}
        assert set(re.findall(r"^#SBATCH --([a-z-]+)=?", recipe, re.MULTILINE)) <= SBATCH


def names(command: str) -> list[str]:
    """Return the options that a command line gives."""
    return [flag.replace("-", "_") for flag in re.findall(r"--([a-z-]+)", command)]


def test_recipes_in_python_parse() -> None:
    (ray,) = recipes("python")
    ast.parse(ray)
    assert all(f'"{name}"' in ray for name in VARIABLES)
