"""How speed changes with the number of environments and the size of the networks; only with --scaling."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch

from ppo_fast.config import Config
from ppo_fast.learners.native import NativeLearner, lacks
from ppo_fast.models import ActorCritic

from ._ceiling import ceilings, record, steps_needed
from ._limit import Work, work
from ._measure import Lane
from ._recipes import describe
from ._training import PacedTrainer, how, rollouts
from ._update import fastest_update, per_sample, random_rollout
from .conftest import Bench

ENV = "HalfCheetah-v5"
NUM_ENVS = 1, 4, 16, 64, 256, 1024
LANE = 16384  # env steps: a third of a second with many environments, a second with one
ROWS = 2048  # of a batch, at least
HIDDEN_SIZES = (64, 64), (128, 128), (256, 256), (512, 256, 128)

pytestmark = pytest.mark.usefixtures("scaling")


@pytest.mark.parametrize("num_envs", NUM_ENVS)
def test_number_of_environments(num_envs: int, bench: Bench) -> None:
    if bench.smoke and num_envs > 4:
        pytest.skip("a smoke run takes few environments")
    section, trained = f"{ENV}: {num_envs} environments", bench.policy(ENV)
    options = {
        "num_envs": num_envs,
        "num_steps": bench.steps(max(32, ROWS // num_envs)),
        "minibatch_size": bench.steps(256),
    }
    cfg, flat, actor = bench.config(ENV, **options), trained.trainer.learner.flat, trained.actors()[0]
    steps = bench.steps(LANE // num_envs)
    recorder = trained.worker(actor, **options)
    with closing(recorder.env):
        alone = ceilings(record(recorder, flat, steps_needed(steps, bench.rounds + 1)), steps)
    loop, worker = PacedTrainer(cfg), trained.worker(actor, **options)
    with closing(loop), closing(worker.env):
        learner, iterations = loop.trainer.learner, bench.steps(max(1, LANE // cfg.batch_size))
        trains = work(loop.trainer.model, cfg, threads=learner.threads, simd=learner.simd)
        lanes: dict[str, Lane] = {
            **alone,
            f"rollout, {actor} actor": rollouts(worker, flat, iterations),
            "training": loop.lane(iterations),
        }
        rows = {name: {"ceiling": tuple(alone), "work": Work(trains.acting)} for name in lanes}
        rows["training"] |= {"work": trains, "note": f"{describe(cfg)}; {how(learner)}, threads {learner.threads}"}
        bench.contest(section, lanes, rows)
        bench.keep(section, cfg)


def test_sizes_of_networks(bench: Bench) -> None:
    """The native update of 4096 rows of Ant-v5's sizes, one epoch, on one thread and on all that help."""
    if why := lacks(ActorCritic(105, 8), torch.device("cpu")):
        pytest.skip(why)
    section, num_envs, num_steps = "105-...-(8, 1), separate: native update of 4096 rows, 1 epoch", 64, 64
    lanes: dict[str, Lane] = {}
    rows = {}
    for hidden_sizes in HIDDEN_SIZES[:1] if bench.smoke else HIDDEN_SIZES:
        model = ActorCritic(105, 8, hidden_sizes)
        flat, rollout = model.init(1, -0.5), random_rollout(model, num_steps, num_envs)
        for minibatch in (64, 256, 2048):
            for threads in (1, 0):
                cfg = Config(
                    num_envs=num_envs, num_steps=num_steps, minibatch_size=minibatch, update_epochs=1, seed=1,
                    learner_threads=threads,
                )  # fmt: skip
                learner = NativeLearner(model, flat, cfg)
                name = f"{'-'.join(map(str, hidden_sizes))}, minibatch {minibatch}, threads {learner.threads}"
                lanes[name] = fastest_update(learner, flat, rollout, bench.steps(5))
                rows[name] = {"work": work(model, cfg, threads=learner.threads, simd=learner.simd)}
    bench.contest(section, lanes, rows)
    for name in lanes:
        row = bench.report.sections[section][name]
        row.note = per_sample(row.samples, epochs=1)
