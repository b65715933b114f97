"""The arithmetic behind the tables, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ppo_fast import resolve
from ppo_fast.config import Config
from ppo_fast.models import ActorCritic

from ._limit import Flops, Work, count, work
from ._measure import Sample
from ._recipes import FAST, RL_GAMES, SAMPLE, SAMPLE_EFFICIENT, WORK, describe, preset_sample_is, recipes
from ._runs import as_flags, final
from .report import Quantity, Report, Row, markdown, text


# --- FLOPs -----------------------------------------------------------------------------------------------------------
def test_flops_of_separate_networks_by_hand() -> None:
    """3-5-7-2 and 3-5-7-1: multiply-adds forward 15 + 35 + 14 and 15 + 35 + 7; by inputs 35 + 14 and 35 + 7."""
    assert count(3, 2, (5, 7)) == Flops(forward=2 * 121, backward=2 * (121 + 91))


def test_flops_of_a_shared_trunk_by_hand() -> None:
    """3-5-7 and then 7-2 and 7-1: multiply-adds forward 15 + 35 + 21; by inputs 35 + 21."""
    assert count(3, 2, (5, 7), shared_trunk=True) == Flops(forward=2 * 71, backward=2 * (71 + 56))


def test_flops_of_one_hidden_layer_by_hand() -> None:
    assert count(3, 2, (5,)) == Flops(forward=2 * (15 + 10 + 15 + 5), backward=2 * (45 + 15))


@pytest.mark.parametrize("shared_trunk", [False, True])
def test_flops_forward_are_two_per_weight(shared_trunk: bool) -> None:
    model = ActorCritic(11, 3, (16, 8, 4), shared_trunk=shared_trunk)
    weights = sum(shape[0] * shape[1] for shape in model.shapes().values() if len(shape) == 2)
    assert count(11, 3, (16, 8, 4), shared_trunk=shared_trunk).forward == 2 * weights


def test_an_env_step_is_acted_on_once_and_learned_from_in_every_epoch() -> None:
    cfg = Config(num_envs=4, num_steps=8, minibatch_size=16, update_epochs=3, hidden_sizes=(5, 7))
    model = ActorCritic(3, 2, (5, 7))
    assert work(model, cfg, threads=2, simd="avx2") == Work(242, 3 * (242 + 424), threads=2, simd="avx2")


# --- runs ------------------------------------------------------------------------------------------------------------
def test_options_become_flags_and_a_tuple_several_words() -> None:
    options = {"env": "Ant-v5", "hidden-sizes": (256, 128), "learning-rate": 3e-4}
    assert as_flags(options) == ["--env", "Ant-v5", "--hidden-sizes", "256", "128", "--learning-rate", "0.0003"]


def test_a_kept_run_is_worth_the_mean_of_its_last_tenth() -> None:
    """Of twenty evaluations the last two, 10 and 30; of three the last alone."""
    evaluations = [[step, 0.0, 2.0] for step in range(18)] + [[18, 5.0, 15.0], [19, 20.0, 40.0]]
    assert final({"evaluations": evaluations}) == 20.0
    assert final({"evaluations": evaluations[-3:]}) == 30.0


# --- limit and peak --------------------------------------------------------------------------------------------------
def test_the_limit_by_hand() -> None:
    """100 us of physics and 10 MFLOP on two cores of 100 GFLOP/s, 50 us."""
    assert Work(2_000_000, 8_000_000).limit(10_000, 2, 100e9) == pytest.approx(1 / 150e-6)
    assert Work(0, 0).limit(10_000, 2, 100e9) == pytest.approx(10_000)


def test_the_share_of_peak_by_hand() -> None:
    """1000 env steps of 1 MFLOP in 10 ms are 100 GFLOP/s, of two threads with 80 each."""
    assert Work(5, 1_000_000, threads=2).of_peak(1000, 0.01, 80e9) == pytest.approx(100 / 160)


# --- tables ----------------------------------------------------------------------------------------------------------
def samples(*rates: int, **phases: float) -> list[Sample]:
    return [Sample(2 * rate, 2.0, dict(phases)) for rate in rates]


@pytest.fixture
def report() -> Report:
    out = Report(cpus=2, peaks={"Ant": {"avx512": [100e9, 50e9, 120e9], "avx2": [40e9, 40e9, 40e9]}})
    alone = "async", "sync"
    out.add("Ant", Row("sync", samples(7_000, 8_000, 9_000), alone))
    out.add("Ant", Row("async", samples(10_000, 10_000, 1_000), alone))  # median 10,000, whatever its worst round
    train = Work(2_000_000, 8_000_000, threads=2)
    out.add("Ant", Row("ours", samples(4_000, 5_000, 6_000, physics=1.2, update=0.5), alone, "theirs", train, "a note"))
    out.add("Ant", Row("theirs", samples(2_000, 2_500, 2_500), alone, "theirs"))
    out.quantities["start"] = [Quantity("native", "s", [6.0, 4.0, 5.0], "from the command")]
    return out


def test_rows_by_hand(report: Report) -> None:
    sync, ceiling, ours, theirs = report.to_json()
    assert [row["of_ceiling"] for row in (sync, ceiling, ours, theirs)] == [0.8, 1.0, 0.5, 0.25]
    assert [row["of_reference"] for row in (sync, ceiling, ours, theirs)] == [None, None, 2.0, 1.0]
    # 100 us of physics and 10 MFLOP at the median peak, 100 GFLOP/s, on two cores: 150 us, and ours takes 200
    assert [row["of_limit"] for row in (sync, ceiling, theirs)] == [None] * 3
    assert ours["of_limit"] == pytest.approx(150 / 200)
    # 30,000 env steps of 8 MFLOP in 1.5 s of updates are 160 GFLOP/s, of two threads with 100 each
    assert ours["of_peak"] == pytest.approx(0.8)
    assert ours["us_per_env_step"] == pytest.approx({"physics": 120.0, "update": 50.0, "other": 30.0})
    assert ours["env_steps_per_s"] == {"median": 5_000, "min": 4_000, "max": 6_000}


def test_a_level_has_its_own_peak(report: Report) -> None:
    row = report.sections["Ant"]["ours"]
    row.work = replace(row.work, simd="avx2") if row.work else None
    assert report.of_peak("Ant", "ours") == pytest.approx(160 / 80)
    assert report.of_limit("Ant", "ours") == pytest.approx(150 / 200)  # the limit is the machine's, not the level's


def test_without_peaks_there_is_no_limit(report: Report) -> None:
    report.peaks.clear()
    assert report.of_limit("Ant", "ours") is None
    assert report.of_peak("Ant", "ours") is None


def test_the_tables_show_every_row(report: Report) -> None:
    lines = text(report.to_json(), report.quantities_to_json())
    (ours,) = (line for line in lines if line.startswith("  ours"))
    shown = "ours 5,000 [4,000 - 6,000] 0.50 0.75 2.00 0.80 physics 120.0 + update 50.0 + other 30.0 a note"
    assert " ".join(ours.split()) == shown
    assert " ".join(lines[-1].split()) == "native 5.0 s [4.0 - 6.0] from the command"

    saved: dict[str, Any] = {
        "build": {"machine": {"cpu": "a CPU", "cpus": 2}}, "date": "2026-01-01", "commit": "abc",
        "noise": {"noisy": True, "reasons": ["somebody compiled"]}, "rows": report.to_json(),
        "quantities": report.quantities_to_json(),
    }  # fmt: skip
    lines = markdown(saved)
    assert "| theirs | 2,500 | [2,000 - 2,500] | 0.25 | - | 1.00 | - |  |  |" in lines
    assert "| native | 5.0 s | [4.0 - 6.0] | from the command |" in lines
    assert "**Noisy**: somebody compiled." in lines


def test_a_result_from_before_the_limit_still_prints() -> None:
    old = {
        "section": "Ant", "name": "EnvPool", "env_steps_per_s": {"median": 10.0, "min": 9.0, "max": 11.0},
        "of_ceiling": 1.0, "of_reference": None, "note": "",
    }  # fmt: skip
    saved = {"build": {"machine": {"cpu": "a CPU", "cpus": 2}}, "date": "2026-01-01", "commit": "abc"}
    lines = markdown(saved | {"noise": {"noisy": False, "reasons": []}, "rows": [old]})
    assert "| EnvPool | 10 | [9 - 11] | 1.00 | - | - | - |  |  |" in lines


# --- recipes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("task", WORK)
def test_every_recipe_is_a_run_and_none_is_there_twice(task: str) -> None:
    found = {name: resolve(env=task, **options) for name, options in recipes(task).items()}
    assert {FAST, SAMPLE_EFFICIENT, RL_GAMES} <= set(found) <= {FAST, SAMPLE, SAMPLE_EFFICIENT, RL_GAMES}
    assert len({replace(cfg, preset="fast") for cfg in found.values()}) == len(found)


def test_a_recipe_is_the_same_whatever_the_preset_of_its_task() -> None:
    shared = [replace(resolve(env=task, **recipes(task)[SAMPLE_EFFICIENT]), env="Ant-v5") for task in WORK]
    assert shared == [shared[0]] * len(WORK)
    for task in WORK:
        recipe = recipes(task)[RL_GAMES]
        assert resolve(env=task, **recipe) == replace(resolve(env="Pusher-v5", **recipe), env=task)


def test_preset_sample_is_preset_fast_on_some_tasks() -> None:
    assert preset_sample_is("Humanoid-v5") == FAST
    assert SAMPLE not in recipes("Humanoid-v5")
    assert preset_sample_is("Ant-v5") == FAST
    assert preset_sample_is("Hopper-v5") == ""  # its advantages are scaled by batch
    assert SAMPLE in recipes("Hopper-v5")


def test_recipes_in_words() -> None:
    peer = resolve(env="Ant-v5", **recipes("Ant-v5")[RL_GAMES])
    assert describe(peer) == "64 x 64, 4 epochs of 2048, 256-128-64 elu, shared trunk"
    assert (
        describe(resolve(env="Ant-v5", **recipes("Ant-v5")[SAMPLE_EFFICIENT])) == "64 x 32, 10 epochs of 64, 64-64 tanh"
    )
