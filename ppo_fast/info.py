"""``python -m ppo_fast.info``: what a run would use here, why, and how to mend what is missing."""

from __future__ import annotations

import dataclasses
import json
import sys


@dataclasses.dataclass(frozen=True)
class InfoOptions:
    """Print versions, machine and backends, to paste into an issue; and how to mend what is missing."""

    json: bool = False
    """print one JSON object instead: what build_info() returns, and the findings"""


def main(args: list[str] | None = None) -> int:
    """Print what is installed, what would run where, and what to do about the rest; return the exit code."""
    from ppo_fast.cli import parse_options, run_command

    return run_command(
        lambda: _info(parse_options(InfoOptions, args, prog="python -m ppo_fast.info")), prog="ppo_fast.info"
    )


def _info(options: InfoOptions) -> None:
    from ppo_fast.findings import findings
    from ppo_fast.system import build_info

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


if __name__ == "__main__":
    sys.exit(main())
