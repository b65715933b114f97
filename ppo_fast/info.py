"""``python -m ppo_fast.info``: what a run would use here, why, and how to mend what is missing."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any, Literal

from ppo_fast.errors import ConfigError

_SHAPES = ("env", "preset", "hidden_sizes", "num_envs", "minibatch_size")


@dataclasses.dataclass(frozen=True)
class InfoOptions:
    """Print versions, machine and backends, to paste into an issue; and how to mend what is missing."""

    json: bool = False
    """print one JSON object instead: what build_info() returns, and the findings"""
    calibrate: bool = False
    """time the update of every learner that could run here, for the shapes of a run, and say what auto takes"""
    env: str | None = None
    """--calibrate: task of that run; Ant-v5 if not given"""
    preset: Literal["fast", "sample"] | None = None
    """--calibrate: its preset; fast if not given"""
    hidden_sizes: tuple[int, ...] | None = None
    """--calibrate: widths of its hidden layers; the preset's if not given"""
    num_envs: int | None = None
    """--calibrate: its environments; the preset's if not given"""
    minibatch_size: int | None = None
    """--calibrate: its rows per optimizer step; the preset's if not given"""


def main(args: list[str] | None = None) -> int:
    """Print what is installed, what would run where, and what to do about the rest; return the exit code."""
    from ppo_fast.cli import parse_options, run_command

    return run_command(
        lambda: _info(parse_options(InfoOptions, args, prog="python -m ppo_fast.info")), prog="ppo_fast.info"
    )


def _info(options: InfoOptions) -> None:
    from ppo_fast.findings import findings
    from ppo_fast.system import build_info

    shapes = {name: value for name in _SHAPES if (value := getattr(options, name)) is not None}
    if options.calibrate:
        return _calibrate(shapes, as_json=options.json)
    if shapes:
        raise ConfigError(f"{next(iter(shapes))} is the run's that --calibrate measures, and --calibrate was not given")
    info = build_info()
    found = findings(info)
    if options.json:
        print(json.dumps({**info, "findings": [dataclasses.asdict(finding) for finding in found]}, indent=2))
        return
    for name, value in (info["versions"] | info["machine"]).items():
        print(f"{name:<20}{value}")
    kernels = info["kernels"]
    for name, available in kernels["available"].items():
        state = "available" if available else f"missing: {kernels['why_not'][name]}"
        print(f"{'kernels ' + name:<20}{state}{' (active)' if name == kernels['active'] else ''}")
    if kernels["active"] not in kernels["available"]:
        print(f"{'kernels active':<20}{kernels['active']}")
    print("\nWhat a run would use, and why:")
    for finding in found:
        print(f"{finding.name:<20}{finding.used}{f' ({finding.why})' if finding.why else ''}")
        if finding.mend:
            print(f"{'':<20}to mend: {finding.mend}")


def _calibrate(shapes: dict[str, Any], *, as_json: bool) -> None:
    """Print how fast each learner is here, and what ``--learner auto`` takes."""
    import torch

    from ppo_fast import envs
    from ppo_fast.calibrate import calibrate
    from ppo_fast.presets import resolve
    from ppo_fast.state import make_model
    from ppo_fast.system import build_info, choose_device, device_name

    cfg = resolve(**shapes)
    torch.set_num_threads(cfg.torch_threads)
    model, device = make_model(cfg, envs.spec(cfg.env, cfg.env_backend, cfg.env_kwargs)), choose_device("auto")
    timings, choice = calibrate(cfg, model, device)
    run = {name: getattr(cfg, name) for name in (*_SHAPES, "num_steps", "update_epochs")}
    if as_json:
        found = {"run": run, "obs_dim": model.obs_dim, "act_dim": model.act_dim, "auto": choice}
        found["timings"] = [dataclasses.asdict(timing) for timing in timings]
        print(json.dumps({**build_info(all_backends=False), "device": device_name(device), **found}, indent=2))
        return
    for name, value in {**run, "machine": device_name(device)}.items():
        print(f"{name:<20}{' '.join(map(str, value)) if isinstance(value, tuple) else value}")
    print("\nMicroseconds per minibatch, all of an update counted, the fastest of several:")
    for timing in timings:
        name = " ".join(dict.fromkeys((timing.learner, timing.update, timing.device)))
        print(f"{name:<20}{f'none: {timing.why_not}' if timing.why_not else f'{timing.us_per_minibatch:.1f}'}")
    print(f"\n--learner auto takes {choice}.")
    print(f"The fastest here: {timings[0].options()}")


if __name__ == "__main__":
    sys.exit(main())
