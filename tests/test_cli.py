"""``python -m ppo_fast.train``: its flags, what bad input gets, what it prints, and how a run is taken up again.

Most commands run in this process; those marked by :func:`shell` are real ones.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from commands import TINY, Outcome, call, files_below
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from ppo_fast import cli, play, presets, train
from ppo_fast.config import Config
from ppo_fast.errors import BackendError, ConfigError, NonFiniteError
from ppo_fast.run_dir import RunDir

Command = Callable[..., Outcome]

# Flags that scripts and papers use. One may be added here; one that goes or is renamed breaks somebody's command line.
FLAGS = """
    --env --algo --preset --total-timesteps --seed --run-dir --resume
    --num-envs --env-kwargs --env-backend --env-threads --vectorization
    --device --actor --learner --learner-threads --update --precision --overlap --kernels --torch-threads
    --on-nan --num-steps --minibatch-size --update-epochs --learning-rate --anneal-lr --no-anneal-lr --adam-eps
    --gamma --gae-lambda --norm-adv --clip-coef --clip-vloss --no-clip-vloss --ent-coef --vf-coef
    --critic-epochs --delta --cg-steps --cg-damping --backtrack-steps --backtrack-coef --policy-lr --policy-weight
    --max-grad-norm --target-kl --adaptive-kl --recompute-adv --no-recompute-adv
    --hidden-sizes --shared-trunk --no-shared-trunk --activation --log-std-init
    --norm-obs --no-norm-obs --clip-obs --norm-reward --no-norm-reward --clip-reward
    --eval-every --eval-episodes --checkpoint-every --keep-checkpoints --log --quiet --no-quiet
"""


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPO_FAST_BACKEND", raising=False)
    monkeypatch.setattr(RunDir, "draw", lambda self: None)  # half a second each; drawn in the real commands below


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run ``python -m ppo_fast.train`` in this process."""
    return lambda *args: call(train.main, capsys, *args)


def shell(*args: str, cwd: Path, code: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a real ``python -m ppo_fast.train``, or ``code`` with ``args``."""
    start = ["-c", code] if code else ["-m", "ppo_fast.train"]
    root = str(Path(train.__file__).parents[1])
    env = {**{k: v for k, v in os.environ.items() if k != "PPO_FAST_BACKEND"}, "PYTHONPATH": root, **env}
    command = [sys.executable, *start, *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False)


def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ppo_fast.train", "--help"]
    done = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_pipe_that_is_not_the_output_is_an_error_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise BrokenPipeError("to a process of the environments")

    with open(os.devnull, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(BrokenPipeError, match="of the environments"):
            cli.run_command(broken, prog="x")


def is_refused(outcome: Outcome, *said: str, prog: str = "ppo_fast.train") -> None:
    """Fail unless the command ended with exit code 2 and one line on stderr that says all of ``said``."""
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"{prog}: error: ")
    for fragment in said:
        assert fragment in line


# --- flags -----------------------------------------------------------------------------------------------------------
def test_the_flags_are_frozen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    assert stop.value.code == 0
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", capsys.readouterr().out))
    assert shown - {"--help", "--config"} == set(FLAGS.split())
    assert "--config" in shown


def parse(*args: str) -> Config:
    return cli.parse_config(args, prog="x", description="y")


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        ("--env Hopper-v5", "env", "Hopper-v5"),
        ("--env=Hopper-v5", "env", "Hopper-v5"),
        ("--num-envs 32", "num_envs", 32),
        ("--num_envs 32", "num_envs", 32),
        ("--num-envs=32", "num_envs", 32),
        ("--seed 18446744073709551615", "seed", 2**64 - 1),
        ("--learning-rate 1", "learning_rate", 1.0),
        ("--learning-rate 2.5e-4", "learning_rate", 2.5e-4),
        ("--log-std-init -1.5", "log_std_init", -1.5),
        ("--no-anneal-lr", "anneal_lr", False),
        ("--clip-vloss", "clip_vloss", True),
        ("--target-kl 0.02", "target_kl", 0.02),
        ("--target-kl None", "target_kl", None),
        ("--hidden-sizes 256 128", "hidden_sizes", (256, 128)),
        ("--log", "log", ()),
        ("--log wandb tensorboard", "log", ("wandb", "tensorboard")),
        ("--kernels reference", "kernels", "reference"),
        ("--run-dir runs/x", "run_dir", "runs/x"),
        ("--run_dir runs/x", "run_dir", "runs/x"),
    ],
)
def test_a_flag_sets_its_option(args: str, name: str, value: Any) -> None:
    cfg = parse(*args.split())
    assert getattr(cfg, name) == value
    assert type(getattr(cfg, name)) is type(value)


def test_built_in_values_yield_to_preset_to_file_to_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {
        "fast": {"*": {"gamma": 0.5}},
        "sample": {"*": {"gamma": 0.6, "vf_coef": 0.1}, "Hopper-v5": {"gamma": 0.7, "ent_coef": 0.01}},
    }
    monkeypatch.setattr(presets, "PRESETS", table)
    (tmp_path / "a.toml").write_text('preset = "sample"\nclip_coef = 0.3\nvf_coef = 0.9\n')

    assert parse("--env", "Hopper-v5").gamma == 0.5
    cfg = parse("--config", "a.toml")  # Ant-v5, which has no lines of its own
    assert (cfg.env, cfg.gamma, cfg.vf_coef, cfg.clip_coef, cfg.ent_coef) == ("Ant-v5", 0.6, 0.9, 0.3, 0.0)
    cfg = parse("--config", "a.toml", "--env", "Hopper-v5")  # the task of the command line picks the preset's lines
    assert (cfg.gamma, cfg.vf_coef, cfg.clip_coef, cfg.ent_coef) == (0.7, 0.9, 0.3, 0.01)
    cfg = parse("--clip-coef", "0.4", "--config=a.toml", "--preset", "fast", "--env", "Hopper-v5", "--vf-coef", "0.8")
    assert (cfg.gamma, cfg.vf_coef, cfg.clip_coef, cfg.ent_coef) == (0.5, 0.8, 0.4, 0.0)
    (tmp_path / "b.toml").write_text('env = "Hopper-v5"\npreset = "sample"\ngamma = 0.9\n')
    assert parse("--config", "b.toml").ent_coef == 0.01
    assert parse("--config", "b.toml").gamma == 0.9
    assert parse("--config", "b.toml", "--gamma", "0.8").gamma == 0.8


# --- bad input -------------------------------------------------------------------------------------------------------
class OddSpaces(gymnasium.Env[Any, Any]):
    """An environment with any two spaces."""

    def __init__(self, observation: gymnasium.Space[Any], action: gymnasium.Space[Any]) -> None:
        self.observation_space, self.action_space = observation, action


_BOX = Box(-1, 1, (3,), np.float32)
ODD_SPACES = {
    "DictObs-v0": (Dict({"image": Box(0, 255, (84, 84, 3), np.uint8), "pose": _BOX}), _BOX, "observation space Dict("),
    "Image-v0": (Box(0, 255, (84, 84, 3), np.uint8), _BOX, "observation space Box(0, 255, (84, 84, 3), uint8)"),
    "Matrix-v0": (Box(-1, 1, (100, 100), np.float32), _BOX, "observation space Box("),
    "Bytes-v0": (Box(0, 255, (3,), np.uint8), _BOX, "observation space Box("),
    "DiscreteObs-v0": (Discrete(5), _BOX, "observation space Discrete(5)"),
    "HugeDiscrete-v0": (_BOX, Discrete(2**24 + 1), "action space Discrete(16777217)"),
    "Combinations-v0": (_BOX, MultiDiscrete([64, 65]), "action space MultiDiscrete([64 65])"),
}


@pytest.fixture
def odd_spaces() -> Iterator[None]:
    """Register environments whose spaces are not supported."""
    for name, (observation, action, _) in ODD_SPACES.items():
        gymnasium.register(name, OddSpaces, kwargs={"observation": observation, "action": action})
    yield
    for name in ODD_SPACES:
        del gymnasium.registry[name]


BAD_INPUT = [
    # command line, what the line must say
    (["--env", "Ant-v55"], ["unknown environment 'Ant-v55'", "'Ant-v5'"]),
    (["--env", "ant-v5"], ["unknown environment 'ant-v5'", "'Ant-v5'"]),
    (["--env", "HalfCheeta-v5"], ["'HalfCheetah-v5'"]),
    (["--env", ""], ["unknown environment ''"]),
    (["--env", "xyzzy"], ["unknown environment 'xyzzy'", "Ant-v5", "Walker2d-v5"]),
    (["--env", "no_such_module:Ant-v5"], ["module 'no_such_module' cannot be imported"]),
    (["--env", "Taxi-v4", "--env-backend", "envpool"], ["EnvPool has no environment 'Taxi-v4'"]),
    (["--env", "CartPole-v1", "--log-std-init", "-1"], ["log_std_init belongs to continuous actions", "CartPole-v1"]),
    (["--env"], ["--env"]),
    (["--num-envs", "0"], ["num_envs must be at least 1, got 0"]),
    (["--num-envs", "-4"], ["num_envs must be at least 1, got -4"]),
    (["--num-envs", "4.5"], ["num_envs must be an integer, got '4.5'"]),
    (["--num-envs", "many"], ["num_envs must be an integer, got 'many'"]),
    (["--num-envs"], ["num_envs must be an integer, got ''"]),
    (["--num-envs", "4", "8"], ["8"]),
    (["--minibatch-size", "1000"], ["minibatch_size must divide num_envs * num_steps = ", "got 1000"]),
    (["--learning-rate", "-0.0003"], ["learning_rate must be a finite number above 0, got -0.0003"]),
    (["--learning-rate", "nan"], ["learning_rate must be a finite number above 0, got nan"]),
    (["--learning-rate=fast"], ["learning_rate must be a number, got 'fast'"]),
    (["--gamma", "1.5"], ["gamma must be in [0, 1], got 1.5"]),
    (["--seed", "-1"], ["seed must be in [0, 2**64), got -1"]),
    (["--target-kl", "low"], ["target_kl must be a number or None, got 'low'"]),
    (["--hidden-sizes", "64", "wide"], ["hidden_sizes must be a list of items that are an integer", "got '64 wide'"]),
    (["--hidden-sizes", "64,64"], ["an integer (with spaces between them), got '64,64'"]),
    (["--hidden-sizes"], ["hidden_sizes must be one or more widths, each >= 1, got ()"]),
    (["--device", "gpu"], ["device must be one of 'auto', 'cpu', 'cuda', got 'gpu'"]),
    (["--device", "cuda"], ["device 'cuda' was asked for, but torch sees no CUDA device", "'auto', 'cpu'"]),
    (["--preset", "quick"], ["preset must be one of 'fast', 'sample', got 'quick'"]),
    (["--kernels", "rust"], ["kernels must be one of 'auto', 'cpp', 'numba', 'reference' or None, got 'rust'"]),
    (["--log", "csv"], ["log must be a list of items that are one of 'tensorboard', 'wandb'", "got 'csv'"]),
    (["--log", "wandb", "wandb"], ["log must be a list without repetitions"]),
    (["--confg", "a.toml"], ["unknown option '--confg'", "did you mean '--config'"]),
    (["--lr", "1e-3"], ["unknown option '--lr' (did you mean '--learning-rate'?)"]),
    (["--anneal-lr", "False"], ["anneal_lr is a switch, --anneal-lr or its opposite, got 'False'"]),
    (["--no-norm-obs=true"], ["no_norm_obs is a switch, --no-norm-obs or its opposite, got 'true'"]),
    (["--target-kl", "none"], ["target_kl must be a number or None, got 'none'"]),
    (["Ant-v5"], ["'Ant-v5' has no option before it"]),
    (["--env"], ["env must be given after --env"]),
    (["--num-env", "4"], ["unknown option '--num-env'", "did you mean '--num-envs'"]),
    (["--learning_rat=4"], ["unknown option '--learning_rat'", "did you mean '--learning-rate'"]),
    (["--ppo.clip-coef", "0.2"], ["unknown option '--ppo.clip-coef'", "'--clip-coef'"]),
    (["--no-env", "x"], ["unknown option '--no-env'"]),
    (["-n", "4"], ["-n"]),
    (["Ant-v5"], ["Ant-v5"]),
    (["--config", "nowhere.toml"], ["--config 'nowhere.toml' cannot be read: No such file"]),
    (["--config"], ["--config"]),
    (["--config", "bad.toml"], ["bad.toml: unknown option 'num_env' (did you mean 'num_envs'"]),
    (["--config", "typed.toml", "--num-envs", "4"], ["typed.toml: num_envs must be an integer, got '8'"]),
    (["--config", "nested.toml"], ["nested.toml: env must be a string, got {'id': 'Ant-v5'}"]),
    (["--run-dir", "a-file"], ["run_dir 'a-file' cannot be written", "is not a directory"]),
    (["--run-dir", "a-file/below/it"], ["run_dir 'a-file/below/it' cannot be written", "is not a directory"]),
    (["--run-dir", "x" * 300], ["cannot be written: File name too long"]),
    (["--resume", "nowhere"], ["no run or checkpoint at 'nowhere'"]),
    (["--resume", "a-directory"], ["'a-directory' is no run directory or checkpoint"]),
    (["--resume", "a-file"], ["'a-file' is no run directory or checkpoint"]),
    (["--resume"], ["--resume"]),
    (["--resume", "auto"], ["resume 'auto' needs run_dir"]),
    (["--log", "wandb"], ["--log wandb", "pip install wandb"]),
]  # fmt: skip


@pytest.mark.parametrize(("args", "said"), BAD_INPUT, ids=lambda value: " ".join(value)[:40])
def test_bad_input_is_one_line_exit_code_2_and_leaves_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: list[str]
) -> None:
    (tmp_path / "bad.toml").write_text("num_env = 8\n")
    (tmp_path / "typed.toml").write_text('num_envs = "8"\n')
    (tmp_path / "nested.toml").write_text('[env]\nid = "Ant-v5"\n')
    (tmp_path / "a-file").write_text("here first")
    (tmp_path / "a-directory").mkdir()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    before = files_below(tmp_path)
    outcome = command(*args)
    is_refused(outcome, *said)
    assert outcome.out == ""
    assert files_below(tmp_path) == before


@pytest.mark.usefixtures("odd_spaces")
@pytest.mark.parametrize("name", sorted(ODD_SPACES))
def test_unsupported_spaces_are_refused(command: Command, tmp_path: Path, name: str) -> None:
    is_refused(command("--env", name), f"{name}: its {ODD_SPACES[name][2]}", "is not supported; allowed is a")
    assert not files_below(tmp_path)


def test_a_run_dir_without_permission_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    real = os.access
    locked = str(tmp_path / "locked")
    monkeypatch.setattr(os, "access", lambda p, mode, **kw: not str(p).startswith(locked) and real(p, mode, **kw))
    is_refused(command("--run-dir", "locked/new"), "run_dir 'locked/new' cannot be written: no permission")
    if os.geteuid():  # root may write anywhere
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        (tmp_path / "locked").chmod(0o555)
        is_refused(command("--run-dir", "locked/new"), "run_dir 'locked/new' cannot be written: no permission")
    assert files_below(tmp_path) == {"locked": None}


def test_a_run_dir_that_fails_only_when_it_is_made_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    is_refused(command(*TINY, "--run-dir", "r"), "run_dir 'r' cannot be written: No space left on device")
    assert not any(path for path, data in files_below(tmp_path).items() if data and not path.endswith(".lock"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command(*TINY, "--run-dir", "r").code == 0  # and the directory is good for the next try


def test_what_fails_in_the_trainer_leaves_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*args: Any, **kwargs: Any) -> None:
        raise BackendError("--update compile: torch.compile does not work here:\n  no compiler")

    monkeypatch.setattr("ppo_fast.parts.make_learner", no_compiler)
    is_refused(command(*TINY, "--run-dir", "r"), "torch.compile does not work here: no compiler")
    assert not files_below(tmp_path)


def test_environments_that_cannot_be_made_leave_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pool(*args: Any, **kwargs: Any) -> None:
        raise BackendError("EnvPool cannot be imported")

    monkeypatch.setattr("ppo_fast.envs.make", no_pool)
    is_refused(command(*TINY, "--run-dir", "r"), "EnvPool cannot be imported")
    assert not files_below(tmp_path)


def test_networks_beyond_the_memory_are_one_line(command: Command, tmp_path: Path) -> None:
    outcome = command(*TINY, "--hidden-sizes", "100000000", "100000000", "--run-dir", "r")
    is_refused(outcome, "hidden_sizes", "more memory than there is")
    assert not files_below(tmp_path)


def test_a_full_disk_until_the_end_of_a_run_is_told_and_exit_code_3(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def full(source: Any, target: Any) -> None:
        if "step_" in str(target):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", full)
    outcome = command(*TINY, "--run-dir", "r")
    assert outcome.code == 3
    (line,) = [line for line in outcome.err.splitlines() if "error:" in line]
    for text in ("checkpoint r/checkpoints/step_", "No space left on device; the end of the run is not saved"):
        assert text in line
    assert list((tmp_path / "r" / "checkpoints").iterdir()) == []


def test_nan_stops_with_exit_code_1_and_a_report(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fakes import CountingEnv
    from training import use_fake_envs

    use_fake_envs(monkeypatch, lambda n: CountingEnv(n, nan_reward_at=(40, 2)))
    outcome = command(*TINY, "--run-dir", "r")
    assert outcome.code == 1
    (line,) = outcome.err.splitlines()
    assert line == "ppo_fast.train: stopped: rewards has 1 non-finite rows, the first at (step 40, env 2)"
    report = json.loads((tmp_path / "r" / "nonfinite.json").read_text())
    assert report["arrays"]["rewards"]["non_finite"] == 1
    assert issubclass(NonFiniteError, FloatingPointError)


def test_ctrl_c_is_one_line_and_exit_code_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ppo_fast.trainer.Trainer.run", interrupt)
    outcome = command(*TINY)
    assert (outcome.code, outcome.err) == (130, "ppo_fast.train: interrupted\n")


# --- a module that a checkpoint names --------------------------------------------------------------------------------
MODULE = """
import pathlib
pathlib.Path("imported").touch()
from gymnasium.envs.registration import register
register("Pole-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=50)
"""


def test_a_module_is_imported_if_the_user_names_it_and_never_for_a_checkpoint(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_poles.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    named = ["--env", "my_poles:Pole-v0"]
    assert command(*TINY[2:], *named, "--run-dir", "r").code == 0
    (tmp_path / "imported").unlink()
    sys.modules.pop("my_poles")
    is_refused(command("--resume", "r"), "'my_poles:Pole-v0' is imported from a module", "--env my_poles:Pole-v0")
    is_refused(command("--run-dir", "r", "--resume", "auto", "--env", "my_poles:Other-v0"), "is imported from a module")
    refused = call(play.main, capsys, "r")
    is_refused(refused, "'my_poles:Pole-v0' is imported from a module", prog="ppo_fast.play")
    assert not (tmp_path / "imported").exists()
    assert command("--resume", "r", *named).code == 0
    assert call(play.main, capsys, "r", *named, "--episodes", "2").code == 0
    assert (tmp_path / "imported").exists()


# --- real commands ---------------------------------------------------------------------------------------------------
def test_a_real_command_line_refuses_an_unknown_environment(tmp_path: Path) -> None:
    result = shell("--env", "Hoper-v5", "--num-envs", "64", cwd=tmp_path)
    is_refused(Outcome(result.returncode, result.stdout, result.stderr), "'Hoper-v5'", "did you mean 'Hopper-v5'")
    assert result.stdout == ""
    assert not files_below(tmp_path)


@pytest.mark.parametrize("option", [["--kernels", "cpp"], ["--env", "Hopper-v5"]])
def test_a_core_that_is_missing_is_an_error_if_asked_for_by_name(tmp_path: Path, option: list[str]) -> None:
    code = "import sys; sys.modules['ppo_fast._core'] = None; from ppo_fast.train import main; sys.exit(main())"
    env = {} if "--kernels" in option else {"PPO_FAST_BACKEND": "cpp"}
    result = shell(*option, cwd=tmp_path, code=code, **env)
    is_refused(
        Outcome(result.returncode, result.stdout, result.stderr), "kernel backend 'cpp' cannot be used: the C++ core"
    )
    assert not files_below(tmp_path)


def test_an_unknown_backend_in_the_environment_is_refused(tmp_path: Path) -> None:
    result = shell(*TINY, cwd=tmp_path, PPO_FAST_BACKEND="fortran")
    outcome = Outcome(result.returncode, result.stdout, result.stderr)
    is_refused(outcome, "PPO_FAST_BACKEND must be one of auto, cpp, numba, reference, got 'fortran'")
    assert not files_below(tmp_path)


NO_COMPILER = {"CXX": "/bin/false", "CC": "/bin/false"}


@pytest.mark.slow
def test_compile_without_a_compiler_is_an_error_if_asked_for_by_name(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")  # a warm cache would hide that the compiler is missing
    where = tmp_path / "cwd"
    where.mkdir()
    args = [*TINY, "--update", "compile", "--run-dir", "r"]
    result = shell(*args, cwd=where, TORCHINDUCTOR_CACHE_DIR=cache, **NO_COMPILER)
    outcome = Outcome(result.returncode, result.stdout, result.stderr)
    is_refused(outcome, "--update compile: torch.compile does not work here: ", "compiler")
    assert not files_below(where)


FALLS_BACK = """
import logging, sys
from ppo_fast.config import Config
from ppo_fast.train import banner
from ppo_fast.trainer import Trainer
logging.basicConfig(level=logging.WARNING)
options = {"env": "InvertedPendulum-v5", "num_envs": 4, "num_steps": 32, "minibatch_size": 4, "device": "cpu"}
options["learner"] = "torch"
trainer = Trainer(Config(**options, total_timesteps=10**8, run_dir="r"))  # far beyond where a compilation pays
print(trainer.learner.mode)
print(banner(trainer))
"""


def test_auto_falls_back_to_eager_aloud_without_a_compiler(tmp_path: Path) -> None:
    where = tmp_path / "cwd"
    where.mkdir()
    result = shell(cwd=where, code=FALLS_BACK, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"), **NO_COMPILER)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("eager\n")
    assert "torch.compile does not work here, updates run eagerly: " in result.stderr
    assert re.search(r"learner: +torch, update eager \(torch.compile does not work here: ", result.stdout)
    assert not files_below(where)


def test_a_real_run_tells_what_runs_how_far_it_is_and_where_its_results_are(tmp_path: Path) -> None:
    args = [*TINY[:-1], "--eval-every", "300", "--kernels", "reference"]  # with TensorBoard, and a picture at the end
    result = shell(*args, cwd=tmp_path, PPO_FAST_BACKEND="numba")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    banner = dict(re.findall(r"^([a-z_ ]+): +(.*)$", result.stdout.split("\n\n")[0], re.MULTILINE))
    assert re.match(r"0\.\d+\.\d+, torch 2\.\S+, envpool 1\.\S+, gymnasium 1\.\S+, mujoco 3\.\S+$", banner["ppo_fast"])
    assert banner["task"] == "InvertedPendulum-v5, preset fast, seed 1, 600 steps"
    assert re.match(  # asynchronous where there is one CPU
        r"4 on envpool \(EnvPool steps InvertedPendulum-v5\), (a?synchronous)(, 2 of 4)?, observation 4, action 1",
        banner["environments"],
    )
    assert banner["batch"] == "4 envs x 32 steps = 128 rows, 1 epochs x 2 minibatches of 64"
    # Two networks 4-64-64-out: (4*64+64) + (64*64+64) = 4480 each, 65 for each head, and 1 log-std.
    assert banner["network"] == "64-64 tanh, 9,091 parameters"
    assert banner["device"] == "cpu (asked: cpu)"
    assert banner["learner"] == "torch, update eager (asked for)"
    assert banner["kernels"].startswith("reference")  # --kernels beats PPO_FAST_BACKEND
    assert re.fullmatch(r"native \(the fastest on the CPU\), SIMD (avx512|avx2|baseline)", banner["actor"])
    assert re.match(r"torch 1, envpool [1-4], learner 1$", banner["threads"])
    (run,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"InvertedPendulum-v5-fast-seed1-\d{8}-\d{6}", run.name)
    assert banner["run dir"] == f"runs/{run.name}"

    progress = re.findall(
        r"^ +[\d,]+ steps +[\d.]+%  ETA (?:-|\d+:\d\d)  .* SPS  return +\S+  physics \d+% .*$",
        result.stdout,
        re.MULTILINE,
    )
    assert "100.0%" in progress[-1]
    assert "evaluation over 2 episodes" in result.stdout
    ending = result.stdout.split("\n\n")[-1]
    assert re.search(r"final evaluation: [\d.]+ \+- [\d.]+ \(95 % CI of the mean over 2 episodes", ending)
    picture, saved, video = (
        re.search(rf"^  {name} +(.*)$", ending, re.MULTILINE) for name in ("picture", "checkpoint", "video")
    )
    assert picture
    assert (tmp_path / picture[1]).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert saved
    assert (tmp_path / saved[1] / "manifest.json").is_file()
    assert video
    assert video[1] == f"{sys.executable} -m ppo_fast.play runs/{run.name} --video runs/{run.name}/video.mp4"

    assert json.loads((run / "config.json").read_text())["kernels"] == "reference"
    facts = json.loads((run / "run_info.json").read_text())
    assert facts["kernels"]["active"] == "reference"
    assert facts["device"] == {"asked": "cpu", "got": "cpu"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    needed = {"env_steps", "wall_s", "sps", "episode_return", "episode_length", "approx_kl"}
    assert all(needed <= set(row) for row in rows)
    assert [("startup_s" in row) for row in rows] == [True] + [False] * (len(rows) - 1)
    evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert all({"env_steps", "wall_s", "returns"} <= set(e) and len(e["returns"]) == 2 for e in evaluations)
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert not list(tmp_path.rglob(".tmp-*"))


# --- what is printed -------------------------------------------------------------------------------------------------
def test_quiet_prints_the_banner_and_the_result_alone(command: Command) -> None:
    loud, quiet = command(*TINY, "--run-dir", "a"), command(*TINY, "--run-dir", "b", "--quiet")
    assert (loud.code, quiet.code) == (0, 0)
    assert "SPS" in loud.out
    assert "SPS" not in quiet.out
    for part in ("task:         InvertedPendulum-v5", "final evaluation: ", "checkpoint  b/checkpoints/step_"):
        assert part in quiet.out
    assert (loud.err, quiet.err) == ("", "")


def test_a_video_command_can_be_pasted_whatever_the_run_directory(command: Command) -> None:
    out = command(*TINY, "--run-dir", "my runs/it's", "--quiet").out
    shown = re.search(r"^  video +(.*)$", out, re.MULTILINE)
    assert shown
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {shown[1]}"], capture_output=True, text=True, check=True
    ).stdout
    assert words.splitlines()[3:] == ["my runs/it's", "--video", "my runs/it's/video.mp4"]


# --- taking a run up again -------------------------------------------------------------------------------------------
def steps(run: Path, name: str = "metrics") -> list[int]:
    return [json.loads(line)["env_steps"] for line in (run / f"{name}.jsonl").read_text().splitlines()]


def saved(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*") if path.name[5:].isdigit())


def test_a_run_is_not_overwritten(command: Command, tmp_path: Path) -> None:
    assert command(*TINY, "--run-dir", "r").code == 0
    before = files_below(tmp_path)
    is_refused(command(*TINY, "--run-dir", "r"), "run_dir 'r' already holds a run", "--resume auto")
    assert files_below(tmp_path) == before


def test_auto_starts_afresh_in_a_directory_that_never_held_a_checkpoint(command: Command, tmp_path: Path) -> None:
    outcome = command(*TINY, "--run-dir", "r", "--resume", "auto")
    assert outcome.code == 0
    assert "resumed:      nothing, because the run dir holds no checkpoint: this is a new run" in outcome.out
    # Killed before its first checkpoint: rows of metrics and a half-written checkpoint, but nothing to go on from.
    shutil.rmtree(tmp_path / "r" / "checkpoints")
    (tmp_path / "r" / "checkpoints" / ".tmp-1-step_000000000200").mkdir(parents=True)
    first = steps(tmp_path / "r")
    assert command(*TINY, "--run-dir", "r", "--resume", "auto").code == 0
    assert steps(tmp_path / "r") == first  # once, not twice
    assert not list((tmp_path / "r" / "checkpoints").glob(".tmp-*"))


def test_auto_goes_on_from_the_newest_with_the_options_of_the_run(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "r"
    assert command(*TINY, "--run-dir", "r", "--gamma", "0.9").code == 0
    first, metrics = saved(run), steps(run)
    outcome = command("--run-dir", "r", "--resume", "auto", "--total-timesteps", "1000")  # no other option
    assert outcome.code == 0
    assert f"resumed:      from step {first[-1]:,}" in outcome.out
    config = json.loads((run / "config.json").read_text())
    assert (config["env"], config["gamma"], config["num_envs"], config["total_timesteps"]) == (
        "InvertedPendulum-v5",
        0.9,
        4,
        1000,
    )
    assert steps(run)[: len(metrics)] == metrics
    assert steps(run) == sorted(set(steps(run)))
    assert 1000 <= steps(run)[-1] < 1000 + 4 * 32  # it stops with the first rollout that reaches the goal
    assert steps(run, "evaluations") == [metrics[-1], steps(run)[-1]]
    iterations = [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert iterations == list(range(1, len(iterations) + 1))


def test_what_a_killed_run_did_after_its_checkpoint_is_done_again(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "r"
    assert command(*TINY, "--run-dir", "r").code == 0
    metrics, kept = steps(run), saved(run)
    shutil.rmtree(run / "checkpoints" / f"step_{kept[-1]:012d}")  # as if killed before the last checkpoint
    outcome = command(*TINY, "--run-dir", "r", "--resume", "auto")
    assert outcome.code == 0
    assert f"resumed:      from step {kept[-2]:,}" in outcome.out
    until = [step for step in metrics if step <= kept[-2]]
    assert steps(run)[: len(until)] == until
    assert steps(run) == sorted(set(steps(run)))
    assert len(steps(run, "evaluations")) == 1


def test_a_finished_run_that_is_resumed_is_left_as_it_is(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "r"
    assert command(*TINY, "--run-dir", "r").code == 0
    before = files_below(run)
    assert command(*TINY, "--run-dir", "r", "--resume", "auto").code == 0
    after = files_below(run)
    for name in before:
        if name.startswith(("checkpoints", "metrics")):
            assert after[name] == before[name]
    evaluations = [json.loads(files[name]) for files in (before, after) for name in ["evaluations.jsonl"]]
    assert evaluations[0]["returns"] == evaluations[1]["returns"]  # the same policy, the same episodes


def test_a_damaged_newest_is_named_and_the_one_before_it_used(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "r"
    assert command(*TINY, "--run-dir", "r").code == 0
    kept = saved(run)
    newest = run / "checkpoints" / f"step_{kept[-1]:012d}"
    (newest / "train.safetensors").write_bytes(b"damaged")
    outcome = command(*TINY, "--run-dir", "r", "--resume", "auto")
    assert outcome.code == 0
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert f"set aside as {newest.name}.corrupt" in warning
    assert str(Path("r") / "checkpoints" / newest.name / "train.safetensors") in warning
    assert f"resumed:      from step {kept[-2]:,}" in outcome.out
    assert (run / "checkpoints" / f"{newest.name}.corrupt").is_dir()


def test_when_all_are_damaged_it_stops_every_time_and_never_restarts(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "r"
    assert command(*TINY, "--run-dir", "r").code == 0
    number = len(saved(run))
    for path in (run / "checkpoints").iterdir():
        (path / "model.safetensors").unlink()
    metrics = (run / "metrics.jsonl").read_bytes()
    for text in (
        f"all {number} checkpoints in r/checkpoints are damaged",
        "every checkpoint in r/checkpoints is damaged",
    ):
        outcome = command(*TINY, "--run-dir", "r", "--resume", "auto")
        assert outcome.code == 3
        assert text in outcome.err
        assert outcome.out == ""
    is_refused(command(*TINY, "--resume", "r"), "no checkpoint in r/checkpoints")
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert saved(run) == []


def test_resume_takes_a_run_directory_or_one_checkpoint(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "r"
    assert command(*TINY, "--run-dir", "r").code == 0
    kept = saved(run)
    outcome = command("--resume", "r", "--total-timesteps", "800")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"from step {kept[-1]:,}" in outcome.out
    assert not caplog.records

    # One that is not the newest: what came after it is a future given up, set aside and not mixed in.
    middle = saved(run)[-2]
    later = saved(run)[-1]
    monkeypatch.chdir(run / "checkpoints")
    outcome = command("--resume", f"step_{middle:012d}", "--total-timesteps", "700")
    assert outcome.code == 0
    assert f"from step {middle:,}" in outcome.out
    assert f"step_{later:012d}.abandoned" in caplog.text
    assert (run / "checkpoints" / f"step_{later:012d}.abandoned").is_dir()
    assert steps(run) == sorted(set(steps(run)))
    assert max(saved(run)) == steps(run)[-1] < 700 + 128
    assert not (run / "checkpoints" / "checkpoints").exists()


def test_a_run_can_go_on_in_another_directory(command: Command, tmp_path: Path) -> None:
    assert command(*TINY, "--run-dir", "r").code == 0
    before = files_below(tmp_path / "r")
    (goal,) = saved(tmp_path / "r")[-1:]
    assert command("--resume", "r", "--run-dir", "s", "--total-timesteps", "800").code == 0
    assert files_below(tmp_path / "r") == before
    assert steps(tmp_path / "s")[0] > goal
    is_refused(command("--resume", "r", "--run-dir", "s"), "run_dir 's' already holds another run than 'r'")
    # A finished run that goes on elsewhere has its last checkpoint there too.
    assert command("--resume", "r", "--run-dir", "t").code == 0
    assert saved(tmp_path / "t") == [goal]


def test_a_checkpoint_outside_a_run_directory_needs_one(command: Command, tmp_path: Path) -> None:
    assert command(*TINY, "--run-dir", "r").code == 0
    newest = saved(tmp_path / "r")[-1]
    (tmp_path / "kept").mkdir()
    shutil.copytree(tmp_path / "r" / "checkpoints" / f"step_{newest:012d}", tmp_path / "kept" / "best")
    before = files_below(tmp_path)
    is_refused(command("--resume", "kept/best"), "resume 'kept/best' is in no run directory, so run_dir must be given")
    assert files_below(tmp_path) == before
    assert command("--resume", "kept/best", "--run-dir", "s", "--total-timesteps", "800").code == 0


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--env Hopper-v5", "env was 'InvertedPendulum-v5' in "),
        ("--preset sample", "preset was 'fast' in "),
        ("--hidden-sizes 32", "hidden_sizes was [64, 64] in "),
        ("--activation relu", "activation was 'tanh' in "),
        ("--no-norm-obs", "norm_obs was True in "),
        ("--no-norm-reward", "norm_reward was True in "),
        ("--learning-rate 1e-3", "learning_rate was 0.0003 in "),
    ],
)
def test_what_a_run_cannot_change_on_its_way_is_refused(
    command: Command, tmp_path: Path, option: str, said: str
) -> None:
    adaptive = ("--no-anneal-lr", "--adaptive-kl", "0.02")  # which moves the learning rate
    assert command(*TINY, *adaptive, "--run-dir", "r").code == 0
    before = files_below(tmp_path)
    is_refused(command("--run-dir", "r", "--resume", "auto", *option.split()), said, "cannot become", "on resume")
    assert files_below(tmp_path) == before


def test_another_number_of_environments_is_allowed_on_resume(command: Command, tmp_path: Path) -> None:
    assert command(*TINY, "--run-dir", "r").code == 0
    more = ["--num-envs", "8", "--total-timesteps", "1000"]
    assert command("--run-dir", "r", "--resume", "auto", *more).code == 0
    assert steps(tmp_path / "r")[-1] >= 1000


def test_a_resumed_run_takes_up_parameters_optimizer_and_statistics(tmp_path: Path) -> None:
    from training import config, train

    first = train(config(tmp_path / "r", env="InvertedPendulum-v5", anneal_lr=False))
    again = train(config(tmp_path / "r", env="InvertedPendulum-v5", anneal_lr=False, resume="auto"))
    kept = first.fingerprint()
    scaler = {name: value for name, value in kept["scaler"].items() if name != "discounted"}
    assert again.fingerprint() | {"rows": [], "scaler": {}} == kept | {"rows": [], "scaler": {}}
    assert {k: v for k, v in again.fingerprint()["scaler"].items() if k != "discounted"} == scaler
    assert again.result.state == first.result.state
    assert again.result.final.returns.tolist() == first.result.final.returns.tolist()


def test_a_checkpoint_without_a_run_in_it_is_refused(command: Command, tmp_path: Path) -> None:
    from ppo_fast import checkpoint

    for state in ({}, {"config": 5}, {"config": {"gamma": 0.9}}, {"config": {"nonsense": 1}}):
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        checkpoint.save(tmp_path / "checkpoints", 5, model={}, train={}, state=state, keep=1)
        is_refused(command("--resume", "."), "step_000000000005")


def test_a_config_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="num_envs"):
        Config(num_envs=0)
    assert issubclass(ConfigError, ValueError)
