"""Where results go: one folder per day and commit, which says what the numbers came from."""

from __future__ import annotations

import datetime
import json
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def provenance() -> dict[str, Any]:
    """Return the date, the commit, and whether the checkout differs from it."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": git("rev-parse", "--short=7", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain")),
    }


def write(result: dict[str, Any], file_name: str, *, kind: str = "") -> Path:
    """Write a result that has its :func:`provenance` to a new folder ``<date>[_<kind>]_<commit>``."""
    name = "_".join(filter(None, (result["date"], kind, result["commit"] or "nocommit")))
    taken = len(list((HERE / "results").glob(f"{name}*/{file_name}")))
    folder = HERE / "results" / (f"{name}_{taken + 1}" if taken else name)
    saved = json.dumps(result, indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name
    path.write_text(saved)
    return path


def git(*args: str) -> str:
    """Return what git says, or nothing outside a repository."""
    try:
        done = subprocess.run(["git", *args], cwd=HERE, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
