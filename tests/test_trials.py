"""The trials of a sweep in a directory that several processes share: each made once, none lost with its process."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppo_fast import lock as lock_module
from ppo_fast.errors import BackendError, ConfigError
from ppo_fast.race import Curve, Verdict
from ppo_fast.search import Choice, Range, Space
from ppo_fast.trials import Claim, Trials

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
SPACE: Space = {"learning_rate": Range(1e-5, 1e-3, log=True), "hidden_sizes": Choice({"8": (8,), "8-8": (8, 8)})}
ABOUT = {"env": "Ant-v5", "seeds": 3, "log": []}
Make = Callable[[], Trials]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Open the directory as one more process would; locks are between these as they are between processes."""
    return lambda: Trials(tmp_path / "s", SPACE, ABOUT, 1)


def curve(*points: tuple[float, float]) -> Curve:
    return Curve(*np.array(points, np.float64).T)


def complete(trials: Trials, claim: Claim | None, score: float) -> None:
    assert claim is not None
    trials.completed(claim, [score, score], [curve((1.5, 0.0), (2.5, score)), curve((2.0, 0.0), (3.0, score))])
    claim.lock.release()


def test_two_processes_make_so_many_trials_as_are_wanted(make: Make) -> None:
    one, other = make(), make()
    claims = [one.claim(3), other.claim(3), one.claim(3)]
    assert [claim.number for claim in claims if claim] == [0, 1, 2]
    assert one.claim(3) is None
    assert other.claim(3) is None
    for claim in claims:
        assert claim is not None
        assert 1e-5 <= claim.options["learning_rate"] <= 1e-3
        assert claim.options["hidden_sizes"] in ((8,), (8, 8))
        assert not claim.taken_up
    complete(one, claims[0], 5.0)
    assert other.claim(3) is None
    assert [record.ending for record in other.records()] == ["completed", "", ""]
    more = other.claim(4)
    assert more is not None
    assert more.number == 3


WORKER = """
import sys
from pathlib import Path
import numpy as np
from ppo_fast.race import Curve
from ppo_fast.search import Range
from ppo_fast.trials import Trials
trials = Trials(Path(sys.argv[1]), {"gamma": Range(0.0, 1.0)}, {}, 1)
while (claim := trials.claim(30)) is not None:
    trials.completed(claim, [claim.options["gamma"]], [Curve(np.array([1.0]), np.array([0.0]))])
    claim.lock.release()
    print(claim.number)
"""


def test_processes_at_the_same_directory_at_once_lose_and_repeat_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(Path(lock_module.__file__).parents[1])}
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    said = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sorted(map(int, "".join(said).split())) == list(range(30))
    records = Trials(tmp_path, {"gamma": Range(0.0, 1.0)}, {}, 1).records()
    assert [record.score for record in records] == [record.options["gamma"] for record in records]


def test_a_trial_whose_process_ended_is_taken_up_with_its_options(make: Make) -> None:
    one, other = make(), make()
    first = one.claim(1)
    assert first is not None
    assert other.claim(1) is None
    first.lock.release()  # as the system does when a process ends
    again = other.claim(1)
    assert again is not None
    assert (again.number, again.options, again.path, again.taken_up) == (0, first.options, first.path, True)
    assert one.claim(1) is None


def test_a_run_that_outlives_its_sweep_keeps_the_trial(make: Make) -> None:
    one, other = make(), make()
    first = one.claim(1)
    assert first is not None
    run = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[first.lock.fileno()]
    )
    first.lock.release()
    assert other.claim(1) is None
    run.communicate(b"\n", timeout=30)
    again = other.claim(1)
    assert again is not None
    assert again.taken_up


def test_a_proposal_that_was_broken_off_is_completed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna

    with monkeypatch.context() as patch:
        patch.setattr(optuna.trial.Trial, "suggest_categorical", lambda self, *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # after the learning rate
            make().claim(1)
    (begun,) = make().records()
    assert list(begun.options) == ["learning_rate"]
    again = make().claim(1)
    assert again is not None
    assert (again.number, again.taken_up) == (0, True)
    assert again.options["learning_rate"] == begun.options["learning_rate"]
    assert again.options["hidden_sizes"] in ((8,), (8, 8))


def test_a_proposal_depends_on_the_seed_its_number_and_what_has_ended(tmp_path: Path) -> None:
    def proposed(out: str, seed: int) -> list[dict[str, Any]]:
        trials = Trials(tmp_path / out, SPACE, ABOUT, seed)
        for score in (1.0, 2.0):
            complete(trials, trials.claim(9), score)
        return [record.options for record in trials.records()]

    assert proposed("a", 1) == proposed("b", 1) != proposed("c", 2)


def test_how_a_trial_ended_decides_whether_another_is_made(make: Make) -> None:
    trials = make()

    def end(how: Callable[[Claim], object]) -> int:
        claim = trials.claim(2)
        assert claim is not None
        how(claim)
        claim.lock.release()
        return claim.number

    assert end(lambda claim: trials.refused(claim, "it does not divide")) == 0
    assert end(lambda claim: trials.failed(claim, "no memory")) == 1
    assert end(lambda claim: trials.diverged(claim, "NaN")) == 2
    assert end(lambda claim: trials.stopped(claim, Verdict(12.5, 7.0, 9.0))) == 3
    assert trials.claim(2) is None
    records = make().records()
    assert [record.ending for record in records] == ["not allowed", "failed", "NaN", "stopped early"]
    assert [record.score for record in records] == [None, None, None, 7.0]
    assert [record.why for record in records[:3]] == ["it does not divide", "no memory", "NaN"]
    assert records[3].seconds == 12.5
    assert trials.curves() == []
    # What the sampler learns: a pruned trial counts as a bad one, and one that failed is no news of its options.
    states = [trial.state.name for trial in trials._study.get_trials()]
    assert states == ["PRUNED", "FAIL", "PRUNED", "PRUNED"]


def test_what_was_completed_is_there_for_all(make: Make) -> None:
    one, other = make(), make()
    complete(one, one.claim(9), 6.0)
    (record,) = other.records()
    assert (record.score, record.finals, record.seconds, record.ending) == (6.0, [6.0, 6.0], 3.0, "completed")
    assert record.words["hidden_sizes"] == "-".join(map(str, record.options["hidden_sizes"]))
    (known,) = other.curves()
    # V: 0 at 2.0, the mean of 6 and 0 at 2.5, 6 at 3.0; in whole seconds, known from the next one on.
    assert (known.at.tolist(), known.values.tolist()) == ([2.0, 3.0], [0.0, 6.0])


def test_better_options_are_proposed_more_often(tmp_path: Path) -> None:
    trials = Trials(tmp_path, {"gamma": Range(0.0, 1.0)}, {}, 1)
    for _ in range(40):
        claim = trials.claim(40)
        assert claim is not None
        complete(trials, claim, -abs(claim.options["gamma"] - 0.7))
    proposed = [record.options["gamma"] for record in trials.records()]
    assert np.abs(np.array(proposed[-10:]) - 0.7).mean() < np.abs(np.array(proposed[:10]) - 0.7).mean() / 2


def test_another_sweep_does_not_mix_with_it(make: Make, tmp_path: Path) -> None:
    make()
    with pytest.raises(ConfigError, match="s was made with seeds 3, not 5: take another --out"):
        Trials(tmp_path / "s", SPACE, {**ABOUT, "seeds": 5}, 1)
    with pytest.raises(ConfigError, match=r"s was made with log .*, not None: take another --out"):
        Trials(tmp_path / "s", SPACE, {"env": "Ant-v5", "seeds": 3}, 1)


def test_runs_that_the_journal_does_not_know_of_are_not_taken_up(make: Make, tmp_path: Path) -> None:
    trials = make()
    complete(trials, trials.claim(9), 1.0)
    (tmp_path / "s" / "trials.journal").unlink()
    again = make()
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"trial-0000 is there, and .*trials\.journal does not know of it"):
            again.claim(9)
    assert again.records() == []


def test_a_directory_that_cannot_be_made_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    with pytest.raises(ConfigError, match=r"out '.*/s' cannot be made: File exists"):
        make()


def test_a_line_that_a_crash_cut_short_is_forgotten(make: Make, tmp_path: Path) -> None:
    trials = make()
    complete(trials, trials.claim(9), 6.0)
    journal = tmp_path / "s" / "trials.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "worker')
    assert [record.score for record in make().records()] == [6.0]
    now = journal.read_bytes()
    assert now.startswith(whole)
    assert all(json.loads(line) for line in now[len(whole) :].splitlines())


@pytest.mark.parametrize("text", ["no journal\n", "{}\n", "[]\n", '{"op_code": 99, "worker_id": "a"}\n'])
def test_a_damaged_journal_is_refused(make: Make, tmp_path: Path, text: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "trials.journal").write_text(text + text)
    with pytest.raises(ConfigError, match=r"trials\.journal is damaged: "):
        make()


def test_a_file_system_without_locks_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock_module, "_try_lock", no_locks)
    with pytest.raises(ConfigError, match=r"is on a file system without locks \(No locks available\)"):
        make()


def test_one_that_never_lets_go_is_not_waited_for_for_ever(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppo_fast.trials._PATIENCE_S", 0.1)
    trials = make()
    with trials._alone(), pytest.raises(ConfigError, match=r"s has been held by another process for 0 s"):
        make()


def test_without_optuna_one_sentence_says_what_to_install(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(BackendError, match=r"a sweep needs Optuna \(.*\): pip install 'ppo_fast\[sweep\]'"):
        make()
