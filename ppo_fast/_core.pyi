# Types of the compiled module (csrc/bind*.cpp). Only dtype, layout and sizes are checked there: ppo_fast.kernels,
# ppo_fast.learners.native and ppo_fast.rollout are the doors.
from typing import Any

import numpy as np
import numpy.typing as npt

__version__: str

def gae_into(
    rewards: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32],
    next_values: npt.NDArray[np.float32],
    terminated: npt.NDArray[np.bool_],
    done: npt.NDArray[np.bool_],
    gamma: float,
    gae_lambda: float,
    advantages: npt.NDArray[np.float32],
    returns: npt.NDArray[np.float32],
) -> None: ...
def permutation_into(out: npt.NDArray[np.int64], seed: int, stream: int) -> None: ...
def gather_into(
    source: npt.NDArray[np.float32], index: npt.NDArray[np.int64], out: npt.NDArray[np.float32]
) -> None: ...
def moments_into(
    count: npt.NDArray[np.float64],
    mean: npt.NDArray[np.float64],
    m2: npt.NDArray[np.float64],
    rows: npt.NDArray[np.floating[Any]],
    valid: npt.NDArray[np.bool_],
) -> None: ...
def normals_into(
    env_ids: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], seed: int, out: npt.NDArray[np.float64]
) -> None: ...
def uniforms_into(
    env_ids: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], seed: int, out: npt.NDArray[np.float64]
) -> None: ...
def simd_level(asked: str = "") -> str: ...
def simd_levels() -> list[str]: ...
def peak_flops(simd: str = "") -> float: ...

MAX_HIDDEN_LAYERS: int

class Networks:  # this and what follows is missing where the compiler is MSVC
    def __init__(
        self,
        *,
        obs_dim: int,
        act_dim: int,
        num_actions: int,
        hidden_sizes: list[int],
        activation: str,
        shared_trunk: bool,
    ) -> None: ...

class PpoLearner:
    def __init__(
        self,
        networks: Networks,
        *,
        max_batch: int,
        max_rows: int,
        clip_coef: float,
        clip_vloss: bool,
        norm_adv_minibatch: bool,
        ent_coef: float,
        vf_coef: float,
        max_grad_norm: float,
        adam_eps: float,
        threads: int,
        simd: str = "",
    ) -> None: ...
    @property
    def simd_level(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def num_params(self) -> int: ...
    @property
    def adam_steps(self) -> int: ...
    def load(
        self,
        flat: npt.NDArray[np.float32],
        exp_avg: npt.NDArray[np.float32],
        exp_avg_sq: npt.NDArray[np.float32],
        adam_steps: int,
    ) -> None: ...
    def save(
        self, flat: npt.NDArray[np.float32], exp_avg: npt.NDArray[np.float32], exp_avg_sq: npt.NDArray[np.float32]
    ) -> None: ...
    def gradient(
        self,
        index: npt.NDArray[np.int64],
        norm_obs: npt.NDArray[np.float32],
        actions: npt.NDArray[np.float32],
        log_probs: npt.NDArray[np.float32],
        advantages: npt.NDArray[np.float32],
        returns: npt.NDArray[np.float32],
        values: npt.NDArray[np.float32],
        valid: npt.NDArray[np.float32],
        *,
        out: npt.NDArray[np.float32],
        stats: npt.NDArray[np.float64],
    ) -> int: ...
    def step(self, gradient: npt.NDArray[np.float32], learning_rate: float) -> float: ...
    def update(
        self,
        norm_obs: npt.NDArray[np.float32],
        actions: npt.NDArray[np.float32],
        log_probs: npt.NDArray[np.float32],
        advantages: npt.NDArray[np.float32],
        returns: npt.NDArray[np.float32],
        values: npt.NDArray[np.float32],
        valid: npt.NDArray[np.float32],
        *,
        minibatch: int,
        seed: int,
        first_stream: int,
        learning_rate: float,
        target_kl: float,
        stats: npt.NDArray[np.float64],
    ) -> int: ...

class PpoActor:
    def __init__(
        self,
        networks: Networks,
        *,
        num_envs: int,
        num_steps: int,
        seed: int,
        first_env: int,
        normalize: bool,
        clip_obs: float,
        action_low: list[float],
        half_range: list[float],
        bounded: list[bool],
        simd: str = "",
    ) -> None: ...
    @property
    def simd_level(self) -> str: ...
    @property
    def remaining(self) -> int: ...
    @property
    def failed_env(self) -> int: ...
    def load(
        self, flat: npt.NDArray[np.float32], mean: npt.NDArray[np.float32], inv_std: npt.NDArray[np.float32]
    ) -> None: ...
    def begin(
        self,
        obs: npt.NDArray[np.float32],
        norm_obs: npt.NDArray[np.float32],
        actions: npt.NDArray[np.float32],
        log_probs: npt.NDArray[np.float32],
        values: npt.NDArray[np.float32],
        rewards: npt.NDArray[np.float32],
        terminated: npt.NDArray[np.bool_],
        truncated: npt.NDArray[np.bool_],
        valid: npt.NDArray[np.bool_],
        *,
        first_step: int,
        out_env_ids: npt.NDArray[np.int32],
        out_actions: npt.NDArray[np.float64],
    ) -> int: ...
    def receive(
        self,
        env_ids: npt.NDArray[np.int32],
        obs: npt.NDArray[np.floating[Any]],
        rewards: npt.NDArray[np.float32],
        terminated: npt.NDArray[np.bool_],
        truncated: npt.NDArray[np.bool_],
        valid: npt.NDArray[np.bool_],
        out_env_ids: npt.NDArray[np.int32],
        out_actions: npt.NDArray[np.float64],
    ) -> int: ...
