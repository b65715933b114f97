"""Keyword arguments of an environment, as a command line, a TOML file and a JSON file can hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ppo_fast.errors import ConfigError

#: What this package itself tells ``gymnasium.make``.
RESERVED = ("id", "render_mode", "disable_env_checker", "vectorization_mode")


def read_keywords(words: Sequence[str]) -> dict[str, Any]:
    """Return the keyword arguments that a command line names, as ``keyword=value`` words or JSON objects.

    A value is JSON, as ``0.1``, ``true`` or ``[0.2,1.0]``; what is no JSON is a string, as a path.

    Raises:
        ConfigError: a word is neither, or names a keyword again.
    """
    out: dict[str, Any] = {}
    for word in words:
        if word.lstrip().startswith("{"):
            try:
                new = json.loads(word)
            except ValueError as err:
                raise ConfigError(f"env_kwargs is no JSON object: {err}, got {word!r}") from None
        else:
            name, equals, text = word.partition("=")
            if not equals:
                raise ConfigError(f"env_kwargs must be keyword=value words or a JSON object, got {word!r}")
            new = {name: _value(text)}
        if again := out.keys() & new.keys():
            raise ConfigError(f"env_kwargs names {sorted(again)[0]!r} twice")
        out |= new
    return out


def write_keywords(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Invert :func:`read_keywords`."""
    return tuple(f"{name}={json.dumps(value)}" for name, value in values.items())


def checked_keywords(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``values`` as JSON gives them back (tuples as lists), sorted by name.

    Raises:
        ConfigError: a name is no keyword, or one that this package sets, or a value is none that JSON holds.
    """
    for name in values:
        if not name.isidentifier():
            raise ConfigError(f"env_kwargs must have Python keywords as names, got {name!r}")
        if name in RESERVED:
            raise ConfigError(f"env_kwargs cannot hold {name!r}, which ppo_fast sets itself")
    try:
        out: dict[str, Any] = json.loads(json.dumps(dict(sorted(values.items())), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as err:
        raise ConfigError(f"env_kwargs must have values that JSON holds ({err}), got {dict(values)!r}") from None
    return out


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
