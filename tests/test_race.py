"""Trials are compared at equal training time; every number here is worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ppo_fast.race import Curve, Verdict, judge, read_curve, trial_curve


def curve(*points: tuple[float, float]) -> Curve:
    return Curve(np.array([t for t, _ in points]), np.array([value for _, value in points]))


def test_a_value_holds_until_the_next() -> None:
    run = curve((10.0, 1.0), (20.0, 5.0))
    assert [run.value(t) for t in (9.9, 10.0, 19.0, 20.0, 1e9)] == [None, 1.0, 1.0, 5.0, 5.0]


def test_the_curve_of_a_trial_is_the_interquartile_mean_from_when_all_have_a_value() -> None:
    # At 12 s: 1, 2, 3 and 9, of which the lowest and the highest are left out: 2.5. At 20 s 1 -> 7: 2, 3, 7, 9: 5.
    runs = [curve((10, 1), (20, 7)), curve((11, 2)), curve((5, 0), (12, 3)), curve((8, 9))]
    got = trial_curve(runs)
    assert got.at.tolist() == [11.0, 12.0, 20.0]
    assert got.values.tolist() == [(1 + 2) / 2, 2.5, 5.0]  # at 11 s: 0, 1, 2, 9


FAST = curve((10, 100), (20, 200))


def test_equal_time_is_compared_and_not_equal_steps() -> None:
    # The others are at 100 and nothing after 10 s; at 250 and 50 after 40 s, and, since they have ended, for ever.
    others = [curve((10, 100), (40, 250)), curve((20, 50))]
    assert judge([curve((10, 99))], [False], others, 1) == Verdict(10.0, 99.0, 100.0)
    assert judge([curve((40, 300))], [False], others, 1) == Verdict(40.0, 300.0, 150.0)
    assert judge([curve((40, 300), (80, 400))], [False], others, 1) == Verdict(80.0, 400.0, 150.0)


def test_the_time_is_that_until_which_all_that_run_are_known() -> None:
    runs = [curve((10, 1), (20, 2), (30, 3)), curve((15, 5)), curve((9, 0), (10, 7))]
    # The second is known until 15 s: 1, 5, 7. When it has ended, its 5 holds, and the third is known until 10 s only,
    # when the second had nothing.
    others = [curve((1, 4))]
    assert judge(runs[:2], [False, False], others, 1) == Verdict(15.0, 3.0, 4.0)
    assert judge(runs, [False, True, False], others, 1) is None
    assert judge(runs, [False, True, True], others, 1) == Verdict(30.0, (3 + 5 + 7) / 3, 4.0)


def test_the_best_until_then_counts() -> None:
    verdict = judge([curve((1, 9), (2, 3))], [False], [curve((1, 4), (2, 8))], 1)
    assert verdict == Verdict(2.0, 9.0, 8.0)
    assert not verdict.hopeless
    assert Verdict(2.0, 7.9, 8.0).hopeless
    assert not Verdict(2.0, 8.0, 8.0).hopeless


@pytest.mark.parametrize(
    ("runs", "ended"),
    [
        ([None, None], [False, False]),
        ([FAST, None, None], [False] * 3),  # one of three is less than half of them
        ([FAST, FAST], [True, True]),  # it is completed, and nothing would be saved
    ],
)
def test_it_may_be_too_early_or_too_late(runs: list[Curve | None], ended: list[bool]) -> None:
    assert judge(runs, ended, [FAST], 1) is None


def test_nothing_is_hopeless_among_too_few() -> None:
    others = [curve((1, 1000))] * 4
    verdict = judge([FAST, None], [False, False], others, 5)
    assert verdict is not None
    assert math.isnan(verdict.median)
    assert not verdict.hopeless
    verdict = judge([FAST, None], [False, False], others, 4)
    assert verdict is not None
    assert verdict.hopeless


def test_the_evaluations_of_a_run_are_read(tmp_path: Path) -> None:
    assert read_curve(tmp_path) is None
    rows = [{"env_steps": 5, "wall_s": 1.5, "returns": [1.0, 2.0]}, {"env_steps": 9, "wall_s": 2.5, "returns": [4.0]}]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"env_st')
    got = read_curve(tmp_path)
    assert got is not None
    assert (got.at.tolist(), got.values.tolist()) == ([1.5, 2.5], [1.5, 4.0])
