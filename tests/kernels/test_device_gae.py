"""The learner's GAE on its device, through the kernels' front, held to every test of theirs that has a backend."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kernels import test_gae

from ppo_fast import kernels
from ppo_fast.learners.device_gae import gae

SUITE = {
    name: test
    for name, test in vars(test_gae).items()
    if name.startswith("test_") and "backend" in inspect.signature(test).parameters
}
globals().update(SUITE)


@pytest.fixture(params=["cpu", "cuda"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have ``kernels.gae`` compute on a device of torch's."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")

    def gae_into(*args: Any) -> None:
        *arrays, gamma, gae_lambda, advantages, returns = args
        tensors = [torch.tensor(array, device=request.param) for array in arrays]
        for out, result in zip((advantages, returns), gae(*tensors, gamma=gamma, gae_lambda=gae_lambda), strict=True):
            out[...] = result.cpu().numpy()

    monkeypatch.setattr(kernels, "backend", lambda: SimpleNamespace(gae_into=gae_into))
    return str(request.param)


def test_the_suite_is_here() -> None:
    assert len(SUITE) > 10
    assert {"test_is_bit_identical_to_the_float32_reference", "test_hand_arithmetic"} <= set(SUITE)
