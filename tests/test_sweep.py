"""``python -m ppo_fast.sweep``: trials are made, judged, taken up and told of; most runs are played, some are real."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import Outcome, call
from hypothesis import given
from hypothesis import strategies as st

from ppo_fast import pool, runs, sweep
from ppo_fast.cli import parse_config
from ppo_fast.config import Config
from ppo_fast.files import to_toml
from ppo_fast.sweep_results import best_toml
from ppo_fast.trials import Record

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are pinned on Linux alone")

# What a run writes, made of a plan: the returns of its evaluations, the seconds between them, and what befalls it.
PLAYED = """
import json, os, sys, time
path, steps, plan = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
os.makedirs(path, exist_ok=True)
def say(name, value, mode="a"):
    with open(os.path.join(path, name), mode) as file:
        file.write(json.dumps(value) + "\\n")
say("started", 1)
if plan.get("do") == "killed" and len(open(os.path.join(path, "started")).readlines()) < plan["lives"]:
    os.kill(os.getpid(), 9)
if plan.get("do") == "refuse":
    print("what it was refused for")
    sys.exit(2)
if plan.get("do") in ("fail", "nan"):
    say("nonfinite.json", {})  # of now, or of a rollback
    print("ppo_fast.train: stopped: what it died of" if plan["do"] == "nan" else "OSError: what it died of")
    sys.exit(1)
say("config.json", {"env": "Ant-v5", "preset": "fast", "seed": 1, "total_timesteps": steps}, "w")
say("metrics.jsonl", {"episode_return": 0.0})
made = os.path.join(path, "evaluations.jsonl")
done = len(open(made).readlines()) if os.path.exists(made) else 0
for k in range(done, len(plan["returns"])):
    while k and "until" in plan and not os.path.exists(plan["until"]):  # the first evaluation is not waited for
        time.sleep(0.02)
    time.sleep(plan.get("sleep", 0.0))
    at = (k + 1) * plan.get("pace", 10.0)
    say("evaluations.jsonl", {"env_steps": steps * (k + 1) // len(plan["returns"]), "wall_s": at,
                              "returns": [plan["returns"][k]]})
"""
Plan = dict[str, Any]
Play = Callable[..., None]
GOOD: Plan = {"returns": [1.0, 5.0]}
ENV = "InvertedPendulum-v5"
SEARCH = ("--search", "gamma=range:0.9:0.99", "num_steps=choice:32,64")
ARGS = ("--out", "s", "--env", ENV, *SEARCH, "--seeds", "2", "--cores-per-run", "1")


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Play]:
    """Have runs play the plan of their trial, two at a time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pool, "_LOOK_EVERY_S", 0.02)
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cpus)[:2])  # so that trials follow each other

    def set_plans(*plans: Plan, otherwise: Plan = GOOD) -> None:
        def command(cfg: Config, path: Path, flags: Sequence[str]) -> list[str]:
            number = int(path.parent.name.removeprefix("trial-"))
            plan = plans[number] if number < len(plans) else otherwise
            told = [str(path), str(cfg.total_timesteps), json.dumps(plan)]
            return [sys.executable, "-I", "-S", "-c", PLAYED, *told]

        monkeypatch.setattr(runs, "command", command)

    yield set_plans
    os.sched_setaffinity(0, cpus)


@pytest.fixture
def run(play: Play, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    return lambda *args: call(sweep.main, capsys, *ARGS, *args)


def results(out: str = "s") -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = json.loads(Path(out, "results.json").read_text())
    return made


def test_trials_are_made_once_and_the_best_can_be_trained(play: Play, run: Callable[..., Outcome]) -> None:
    play({"returns": [1.0, 5.0]}, {"returns": [1.0, 9.0]}, {"returns": [1.0, 7.0]})
    done = run("--trials", "3", "--", "--max-grad-norm", "0.7")
    assert done.code == 0, done.err
    assert "3 trials of 2 seeds on InvertedPendulum-v5, 0 have ended; " in done.out
    assert "trial 1: 9.0 (IQM of 2 seeds, 20 s)" in done.out
    assert "best: trial 1, 9.0\n  python -m ppo_fast.train --config s/best.toml --seed 1" in done.out
    made = results()
    assert [(each["number"], each["score"], each["finals"]) for each in made] == [
        (0, 5.0, [5.0, 5.0]), (1, 9.0, [9.0, 9.0]), (2, 7.0, [7.0, 7.0]),
    ]  # fmt: skip
    rows = Path("s/table.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[:3] for row in rows] == [["| 1", "9.0", "9.0 9.0"], ["| 2", "7.0", "7.0 7.0"],
                                                      ["| 0", "5.0", "5.0 5.0"]]  # fmt: skip
    cfg = parse_config(["--config", "s/best.toml"], prog="", description="")
    best = made[1]["options"]
    assert (cfg.env, cfg.gamma, cfg.num_steps, cfg.max_grad_norm) == (ENV, best["gamma"], best["num_steps"], 0.7)
    assert (cfg.seed, cfg.run_dir, cfg.eval_every) == (1, "", 100_000)  # which are not what was found

    again = run("--trials", "3", "--", "--max-grad-norm", "0.7")
    assert again.code == 0
    assert "3 have ended" in again.out
    assert "trial 3" not in again.out
    more = run("--trials", "4", "--", "--max-grad-norm", "0.7")
    assert re.findall(r"^trial (\d+): --gamma", more.out, re.MULTILINE) == ["3"]
    assert len(results()) == 4

    other = run("--trials", "4", "--", "--max-grad-norm", "0.8")
    assert other.code == 2
    assert "s was made with max_grad_norm 0.7, not 0.8: take another --out" in other.err


def test_a_trial_that_is_slower_to_get_there_is_stopped(play: Play, run: Callable[..., Outcome]) -> None:
    # The first two had 1 after 10 s and 5 after 20 s. The third has 4 at its first evaluation, but that is after 30 s.
    # The fourth has 3 after 3 s, when the others had nothing, and ends before they had 5.
    slow: Plan = {"returns": [4.0, 50.0], "pace": 30.0, "until": "never"}
    play(GOOD, GOOD, slow, {"returns": [3.0, 4.0], "pace": 3.0, "sleep": 0.1})
    done = run("--trials", "4", "--judge-after", "2")
    assert done.code == 0, done.err
    assert "trial 2: stopped early: 4.0 after 30 s, when the median of the others was 5.0" in done.out
    assert [each["ending"] for each in results()] == ["completed", "completed", "stopped early", "completed"]
    assert [each["score"] for each in results()] == [5.0, 5.0, 4.0, 4.0]
    assert results()[2]["why"] == "the median of the others was 5.0"
    assert "3 completed, 1 stopped early; all of them in s/table.md" in done.out


def test_nothing_is_stopped_if_it_is_not_wanted(play: Play, run: Callable[..., Outcome]) -> None:
    play(GOOD, GOOD, otherwise={"returns": [0.0, 1.0], "sleep": 0.1})
    assert run("--trials", "3", "--judge-after", "0").code == 0
    assert [each["ending"] for each in results()] == ["completed"] * 3


def test_what_fails_is_made_up_for_and_what_is_killed_goes_on(play: Play, run: Callable[..., Outcome]) -> None:
    play({"do": "fail"}, {"do": "nan"}, {**GOOD, "do": "killed", "lives": 3}, {**GOOD, "do": "killed", "lives": 9})
    done = run("--trials", "3")
    assert done.code == 0, done.err
    assert "trial 0: FAILED: trial-0000-seed10" in done.out
    assert "exit code 1: OSError: what it died of" in done.out
    assert "trial 2: trial-0002-seed101 was ended from outside, and is taken up" in done.out
    assert [each["ending"] for each in results()] == ["failed", "NaN", "completed", "failed", "completed"]
    assert len(Path("s/trial-0002/seed101/started").read_text().splitlines()) == 3
    starts = [len(path.read_text().splitlines()) for path in Path("s/trial-0003").glob("*/started")]
    assert max(starts) == 3  # no more than that, of whichever run ended first
    assert "exit code -9" in results()[3]["why"]


def test_what_only_the_run_can_refuse_is_not_allowed_and_not_a_failure(play: Play, run: Callable[..., Outcome]) -> None:
    play(*[{"do": "refuse"}] * 4)
    done = run("--trials", "2")
    assert done.code == 0, done.err
    assert "trial 3: not allowed: what it was refused for" in done.out
    assert [each["ending"] for each in results()] == [*["not allowed"] * 4, "completed", "completed"]


def test_the_last_reason_is_told_when_nothing_is_allowed(
    play: Play, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    play(otherwise={"do": "refuse"})
    monkeypatch.setattr(sweep, "REFUSED_IN_A_ROW", 3)
    done = run("--trials", "9")
    assert done.code == 2
    assert "3 proposals in a row were not allowed, the last because what it was refused for" in done.err


def test_fixed_options_that_nothing_goes_with_are_found_before_anything_is_made(run: Callable[..., Outcome]) -> None:
    refused = run("--trials", "1", "--", "--total-timesteps", "1000")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "search: none of 50 random proposals is allowed, the last because total_timesteps must be" in refused.err
    assert not Path("s").exists()


def test_it_gives_up_when_every_trial_fails(play: Play, run: Callable[..., Outcome]) -> None:
    play(otherwise={"do": "fail"})
    done = run("--trials", "20")
    assert done.code == 1
    assert "given up: 3 trials in a row failed, see s/logs" in done.err
    assert 3 <= len(results()) <= 4
    assert not Path("s/best.toml").exists()


def test_options_that_do_not_go_together_are_told_of_and_not_run(
    play: Play, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    play()
    monkeypatch.setattr(sweep, "REFUSED_IN_A_ROW", 7)
    args = ["--out", "s", "--env", ENV, "--seeds", "1", "--trials", "2", "--search", "num_envs=range:30:40"]
    done = call(sweep.main, capsys, *args, "--", "--num-steps", "32", "--minibatch-size", "64")
    assert done.code == 0, done.err
    made = results()
    ran = {each["ending"] for each in made if each["options"]["num_envs"] % 2 == 0}
    assert ran == {"completed"}
    refused = [each for each in made if each["ending"] == "not allowed"]
    assert len(made) == len(refused) + 2
    assert refused
    for each in refused:
        assert each["options"]["num_envs"] % 2
        assert "minibatch_size must divide num_envs * num_steps" in each["why"]
        assert not (Path("s") / f"trial-{each['number']:04d}" / "seed101").exists()
    never = call(sweep.main, capsys, *args[2:], "--out", "n", "--", "--num-steps", "32", "--minibatch-size", "4096")
    assert never.code == 2
    assert "search: none of 7 random proposals is allowed, the last because minibatch_size must divide" in never.err
    assert not Path("n").exists()


# --- several processes -----------------------------------------------------------------------------------------------
ELSEWHERE = f"""
import json, sys
from pathlib import Path
from ppo_fast import pool, runs, sweep
pool._LOOK_EVERY_S = 0.02
def command(cfg, path, flags):
    return [sys.executable, "-I", "-S", "-c", PLAYED, str(path), str(cfg.total_timesteps), PLAN]
PLAYED = {PLAYED!r}
PLAN = sys.argv.pop(1)
runs.command = command
sys.exit(sweep.main(sys.argv[1:]))
"""


def elsewhere(plan: Plan, *args: str) -> subprocess.Popen[str]:
    """Start a sweep whose runs play ``plan`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, json.dumps(plan), *ARGS, *args], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(sweep.__file__).parents[1])},
    )  # fmt: skip


def wait_for(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.02)


def test_several_share_the_trials_and_what_a_killed_one_was_at_is_taken_up(
    play: Play, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    play()
    other = elsewhere({"returns": [1.0, 2.0, 3.0], "until": "go"}, "--trials", "3")
    begun = [Path(f"s/trial-0000/seed{seed}/evaluations.jsonl") for seed in (101, 102)]
    wait_for(lambda: all(path.exists() for path in begun))
    others: list[str] = []

    def meanwhile() -> None:
        wait_for(
            lambda: Path("s/results.json").exists() and [each["ending"] for each in results()].count("completed") == 2
        )
        other.kill()
        others.append(other.communicate()[0])
        time.sleep(0.3)  # its runs live on and keep the trial, which nobody else takes up before they have ended
        Path("go").touch()

    monkeypatch.setattr(sweep, "LOOK_ELSEWHERE_S", 0.05)
    thread = threading.Thread(target=meanwhile)
    thread.start()
    here = run("--trials", "3")
    thread.join()
    assert here.code == 0, here.err
    assert re.findall(r"^trial (\d+): --gamma", here.out, re.MULTILINE) == ["1", "2"]
    assert re.findall(r"^trial (\d+): --gamma", others[0], re.MULTILINE) == ["0"]
    waited, taken_up = (
        here.out.index(f"\n{line}") for line in ("waiting for 1 trials that", "trial 0 is taken up: --gam")
    )
    assert waited < taken_up
    assert "3 completed; all of them in s/table.md" in here.out
    assert [each["ending"] for each in results()] == ["completed"] * 3
    assert results()[0]["finals"] == [3.0, 3.0]
    assert [len(path.with_name("started").read_text().splitlines()) for path in begun] == [1, 1]  # nothing was repeated


def test_a_sweep_that_is_told_to_stop_stops_its_runs_and_goes_on(
    play: Play, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    play({"returns": [1.0, 2.0], "until": "go"})

    def stop(self: sweep.Sweep) -> None:
        if all((run.path / "evaluations.jsonl").exists() for run in self.pool.running):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(sweep.Sweep, "_judge_all", stop)
        with pytest.raises(SystemExit, match="143"):
            run("--trials", "1")
    Path("go").touch()
    done = run("--trials", "1")
    assert "trial 0 is taken up: --gamma " in done.out
    assert [(each["ending"], each["finals"]) for each in results()] == [("completed", [2.0, 2.0])]


# --- the real thing --------------------------------------------------------------------------------------------------
_TINY = "--num-envs 4 --minibatch-size 64 --update-epochs 1 --total-timesteps 600 --device cpu --eval-episodes 2 --log"


def test_a_real_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    search = ("learning_rate=log:1e-4:1e-2", "hidden_sizes=choice:8,8-8", "clip_vloss=choice:true,false")
    args = ("--out", "s", "--env", ENV, "--trials", "1", "--seeds", "1", "--eval-every", "200", "--search", *search)
    done = call(sweep.main, capsys, *args, "--", *_TINY.split(), "--num-steps", "32")
    assert done.code == 0, done.out
    (made,) = results()
    config = json.loads(Path("s/trial-0000/seed101/config.json").read_text())
    assert {name: config[name] for name in made["options"]} == made["options"]
    assert (config["seed"], config["eval_every"], config["num_steps"]) == (101, 200, 32)
    rows = [json.loads(line) for line in Path("s/trial-0000/seed101/evaluations.jsonl").read_text().splitlines()]
    assert made["score"] == sum(rows[-1]["returns"]) / 2
    found = parse_config(["--config", "s/best.toml", "--seed", "101", "--eval-every", "200"], prog="", description="")
    assert {**found.to_dict(), "run_dir": "", "resume": "", "quiet": True} == {**config, "run_dir": "", "resume": ""}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--out s", "search"),
        ("--out s --search", "search must be one word or more, like option="),
        ("--out s --search gama=range:0:1", "search: unknown option 'gama' (did you mean 'gamma'"),
        ("--out s --search gamma=range:0:1 --search lr=log:1:2", "--search is given more than once; name all options"),
        ("--out s --search gamma=range:0:1 --trials 0", "trials must be at least 1, got 0"),
        ("--out s --search gamma=range:0:1 --seeds 0", "seeds must be at least 1, got 0"),
        ("--out s --search gamma=range:0:1 --first-seed -1", "first_seed must be at least 0, got -1"),
        ("--out s --search gamma=range:0:1 --judge-after -1", "judge_after must be at least 0, got -1"),
        ("--out s --search gamma=range:0:1 --sweep-seed -1", "sweep_seed must be at least 0, got -1"),
        ("--out s --search gamma=range:0:1 --eval-every -1", "eval_every must be at least 0, got -1"),
        ("--out s --search gamma=range:0:1 --cores-per-run 0", "cores_per_run must be from 1 to "),
        ("--out s --search gamma=range:0:1 --env Hoper-v5", "unknown environment 'Hoper-v5'"),
        ("--out s --search gamma=range:0:1 --trails 5", "unknown option '--trails' (did you mean '--trials'"),
        ("--out s --search gamma=range:0:1 -- --gamma 0.9", "gamma is searched, and cannot follow --"),
        (
            "--out s --search anneal_lr=choice:true,false -- --no-anneal_lr",
            "anneal_lr is searched, and cannot follow --",
        ),
        ("--out s --search gamma=range:0:1 -- --seed 3", "--seed is the sweep's to set, and cannot follow --"),
        ("--out s --search gamma=range:0:1 -- --clip-coef -1", "clip_coef must be a finite number above 0, got -1.0"),
        ("--out s --search clip_coef=range:0.1:0.2 -- --algo trpo", "clip_coef belongs to PPO, and algo is 'trpo'"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(sweep.main, capsys, *args.split())
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


# --- best.toml -------------------------------------------------------------------------------------------------------
_leaf = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text())
_values = st.recursive(
    _leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


@given(_values)
def test_toml_gives_back_what_was_written(value: object) -> None:
    assert tomllib.loads(f"value = {to_toml(value)}") == {"value": value}


def test_what_toml_cannot_say_is_not_left_out_in_silence(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="TOML has no value for None"):
        to_toml([None])
    # The preset of this task stops updates early; a trial that was given --target-kl None does not.
    args = ["--env", "Humanoid-v5", "--preset", "sample"]
    cfg = parse_config([*args, "--target-kl", "None"], prog="", description="")
    record = Record(7, "completed", {}, {}, 12.5, [12.0, 13.0], 9.0, "")
    text = best_toml(record, cfg)
    assert text.startswith("# Trial 7: 12.5, the interquartile mean of 2 seeds.\n")
    assert "# target_kl must be unset, for which TOML has no word: add --target-kl None\n" in text
    endless = dataclasses.replace(cfg, env_kwargs={"max_episode_steps": None})
    assert '# env_kwargs is {"max_episode_steps": null}, for which TOML has no word' in best_toml(record, endless)
    (tmp_path / "best.toml").write_text(text)
    assert (
        parse_config(["--config", str(tmp_path / "best.toml"), "--target-kl", "None"], prog="", description="") == cfg
    )
