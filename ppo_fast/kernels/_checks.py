"""What the kernels accept, checked in one place: every backend rejects the same input with the same words.

Nothing is cast or copied to make it fit: a silent copy of an output would leave the caller's array unwritten, and a
silent copy of an input costs more than the kernel.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ..errors import ConfigError, ShapeError

FLOAT32, FLOAT64, INT64, BOOL = (np.dtype(t) for t in (np.float32, np.float64, np.int64, np.bool_))
Shape = tuple[int, ...]


def check_array(name: str, array: Any, dtype: np.dtype[Any], axes: str, shape: Shape, *, output: bool = False) -> None:
    """Raise ShapeError unless ``array`` has this dtype and shape and is C-contiguous (and writable, if an output).

    Args:
        name: the argument's name, for the message.
        array: what the caller gave.
        dtype: the only dtype allowed.
        axes: the shape in letters, such as "(T, N)".
        shape: the shape in numbers.
        output: the kernel writes it.
    """
    check_layout(name, array, (dtype,))
    if array.shape != shape:
        raise ShapeError(f"{name} must have shape {axes} = {shape}, got {array.shape}")
    if output and not array.flags.writeable:
        raise ShapeError(f"{name} must be writable, got a read-only array")


def check_layout(name: str, array: Any, dtypes: tuple[np.dtype[Any], ...]) -> None:
    """Raise ShapeError unless ``array`` is a C-contiguous, aligned NumPy array of one of these dtypes."""
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):  # of which some would see the mask
        raise ShapeError(f"{name} must be a NumPy array, got {type(array).__name__}")
    flags = array.flags
    if array.dtype not in dtypes or not flags.c_contiguous or not flags.aligned:
        allowed = " or ".join(str(dtype) for dtype in dtypes)
        got = str(array.dtype) if array.dtype.isnative else f"{array.dtype} (foreign byte order)"
        if not flags.c_contiguous:
            got += f", not C-contiguous (shape {array.shape}, strides {array.strides})"
        elif not flags.aligned:
            got += ", not aligned in memory"
        raise ShapeError(f"{name} must be {allowed} and C-contiguous, got {got}")


def check_axes(name: str, array: np.ndarray[Any, Any], axes: str) -> None:
    """Raise ShapeError unless ``array`` has as many axes as the letters in ``axes``, such as "(T, N)" or "(n,)"."""
    if array.ndim != sum(letter.isalpha() for letter in axes):
        raise ShapeError(f"{name} must have shape {axes}, got {array.shape}")


def check_apart(outputs: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Raise ShapeError if an output shares memory with an input or with another output."""
    earlier = dict(inputs)
    for name, output in outputs.items():
        for other_name, other in earlier.items():
            if np.may_share_memory(output, other):  # exact, because both are contiguous
                raise ShapeError(f"{name} must not overlap {other_name}: it is written while {other_name} is in use")
        earlier[name] = output


def check_integer(name: str, value: Any, low: int, high: int, high_name: str) -> int:
    """Return ``value`` as an int, or raise ConfigError unless it is an integer with low <= value < high."""
    try:
        integer = operator.index(value)
    except TypeError:
        integer = low - 1
    if not low <= integer < high:
        raise ConfigError(f"{name} must be an integer in [{low}, {high_name}), got {value!r}")
    return integer


def check_fraction(name: str, value: Any) -> float:
    """Return ``value`` as a float, or raise ConfigError unless it is a number in [0, 1]."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not 0.0 <= number <= 1.0:  # NaN fails too
        raise ConfigError(f"{name} must be a number in [0, 1], got {value!r}")
    return number


def check_range(name: str, array: np.ndarray[Any, Any], high: int, high_name: str) -> None:
    """Raise ShapeError unless every integer of the (n,) ``array`` lies in [0, high); names the first that does not."""
    if array.size == 0 or (array.min() >= 0 and array.max() < high):
        return
    at = int(np.flatnonzero((array < 0) | (array >= high))[0])
    raise ShapeError(f"{name} must lie in [0, {high_name}), got {array[at]} at position {at}")


def check_choices(actions: np.ndarray[Any, Any], count: int) -> None:
    """Raise ShapeError unless every action is an index of ``count`` ones, a whole number."""
    wrong = ~((actions >= 0) & (actions < count) & (actions == np.floor(actions)))  # NaN too
    if wrong.any():
        raise ShapeError(f"actions must be indices 0 ... {count - 1}, got {float(actions[wrong][0])!r}")
