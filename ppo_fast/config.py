"""One frozen, self-validating dataclass holds every option of a training run.

Hyper-parameter names are CleanRL's. Values are resolved by :func:`ppo_fast.presets.resolve` in the order
built-in < preset of the task < config file < command line.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ppo_fast.algos import foreign
from ppo_fast.config_rules import check_values
from ppo_fast.errors import ConfigError, did_you_mean
from ppo_fast.keywords import checked_keywords
from ppo_fast.typecheck import describe_type, matches


@dataclass(frozen=True)
class Config:
    """Every option of a training run; ``ConfigError`` at construction names the field that is wrong."""

    # --- what to run -------------------------------------------------------------------------------------------------
    env: str = "Ant-v5"
    """environment id of Gymnasium or EnvPool; or module:Id or module:Class to import a module of yours"""
    algo: Literal["ppo", "trpo", "reinforce"] = "ppo"
    """what turns a rollout into an update; an option of another algorithm is an error"""
    preset: Literal["fast", "sample"] = "fast"
    """fast: least wall-clock to a good policy; sample: best return at 1M to 3M steps"""
    total_timesteps: int = 1_000_000
    """real environment steps to train for (reset rows are not counted)"""
    seed: int = 1
    """keys every random draw of the run"""
    run_dir: str = ""
    """where results go; empty: runs/<env>-<preset>-seed<seed>-<date>"""
    resume: str = ""
    """auto: newest good checkpoint of --run-dir, or a fresh start; or a run directory or checkpoint to continue"""

    # --- environments ------------------------------------------------------------------------------------------------
    num_envs: int = 64
    """parallel environments"""
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """keyword arguments of the environment, which Gymnasium then steps"""
    env_backend: Literal["auto", "envpool", "gymnasium"] = "auto"
    """what steps the environments; auto: EnvPool for MuJoCo's tasks and what only it has, else Gymnasium"""
    env_threads: int = 0
    """EnvPool worker threads; 0: as many as this process may use"""
    vectorization: Literal["sync", "async"] = "sync"
    """Gymnasium only: step in this process, or one process per environment"""

    # --- where and how -----------------------------------------------------------------------------------------------
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """device of the learner; auto: cuda if there is one"""
    learner: Literal["auto", "native", "torch"] = "auto"
    """what computes updates: torch, or native C++ on the CPU; auto: native where it can run, else torch"""
    learner_threads: int = 0
    """threads of the native learner, which no number depends on; 0: as many as help and this process may use"""
    actor: Literal["auto", "native", "torch"] = "auto"
    """what acts between two environment steps: torch, or native C++; auto: native where it can run, else torch"""
    update: Literal["auto", "eager", "compile", "graph"] = "auto"
    """how the torch learner runs: eager; compile: a step by torch.compile; graph: the whole update as one CUDA graph;
    auto: compile where it pays for its compilation and a compiler works, else eager"""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """PPO: products of the torch learner's networks: float32; tf32, on NVIDIA GPUs; bf16, hidden layers in bfloat16.
    Log-probabilities, advantages and norms are float32 always"""
    overlap: Literal["none", "learner"] = "none"
    """PPO: learner: collect the next rollout, with the parameters before the update, while the learner learns"""
    kernels: Literal["auto", "cpp", "numba", "reference"] | None = None
    """backend of the numeric kernels; unset: PPO_FAST_BACKEND, else auto (cpp, then numba, then reference)"""
    torch_threads: int = 1
    """intra-op threads of torch; more than 1 was never faster at these sizes"""

    # --- every algorithm ---------------------------------------------------------------------------------------------
    num_steps: int = 64
    """steps per environment per rollout (T)"""
    minibatch_size: int = 256
    """rows per optimizer step (M), of TRPO and REINFORCE per step of the critic; divides num_envs * num_steps"""
    learning_rate: float = 3e-4
    """Adam's step size at the start, of TRPO and REINFORCE the critic's"""
    anneal_lr: bool = True
    """anneal the learning rate linearly to 0 over total_timesteps"""
    adam_eps: float = 1e-5
    """Adam's epsilon"""
    gamma: float = 0.99
    """discount"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    norm_adv: Literal["none", "batch", "minibatch"] = "minibatch"
    """over what advantages are normalised to mean 0 and standard deviation 1; minibatch: PPO only"""
    max_grad_norm: float = 0.5
    """bound on the norm of the gradient of a step"""

    # --- PPO ---------------------------------------------------------------------------------------------------------
    update_epochs: int = 10
    """PPO: passes over the batch per update"""
    recompute_adv: bool = False
    """PPO: recompute advantages and returns with the current critic before every pass but the first"""
    clip_coef: float = 0.2
    """PPO: epsilon of the clipped surrogate"""
    clip_vloss: bool = False
    """PPO: clip the value loss around the old values"""
    ent_coef: float = 0.0
    """PPO: weight of the entropy bonus"""
    vf_coef: float = 0.5
    """PPO: weight of the value loss 1/2 (V - R)^2"""
    target_kl: float | None = None
    """PPO: end the update after an epoch whose mean KL exceeds this"""
    adaptive_kl: float | None = None
    """PPO: steer the learning rate so that the mean KL of the last epoch stays near this; needs --no-anneal-lr"""

    # --- TRPO and REINFORCE ------------------------------------------------------------------------------------------
    critic_epochs: int = 20
    """TRPO, REINFORCE: passes of the critic over the batch per update"""
    delta: float = 0.01
    """TRPO: bound on the mean KL of an update"""
    cg_steps: int = 10
    """TRPO: steps of the conjugate gradient method"""
    cg_damping: float = 0.1
    """TRPO: multiple of the identity added to the Fisher matrix"""
    backtrack_steps: int = 10
    """TRPO: step lengths that the line search tries"""
    backtrack_coef: float = 0.8
    """TRPO: what the line search multiplies the step with"""
    policy_lr: float = 3e-3
    """REINFORCE: Adam's step size of the policy at the start"""
    policy_weight: Literal["total_return", "reward_to_go", "advantage"] = "advantage"
    """REINFORCE: what the log-probability of an action is weighted with"""

    # --- networks and normalisation ----------------------------------------------------------------------------------
    hidden_sizes: tuple[int, ...] = (64, 64)
    """widths of the hidden layers of actor and critic"""
    shared_trunk: bool = False
    """PPO: let actor and critic share their hidden layers"""
    activation: Literal["tanh", "relu", "elu", "silu"] = "tanh"
    """activation of the hidden layers"""
    log_std_init: float = -0.5
    """initial log standard deviation of a continuous policy, in units of half the action range"""
    norm_obs: bool = True
    """normalise observations by their running moments"""
    clip_obs: float = 10.0
    """bound on normalised observations"""
    norm_reward: bool = True
    """divide rewards by the running standard deviation of the discounted return"""
    clip_reward: float = 10.0
    """bound on scaled rewards"""

    # --- what is written ---------------------------------------------------------------------------------------------
    eval_every: int = 100_000
    """environment steps between evaluations; 0: only at the end"""
    eval_episodes: int = 20
    """episodes per evaluation (deterministic policy, frozen statistics, raw rewards)"""
    checkpoint_every: int = 250_000
    """environment steps between checkpoints; 0: only at the end"""
    keep_checkpoints: int = 3
    """how many of the newest checkpoints to keep; the one with the best evaluation stays beside them"""
    on_nan: Literal["stop", "rollback"] = "stop"
    """NaN or infinity: stop with a report, or go back to the last checkpoint, 3 times at most, at half the rate"""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """metric sinks beside metrics.jsonl"""
    quiet: bool = False
    """print only the banner, warnings and the result"""

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "env_kwargs", checked_keywords(self.env_kwargs))
        check_values(self, DEFAULTS)

    @property
    def batch_size(self) -> int:
        """Rows per update, B = T * N."""
        return self.num_envs * self.num_steps

    @property
    def num_minibatches(self) -> int:
        """Optimizer steps per epoch, B / M."""
        return self.batch_size // self.minibatch_size

    def to_dict(self) -> dict[str, Any]:
        """Return the options that ``algo`` has, as JSON-ready values."""
        mine = {k: v for k, v in dataclasses.asdict(self).items() if k not in foreign(self.algo)}
        return {k: as_json(v) for k, v in mine.items()}


def as_json(value: Any) -> Any:
    """Return the value of an option as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


FIELDS: dict[str, Any] = {f.name: f for f in dataclasses.fields(Config)}
DEFAULTS: dict[str, Any] = {
    name: {} if field.default is dataclasses.MISSING else field.default for name, field in FIELDS.items()
}


def from_dict(values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Check the keys and types of ``values`` against the fields of ``Config`` and turn lists into tuples.

    Raises:
        ConfigError: a key is no option, or a value is of another type; the message names ``source``.
    """
    hints = typing.get_type_hints(Config)
    out: dict[str, Any] = {}
    for raw_key, raw_value in values.items():
        key = raw_key.replace("-", "_")
        if key not in FIELDS:
            raise ConfigError(f"{source}: unknown option {raw_key!r}{did_you_mean(key, FIELDS)}")
        value = tuple(raw_value) if isinstance(raw_value, list) else raw_value
        if not matches(value, hints[key]):
            raise ConfigError(f"{source}: {key} must be {describe_type(hints[key])}, got {raw_value!r}")
        out[key] = value
    return out


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file of flat ``option = value`` lines.

    Raises:
        ConfigError: the file is missing, is no TOML, has an unknown key, or a value of another type.
    """
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as err:
        raise ConfigError(f"--config {str(path)!r} cannot be read: {err.strerror}") from None
    except (ValueError, RecursionError) as err:  # no TOML, no UTF-8, or absurd
        raise ConfigError(f"--config {str(path)!r} is not TOML: {err}") from None
    return from_dict(values, source=str(path))


def check_types(cfg: Any) -> None:
    """Raise ``ConfigError`` for a field whose value is not of its annotated type (no silent casts but int -> float)."""
    hints = typing.get_type_hints(Config)
    for name, hint in hints.items():
        value = getattr(cfg, name)
        if not matches(value, hint):
            raise ConfigError(f"{name} must be {describe_type(hint)}, got {value!r}")
        if type(value) is int and float in (hint, *typing.get_args(hint)):
            object.__setattr__(cfg, name, float(value))
