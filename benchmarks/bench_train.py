"""End to end: the real trainer loop by every recipe, and the reference trainer, against the ceiling and the limit."""

from __future__ import annotations

from contextlib import ExitStack, closing

from ._ceiling import ceilings
from ._limit import work
from ._measure import Lane
from ._recipes import FAST, SAMPLE_EFFICIENT, describe, preset_sample_is, recipes
from ._training import PacedReference, PacedTrainer, how
from .conftest import GATE, Bench

REFERENCE = f"reference trainer, {FAST}"


def test_train(env_id: str, bench: Bench) -> None:
    section, alone = f"{env_id}: train", ceilings(bench.recording(env_id), bench.ceiling_steps(env_id))
    lanes: dict[str, Lane] = dict(alone)
    rows = {name: {"ceiling": tuple(alone)} for name in alone}
    with ExitStack() as stack:
        same = preset_sample_is(env_id)
        for recipe in recipes(env_id):
            cfg, name = bench.config(env_id, recipe), f"training, {recipe}"
            loop = stack.enter_context(closing(PacedTrainer(cfg)))
            learner = loop.trainer.learner
            lanes[name] = loop.lane(bench.iterations(env_id, cfg))
            rows[name] = {
                "ceiling": tuple(alone),
                "reference": REFERENCE if recipe == FAST else "",
                "work": None  # how many epochs there are, is for the KL stop to say
                if cfg.target_kl
                else work(loop.trainer.model, cfg, threads=learner.threads, simd=learner.simd),
                "note": f"{describe(cfg)}; {how(learner)}, threads {learner.threads}; actor {loop.trainer.actor}"
                + "; preset sample is the same" * (recipe == same),
            }
            bench.keep(f"{section}, {recipe}", cfg, update=learner.mode, compile_s=learner.compile_s)
        reference = stack.enter_context(closing(PacedReference(bench.config(env_id))))
        lanes[REFERENCE] = reference.lane(1)
        rows[REFERENCE] = {"ceiling": tuple(alone), "reference": REFERENCE}
        bench.contest(section, lanes, rows)
    if bench.gate and env_id == "Ant-v5":
        ratio = bench.report.of_ceiling(section, f"training, {SAMPLE_EFFICIENT}")
        assert ratio is not None
        assert ratio >= GATE, f"{SAMPLE_EFFICIENT} training of {env_id} ran at {ratio:.3f} of the ceiling, below {GATE}"
