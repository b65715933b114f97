"""One trainer, three algorithms: options of one are refused by the others, and each runs, resumes and learns."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from commands import Outcome, call
from training import config, one_thread, untimed  # noqa: F401

from ppo_fast import algos, checkpoint, train
from ppo_fast.config import FIELDS, Config
from ppo_fast.errors import CheckpointError, ConfigError, NonFiniteError
from ppo_fast.evaluation import load_policy
from ppo_fast.presets import PRESETS, resolve
from ppo_fast.reference import __main__ as reference
from ppo_fast.run_dir import RunDir
from ppo_fast.trainer import Trainer

OTHERS = ("trpo", "reinforce")
OWNED = [(option, algo) for option, owners in algos.BELONGS.items() for algo in algos.NAMES if algo not in owners]
TINY = (
    "--num-envs 4 --num-steps 32 --minibatch-size 64 --total-timesteps 600 --device cpu --eval-every 0 "
    "--eval-episodes 2 --checkpoint-every 200 --log"
)


def flag(option: str, value: Any) -> list[str]:
    """Return how a command line gives ``option`` this value."""
    name = f"--{option.replace('_', '-')}"
    return [name] if isinstance(value, bool) else [name, str(value)]


def another(option: str) -> Any:
    """Return a value that is allowed and not the default."""
    default = FIELDS[option].default
    special = {
        "target_kl": 0.02,
        "adaptive_kl": 0.02,
        "policy_weight": "reward_to_go",
        "backtrack_coef": 0.5,
        "precision": "bf16",
        "overlap": "learner",
    }
    if option in special:
        return special[option]
    return not default if isinstance(default, bool) else default + 1


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RunDir, "draw", lambda self: None)

    def run(*args: str) -> Outcome:
        return call(train.main, capsys, *args)

    return run


# Options


def test_the_table_names_options_and_algorithms_that_exist() -> None:
    assert set(algos.BELONGS) <= set(FIELDS)
    assert {owner for owners in algos.BELONGS.values() for owner in owners} <= set(algos.NAMES)


@pytest.mark.parametrize(("option", "algo"), OWNED)
def test_an_option_of_another_algorithm_is_refused_whichever_way_it_comes(
    command: Any, tmp_path: Path, option: str, algo: str
) -> None:
    owners = " and ".join(algos.NAMES[owner] for owner in algos.BELONGS[option])
    said = f"{option} belongs to {owners}, and algo is {algo!r}"
    value, default = another(option), FIELDS[option].default
    with pytest.raises(ConfigError, match=said):
        resolve(algo=algo, **{option: value})
    if default is not None:
        with pytest.raises(ConfigError, match=said):
            resolve(algo=algo, **{option: default})  # named is named, also with the value that it has anyway
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(resolve(algo=algo), **{option: value})
    for shown in (value, default):
        if shown is not None:
            done = command("--algo", algo, *flag(option, shown), "--run-dir", "r")
            assert done.code == 2
            assert done.err == f"ppo_fast.train: error: {said}\n"
    text = json.dumps(value)
    Path("c.toml").write_text(f"algo = '{algo}'\n{option} = {text}\n")
    done = command("--config", "c.toml", "--run-dir", "r")
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "r").exists()


def test_a_negated_flag_is_named_too(command: Any) -> None:
    done = command("--algo", "trpo", "--no-clip-vloss")
    assert done.code == 2
    assert "clip_vloss belongs to PPO" in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"algo": "sac"}, "options: algo must be one of 'ppo', 'trpo', 'reinforce', got 'sac'"),
        ({"algo": "trpo", "norm_adv": "minibatch"}, "norm_adv 'minibatch' belongs to PPO, and algo is 'trpo'"),
        ({"algo": "trpo", "delta": 0.0}, "delta must be a finite number above 0, got 0.0"),
        ({"algo": "trpo", "delta": float("nan")}, "delta must be a finite number above 0, got nan"),
        ({"algo": "trpo", "cg_steps": 0}, "cg_steps must be at least 1, got 0"),
        ({"algo": "trpo", "cg_damping": -0.1}, "cg_damping must be a finite number, at least 0, got -0.1"),
        ({"algo": "trpo", "backtrack_coef": 1.0}, "backtrack_coef must be between 0 and 1, got 1.0"),
        ({"algo": "trpo", "backtrack_steps": 0}, "backtrack_steps must be at least 1, got 0"),
        ({"algo": "reinforce", "critic_epochs": 0}, "critic_epochs must be at least 1, got 0"),
        ({"algo": "reinforce", "policy_lr": 0.0}, "policy_lr must be a finite number above 0, got 0.0"),
        ({"algo": "reinforce", "policy_weight": "return"}, "options: policy_weight must be one of 'total_return', "),
        (
            {"algo": "reinforce", "policy_weight": "reward_to_go", "gae_lambda": 0.95},
            "policy_weight 'reward_to_go' needs gae_lambda 1",
        ),
    ],
)
def test_wrong_values_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(**options)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("algo", OTHERS)
def test_every_task_and_preset_resolves_with_the_rollout_of_ppo(algo: str) -> None:
    for name, tables in PRESETS.items():
        for task in tables:
            env = "Hopper-v5" if task == "*" else task
            cfg, ppo = resolve(env=env, preset=name, algo=algo), resolve(env=env, preset=name)
            for option in ("num_envs", "num_steps", "log_std_init", "hidden_sizes", "gamma", "norm_obs", "norm_reward"):
                assert getattr(cfg, option) == getattr(ppo, option)
            assert not set(cfg.to_dict()) & algos.foreign(algo)  # what a run does not have is not written down
            assert Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in cfg.to_dict().items()}) == cfg


def test_the_reference_refuses_options_of_another_algorithm(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for args, said in (
        ("--algo trpo --clip-coef 0.1", "clip_coef belongs to ppo, and algo is 'trpo'"),
        ("--delta 0.1", "delta belongs to trpo, and algo is 'ppo'"),
        ("--algo reinforce --cg-steps=3", "cg_steps belongs to trpo, and algo is 'reinforce'"),
        ("--algo sac", "algo must be one of 'ppo', 'trpo', 'reinforce', got 'sac'"),
        ("--algo", "algo must be named after --algo"),
        ("--algo trpo --delta 0", "delta must be a finite number above 0, got 0.0"),
        ("--algo trpo --backtrack-coef 1.5", "backtrack_coef must be between 0 and 1, got 1.5"),
    ):
        monkeypatch.setattr("sys.argv", ["reference", *args.split()])
        assert reference.main() == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


# Runs


@pytest.mark.parametrize("algo", OTHERS)
def test_a_command_says_what_runs_and_goes_on_with_it(command: Any, tmp_path: Path, algo: str) -> None:
    done = command("--algo", algo, "--env", "InvertedPendulum-v5", *TINY.split(), "--run-dir", "r")
    assert done.code == 0, done.err
    assert f"algorithm:    {algos.NAMES[algo]}\n" in done.out
    assert "20 epochs x 2 minibatches of 64 of the critic, 1 step of the policy" in done.out
    assert "the policy's step on torch" in done.out
    config_json = json.loads((tmp_path / "r" / "config.json").read_text())
    assert config_json["algo"] == algo
    assert "clip_coef" not in config_json
    rows = training.jsonl(tmp_path / "r" / "metrics.jsonl")
    assert rows[-1]["approx_kl"] > 0
    assert rows[-1]["value_loss"] > 0
    done = command("--run-dir", "r", "--resume", "auto", "--total-timesteps", "1000")  # the algorithm is remembered
    assert done.code == 0, done.err
    assert f"algorithm:    {algos.NAMES[algo]}\n" in done.out
    assert training.jsonl(tmp_path / "r" / "metrics.jsonl")[-1]["env_steps"] >= 1000
    policy = load_policy(tmp_path / "r")
    assert policy(np.zeros(4)).shape == (1,)


def test_a_run_cannot_change_its_algorithm(command: Any, tmp_path: Path) -> None:
    assert command("--env", "InvertedPendulum-v5", *TINY.split(), "--run-dir", "r").code == 0
    for extra in (["--algo", "trpo"], ["--algo", "reinforce", "--policy-lr", "0.1"]):
        done = command("--run-dir", "r", "--resume", "auto", *extra)
        assert done.code == 2
        assert f"algo was 'ppo' in auto, and cannot become {extra[1]!r} on resume" in done.err
    cfg = dataclasses.replace(
        resolve(algo="trpo", env="InvertedPendulum-v5", num_envs=4, num_steps=32, minibatch_size=64), run_dir="r"
    )
    with pytest.raises(ConfigError, match=r"algo was 'ppo' in .* and cannot become 'trpo' on resume"):
        Trainer(dataclasses.replace(cfg, resume="auto"))


def small(path: Path, algo: str, **options: Any) -> Config:
    """Return a run of 20 iterations that saves all the time."""
    passes = {"critic_epochs": 2, "update_epochs": FIELDS["update_epochs"].default}
    own = {"algo": algo, "norm_adv": "batch", "total_timesteps": 2650, "checkpoint_every": 250, "num_steps": 16}
    return config(path, **{**passes, **own, **options})


def _stop_at(trainer: Trainer, iteration: int, row: dict[str, Any]) -> None:
    if row["iteration"] == iteration:
        trainer.stop("a test")


@pytest.mark.parametrize("algo", OTHERS)
def test_a_run_that_is_stopped_and_taken_up_ends_to_the_bit_as_one_that_is_not(
    tmp_path: Path, stack: dict[str, Any], algo: str
) -> None:
    whole = training.train(small(tmp_path / "whole", algo, **stack))
    cfg = small(tmp_path / "parted", algo, **stack)
    for stop_after in (1, 7, 14):
        recorder = training.Recorder()
        trainer = Trainer(cfg, [recorder])
        recorder.on_row = partial(_stop_at, trainer, stop_after)
        assert trainer.run().stopped
        cfg = dataclasses.replace(cfg, resume="auto")
    again = training.train(cfg)
    for part, value in whole.fingerprint().items():
        if part != "rows":
            assert again.fingerprint()[part] == value, part
    rows = [untimed(row) for row in training.jsonl(tmp_path / "parted" / "metrics.jsonl")]
    assert rows == [untimed(row) for row in training.jsonl(tmp_path / "whole" / "metrics.jsonl")]


@pytest.mark.parametrize("algo", OTHERS)
def test_a_checkpoint_without_a_part_of_the_optimizer_is_refused(tmp_path: Path, algo: str) -> None:
    run = training.train(small(tmp_path / "run", algo, total_timesteps=600))
    saved = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    run.trainer.parts.load(saved, run.trainer.cfg)
    parts = [name for name in saved.train if name.startswith("learner.")]
    assert len(parts) == {"trpo": 3, "reinforce": 6}[algo]
    for part in parts:
        rest = {name: tensor for name, tensor in saved.train.items() if name != part}
        with pytest.raises(CheckpointError, match="does not fit this version"):
            run.trainer.parts.load(dataclasses.replace(saved, train=rest), run.trainer.cfg)


@pytest.mark.parametrize("algo", OTHERS)
def test_nan_in_an_update_is_caught_in_its_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str
) -> None:
    trainer = Trainer(small(tmp_path / "run", algo))
    update, seen = trainer.learner.update, []

    def broken(rollout: Any) -> dict[str, float]:
        seen.append(1)
        if len(seen) == 3:
            trainer.learner.flat[0] = torch.nan
        return update(rollout)

    monkeypatch.setattr(trainer.learner, "update", broken)
    with pytest.raises(NonFiniteError):
        trainer.run()
    assert len(seen) == 3
    assert (tmp_path / "run" / "nonfinite.json").exists()


@pytest.mark.parametrize("algo", OTHERS)
def test_discrete_actions_are_learned_too(tmp_path: Path, algo: str) -> None:
    # The pole falls after about 20 steps of random actions; 4 of 4 seeds ended above 300 (TRPO) and 100 (REINFORCE).
    cfg = resolve(
        algo=algo, env="CartPole-v1", num_envs=8, num_steps=64, minibatch_size=128, total_timesteps=30_000, seed=3,
        critic_epochs=5, eval_every=0, eval_episodes=10, checkpoint_every=0, log=(), run_dir=str(tmp_path / "run"),
        device="cpu", update="eager",
    )  # fmt: skip
    final = training.train(cfg).result.final
    assert final is not None
    assert final.mean > {"trpo": 150, "reinforce": 60}[algo]
