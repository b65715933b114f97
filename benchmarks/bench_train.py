"""End to end: the real trainer loop and the reference trainer on the same batch, against the ceiling."""

from __future__ import annotations

from contextlib import ExitStack, closing

import pytest

from ._ceiling import ceilings
from ._measure import Lane, Paced, Sample
from ._training import PacedReference, PacedTrainer, how
from .conftest import TASKS, Bench

PRESETS = "fast", "sample"
GATE = 0.65


@pytest.mark.parametrize("env_id", TASKS)
def test_train(env_id: str, bench: Bench) -> None:
    section, alone = f"{env_id}: train", ceilings(bench.recording(env_id), bench.ceiling_steps(env_id))
    lanes: dict[str, Lane] = dict(alone)
    rows = {name: {"ceiling": tuple(alone)} for name in alone}
    with ExitStack() as stack:
        for preset in PRESETS:
            cfg = bench.config(env_id, preset)
            fast, reference = PacedTrainer(cfg), PacedReference(cfg)
            stack.enter_context(closing(fast))
            stack.enter_context(closing(reference))
            learner = fast.trainer.learner
            mode = how(learner)
            names = f"ppo_fast, preset {preset}", f"reference, batch of preset {preset}"
            lanes |= {names[0]: lane(fast, bench.steps(2 * TASKS[env_id])), names[1]: lane(reference, 1)}
            rows |= {name: {"ceiling": tuple(alone), "reference": names[1]} for name in names}
            rows[names[0]]["note"] = mode
            bench.keep(f"{section}, preset {preset}", cfg, update=learner.mode, compile_s=learner.compile_s)
        bench.contest(section, lanes, rows)
    for preset in PRESETS:
        row = bench.report.sections[section][f"ppo_fast, preset {preset}"]
        row.note = f"{shares(row.samples)}; update {row.note}"
    ratio = bench.report.of_ceiling(section, "ppo_fast, preset fast")
    assert ratio is not None
    if bench.gate and env_id == "Ant-v5":
        assert ratio >= GATE, f"training {env_id} with preset fast ran at {ratio:.3f} of the ceiling, below {GATE}"


def lane(loop: Paced, iterations: int) -> Lane:
    return lambda: loop.advance(iterations)


def shares(samples: list[Sample]) -> str:
    """Say where the time of a trainer went; what its phases do not name is `other`."""
    total = sum(sample.seconds for sample in samples)
    phases = {name: sum(s.phases.get(name, 0.0) for s in samples) / total for name in samples[0].phases}
    assert sum(phases.values()) <= 1.0
    phases["other"] = 1.0 - sum(phases.values())
    return ", ".join(f"{name} {share:.1%}" for name, share in phases.items() if share >= 0.0005)
