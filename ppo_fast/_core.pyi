# Types of the compiled module (csrc/bindings.cpp, bind_learner.cpp). Only dtype, layout and sizes are checked there:
# ppo_fast.kernels and ppo_fast.learners.native are the public doors.
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

class PpoLearner:  # missing where the compiler is MSVC
    def __init__(
        self,
        *,
        obs_dim: int,
        act_dim: int,
        hidden_sizes: list[int],
        activation: str,
        max_rows: int,
        clip_coef: float,
        clip_vloss: bool,
        norm_adv_minibatch: bool,
        ent_coef: float,
        vf_coef: float,
        max_grad_norm: float,
        adam_eps: float,
        simd: str = "",
    ) -> None: ...
    @property
    def simd_level(self) -> str: ...
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
    def epoch(
        self,
        order: npt.NDArray[np.int64],
        minibatch: int,
        norm_obs: npt.NDArray[np.float32],
        actions: npt.NDArray[np.float32],
        log_probs: npt.NDArray[np.float32],
        advantages: npt.NDArray[np.float32],
        returns: npt.NDArray[np.float32],
        values: npt.NDArray[np.float32],
        valid: npt.NDArray[np.float32],
        *,
        learning_rate: float,
        stats: npt.NDArray[np.float64],
    ) -> None: ...
