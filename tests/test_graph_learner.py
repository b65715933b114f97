"""``--update graph``: one fixed sequence for a whole update, held to the eager learner.

On the CPU the sequence is called, on CUDA it is captured and replayed; the tests are the same.

Axes: T steps · N envs · B = T·N rows · M rows of a minibatch · P parameters.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import training
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training import ACT_DIM, OBS_DIM, Loss, TwoTimesRule, one_thread  # noqa: F401

from ppo_fast import reference
from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.errors import BackendError
from ppo_fast.learners.graph_learner import GraphLearner
from ppo_fast.learners.ppo_step import STATS, LossConfig, Minibatch, Optimizer, adam_step_where, minibatch_step_where
from ppo_fast.learners.staging import Staging
from ppo_fast.learners.torch_learner import TorchLearner, compiled_apart
from ppo_fast.models import ActorCritic

MODEL = ActorCritic(OBS_DIM, ACT_DIM)
META = torch.device("meta")
OPTIONS: dict[str, Any] = {
    "num_envs": 8, "num_steps": 16, "minibatch_size": 32, "update_epochs": 3, "anneal_lr": False
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "early stop": {"target_kl": 0.14, "learning_rate": 1e-3, "update_epochs": 6},
    "adaptive": {"adaptive_kl": 0.01},
    "recomputed": {"recompute_adv": True, "norm_adv": "batch"},
    "recomputed, stopped": {"recompute_adv": True, "target_kl": 0.12, "learning_rate": 1e-3, "clip_vloss": True},
    "no normalisation": {"norm_adv": "none", "ent_coef": 0.01},
}


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Both devices; TF32 is off, as everywhere unless a run asks for it."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    return torch.device(request.param)


def graph(flat: Tensor, device: torch.device, model: ActorCritic = MODEL, **options: Any) -> GraphLearner:
    return GraphLearner(model, flat, Config(**{**OPTIONS, "update": "graph", **options}), device)


def eager(
    flat: Tensor,
    device: torch.device,
    kind: type[TorchLearner] = TorchLearner,
    model: ActorCritic = MODEL,
    **options: Any,
) -> TorchLearner:
    return kind(model, flat, Config(**{**OPTIONS, "update": "eager", **options}), device)


def snapshot(learner: TorchLearner) -> dict[str, bytes]:
    return {name: tensor.cpu().numpy().tobytes() for name, tensor in {"flat": learner.flat, **learner.state()}.items()}


def whole_rollout(flat: Tensor, seed: int, model: ActorCritic = MODEL) -> Rollout:
    """Return a random rollout with rewards and ends, and NaN wherever a reset row must not be read."""
    rollout = training.random_rollout(model, flat, seed)
    rng = np.random.default_rng(seed)
    rollout.scaled_rewards[:] = rng.normal(size=rollout.valid.shape)
    rollout.done[:] = rng.random(rollout.valid.shape) < 0.15
    rollout.terminated[:] = rollout.done & (rng.random(rollout.valid.shape) < 0.5)
    for name in ("actions", "log_probs", "advantages", "returns"):
        getattr(rollout, name)[~rollout.valid] = np.nan
    if seed % 3 == 2:  # a minibatch of the first pass in which no row counts
        rollout.valid.reshape(-1)[reference.permutation(128, 1, 0)[32:64]] = False
    return rollout


# The numbers of the eager learner


@pytest.mark.parametrize("way", WAYS)
def test_plain_calls_give_the_bits_of_the_eager_learner_over_20_updates(way: str) -> None:
    cpu, flat = torch.device("cpu"), training.random_parameters(MODEL, 1)
    ours, theirs = (make(flat, cpu, **WAYS[way]) for make in (graph, eager))
    passes = set()
    for update in range(20):
        rollout = whole_rollout(flat, update)
        for learner in (ours, theirs):
            learner.set_progress(update / 20, 0.5 if update > 10 else 1.0)
        expected = theirs.update(rollout)
        assert ours.update(rollout) == expected
        assert snapshot(ours) == snapshot(theirs)
        assert ours.is_finite()
        passes.add(expected["epochs"])
    assert len(passes) > 1 or "target_kl" not in WAYS[way]  # the rule stopped, and not always at the same pass


@pytest.mark.parametrize(
    "model", [ActorCritic(5, 1, (16,), num_actions=4), ActorCritic(5, 2, (16,), shared_trunk=True)]
)
def test_other_policies_too(model: ActorCritic) -> None:
    cpu, flat = torch.device("cpu"), training.random_parameters(model, 2)
    ours, theirs = (make(flat, cpu, model=model) for make in (graph, eager))
    for update in range(3):
        rollout = training.random_rollout(model, flat, update)
        assert ours.update(rollout) == theirs.update(rollout)
    assert snapshot(ours) == snapshot(theirs)


class Reversed(TorchLearner):
    """The eager learner with the rows of every minibatch in reverse: the same sums in another order."""

    def _minibatch(self, k: int) -> Minibatch:
        return Minibatch(*(tensor.flip(0) for tensor in super()._minibatch(k)))


@pytest.mark.parametrize("way", ["plain", "recomputed"])
def test_20_updates_stay_within_four_times_what_the_order_of_summation_does(device: torch.device, way: str) -> None:
    flat = training.random_parameters(MODEL, 3)
    ours = graph(flat, device, **WAYS[way])
    theirs, turned = (eager(flat, device, kind, **WAYS[way]) for kind in (TorchLearner, Reversed))
    for update in range(20):
        rollout = whole_rollout(flat, update)
        for learner in (ours, theirs, turned):
            learner.set_progress(update / 20)
            learner.update(rollout)
        difference, spread = ((x.flat - theirs.flat).double().norm() for x in (ours, turned))
        assert float(spread) > 0
        assert float(difference) <= 4 * float(spread), update


def test_the_gradient_of_a_step_is_as_exact_as_the_float32_reference(device: torch.device) -> None:
    loss = Loss(clip_vloss=True, ent_coef=0.01)
    learner = graph(MODEL.init(1, -0.5), device, clip_vloss=True, ent_coef=0.01, max_grad_norm=1e30, update_epochs=1)
    rule = TwoTimesRule()
    for seed in range(32):
        flat = training.random_parameters(MODEL, seed)
        rollout = training.random_rollout(MODEL, flat, seed)
        rollout.valid.reshape(-1)[reference.permutation(128, 1, seed)[32:]] = False  # one minibatch, one step
        take_up(learner, flat, {"counters": torch.tensor([0, seed])})
        learner.update(rollout)
        assert learner.state()["counters"].tolist() == [1, seed + 1]
        gradients = [
            training.reference_gradient(training.reference_net(MODEL, flat, t), training.valid_rows(rollout, t), loss)[
                0
            ]
            for t in (torch.float32, torch.float64)
        ]
        ours = learner.state()["exp_avg"].double() / float(np.float32(1.0 - 0.9))
        rule.add({name: view for name, view in MODEL.unflatten(ours).items()}, *gradients)
    rule.check()


def take_up(learner: TorchLearner, flat: Tensor, state: dict[str, Tensor]) -> None:
    """Put a learner where a checkpoint says, as a resumed run does; moments that it does not name are 0."""
    zeros = {name: torch.zeros(MODEL.num_params) for name in ("exp_avg", "exp_avg_sq")}
    learner.flat.copy_(flat)
    learner.load({**zeros, **state})


# What a captured sequence must survive


def test_a_checkpoint_is_taken_up_in_place_with_adams_moments_and_steps(device: torch.device) -> None:
    flat = training.random_parameters(MODEL, 4)
    straight, other = (graph(flat, device, adaptive_kl=0.01) for _ in range(2))
    for update in range(3):
        straight.update(whole_rollout(flat, update))
    places = [tensor.data_ptr() for tensor in (other.flat, other.exp_avg, other.exp_avg_sq)]
    other.update(whole_rollout(flat, 9))  # it has been elsewhere before
    take_up(other, straight.flat, straight.state())
    assert places == [tensor.data_ptr() for tensor in (other.flat, other.exp_avg, other.exp_avg_sq)]
    assert straight.update(whole_rollout(flat, 5)) == other.update(whole_rollout(flat, 5))
    assert snapshot(straight) == snapshot(other)
    assert int(straight.state()["counters"][0]) > 30


def test_a_checkpoint_goes_from_the_eager_learner_to_the_graph_and_back() -> None:
    cpu, flat = torch.device("cpu"), training.random_parameters(MODEL, 5)
    first, second = eager(flat, cpu), graph(flat, cpu)
    first.update(whole_rollout(flat, 0))
    take_up(second, first.flat, first.state())
    for learner in (first, second):
        learner.update(whole_rollout(flat, 1))
    assert snapshot(first) == snapshot(second)


def test_the_first_step_has_the_length_of_the_rate_of_the_moment(device: torch.device) -> None:
    # At t = 1 every parameter moves by lr · g / (|g| + eps).
    flat = training.random_parameters(MODEL, 6)
    learner = graph(flat, device, update_epochs=1, minibatch_size=128, max_grad_norm=1e30, anneal_lr=True)
    for progress in (0.0, 0.5, 0.75):
        take_up(learner, flat, {"counters": torch.tensor([0, 0])})
        learner.set_progress(progress)
        learner.update(training.random_rollout(MODEL, flat, 6))
        gradient = learner.state()["exp_avg"].double() / float(np.float32(1.0 - 0.9))
        expected = -3e-4 * (1 - progress) * gradient / (gradient.abs() + 1e-5)
        moved = learner.flat.cpu().double() - flat.double()
        assert bool(((moved - expected).abs() <= 6 * 2.0**-24 * expected.abs() + 2.0**-23).all())


def test_an_early_stop_leaves_what_fewer_passes_leave_and_the_next_update_goes_on(device: torch.device) -> None:
    flat = training.random_parameters(MODEL, 7)
    options = {"learning_rate": 3e-3, "update_epochs": 5}
    rollout = whole_rollout(flat, 7)
    counts = [{**options, "update_epochs": passes} for passes in (1, 2, 3)]
    mean = [0.0, *(graph(flat, device, **each).update(rollout)["approx_kl"] for each in counts)]
    kl = [k * mean[k] - (k - 1) * mean[k - 1] for k in (1, 2, 3)]
    assert kl[0] < kl[1] < kl[2]
    stopped, short = graph(flat, device, target_kl=(kl[0] + kl[1]) / 2, **options), eager(flat, device, **options)
    assert stopped.update(rollout)["epochs"] == 2
    assert stopped.state()["counters"].tolist() == [stopped.adam_steps, 2]
    again = graph(flat, device, **{**options, "update_epochs": 2})
    again.update(rollout)
    assert snapshot(stopped) == snapshot(again)
    assert stopped.update(whole_rollout(flat, 8))["epochs"] >= 1
    assert short.update(rollout)["epochs"] == 5


# Steps that do not count


def test_a_step_that_does_not_count_changes_no_bit_whatever_it_would_have_been(device: torch.device) -> None:
    hp = LossConfig(0.2, False, True, 0.0, 0.5, 0.5, 1e-5)
    flat = training.random_parameters(MODEL, 8)
    before = [flat, torch.rand(MODEL.num_params), torch.rand(MODEL.num_params), torch.rand(len(STATS))]
    opt = Optimizer(*(tensor.to(device, copy=True) for tensor in before))
    false, broken = torch.zeros((), dtype=torch.bool, device=device), torch.full((MODEL.num_params,), torch.nan)
    one = torch.ones(4, device=device)
    adam_step_where(hp, opt, one[0], one[0], broken.to(device), false)
    widths = {"norm_obs": (4, OBS_DIM), "actions": (4, ACT_DIM)}
    rows = {name: torch.full(widths.get(name, (4,)), torch.nan, device=device) for name in Minibatch._fields}
    minibatch_step_where(MODEL, hp, False, opt, one, Minibatch(**{**rows, "valid": one}), false)
    none = Minibatch(**{**{name: torch.zeros_like(row) for name, row in rows.items()}, "valid": 0 * one})
    minibatch_step_where(MODEL, hp, False, opt, one, none, ~false)
    for tensor, old in zip(opt, before, strict=True):
        assert torch.equal(tensor.cpu(), old)
    minibatch_step_where(MODEL, hp, False, opt, one, Minibatch(**{**rows, "valid": one}), ~false)  # the control arm
    assert opt.flat.isnan().all()


def test_an_update_that_breaks_says_so(device: torch.device) -> None:
    flat = training.random_parameters(MODEL, 9)
    learner, rollout = graph(flat, device), whole_rollout(flat, 9)
    rollout.returns[tuple(np.argwhere(rollout.valid)[0])] = np.inf
    learner.update(rollout)
    assert not learner.is_finite()


# Nothing waits


class HostReads(TorchDispatchMode):
    """Count what asks the device for a value or for a shape that depends on values."""

    ASKS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        name = func.overloadpacket.__name__
        if any(name.startswith(ask) for ask in self.ASKS):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", WAYS)
def test_the_sequence_asks_the_host_nothing_and_is_the_same_for_every_batch(way: str) -> None:
    flat = training.random_parameters(MODEL, 10)
    learner = graph(flat, torch.device("cpu"), **WAYS[way])
    lengths = []
    for update in range(3):
        learner.update(whole_rollout(flat, update))
        with HostReads() as reads:
            learner._whole_update()
        assert not reads.found
        lengths.append(reads.calls)
    assert len(set(lengths)) == 1
    with HostReads() as reads:  # the control arm
        bool(torch.ones(1).sum() > 0)
    assert reads.found


@pytest.mark.parametrize("way", [*WAYS, "bf16"])
@pytest.mark.parametrize("model", [MODEL, ActorCritic(5, 1, (16,), num_actions=4, shared_trunk=True)])
def test_the_sequence_runs_on_a_device_that_is_not_the_hosts_and_has_no_values(model: ActorCritic, way: str) -> None:
    """On ``meta`` a question to the host, or an array left on the CPU, is an error, as it would be in a capture."""
    options = WAYS.get(way, {"precision": way})
    learner = graph(model.init(1, -0.5) if not model.num_actions else model.init(1, 0.0), META, model, **options)
    learner._whole_update()
    assert learner._result.device == META
    for mistake in (lambda: bool(learner._stats.sum() > 0), lambda: learner._stats + torch.ones(len(STATS))):
        with pytest.raises(RuntimeError, match="meta"):  # the control arm
            mistake()


def test_an_update_is_one_copy_there_and_one_back(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = training.random_parameters(MODEL, 11)
    learner = graph(flat, torch.device("cpu"), recompute_adv=True)
    copies, send = [], Staging.send
    monkeypatch.setattr(Staging, "send", lambda self: (copies.append("there"), send(self))[1])
    result = learner._read
    learner._read = SpyTensor(result, copies)  # type: ignore[assignment]
    learner.update(whole_rollout(flat, 11))
    assert copies == ["there", "back"]


class SpyTensor:
    """Stand in for the buffer that the metrics are read from, and say when it is filled."""

    def __init__(self, tensor: Tensor, said: list[str]) -> None:
        self._tensor, self._said = tensor, said

    def copy_(self, source: Tensor, *, non_blocking: bool) -> None:
        self._said.append("back")
        self._tensor.copy_(source, non_blocking=non_blocking)

    def __getitem__(self, index: Any) -> Tensor:
        return self._tensor[index]


# Capture


@pytest.mark.parametrize("way", WAYS)
def test_before_there_is_a_batch_the_sequence_changes_nothing(way: str, device: torch.device) -> None:
    """So it may be warmed up on what is there."""
    flat = training.random_parameters(MODEL, 13)
    learner = graph(flat, device, **WAYS[way])
    moments = {"exp_avg": 0.1 * flat, "exp_avg_sq": flat * flat}
    take_up(learner, flat, {**moments, "counters": torch.tensor([7, 3]), "base_rate": torch.tensor([3e-4]).double()})
    before = snapshot(learner)
    for _ in range(2):
        learner._whole_update()
    assert snapshot(learner) == before
    assert not learner._result[:, : len(STATS)].any()


def test_where_nothing_compiles_the_graph_is_made_of_eager_steps_aloud(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """How a capture goes about it, with stand-ins for what only a GPU has."""
    flat = training.random_parameters(MODEL, 14)
    learner = graph(flat, torch.device("cpu"))
    stream: Any = SimpleNamespace(wait_stream=lambda other: None)
    captured: list[str] = []

    def no_compiler(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no triton here\nmore")

    for name in ("current_stream", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: stream)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda what, name=name: (captured.append(name), nullcontext())[1])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=learner._whole_update))
    monkeypatch.setattr(torch, "compile", lambda step, **options: no_compiler)
    learner._replay = learner._captured()
    assert captured == ["stream", "stream", "graph"]  # it broke while it was warmed up, once more, and was captured
    assert "the graph is made of eager steps: no triton here" in caplog.text
    assert learner.why_eager.endswith("no triton here")
    other = eager(flat, torch.device("cpu"))
    rollout = whole_rollout(flat, 14)
    assert learner.update(rollout) == other.update(rollout)
    assert snapshot(learner) == snapshot(other)


# Staging


def test_staged_arrays_arrive_whole_and_apart_in_one_copy(device: torch.device) -> None:
    fields = {"a": (np.float32, (3, 5)), "b": (np.bool_, (7,)), "c": (np.int64, (2, 1, 2)), "d": (np.float32, ())}
    staging = Staging(fields, device)
    assert not any(tensor.any() for tensor in staging.device.values())
    rng = np.random.default_rng(1)
    places = [tensor.data_ptr() for tensor in staging.device.values()]
    assert all(place % 64 == 0 for place in places)
    for _ in range(2):
        sent = {name: rng.integers(0, 2, size=shape).astype(dtype) for name, (dtype, shape) in fields.items()}
        for name, array in sent.items():
            staging.host[name][...] = array
        staging.send()
        for name, array in sent.items():
            got = staging.device[name].cpu().numpy()
            assert got.dtype == array.dtype
            np.testing.assert_array_equal(got, array)
    assert places == [tensor.data_ptr() for tensor in staging.device.values()]


# A whole run


def test_a_run_and_one_that_was_taken_up_end_where_the_eager_one_ends(tmp_path: Path) -> None:
    options = {"target_kl": 0.02, "checkpoint_every": 512, "keep_checkpoints": 9}
    runs = [
        training.train(training.config(tmp_path / update, update=update, **options)) for update in ("eager", "graph")
    ]
    ends = [run.fingerprint() for run in runs]
    assert ends[0] == ends[1]
    assert runs[1].trainer.info["update"]["mode"] == "graph"
    middle = sorted((tmp_path / "graph" / "checkpoints").glob("step_*"))[0]
    resumed = training.train(training.config(tmp_path / "graph", update="graph", resume=str(middle), **options))
    assert not resumed.trainer.info["taken_up"]["differs"]
    end = resumed.fingerprint()
    assert end["rows"] == ends[1]["rows"][-len(end["rows"]) :]
    assert end["parameters"] == ends[1]["parameters"]
    assert 0 < len(end["rows"]) < len(ends[1]["rows"])


def test_the_critic_of_another_algorithm_is_fitted_by_it_too(tmp_path: Path) -> None:
    options = {"algo": "trpo", "norm_adv": "batch", "critic_epochs": 3, "update_epochs": 10, "total_timesteps": 600}
    ends = [
        training.train(training.config(tmp_path / update, update=update, **options)).fingerprint()
        for update in ("eager", "graph")
    ]
    assert ends[0] == ends[1]


# What cannot be


def test_several_processes_are_refused_in_one_line() -> None:
    peers: Any = SimpleNamespace(size=2, rank=0)
    with pytest.raises(BackendError, match=r"--update graph: .*several processes.*leave --update at 'auto'"):
        GraphLearner(MODEL, MODEL.init(1, -0.5), Config(**OPTIONS, update="graph"), torch.device("cpu"), peers=peers)


@pytest.mark.slow
def test_the_step_that_is_compiled_for_a_gpu_is_as_exact_here() -> None:
    """The compiled form of the masked step, which a CPU run does not take, gives the eager update up to rounding."""
    cpu, flat = torch.device("cpu"), training.random_parameters(MODEL, 12)
    ours, theirs, turned = graph(flat, cpu), eager(flat, cpu), eager(flat, cpu, Reversed)
    ours._step_where = compiled_apart(ours._bind_where(compiled=True))
    torch._dynamo.utils.counters.clear()
    for update in range(5):
        rollout = whole_rollout(flat, update)
        for learner in (ours, theirs, turned):
            learner.update(rollout)
    difference, spread = (float((x.flat - theirs.flat).double().norm()) for x in (ours, turned))
    assert difference <= 4 * spread
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert ours.state()["counters"].tolist() == theirs.state()["counters"].tolist()
