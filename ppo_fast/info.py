"""``python -m ppo_fast.info``: print versions, machine and backends, to paste into an issue."""

from __future__ import annotations

import dataclasses
import sys


@dataclasses.dataclass(frozen=True)
class InfoOptions:
    """Print versions, machine and backends, to paste into an issue."""


def main(args: list[str] | None = None) -> int:
    """Print what is installed and what runs where; return the exit code."""
    from ppo_fast.cli import parse_options, run_command

    def info() -> None:
        parse_options(InfoOptions, args, prog="python -m ppo_fast.info")
        _info()

    return run_command(info, prog="ppo_fast.info")


def _info() -> None:
    import torch

    from ppo_fast.system import build_info

    info = build_info()
    kernels, core = info["kernels"], info["core_build"]
    rows = {name: str(value) for name, value in (info["versions"] | info["machine"]).items()}
    rows["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "no device"
    rows["C++ core"] = (
        f"built by {core['compiler']} {core['compiler_version']} with {core['flags']}"
        if core.get("built")
        else f"not built: {core.get('error', 'setup.py did not run')}"
    )
    for name, available in kernels["available"].items():
        state = "available" if available else f"missing: {kernels['why_not'][name]}"
        rows[f"kernels {name}"] = state + (" (active)" if name == kernels["active"] else "")
    if kernels["active"] not in kernels["available"]:
        rows["kernels active"] = kernels["active"]
    for name, value in rows.items():
        print(f"{name:<20}{value}")


if __name__ == "__main__":
    sys.exit(main())
