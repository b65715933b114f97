"""What the command-line modules share: options from the command line, and errors as one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import logging
import os
import re
import select
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from ppo_fast import checkpoint
from ppo_fast.algos import why_foreign
from ppo_fast.config import FIELDS, Config, from_dict, read_toml
from ppo_fast.errors import CheckpointError, ConfigError, LostError, NonFiniteError, PPOFastError, did_you_mean
from ppo_fast.keywords import read_keywords, write_keywords
from ppo_fast.presets import resolve_options
from ppo_fast.typecheck import describe_type

EXIT_BAD_INPUT = PPOFastError.exit_code
EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 130, 141
# What other libraries call an option.
ELSEWHERE = {
    "lr": "--learning-rate", "n_envs": "--num-envs", "n_steps": "--num-steps", "batch_size": "--minibatch-size",
    "n_epochs": "--update-epochs", "clip_range": "--clip-coef", "total_steps": "--total-timesteps",
}  # fmt: skip

Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True)
class _Options(Config):
    """Config without its checks, so that a bad value becomes one line of ours and not a box of the parser."""

    env_kwargs: tuple[str, ...] = ()  # type: ignore[assignment]
    """keyword arguments of the environment, which Gymnasium then steps: keyword=value words or one JSON object"""

    def __post_init__(self) -> None:
        pass


def parse_config(args: Sequence[str], *, prog: str, description: str) -> Config:
    """Build the config: built-in < preset of the task < config of the resumed run < ``--config`` file < command line.

    Raises:
        ConfigError, CheckpointError: an option is unknown (its neighbours are named), a value is not allowed, or a file
            named by an option cannot be read.
        SystemExit: ``--help``.
    """
    return Config(**parse_values(args, prog=prog, description=description))


def parse_values(args: Sequence[str], *, prog: str, description: str) -> dict[str, Any]:
    """Return the options of :func:`parse_config` without asking whether their values are allowed.

    Raises:
        ConfigError, CheckpointError, SystemExit: as there.
    """
    early, rest = _early_options(args)
    layers: list[Mapping[str, Any]] = []
    if early.config is not None:
        layers.append(read_toml(early.config))
    named = {name: getattr(early, name) for name in ("env", "preset", "algo", "resume", "run_dir")}
    named = {name: value for name, value in named.items() if value is not None}
    known = {**(layers[0] if layers else {}), **named}
    if known.get("resume"):
        layers.insert(0, _resumed_config(known["resume"], known.get("run_dir", "")))
        trust_env(layers[0].get("env", ""), known.get("env"))
        _keep_algo(layers[0], known)
    base = resolve_options(*layers, named)
    if wrong := why_foreign(_named(rest), str(base["algo"])):
        raise ConfigError(wrong)
    if sum(arg.partition("=")[0] in ("--env-kwargs", "--env_kwargs") for arg in rest) > 1:  # tyro would take the last
        raise ConfigError("--env-kwargs is given more than once; name all keywords behind one: --env-kwargs a=1 b=2")
    default = _Options(**{**base, "env_kwargs": write_keywords(base["env_kwargs"])})
    options = parse_options(_Options, rest, prog=prog, description=description, default=default)
    return {**dataclasses.asdict(options), "env_kwargs": read_keywords(options.env_kwargs)}


def _early_options(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the options that decide what the defaults of all others are; ``--config`` is not seen by tyro."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    early, rest = parser.parse_known_args(args)
    peek = _Parser(add_help=False, allow_abbrev=False)
    for flags in (("--env",), ("--preset",), ("--algo",), ("--resume",), ("--run-dir", "--run_dir")):
        peek.add_argument(*flags)
    return peek.parse_known_args(rest, namespace=early)[0], rest


def _resumed_config(resume: str, run_dir: str) -> dict[str, Any]:
    """Return the options of the run that is taken up; empty when ``auto`` finds none."""
    if resume == "auto":
        directory = Path(run_dir) / "checkpoints"
        if not run_dir or not checkpoint.find(directory):
            return {}
        try:
            saved = checkpoint.load_newest(directory, level=logging.DEBUG)
        except LostError:  # the trainer says so, sets the damaged ones aside and stops
            return {}
    else:
        saved = checkpoint.locate(resume, level=logging.DEBUG)
    config = saved.state.get("config")
    if not isinstance(config, dict):
        raise CheckpointError(f"{saved.path} does not fit this version: no config of a run in it")
    options = from_dict(config, source=str(saved.path))
    return {name: value for name, value in options.items() if name not in ("resume", "run_dir")}


def _keep_algo(saved: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` if a run is to be taken up by another algorithm than its own."""
    before, now = saved.get("algo", FIELDS["algo"].default), known.get("algo")
    if saved and now is not None and now != before:
        raise ConfigError(f"algo was {before!r} in {known['resume']}, and cannot become {now!r} on resume")


def _named(args: Sequence[str]) -> list[str]:
    """Return the options that a command line names."""
    heads = [arg.partition("=")[0].removeprefix("--").replace("-", "_") for arg in args if arg.startswith("--")]
    return [head if head in FIELDS else head.removeprefix("no_") for head in heads]


def trust_env(saved: str, named: str | None) -> None:
    """Refuse to import a module that only a checkpoint names: files must not decide what code runs.

    Args:
        saved: environment id from a checkpoint; ``'module:Name-v0'`` imports ``module``.
        named: environment id that the user gave, if any.

    Raises:
        ConfigError: ``saved`` names a module and the user did not.
    """
    if ":" in saved and named != saved:
        raise ConfigError(
            f"the checkpoint's environment {saved!r} is imported from a module; if you trust it, give --env {saved}"
        )


def target_file(option: str, given: str, suffix: str) -> Path:
    """Return the path of a file that can be written.

    Raises:
        ConfigError: it does not end in ``suffix``, is a directory, or its directory is missing or cannot be written.
    """
    target = Path(given)
    folder = target.absolute().parent
    writable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    if target.suffix != suffix or target.is_dir() or not writable:
        raise ConfigError(
            f"{option} must be a path that ends in {suffix}, in a directory that exists and can be written, "
            f"got {given!r}"
        )
    return target


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        found = re.fullmatch(r"argument --([a-z-]+).*: expected one argument", message)
        raise ConfigError(f"{found[1].replace('-', '_')} must be given after --{found[1]}" if found else message)


def parse_options(
    kind: type[Options],
    args: Sequence[str] | None,
    *,
    prog: str,
    description: str | None = None,
    default: Options | None = None,
    runs_follow: bool = False,
) -> Options:
    """Parse ``args`` (None: those of this process) with tyro into a ``kind``, a dataclass; its errors become one line.

    ``runs_follow`` says that options of a run may come after ``--``, and are looked for there.

    Raises:
        ConfigError: an option is unknown, or a value is missing or of another type.
        SystemExit: ``--help``.
    """
    args = sys.argv[1:] if args is None else args
    hints = typing.get_type_hints(kind)
    known = {f"--{name}".replace("_", "-") for name in hints}
    known |= {f"--no-{name}".replace("_", "-") for name, hint in hints.items() if hint is bool}
    known |= {"--config"} if kind is _Options else set()
    for arg, word in itertools.pairwise([*args, ""]):
        flag, _, tail = arg.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if re.match(r"--[^-]", flag) and flag.replace("_", "-") not in known | {"--help"}:
            if runs_follow and name in FIELDS:
                raise ConfigError(f"{name} is an option of the runs: write {flag} after --")
            usual = f" (did you mean {ELSEWHERE[name]!r}?)" if ELSEWHERE.get(name) in known else ""
            raise ConfigError(f"unknown option {flag!r}{usual or did_you_mean(flag.replace('_', '-'), known)}")
        if hints.get(name.removeprefix("no_")) is bool and (tail or word).lower() in ("true", "false", "1", "0"):
            raise ConfigError(f"{name} is a switch, --{name.replace('_', '-')} or its opposite, got {tail or word!r}")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(kind, prog=prog, description=description, args=args, default=default)
            return typing.cast(Options, parsed)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_one_line(complaint.getvalue(), args, hints)) from None


def _one_line(complaint: str, args: Sequence[str], hints: Mapping[str, Any]) -> str:
    """Say what tyro says in a box: the option that it stumbled over, what is allowed, and what was given."""
    words = " ".join(re.sub("[│╭╮╰╯]", " ", complaint).split())
    found = re.search(r"(?:parsing |argument ')--([a-z-]+)", words)
    if found and (name := found[1].replace("-", "_")) in hints:
        allowed = describe_type(hints[name]).replace(" or unset", " or None")
        spaces = " (with spaces between them)" if "list" in allowed else ""
        return f"{name} must be {allowed}{spaces}, got {_given(f'--{found[1]}', args)!r}"
    if found := re.search(r"Unrecognized options: (.*?) [-─]{3,}", words):
        return f"{found[1]!r} has no option before it; every value follows the name of an option, as in --seed 1"
    parts = [part.strip(" ─") for part in re.split("[-─]{3,}", words)]
    return max(parts[:2], key=len)  # the title, or the text below it


def _given(flag: str, args: Sequence[str]) -> str:
    """Return what follows ``flag`` on the command line."""
    values: list[str] = []
    inside = False
    for arg in args:
        head, equals, tail = arg.partition("=")
        if arg.startswith("--"):
            inside = head.replace("_", "-") == flag
            values = ([tail] if equals else []) if inside else values
        elif inside:
            values.append(arg)
    return " ".join(values)


def run_command(main: Callable[[], int | None], *, prog: str) -> int:
    """Run a command; turn an error made on purpose into one line on stderr, and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    try:
        with _flushed():
            return main() or 0
    except PPOFastError as err:
        what = "stopped" if isinstance(err, NonFiniteError) else "error"
        print(f"{prog}: {what}: {' '.join(str(err).split())}", file=sys.stderr)
        return err.exit_code
    except (MemoryError, RuntimeError) as err:
        out = ("allocate memory", "out of memory")  # torch's words; it has a class of its own for a GPU's memory alone
        if isinstance(err, RuntimeError) and not any(words in str(err) for words in out):
            raise
        print(f"{prog}: error: num_envs, num_steps or hidden_sizes need more memory than there is", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # who read the output, as in "| head", has left
        return EXIT_BROKEN_PIPE


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """Write out at the end what was printed, because at the exit of the interpreter it is too late for an error."""
    try:
        yield
    finally:
        sys.stdout.flush()
