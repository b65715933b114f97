# Types of the compiled module (csrc/bindings.cpp). Nothing is checked there but dtype, layout and number of axes:
# ppo_fast.kernels is the public door.
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
