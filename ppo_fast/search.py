"""The space that a sweep searches, as words on the command line, each checked against the options of a run.

``learning_rate=log:1e-5:1e-3``, ``gae_lambda=range:0.9:1``, ``num_steps=range:32:128:32``,
``hidden_sizes=choice:64-64,256-256``
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppo_fast.algos import why_foreign
from ppo_fast.config import DEFAULTS, FIELDS, Config
from ppo_fast.config_rules import check_each
from ppo_fast.errors import ConfigError, did_you_mean
from ppo_fast.typecheck import describe_type, matches

KINDS = "log:LOW:HIGH, range:LOW:HIGH, range:LOW:HIGH:STEP or choice:A,B,..."

# What trials have in common, so that their scores can be compared, or what no score depends on.
FIXED = (
    "env", "algo", "preset", "total_timesteps", "seed", "run_dir", "resume", "env_kwargs", "eval_every",
    "eval_episodes", "checkpoint_every", "keep_checkpoints", "on_nan", "log", "quiet",
)  # fmt: skip


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    """search the logarithm evenly"""
    whole: bool = False
    """integers alone"""

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values that are allowed if all are."""
        return self.low, self.high

    def draw(self, rng: np.random.Generator) -> Any:
        """Return one of the numbers, drawn evenly."""
        steps = int((self.high - self.low) / self.step + 1e-9) if self.step is not None else 0
        value = (
            self.low + self.step * rng.integers(steps + 1)
            if self.step is not None
            else rng.uniform(self.low, self.high)
        )
        return int(value) if self.whole else float(value)


@dataclass(frozen=True)
class Choice:
    """One of some values, each under the word that stood for it."""

    values: Mapping[str, Any]

    @property
    def extremes(self) -> tuple[Any, ...]:
        """All values."""
        return tuple(self.values.values())

    def draw(self, rng: np.random.Generator) -> Any:
        """Return one of the values, drawn evenly."""
        return self.extremes[rng.integers(len(self.values))]


Space = dict[str, Range | Choice]


def read_space(words: Iterable[str], base: Mapping[str, Any]) -> Space:
    """Read the space that ``words`` describe, each ``option=kind:...``.

    Args:
        words: as in the head of this module.
        base: the options that are not searched.

    Raises:
        ConfigError: a word cannot be read, names an option that is not there or cannot be searched, or has a value that
            is not allowed whatever the other options are.
    """
    space: Space = {}
    for word in words:
        head, equals, text = word.partition("=")
        name = head.replace("-", "_")
        kind, colon, rest = text.partition(":")
        if not (equals and colon and kind in ("log", "range", "choice")):
            raise ConfigError(f"search must be words like option={KINDS}, got {word!r}")
        if name not in FIELDS:
            raise ConfigError(f"search: unknown option {head!r}{did_you_mean(name, FIELDS)}")
        if name in FIXED:
            raise ConfigError(f"search: {name} must be the same in all trials, or decides nothing, and is not searched")
        if wrong := why_foreign([name], str(base["algo"])):
            raise ConfigError(f"search: {wrong}")
        if name in space:
            raise ConfigError(f"search: {name} is given twice")
        space[name] = _choice(name, rest, base) if kind == "choice" else _range(name, rest, log=kind == "log")
        for value in space[name].extremes:
            try:
                check_each(types.SimpleNamespace(**{**DEFAULTS, name: value}))
            except ConfigError as err:
                raise ConfigError(f"search: {err}") from None
    if not space:
        raise ConfigError(f"search must be one word or more, like option={KINDS}")
    return space


def _range(name: str, text: str, *, log: bool) -> Range:
    hints = _alternatives(name)
    if not {int, float} & set(hints):
        raise ConfigError(
            f"search: {name} must be {describe_type(_hint(name))}, which has no range; take choice:A,B,..."
        )
    number = int if int in hints else float
    parts = text.split(":")
    try:
        low, high, *step = map(number, parts)
    except ValueError:
        what = describe_type(number)
        raise ConfigError(f"search: LOW, HIGH and STEP of {name} must each be {what}, got {text!r}") from None
    if len(step) > 1 or (step and log):
        raise ConfigError(f"search must be words like option={KINDS}, got {text!r} for {name}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not log)):
        allowed = "finite, the first above 0 and below the second" if log else "finite, the first below the second"
        raise ConfigError(f"search: LOW and HIGH of {name} must be {allowed}, got {text!r}")
    if step and not 0 < step[0] <= high - low:
        raise ConfigError(f"search: STEP of {name} must be above 0 and at most HIGH - LOW, got {text!r}")
    return Range(low, high, step[0] if step else None, log=log, whole=number is int)


def _choice(name: str, text: str, base: Mapping[str, Any]) -> Choice:
    words = text.split(",")
    values = {word: _read(name, word, base) for word in words}
    if len(values) < 2 or len(words) != len(set(map(repr, values.values()))):
        raise ConfigError(f"search: {name} must have two different values to choose from or more, got {text!r}")
    return Choice(values)


def _read(name: str, word: str, base: Mapping[str, Any]) -> Any:
    """Return the value that a word stands for: 64-64 for a list, none for an option that is not set."""
    for hint in _alternatives(name):
        if hint is type(None) and word == "none":
            if base[name] is not None:  # a config file could not say so
                raise ConfigError(f"search: {name} cannot be unset, because it is {base[name]!r} otherwise")
            return None
        value: Any = {"true": True, "false": False}.get(word, word)
        try:
            if hint in (int, float):
                value = hint(word)
            elif hint == tuple[int, ...]:
                value = tuple(map(int, word.split("-")))
        except ValueError:
            continue
        if matches(value, hint):
            return value
    raise ConfigError(f"search: {name} must be {describe_type(_hint(name))}, got {word!r}")


def _hint(name: str) -> Any:
    return typing.get_type_hints(Config)[name]


def _alternatives(name: str) -> tuple[Any, ...]:
    """Return the types that an option may have."""
    hint = _hint(name)
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def to_flags(options: Mapping[str, Any]) -> list[str]:
    """Return options as a command line gives them; what is None is left out."""
    flags: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags


def check_some(space: Space, config: Callable[[dict[str, Any]], object], draws: int) -> None:
    """Raise ``ConfigError`` if none of some random options is allowed: then those that are not searched are at fault.

    Args:
        space: what is searched.
        config: raises ConfigError where options are not allowed together.
        draws: how many to try.
    """
    rng = np.random.default_rng(0)
    why = ""
    for _ in range(draws):
        try:
            config({name: dimension.draw(rng) for name, dimension in space.items()})
        except ConfigError as err:
            why = str(err)
        else:
            return
    raise ConfigError(f"search: none of {draws} random proposals is allowed, the last because {why}")
