"""``python -m ppo_fast.export``: the file acts as the policy does, its contract is true, bad input is one line.

Axes: N observations · D observation · A action · K actions to choose from.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnx
import pytest
from commands import Outcome, call, files_below, with_a_best_one
from gymnasium.envs.registration import WrapperSpec
from numpy.typing import NDArray
from training import random_parameters

import ppo_fast.train
from ppo_fast import checkpoint, envs, export, graph
from ppo_fast.envs.base import EnvSpec
from ppo_fast.envs.interface import describe
from ppo_fast.errors import CheckpointError, ConfigError, EnvError
from ppo_fast.evaluation import Policy, load_policy
from ppo_fast.models import ACTIVATIONS, ActorCritic
from ppo_fast.normalizers import ObsNormalizer

EXAMPLE = Path(__file__).parents[1] / "examples" / "run_onnx.py"
D, N = 7, 10_000
MEAN, STD = np.array([0.0, 5.0, -300.0, 0.01, 0.0, 1e4, 2.0]), np.array([1.0, 0.1, 50.0, 1e-3, 1e5, 3.0, 0.0])
# Symmetric, not, narrow, without bounds, with one.
LOW, HIGH = np.array([-0.4, 0.1, -3.0, -np.inf, 0.0]), np.array([0.4, 0.7, 3.0, np.inf, np.inf])


def make_policy(
    activation: str = "tanh", *, shared: bool = False, discrete: bool = False, enabled: bool = True
) -> Policy:
    """Return a policy with shaken parameters, a column that never varied, and bounds of every kind."""
    low, high = (LOW, HIGH) if not discrete else (np.array([-np.inf]), np.array([np.inf]))
    num_actions, first = (4, -2) if discrete else (0, 0)
    low, high = low.astype(np.float32).astype(np.float64), high.astype(np.float32).astype(np.float64)
    spec = EnvSpec("Any-v0", "fake", D, len(low), low, high, None, num_actions, first)
    model = ActorCritic(D, len(low), (32, 16), activation, shared_trunk=shared, num_actions=num_actions)
    normalizer = ObsNormalizer(D, clip=10.0, enabled=enabled)
    normalizer.moments.load({"count": np.array([100.0]), "mean": MEAN, "m2": 100 * STD**2})
    normalizer.freeze()
    flat = random_parameters(model, 3)
    model.unflatten(flat)[f"actor.{0 if shared else 2}.weight"].mul_(5)  # so that bounds are met
    return Policy(model, flat, normalizer, spec)


def observations() -> NDArray[np.float32]:
    """Return N observations, every second one far outside of what was seen."""
    spread = np.random.default_rng(1).normal(size=(N, D)) * np.where(np.arange(N) % 2, 1.0, 1e4)[:, None]
    return (MEAN + spread * (STD + 1e-4)).astype(np.float32)


def run_file(policy: Policy, obs: NDArray[np.float32]) -> NDArray[Any]:
    name, run = graph.runtime(graph.build(policy).SerializeToString())
    assert name.startswith("onnxruntime ")
    return run(obs)


def worst_of_range(given: NDArray[Any], expected: NDArray[Any]) -> float:
    bounded = np.isfinite(LOW) & np.isfinite(HIGH)
    ranges = np.where(bounded, HIGH, 1.0) - np.where(bounded, LOW, -1.0)
    return float((np.abs(given.astype(np.float64) - expected) / ranges).max())


# --- the file acts as the policy does --------------------------------------------------------------------------------
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_continuous_actions_are_those_of_the_policy(activation: str, shared: bool) -> None:
    policy, obs = make_policy(activation, shared=shared), observations()
    given, expected = run_file(policy, obs), policy(obs)
    assert (given.shape, given.dtype) == ((N, 5), np.float32)
    assert worst_of_range(given, expected) <= 1e-5
    assert (given[:, :3] >= LOW[:3].astype(np.float32)).all()
    assert (given[:, :3] <= HIGH[:3].astype(np.float32)).all()
    # Both clips act, neither always.
    assert 0.2 < (np.abs(policy.normalizer.normalize(obs)) == 10).mean() < 0.8
    assert 0.01 < np.isin(given[:, :3], np.float32([LOW[:3], HIGH[:3]])).mean() < 0.99


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_discrete_actions_are_those_of_the_policy(activation: str, shared: bool) -> None:
    policy, obs = make_policy(activation, shared=shared, discrete=True), observations()
    given, expected = run_file(policy, obs), policy(obs)
    assert (given.shape, given.dtype) == ((N,), np.int64)
    best, second = np.sort(policy.head(obs).numpy(), axis=1)[:, :-3:-1].T
    clear = best - second > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(given[clear], expected[clear])
    assert len(set(given)) >= 2


@pytest.mark.parametrize("discrete", [False, True])
def test_without_the_normaliser_the_file_acts_otherwise_and_is_found_out(discrete: bool) -> None:
    policy, bare = make_policy(discrete=discrete), make_policy(discrete=discrete, enabled=False)
    obs = observations()
    given = run_file(bare, obs)
    assert (given != policy(obs)).mean() > 0.5 if discrete else worst_of_range(given, policy(obs)) > 0.5
    run = graph.runtime(graph.build(bare).SerializeToString())[1]
    worst, allowed = graph.worst_difference(policy, run)
    assert worst > 1000 * allowed
    worst, allowed = graph.worst_difference(bare, run)
    assert worst <= allowed


def test_a_policy_that_was_not_normalised_is_exported_as_it_is() -> None:
    policy = make_policy(enabled=False)
    obs = np.random.default_rng(2).normal(size=(N, D)).astype(np.float32)
    assert worst_of_range(run_file(policy, obs), policy(obs)) <= 1e-5


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_numbers_that_are_none_stay_none(activation: str) -> None:
    obs = np.tile(MEAN.astype(np.float32), (5, 1))
    obs[np.arange(4), [0, 1, 2, 6]] = [np.nan, np.inf, -np.inf, 3e38]  # the last in the column without variance
    continuous, discrete = make_policy(activation), make_policy(activation, discrete=True)
    with np.errstate(all="ignore"):
        expected, chosen = continuous(obs), discrete(obs[1:])
    assert np.isnan(expected).all(axis=1).tolist() == [True, False, False, False, False]
    np.testing.assert_allclose(run_file(continuous, obs), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    given = run_file(discrete, obs)
    assert given[0] == -3  # no action: the policy itself raises, which a graph cannot
    np.testing.assert_array_equal(given[1:], chosen)


def test_any_number_of_rows_can_be_given() -> None:
    policy, obs = make_policy(), observations()[:8]
    for rows in (0, 1, 8):
        assert run_file(policy, obs[:rows]).shape == (rows, 5)


def test_where_there_is_no_onnx_runtime_the_reference_of_onnx_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for discrete in (False, True):
        policy = make_policy("silu", discrete=discrete)
        name, run = graph.runtime(graph.build(policy).SerializeToString())
        assert name == f"onnx.reference {onnx.__version__}"
        worst, allowed = graph.worst_difference(policy, run)
        assert worst <= allowed < 1e-3


def test_a_wrong_answer_is_never_close(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, discrete = make_policy(), make_policy(discrete=True)
    for one, wrong in (
        (policy, lambda obs: policy(obs).astype(np.float64)),
        (policy, lambda obs: policy(obs)[:, :4]),
        (policy, lambda obs: policy(obs) * np.float32(np.nan)),
        (discrete, lambda obs: discrete(obs) + 4),
        (discrete, lambda obs: np.full(len(obs), -3)),
    ):
        assert graph.worst_difference(one, wrong)[0] == np.inf


def test_what_cannot_be_exported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = make_policy()
    broken.flat[0] = np.nan
    with pytest.raises(CheckpointError, match="parameters are not finite; export an earlier checkpoint"):
        graph.build(broken)
    monkeypatch.delitem(graph._ACTIVATIONS, "elu")
    with pytest.raises(ConfigError, match="activation 'elu' cannot be exported; tanh, relu, silu can"):
        graph.build(make_policy("elu"))


# --- the names are true ----------------------------------------------------------------------------------------------
def look_up(data: Any, name: str) -> float:
    """Read from MuJoCo's state what a name means; MuJoCo resolves the joint or body."""
    block, rest = name.split("[", 1)
    element, _, part = rest.partition("]")
    if block in ("cinert", "cvel", "cfrc_ext"):
        body = data.body(int(element.removeprefix("body ")) if element.startswith("body ") else element)
        return float(getattr(body, block).flat[int(part.strip("[]"))])
    joint = data.joint(element)
    order = {"qpos": ["x", "y", "z", "qw", "qx", "qy", "qz"], "qvel": ["vx", "vy", "vz", "wx", "wy", "wz"]}
    return float(getattr(joint, block)[order[block].index(part[1:]) if part else 0])


@pytest.mark.parametrize("task", envs.ENVPOOL_TASKS)
def test_names_are_those_of_what_is_observed(task: str) -> None:
    interface = describe(envs.spec(task, "gymnasium"))
    env = gymnasium.make(task)
    core: Any = env.unwrapped
    assert len(set(interface.observation_names)) == env.observation_space.shape[0]
    assert interface.control_period_s == core.model.opt.timestep * core.frame_skip == core.dt
    if task in ("InvertedDoublePendulum-v5", "Pusher-v5", "Reacher-v5"):
        assert interface.observation_names[:2] == ["obs[0]", "obs[1]"]
        assert "does not say what its observation is made of" in interface.why_indices
    else:
        assert interface.why_indices == ""
        env.reset(seed=1)
        rng = np.random.default_rng(1)
        for block in ("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"):
            array = getattr(core.data, block)
            array[:] = rng.uniform(-1, 1, array.shape)  # no two alike, and none that a task would clip
        obs = core._get_obs()
        assert len(np.unique(obs)) == len(obs)
        np.testing.assert_array_equal(obs, [look_up(core.data, name) for name in interface.observation_names])
    driven = [int(joint) for joint in core.model.actuator_trnid[:, 0]]
    joints = [core.model.joint(joint).name for joint in driven]
    assert interface.action_names == (["slide"] if task.startswith("Inverted") else joints)
    env.close()


@pytest.fixture
def wrapped() -> Any:
    """A MuJoCo task whose observations are halved on the way."""
    halve = WrapperSpec(
        "Halve", "gymnasium.wrappers:TransformObservation", {"func": lambda obs: obs / 2, "observation_space": None}
    )
    gymnasium.register("Wrapped-v0", "gymnasium.envs.mujoco.hopper_v5:HopperEnv", additional_wrappers=(halve,))
    yield "Wrapped-v0"
    del gymnasium.registry["Wrapped-v0"]


def test_a_wrapped_environment_is_not_named_after_its_core(wrapped: str) -> None:
    interface = describe(envs.spec(wrapped))
    assert interface.observation_names == [f"obs[{i}]" for i in range(11)]
    assert interface.action_names == ["action[0]", "action[1]", "action[2]"]
    assert (interface.control_period_s, interface.frame_skip) == (None, None)
    assert interface.why_no_period == interface.why_indices == "Wrapped-v0 is wrapped in TransformObservation"


def test_an_environment_that_is_not_the_policy_s_is_refused() -> None:
    spec = dataclasses.replace(envs.spec("Hopper-v5", "gymnasium"), obs_dim=12)
    with pytest.raises(EnvError, match="Hopper-v5 has observations of 11 numbers here, and the policy takes 12"):
        describe(spec)


# --- the command -----------------------------------------------------------------------------------------------------
Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run ``python -m ppo_fast.export`` in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *args: call(export.main, capsys, *args)


def is_refused(outcome: Outcome, *said: str) -> None:
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert line.startswith("ppo_fast.export: error: ")
    for fragment in said:
        assert fragment in line


def test_the_command_writes_a_file_and_its_contract_and_says_how_close_they_are(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    outcome = command(str(trained))
    assert (outcome.code, outcome.err) == (0, "")
    assert "onnxruntime" in outcome.out
    assert "python examples/run_onnx.py policy.onnx" in outcome.out
    assert sorted(files_below(tmp_path)) == ["policy.contract.json", "policy.onnx"]
    (saved,) = [p for p in (trained / "checkpoints").iterdir() if p.name == max(os.listdir(trained / "checkpoints"))]
    digest = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in (saved / "model.safetensors", tmp_path / "policy.onnx")
    }
    assert json.loads((tmp_path / "policy.contract.json").read_text()) == {
        "format_version": 1,
        "environment": {"id": "InvertedPendulum-v5", "kwargs": {}, "control_period_s": 0.04, "frame_skip": 2},
        "observation": {
            "input": "observation", "dtype": "float32", "dim": 4,
            "names": ["qpos[slider]", "qpos[hinge]", "qvel[slider]", "qvel[hinge]"],
        },
        "action": {
            "output": "action", "kind": "continuous", "dtype": "float32", "dim": 1,
            "names": ["slide"], "low": [-3.0], "high": [3.0], "if_not_finite": "NaN",
        },
        "network": {"hidden_sizes": [64, 64], "activation": "tanh", "obs_clip": 10.0},
        "checkpoint": {"env_steps": int(saved.name[5:]), "model_sha256": digest["model.safetensors"]},
        "onnx": {"file": "policy.onnx", "sha256": digest["policy.onnx"], "opset": 17},
        "ppo_fast_version": ppo_fast.__version__,
    }  # fmt: skip
    model = onnx.load(tmp_path / "policy.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(node.domain, node.version) for node in model.opset_import] == [("", 17)]
    obs = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
    _, run = graph.runtime((tmp_path / "policy.onnx").read_bytes())
    np.testing.assert_allclose(run(obs), load_policy(trained)(obs), rtol=0, atol=6e-5)  # 1e-5 of [-3, 3]


def test_the_example_runs_the_file_without_this_package(command: Command, trained: Path, tmp_path: Path) -> None:
    imported = {n.names[0].name for n in ast.walk(ast.parse(EXAMPLE.read_text())) if isinstance(n, ast.Import)}
    assert imported == {"json", "sys", "gymnasium", "numpy", "onnxruntime"}
    assert command(str(trained)).code == 0
    result = subprocess.run(
        [sys.executable, str(EXAMPLE), "policy.onnx", "2"], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    env, policy, expected = gymnasium.make("InvertedPendulum-v5"), load_policy(trained), []
    for episode in range(2):
        obs, _ = env.reset(seed=episode)
        total, ended = 0.0, False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(policy(obs))
            total, ended = total + float(reward), terminated or truncated
        expected.append(f"episode {episode}: return {total:.1f}")
    env.close()
    assert result.stdout.splitlines() == expected


def test_a_checkpoint_and_the_best_one_are_exported_as_well(command: Command, trained: Path, tmp_path: Path) -> None:
    oldest = with_a_best_one(trained, tmp_path / "run")
    *_, previous, newest = sorted(oldest.parent.iterdir())
    assert command(str(previous), "--out", "named.onnx").code == 0
    assert command("run", "--best", "--out", "best.onnx").code == 0
    assert command("run", "--out", "newest.onnx").code == 0
    steps = [
        json.loads((tmp_path / f"{name}.contract.json").read_text())["checkpoint"]["env_steps"]
        for name in ("named", "best", "newest")
    ]
    assert steps == [int(path.name[5:]) for path in (previous, oldest, newest)]


def test_a_file_that_acts_otherwise_is_not_written(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "_normalised", lambda nodes, policy: graph.INPUT)
    is_refused(command(str(trained)), "nothing was written, because in onnxruntime", "of the action range")
    assert not files_below(tmp_path)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], ["RUN"]),
        (["nowhere"], ["no run or checkpoint at 'nowhere'"]),
        (["a-file"], ["'a-file' is no run directory or checkpoint"]),
        (["."], ["'.' is no run directory or checkpoint"]),
        (["RUN", "--out", "policy.pt"], ["out must be a path that ends in .onnx", "got 'policy.pt'"]),
        (["RUN", "--out", "nowhere/p.onnx"], ["in a directory that exists and can be written", "got 'nowhere/p.onnx'"]),
        (["RUN", "--out", "folder.onnx"], ["got 'folder.onnx'"]),
        (["RUN", "--output", "p.onnx"], ["unknown option '--output'", "'--out'"]),
        (["RUN", "--env", "Hopper-v5"], ["env 'Hopper-v5' is not that of the run, 'InvertedPendulum-v5'"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    command: Command, trained: Path, tmp_path: Path, args: list[str], said: list[str]
) -> None:
    (tmp_path / "a-file").write_text("x")
    (tmp_path / "folder.onnx").mkdir()
    before = files_below(tmp_path)
    is_refused(command(*[str(trained) if arg == "RUN" else arg for arg in args]), *said)
    assert files_below(tmp_path) == before


def test_a_contract_that_cannot_be_written_is_one_line(command: Command, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.contract.json").mkdir()
    is_refused(command(str(trained)), "out 'policy.contract.json' cannot be written: Is a directory")


def test_without_the_extra_it_is_one_line(command: Command, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    is_refused(command(str(trained)), "pip install 'ppo_fast[export]'")


def test_an_environment_of_the_user_s_own_is_imported_only_when_named(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = "gymnasium.envs.mujoco.inverted_pendulum_v5:InvertedPendulumEnv"
    (tmp_path / "my_own_envs.py").write_text(f'import gymnasium\ngymnasium.register("Mine-v0", "{entry}")\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    saved = checkpoint.locate(trained)
    saved.state["env_spec"]["env_id"] = "my_own_envs:Mine-v0"
    monkeypatch.setattr(checkpoint, "locate", lambda path, **options: saved)
    is_refused(command("run"), "is imported from a module; if you trust it, give --env my_own_envs:Mine-v0")
    assert "my_own_envs" not in sys.modules
    assert command("run", "--env", "my_own_envs:Mine-v0").code == 0
    contract = json.loads((tmp_path / "policy.contract.json").read_text())
    assert contract["environment"]["id"] == "my_own_envs:Mine-v0"
    assert (contract["environment"]["control_period_s"], contract["environment"]["frame_skip"]) == (0.04, 2)
    del gymnasium.registry["Mine-v0"], sys.modules["my_own_envs"]


def test_what_only_envpool_has_is_numbered() -> None:
    interface = describe(envs.spec("WalkerWalk-v1"))
    assert (len(interface.observation_names), interface.observation_names[0]) == (24, "obs[0]")
    assert interface.why_no_period == interface.why_indices == "only EnvPool has WalkerWalk-v1, and does not say"
