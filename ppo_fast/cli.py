"""What the command-line modules share: options from the command line, and errors as one line and an exit code."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from ppo_fast import checkpoint
from ppo_fast.config import Config, from_dict, read_toml
from ppo_fast.errors import NonFiniteError, PPOFastError
from ppo_fast.presets import resolve_options

EXIT_NON_FINITE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class _Options(Config):
    """Config without its checks, so that a bad value becomes one line of ours and not a box of the parser."""

    def __post_init__(self) -> None:
        pass


def parse_config(args: Sequence[str], *, prog: str, description: str) -> Config:
    """Build the config: built-in < preset of the task < config of the resumed run < ``--config`` file < command line.

    Raises:
        ConfigError, CheckpointError: a value is not allowed, or a file named by an option cannot be read.
        SystemExit: ``--help``, or an unknown option (named with its neighbours, exit code 2).
    """
    early, rest = _early_options(args)
    layers: list[Mapping[str, Any]] = []
    if early.config is not None:
        layers.append(read_toml(early.config))
    named = {name: getattr(early, name) for name in ("env", "preset", "resume", "run_dir")}
    named = {name: value for name, value in named.items() if value is not None}
    known = {**(layers[0] if layers else {}), **named}
    if known.get("resume"):
        layers.insert(0, _resumed_config(known["resume"], known.get("run_dir", "")))
    base = resolve_options(*layers, named)
    options = tyro.cli(_Options, prog=prog, description=description, args=rest, default=_Options(**base))
    return Config(**dataclasses.asdict(options))


def _early_options(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the options that decide what the defaults of all others are; ``--config`` is not seen by tyro."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    early, rest = parser.parse_known_args(args)
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flags in (("--env",), ("--preset",), ("--resume",), ("--run-dir", "--run_dir")):
        peek.add_argument(*flags)
    return peek.parse_known_args(rest, namespace=early)[0], rest


def _resumed_config(resume: str, run_dir: str) -> dict[str, Any]:
    """Return the options of the run that is taken up; empty when ``auto`` finds none."""
    if resume == "auto":
        directory = Path(run_dir) / "checkpoints"
        if not run_dir or not checkpoint.find(directory):
            return {}
        saved = checkpoint.load_newest(directory)
    else:
        saved = checkpoint.locate(resume)
    options = from_dict(saved.state["config"], source=str(saved.path))
    return {name: value for name, value in options.items() if name not in ("resume", "run_dir")}


def run_command(main: Callable[[], None], *, prog: str) -> int:
    """Run a command; turn an error made on purpose into one line on stderr, and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    try:
        main()
    except NonFiniteError as err:
        print(f"{prog}: stopped: {err}", file=sys.stderr)
        return EXIT_NON_FINITE
    except PPOFastError as err:
        print(f"{prog}: error: {err}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0
