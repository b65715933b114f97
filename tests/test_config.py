"""Config: types, values, messages, TOML files, and the order in which options override each other."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppo_fast import presets
from ppo_fast.config import Config, from_dict, read_toml
from ppo_fast.envs import ENVPOOL_TASKS
from ppo_fast.errors import ConfigError

# --- values ----------------------------------------------------------------------------------------------------------
WRONG_TYPES = [
    # field, value, what the message must say is allowed
    ("env", 5, "a string"),
    ("env", None, "a string"),
    ("num_envs", 4.0, "an integer"),
    ("num_envs", "4", "an integer"),
    ("num_envs", True, "an integer"),
    ("seed", None, "an integer"),
    ("learning_rate", "3e-4", "a number"),
    ("learning_rate", True, "a number"),
    ("gamma", None, "a number"),
    ("learning_rate", 10**400, "a number"),
    ("target_kl", "0.01", "a number or unset"),
    ("target_kl", False, "a number or unset"),
    ("anneal_lr", 1, "true or false"),
    ("anneal_lr", "true", "true or false"),
    ("preset", "quick", "one of 'fast', 'sample'"),
    ("device", "gpu", "one of 'auto', 'cpu', 'cuda'"),
    ("update", "", "one of 'auto', 'eager', 'compile'"),
    ("kernels", "c++", "one of 'auto', 'cpp', 'numba', 'reference' or unset"),
    ("norm_adv", True, "one of 'none', 'batch', 'minibatch'"),
    ("activation", "gelu", "one of 'tanh', 'relu', 'elu', 'silu'"),
    ("hidden_sizes", 64, "a list of items that are an integer"),
    ("hidden_sizes", (64, 32.0), "a list of items that are an integer"),
    ("hidden_sizes", (64, True), "a list of items that are an integer"),
    ("log", ("csv",), "a list of items that are one of 'tensorboard', 'wandb'"),
    ("log", "tensorboard", "a list of items that are one of 'tensorboard', 'wandb'"),
]
POSITIVE = "learning_rate adam_eps clip_coef max_grad_norm clip_obs clip_reward"
WRONG_VALUES = [
    ("num_envs", 10**9, "at most 65536"),
    *[(name, 0, "at least 1") for name in ("num_envs", "num_steps", "minibatch_size", "update_epochs")],
    *[(name, -3, "at least 1") for name in ("total_timesteps", "torch_threads", "eval_episodes", "keep_checkpoints")],
    *[(name, -1, "at least 0") for name in ("env_threads", "eval_every", "checkpoint_every")],
    ("seed", -1, "[0, 2**64)"),
    ("seed", 2**64, "[0, 2**64)"),
    *[
        (name, value, "a finite number above 0")
        for name in (
            "learning_rate",
            "clip_coef",
            "max_grad_norm",
            "clip_obs",
            "clip_reward",
            "target_kl",
            "adaptive_kl",
        )
        for value in (-3e-4, 0.0, math.inf, math.nan)
    ],
    *[("adam_eps", value, "a finite number, at least 2**-126") for value in (-1e-5, 0.0, 1e-39, math.inf, math.nan)],
    *[(name, v, "at least 0") for name in ("ent_coef", "vf_coef") for v in (-0.1, math.inf, math.nan)],
    *[(name, v, "in [0, 1]") for name in ("gamma", "gae_lambda") for v in (-0.01, 1.01, math.nan)],
    *[("log_std_init", value, "finite") for value in (math.inf, -math.inf, math.nan)],
    *[("hidden_sizes", value, "widths, each >= 1") for value in ((), (0,), (64, -1))],
    ("log", ("wandb", "wandb"), "without repetitions"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG_TYPES + WRONG_VALUES)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} must be ")
    assert allowed in message
    assert message.endswith(f"got {value!r}")
    assert "\n" not in message


@pytest.mark.parametrize(
    "edge",
    [
        {"seed": 0},
        {"seed": 2**64 - 1},
        {"gamma": 0.0},
        {"gamma": 1.0},
        {"ent_coef": 0.0},
        {"target_kl": None},
        {"env_threads": 0},
        {"hidden_sizes": (1,)},
        {"log": ()},
    ],
)
def test_the_edges_of_what_is_allowed_are_allowed(edge: dict[str, Any]) -> None:
    ((name, value),) = edge.items()
    assert getattr(Config(**edge), name) == value


def test_a_minibatch_that_does_not_divide_names_the_product_and_both_factors() -> None:
    with pytest.raises(ConfigError) as caught:
        Config(num_envs=8, num_steps=32, minibatch_size=100)
    assert str(caught.value) == "minibatch_size must divide num_envs * num_steps = 8 * 32 = 256, got 100"


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 2000))
def test_minibatches_tile_the_batch_or_the_config_is_refused(num_envs: int, num_steps: int, minibatch: int) -> None:
    rows = num_envs * num_steps
    try:
        cfg = Config(num_envs=num_envs, num_steps=num_steps, minibatch_size=minibatch)
    except ConfigError:
        assert rows % minibatch != 0
    else:
        assert (cfg.batch_size, cfg.num_minibatches * minibatch) == (rows, rows)


def test_integers_become_floats_where_a_number_is_meant() -> None:
    cfg = Config(learning_rate=1, target_kl=2)
    assert (type(cfg.learning_rate), cfg.learning_rate) == (float, 1.0)
    assert (type(cfg.target_kl), cfg.target_kl) == (float, 2.0)


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 2  # type: ignore[misc]


def test_a_config_survives_json() -> None:
    cfg = Config(hidden_sizes=(32, 16), log=("tensorboard", "wandb"), target_kl=0.02, kernels="numba")
    loaded = json.loads(json.dumps(cfg.to_dict(), allow_nan=False))
    assert Config(**from_dict(loaded, source="a file")) == cfg


# --- TOML ------------------------------------------------------------------------------------------------------------
def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "run.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_gives_values_with_dashes_or_underscores_and_lists_as_tuples(tmp_path: Path) -> None:
    text = 'env = "Hopper-v5"\nnum-envs = 8\nhidden_sizes = [32, 16]\nlearning_rate = 1\nanneal_lr = false\nlog = []\n'
    assert read_toml(write(tmp_path, text)) == {
        "env": "Hopper-v5",
        "num_envs": 8,
        "hidden_sizes": (32, 16),
        "learning_rate": 1,
        "anneal_lr": False,
        "log": (),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_env = 8", "unknown option 'num_env' (did you mean 'num_envs'"),
        ("Learning-Rate = 1e-4", "unknown option 'Learning-Rate' (did you mean 'learning_rate'"),
        ("xyzzy = 1", "unknown option 'xyzzy'"),
        ("[ppo]\nclip_coef = 0.1", "unknown option 'ppo'"),
        ("[env]\nid = 'Ant-v5'", "env must be a string, got {'id': 'Ant-v5'}"),
        ('num_envs = "8"', "num_envs must be an integer, got '8'"),
        ("num_envs = 8.0", "num_envs must be an integer, got 8.0"),
        ("num_envs = true", "num_envs must be an integer, got True"),
        ("anneal_lr = 1", "anneal_lr must be true or false, got 1"),
        ("hidden_sizes = 64", "hidden_sizes must be a list of items that are an integer, got 64"),
        ("hidden_sizes = [[64], [64]]", "hidden_sizes must be a list of items that are an integer, got [[64], [64]]"),
        ("env = 2026-11-22", "env must be a string, got datetime.date(2026, 11, 22)"),
        ("gamma = 1" + 400 * "0", "gamma must be a number"),
        ("num_envs = 1" + 5000 * "0", "is not TOML"),
        ("num_envs = ", "is not TOML"),
        ("num_envs = 4\nnum_envs = 8", "is not TOML"),
        (b"env = '\xff\xfe'", "is not TOML"),
        ("env = " + 100_000 * "[", "is not TOML"),
        ("config = 'other.toml'", "unknown option 'config'"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_toml(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config '.*nowhere.toml' cannot be read: No such file"):
        read_toml(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_toml(tmp_path)


# --- presets and the order of options --------------------------------------------------------------------------------
@pytest.fixture
def two_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets whose values tell which of them was applied."""
    table = {
        "fast": {"*": {"gamma": 0.5, "gae_lambda": 0.5}, "Hopper-v5": {"gamma": 0.6}},
        "sample": {"*": {"gamma": 0.7}, "Hopper-v5": {"gamma": 0.8}},
    }
    monkeypatch.setattr(presets, "PRESETS", table)


@pytest.mark.usefixtures("two_presets")
@pytest.mark.parametrize(
    ("layers", "gamma", "gae_lambda"),
    [
        ([{}], 0.5, 0.5),  # built-in 0.99 and 0.95 < the general lines of the preset
        ([{"env": "Hopper-v5"}], 0.6, 0.5),  # < the task's own lines
        ([{"env": "Hopper-v5", "preset": "sample"}], 0.8, 0.95),
        ([{"gamma": 0.1}, {"env": "Hopper-v5"}], 0.1, 0.5),  # < a layer, though a later one picks the task
        ([{"gamma": 0.1, "preset": "sample"}, {"gamma": 0.2}], 0.2, 0.95),  # < a later layer
        ([{"preset": "sample"}, {"preset": "fast"}], 0.5, 0.5),  # the preset that is picked last is the one applied
    ],
)
def test_built_in_values_yield_to_presets_and_presets_to_layers(
    layers: list[dict[str, Any]], gamma: float, gae_lambda: float
) -> None:
    options = presets.resolve_options(*layers)
    assert (options["gamma"], options["gae_lambda"]) == (gamma, gae_lambda)


def test_resolve_builds_a_checked_config() -> None:
    assert presets.resolve(env="Hopper-v5", num_steps=16, minibatch_size=64).env == "Hopper-v5"
    with pytest.raises(ConfigError, match="unknown option 'num_step'"):
        presets.resolve(num_step=3)
    with pytest.raises(ConfigError, match="'fast', 'sample'"):
        presets.resolve(preset="fastest")
    with pytest.raises(ConfigError, match="learning_rate must be a finite number above 0, got -1"):
        presets.resolve(learning_rate=-1.0)


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
@pytest.mark.parametrize("env", [*ENVPOOL_TASKS, "Pendulum-v1"])
def test_every_preset_of_every_task_is_a_config(name: str, env: str) -> None:
    assert presets.resolve(env=env, preset=name).preset == name


def test_the_tables_of_presets_name_tasks_that_exist() -> None:
    named = {env for table in presets.PRESETS.values() for env in table}
    assert named <= {"*", *ENVPOOL_TASKS}


def test_configs_that_are_equal_have_one_hash_keyword_arguments_or_not() -> None:
    one, same, other = (Config(env="Ant-v5", env_kwargs={"ctrl_cost_weight": cost}) for cost in (0.1, 0.1, 0.2))
    assert len({one, same, other}) == 2
