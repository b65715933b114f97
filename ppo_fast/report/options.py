"""Where the options of a run come from, and the command line that gives them again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ppo_fast.config import DEFAULTS
from ppo_fast.errors import ConfigError
from ppo_fast.presets import preset

_NOT_ASKED = ("run_dir", "resume", "quiet")  # of where and how a run was made, not of what it was


@dataclass(frozen=True)
class Option:
    """One option of a run."""

    name: str
    value: Any
    builtin: Any  # None too where this version does not have the option
    origin: str  # "" built-in, "preset", or "chosen"; "unknown" where this version does not have the option


def options(config: Mapping[str, Any]) -> list[Option]:
    """Return the options of config.json in the order of ``Config``, those that this version does not know last."""
    try:
        own = preset(*(str(config.get(name, DEFAULTS[name])) for name in ("env", "preset", "algo")))
    except ConfigError:
        own = {}
    found = []
    for name, default in DEFAULTS.items():
        if name not in config:
            continue
        value, builtin = config[name], _plain(default)
        expected = _plain(own.get(name, default))
        origin = "chosen" if value != expected else "preset" if value != builtin else ""
        found.append(Option(name, value, builtin, origin))
    return found + [Option(name, value, None, "unknown") for name, value in config.items() if name not in DEFAULTS]


def command(config: Mapping[str, Any]) -> str:
    """Return the command line that starts the same run, as a shell reads it."""
    words = ["python", "-m", "ppo_fast.train"]
    always = ("env", "preset", "total_timesteps", "seed")
    for option in options(config):
        if option.name in _NOT_ASKED or (option.origin != "chosen" and option.name not in always):
            continue
        flag = "--" + option.name.replace("_", "-")
        if isinstance(option.value, bool):
            words.append(flag if option.value else flag.replace("--", "--no-", 1))
        else:
            value = json.dumps(option.value) if isinstance(option.value, dict) else option.value
            values = value if isinstance(value, list) else [value]
            words += [flag, *map(str, values)]
    return shlex.join(words)


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
