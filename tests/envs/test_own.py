"""Environments that a user brings: keyword arguments, classes of a module, Dict observations, code that misbehaves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import training
from commands import call
from gymnasium import spaces
from training import one_thread  # noqa: F401

from ppo_fast import checkpoint, envs, play, train
from ppo_fast.envs.spaces import parts_of, write_flat
from ppo_fast.errors import ConfigError, EnvError, NonFiniteError
from ppo_fast.evaluation import evaluate, load_policy, policy_from, spec_from_json, spec_to_json
from ppo_fast.keywords import checked_keywords, read_keywords, write_keywords

MODULE = '''
import gymnasium, numpy as np
from gymnasium import spaces

class Slider(gymnasium.Env):
    """A mass that a force pushes towards 0; an observation of two parts, whose names are not in alphabetical order."""

    def __init__(self, friction=0.1, start=(0.5, 1.0), broken=""):
        self.observation_space = spaces.Dict(
            [("velocity", spaces.Box(-9, 9, ())), ("place", spaces.Box(-9, 9, (1, 2)))]
        )
        self.action_space = spaces.Box(-2.0, 2.0, (1,))
        self.friction, self.start, self.broken, self.steps = friction, start, broken, 0

    def _obs(self):
        place = np.array([[self.x, -self.x]], np.float32)
        return {"velocity": np.float32(self.v), "place": place[0] if self.broken == "shape" else place}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.v = self.np_random.uniform(*self.start), 0.0
        return self._obs() if self.broken == "reset" else (self._obs(), {})

    def step(self, action):
        self.steps += 1
        if self.broken == "raises" and self.steps > 3:
            raise ZeroDivisionError("the motor\\n is off")
        self.v += 0.1 * float(action[0]) - self.friction * self.v
        self.x += 0.1 * self.v
        if self.broken == "nan" and self.steps > 3:
            self.v = np.nan
        reward = np.ones(2) if self.broken == "reward" else -abs(self.x)
        return self._obs(), reward, bool(abs(self.x) > 3), False, {}

class Old:
    pass

gymnasium.register("Registered-v0", Slider, max_episode_steps=7)
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put the module ``robots`` where it can be imported."""
    (tmp_path / "robots.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "robots"
    sys.modules.pop("robots", None)
    gymnasium.registry.pop("Registered-v0", None)


def outputs(env: Any) -> tuple[np.ndarray, ...]:
    n = env.num_envs
    flags = (np.zeros(n, np.bool_) for _ in range(3))
    return np.zeros((n, env.spec.obs_dim), np.float32), np.zeros(n, np.float32), *flags


def steps(env: Any, count: int) -> tuple[np.ndarray, ...]:
    """Reset ``env`` and step it with zeros."""
    out = outputs(env)
    env.reset(out[0])
    for _ in range(count):
        env.step(np.zeros((env.num_envs, env.spec.act_dim), np.float32), *out)
    return out


# Keyword arguments, as words


def test_keywords_are_words_or_a_json_object() -> None:
    words = ["xml_file=/a b.xml", "weight=0.1", "range=[0.2,1]", "flag=true", "name=1=2", 'more={"a":null}']
    assert read_keywords(words) == {
        "xml_file": "/a b.xml", "weight": 0.1, "range": [0.2, 1], "flag": True, "name": "1=2", "more": {"a": None}
    }  # fmt: skip
    assert read_keywords(['{"weight": 0.1, "name": "1"}', "flag=false"]) == {"weight": 0.1, "name": "1", "flag": False}
    for values in ({"a": "1", "b": 1, "c": [1.5, None], "d": {"e": "x y"}}, {}):
        assert read_keywords(write_keywords(values)) == values


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda: read_keywords(["0.1"]), "must be keyword=value words or a JSON object, got '0.1'"),
        (lambda: read_keywords(['{"a": 1']), "is no JSON object"),
        (lambda: read_keywords(["a=1", '{"a": 2}']), "names 'a' twice"),
        (lambda: checked_keywords({"a-b": 1}), "must have Python keywords as names, got 'a-b'"),
        (lambda: checked_keywords({"render_mode": "human"}), "cannot hold 'render_mode', which ppo_fast sets itself"),
        (lambda: checked_keywords({"a": float("nan")}), "must have values that JSON holds"),
        (lambda: checked_keywords({"a": np.zeros(2)}), "must have values that JSON holds"),
    ],
)
def test_keywords_that_cannot_be(use: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError, match="env_kwargs " + said):
        use()


# Keyword arguments, in an environment


def test_keywords_reach_the_environment_and_gymnasium_makes_it() -> None:
    assert envs.resolve_backend("Hopper-v5", "auto", {"a": 1}) == ("gymnasium", "because of env_kwargs")
    kwargs = {
        "exclude_current_positions_from_observation": False,
        "max_episode_steps": 5,
        "healthy_z_range": [0.0, 9.0],
    }
    spec = envs.spec("Hopper-v5", "auto", kwargs)
    assert (spec.obs_dim, spec.max_episode_steps, spec.backend) == (12, 5, "gymnasium")
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))).env_kwargs == kwargs
    env = envs.make("Hopper-v5", 2, seed=1, env_kwargs=kwargs)
    *_, truncated, _ = steps(env, 5)
    assert truncated.all()
    env.close()


def test_keywords_that_the_environment_does_not_take_are_named() -> None:
    with pytest.raises(ConfigError, match=r"Hopper-v5 takes no 'ctrl_weight' \(did you mean 'ctrl_cost_weight'"):
        envs.spec("Hopper-v5", "auto", {"ctrl_weight": 0.1})
    with pytest.raises(ConfigError, match=r"takes no 'zzz'; it takes camera_id, .*contact_cost_weight, .*xml_file"):
        envs.make("Ant-v5", 2, seed=1, env_kwargs={"zzz": 0.1})
    with pytest.raises(
        EnvError, match=r"Ant-v5: Gymnasium cannot make it with env_kwargs {'xml_file': '/no.xml'}: .*no.xml"
    ):
        envs.spec("Ant-v5", "auto", {"xml_file": "/no.xml"})


def test_envpool_is_given_none() -> None:
    with pytest.raises(
        ConfigError, match=r"env_backend 'envpool' takes no env_kwargs, got \['a'\]; leave it at 'auto'"
    ):
        envs.make("Ant-v5", 2, seed=1, backend="envpool", env_kwargs={"a": 1})
    with pytest.raises(EnvError, match="Gymnasium registers no 'WalkerWalk-v1', only EnvPool does"):
        envs.spec("WalkerWalk-v1", "auto", {"a": 1})


# Classes of a module


def test_a_class_needs_no_registration(module: str) -> None:
    spec = envs.spec(f"{module}:Slider", "auto", {"friction": 0.2})
    assert (spec.env_id, spec.obs_dim, spec.act_dim) == ("robots:Slider", 3, 1)
    assert (spec.obs_layout, spec.max_episode_steps) == ("place 2, velocity 1", None)
    assert envs.spec(f"{module}:Registered-v0").max_episode_steps == 7  # the registry comes first
    assert envs.spec(f"{module}:Slider", "auto", {"max_episode_steps": 9}).max_episode_steps == 9


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("robots:Slyder", r"registers no 'Slyder' and has no class of that name \(did you mean 'Slider'"),
        ("robots:zzzzzz", r"has no class of that name; it has Slider$"),
        ("robots:Old", "has a Old, but it is no class derived from gymnasium.Env"),
        ("no_robots:Slider", "module 'no_robots' cannot be imported"),
    ],
)
def test_a_class_that_is_not_there(module: str, name: str, said: str) -> None:
    with pytest.raises(EnvError, match=f"environment '{name}': .*{said}"):
        envs.spec(name)


def test_processes_of_their_own_find_the_class(module: str) -> None:
    env = envs.make(f"{module}:Slider", 2, seed=1, vectorization="async", env_kwargs={"start": [2.0, 2.0]})
    assert steps(env, 1)[0][:, :2].tolist() == [[2.0, -2.0]] * 2
    env.close()


# Observations of several parts


def test_parts_are_in_alphabetical_order_at_every_level_and_row_by_row(module: str) -> None:
    box = spaces.Box(-1.0, 1.0, (2, 2), np.float64)
    space = spaces.Dict([("b", spaces.Dict([("z", box), ("a", spaces.Box(-1.0, 1.0, ()))])), ("a", box)])
    parts = parts_of(space)
    assert parts is not None
    assert [(part.path, part.size) for part in parts] == [(("a",), 4), (("b", "a"), 1), (("b", "z"), 4)]
    tree = {
        "b": {"z": np.arange(8.0).reshape(2, 2, 2), "a": np.array([90.0, 91.0])},
        "a": -np.arange(8.0).reshape(2, 2, 2),
    }
    obs = np.zeros((2, 9), np.float32)
    write_flat(parts, tree, obs)
    assert obs.tolist() == [[-0.0, -1, -2, -3, 90, 0, 1, 2, 3], [-4, -5, -6, -7, 91, 4, 5, 6, 7]]
    env = envs.make(f"{module}:Slider", 2, seed=1, env_kwargs={"start": [2.0, 2.0]})
    assert steps(env, 0)[0].tolist() == [[2.0, -2.0, 0.0]] * 2
    env.close()


# Code that misbehaves


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            "reset",
            r"its first reset\(\) and step\(\): ValueError: reset\(\) must return \(observation, info\), got dict",
        ),
        ("shape", r"ValueError: observation.place must have the shape \(1, 2\) of observation_space, got \(2,\)"),
        ("reward", r"the reward must be one number, got the shape \(2,\)"),
    ],
)
def test_what_is_wrong_at_once_is_said_before_training(module: str, broken: str, said: str) -> None:
    with pytest.raises(EnvError, match=r"robots:Slider \(gymnasium\): it failed in " + ".*" + said):
        envs.spec(f"{module}:Slider", "auto", {"broken": broken})


def test_what_is_raised_later_names_the_call_and_the_line(module: str) -> None:
    env = envs.make(f"{module}:Slider", 2, seed=1, env_kwargs={"broken": "raises"})
    said = r"it failed in step\(\): ZeroDivisionError: the motor is off \(.*robots.py, line 27\)"
    with pytest.raises(EnvError, match=r"robots:Slider \(gymnasium\): " + said) as caught:
        steps(env, 5)
    assert "\n" not in str(caught.value)
    env.close()


def test_nan_in_an_observation_is_not_blamed_on_the_policy(module: str) -> None:
    env = envs.make(f"{module}:Slider", 2, seed=1, env_kwargs={"broken": "nan"})
    with pytest.raises(
        NonFiniteError, match=r"step\(\) of environments \[0, 1\] gave observations that are not finite"
    ):
        steps(env, 5)
    env.close()


# From the command line to the film


def test_a_run_keeps_its_keywords(module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"env": f"{module}:Slider", "env_kwargs": {"start": (1.0, 1.0), "max_episode_steps": 20}}
    first = training.train(training.config(tmp_path / "run", **options))
    path = first.result.run_dir
    assert json.loads((path / "config.json").read_text())["env_kwargs"] == {
        "max_episode_steps": 20,
        "start": [1.0, 1.0],
    }
    spec = policy_from(checkpoint.locate(path)).spec
    assert dict(spec.env_kwargs) == {"max_episode_steps": 20, "start": [1.0, 1.0]}

    played = evaluate(load_policy(path), f"{module}:Slider", episodes=3)
    assert played.lengths.tolist() == [20] * 3
    other = evaluate(load_policy(path), f"{module}:Slider", episodes=3, env_kwargs={"max_episode_steps": 4})
    assert other.lengths.tolist() == [4] * 3
    shown = call(play.main, capsys, str(path), "--episodes", "3", "--env", f"{module}:Slider")
    assert "length 20" in shown.out

    go_on = [f"--run-dir={path}", "--resume=auto", f"--env={module}:Slider", "--total-timesteps=1500"]
    changed = call(train.main, capsys, *go_on, "--env-kwargs", "friction=0.3")
    assert changed.code == 2
    assert "env_kwargs was {'max_episode_steps': 20, 'start': [1.0, 1.0]} in" in changed.err
    resumed = call(train.main, capsys, *go_on)
    assert resumed.code == 0, resumed.err
    assert "robots:Slider, preset fast, seed 1, 1,500 steps, max_episode_steps=20 start=[1.0, 1.0]" in resumed.out
    assert "observation 3 (place 2, velocity 1)" in resumed.out


def test_the_command_line_takes_keywords_once(capsys: pytest.CaptureFixture[str]) -> None:
    twice = call(train.main, capsys, "--env-kwargs", "a=1", "--env-kwargs", "b=2")
    assert (twice.code, "--env-kwargs is given more than once" in twice.err) == (2, True)
    unknown = call(train.main, capsys, "--env", "Ant-v5", "--env-kwargs", "ctrl_cost_wieght=1")
    assert unknown.code == 2
    assert "env_kwargs: Ant-v5 takes no 'ctrl_cost_wieght' (did you mean 'ctrl_cost_weight'" in unknown.err
    forced = call(train.main, capsys, "--env-kwargs", "ctrl_cost_weight=1", "--env-backend", "envpool")
    assert "env_backend 'envpool' takes no env_kwargs" in forced.err
