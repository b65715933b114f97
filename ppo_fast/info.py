"""``python -m ppo_fast.info``: print versions, machine and backends, to paste into an issue."""

from __future__ import annotations

import sys


def main() -> int:
    """Print what is installed and what runs where."""
    import torch

    from ppo_fast.system import build_info

    info = build_info()
    kernels = info["kernels"]
    rows = dict(info["versions"])
    rows |= {name: str(value) for name, value in info["machine"].items()}
    rows["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "no device"
    for name, available in kernels["available"].items():
        state = "available" if available else f"missing: {kernels['why_not'].get(name, 'unknown')}"
        rows[f"kernels {name}"] = state + (" (active)" if name == kernels["active"] else "")
    rows |= {f"core {name}": str(value) for name, value in info["core_build"].items()}
    for name, value in rows.items():
        print(f"{name:<20}{value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
