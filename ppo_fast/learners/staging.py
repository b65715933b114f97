"""Named arrays that travel to the learner's device in one copy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 256  # bytes, at which every array begins: what CUDA gives, and more than BLAS or compiled code asks for
_TORCH = {np.dtype(np.float32): torch.float32, np.dtype(np.int64): torch.int64, np.dtype(np.bool_): torch.bool}


class Staging:
    """One block of host memory and one of the device, cut into the same arrays; zeros at first.

    The addresses never change, so that a CUDA graph may read ``device``. On CUDA the host's block is pinned.

    Args:
        fields: name -> dtype (float32, int64 or bool) and shape of each array.
        device: where they are read.
    """

    def __init__(self, fields: Mapping[str, tuple[Any, tuple[int, ...]]], device: torch.device) -> None:
        sizes = [np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in fields.values()]
        starts = np.cumsum([0, *(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]).tolist()
        size = starts.pop()
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.zeros(size, dtype=torch.uint8, device=device)
        self.host: dict[str, NDArray[Any]] = {}  # what is written
        self.device: dict[str, Tensor] = {}  # what it is after :meth:`send`
        for start, length, (name, (dtype, shape)) in zip(starts, sizes, fields.items(), strict=True):
            place, kind = slice(start, start + length), _TORCH[np.dtype(dtype)]
            self.host[name] = self._host[place].view(kind).view(shape).numpy()
            self.device[name] = self._device[place].view(kind).view(shape)

    def send(self) -> None:
        """Copy all arrays to the device; on CUDA this does not wait, and ``host`` must rest until the device has it."""
        self._device.copy_(self._host, non_blocking=True)
