"""What a GPU does: the update by every way of torch beside the native one on the CPU, and training with it.

Run by ``benchmarks/gpu.sh``, which first checks what the GPU computes. Skipped where torch sees no GPU;
with --benchmark-disable every body runs once on tiny shapes on the CPU, where a graph is plain calls.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_fast import envs
from ppo_fast.config import Config
from ppo_fast.learners.choose import make_learner
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.models import ActorCritic
from ppo_fast.state import make_model
from ppo_fast.system import device_name

from ._ceiling import ceilings
from ._measure import Lane
from ._recipes import RL_GAMES, describe
from ._training import PacedTrainer
from ._update import fastest_update, random_rollout
from .conftest import Bench
from .report import Quantity

# Bound on |step of one - step of the other| / |step| over a whole update in float32: rounding differs, TF32 is off.
AGREE = 1e-2
# Of EnvPool alone, in turn and overlapped.
AIMS = {"Ant-v5": 0.90, "Humanoid-v5": 0.90, "HalfCheetah-v5": 0.70}
AIMS_OVERLAP = {"Ant-v5": 0.95, "Humanoid-v5": 0.95, "HalfCheetah-v5": 0.85}
EAGER, COMPILE, GRAPH, NATIVE = "eager", "compile per minibatch", "one graph", "native, CPU"


@pytest.fixture
def device(bench: Bench) -> torch.device:
    if bench.smoke:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    return torch.device("cuda")


def facts(device: torch.device) -> dict[str, Any]:
    """Return what the results must say of the GPU."""
    if device.type != "cuda":
        return {"gpu": None}
    properties, driver = torch.cuda.get_device_properties(device), Path("/proc/driver/nvidia/version")
    return {
        "gpu": device_name(device),
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "gpu_driver": driver.read_text().splitlines()[0] if driver.exists() else "",
        "cuda": torch.version.cuda,
    }


def ways(device: torch.device, *, smoke: bool) -> dict[str, tuple[torch.device, dict[str, Any]]]:
    """Return device and options of every way of an update, the slowest first."""
    torchs = {EAGER: "eager", GRAPH: "graph"} if smoke else {EAGER: "eager", COMPILE: "compile", GRAPH: "graph"}
    found: dict[str, tuple[torch.device, dict[str, Any]]] = {
        name: (device, {"learner": "torch", "update": update}) for name, update in torchs.items()
    }
    for precision in ("bf16",) if device.type == "cpu" else ("tf32", "bf16"):
        found[f"{GRAPH}, {precision}"] = (device, {"learner": "torch", "update": "graph", "precision": precision})
    return found | {NATIVE: (torch.device("cpu"), {"learner": "native", "update": "auto"})}


def contest(
    bench: Bench, section: str, cfg: Config, model: ActorCritic, names: list[str], device: torch.device
) -> None:
    """Time whole updates on one rollout by the ways ``names``, of which the first is the reference of the others."""
    cfg = replace(cfg, target_kl=None)  # a graph takes the steps after a stop, too, and lets them change nothing
    flat, rollout = model.init(cfg.seed, cfg.log_std_init), random_rollout(model, cfg.num_steps, cfg.num_envs)
    lanes: dict[str, Lane] = {}
    learners: dict[str, PPOLearner] = {}
    moved: dict[str, torch.Tensor] = {}
    for name in names:
        where, options = ways(device, smoke=bench.smoke)[name]
        made, _ = make_learner(model, flat, replace(cfg, device="auto", **options), where)
        assert isinstance(made, PPOLearner)
        fresh = made.state()
        made.update(rollout)
        learners[name], moved[name] = made, made.flat.cpu() - flat
        if made.cfg.precision == "float32":
            error = float((moved[name] - moved[names[0]]).norm() / moved[names[0]].norm())
            assert error <= AGREE, f"{name}: the update differs from that of {names[0]} by {error:.1e}"
        made.flat.copy_(flat)
        made.load(fresh)
        lanes[name] = fastest_update(made, flat, rollout, bench.steps(5))
    bench.contest(section, lanes, {name: {"reference": names[0]} for name in lanes})
    for name, learner in learners.items():
        row = bench.report.sections[section][name]
        best = min(sample.seconds for sample in row.samples) / (cfg.update_epochs * cfg.num_minibatches)
        row.note = f"{1e6 * best:.1f} us per minibatch at best on {learner.device}; {learner.mode}"
        row.note += f", compiled in {learner.compile_s:.1f} s" * (learner.compile_s > 1.0)
    bench.keep(section, cfg, **facts(device))


def aims(bench: Bench, section: str, found: dict[str, tuple[float, str, str]]) -> None:
    """Report what was aimed at beside what came out: name -> value, unit and aim."""
    for name, (value, unit, aim) in found.items():
        bench.measured(section, Quantity(name, unit, [value], f"aim: {aim}"))


def test_gpu_update(bench: Bench, device: torch.device) -> None:
    """Ant's networks and batch of rl_games: minibatches of 2048, 256-128-64."""
    cfg = bench.config("Ant-v5", RL_GAMES)
    model = make_model(cfg, envs.spec(cfg.env))
    section = f"{cfg.env}, {RL_GAMES}' recipe: update ({describe(cfg)})"
    contest(bench, section, cfg, model, list(ways(device, smoke=bench.smoke)), device)
    rows, graph = bench.report.sections[section], bench.report.of_reference(section, GRAPH) or 0.0
    seconds = min(sample.seconds for sample in rows[GRAPH].samples) / (cfg.update_epochs * cfg.num_minibatches)
    aims(
        bench, section, {"one graph, minibatch": (1e6 * seconds, "us", "at most 60"), "over eager": (graph, "x", "10")}
    )
    if compiled := bench.report.of_reference(section, COMPILE) if COMPILE in rows else None:
        aims(bench, section, {"over compile per minibatch": (graph / compiled, "x", "3")})


def test_gpu_large(bench: Bench, device: torch.device) -> None:
    """Networks of 1024-1024 and 1024 environments, where a GPU should be ahead of the CPU."""
    sizes = {} if bench.smoke else {"num_envs": 1024, "num_steps": 16, "update_epochs": 2}
    cfg = bench.config("Ant-v5", RL_GAMES, hidden_sizes=(16, 16) if bench.smoke else (1024, 1024), **sizes)
    model = make_model(cfg, envs.spec(cfg.env))
    contest(bench, f"{cfg.env}: large update ({describe(cfg)})", cfg, model, [NATIVE, GRAPH], device)


@pytest.mark.parametrize("task", AIMS)
def test_gpu_train(task: str, bench: Bench, device: torch.device) -> None:
    """Training against EnvPool alone: the native learner, and one graph on the GPU in turn and overlapped."""
    section, alone = f"{task}: train, {RL_GAMES}' recipe", ceilings(bench.recording(task), bench.ceiling_steps(task))
    lanes: dict[str, Lane] = dict(alone)
    rows: dict[str, dict[str, Any]] = {name: {"ceiling": tuple(alone)} for name in alone}
    on_gpu: dict[str, Any] = {"device": device.type, "learner": "torch", "update": "graph"}
    kinds: dict[str, dict[str, Any]] = {
        NATIVE: {"device": "cpu", "learner": "native"},
        GRAPH: on_gpu,
        f"{GRAPH}, overlap": {**on_gpu, "overlap": "learner"},
    }
    with ExitStack() as stack:
        for name, options in kinds.items():
            cfg = bench.config(task, RL_GAMES, **options)
            loop = stack.enter_context(closing(PacedTrainer(cfg)))
            lanes[name] = loop.lane(bench.iterations(task, cfg))
            note = f"{describe(cfg)}; actor {loop.trainer.actor}, on {loop.trainer.device}"
            rows[name] = {"ceiling": tuple(alone), "reference": NATIVE, "note": note}
            bench.keep(f"{section}, {name}", cfg, **facts(device))
        bench.contest(section, lanes, rows)
    for name, aim in {GRAPH: AIMS[task], f"{GRAPH}, overlap": AIMS_OVERLAP[task]}.items():
        ratio = bench.report.of_ceiling(section, name) or 0.0
        aims(
            bench,
            section,
            {f"{name}, of the ceiling": (100 * ratio, "%", f"{100 * aim:.0f} % with 16 threads and one H100")},
        )
