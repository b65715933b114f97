"""In what the networks of an update are multiplied; everything else of it is float32 whatever is chosen here.

    float32   matrix products in float32
    tf32      inputs of matrix products rounded to 10 bits of mantissa, sums in float32; NVIDIA GPUs since Ampere
    bf16      hidden layers in bfloat16, 7 bits of mantissa; the last layers, so μ, logits and V, in float32

Parameters, Adam, log-probabilities, advantages, losses and norms are float32; the gradient's norm is summed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppo_fast.errors import BackendError, ConfigError

_AMPERE = (8, 0)  # compute capability, since which there are TF32 and bfloat16 products


def require_precision(precision: str, device: torch.device) -> None:
    """Raise where ``precision`` would have no effect on ``device``.

    Raises:
        ConfigError: TF32 was asked for and the device is no GPU.
        BackendError: the GPU has no such products.
    """
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(
            f"precision 'tf32' is for NVIDIA GPUs, and the device is {device}; allowed: 'float32', 'bf16'"
        )
    if precision != "float32" and device.type == "cuda" and torch.cuda.get_device_capability(device) < _AMPERE:
        name = torch.cuda.get_device_name(device)
        raise BackendError(
            f"--precision {precision}: {name} has none; NVIDIA's GPUs have it since Ampere; take float32"
        )


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Let float32 products of the body use TF32 if ``precision`` says so, and not otherwise; put torch's flag back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
