"""Reports for people: one page about a run, one that compares runs; no script, and nothing from elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path

NAME = "report.html"

log = logging.getLogger(__name__)


def write_report(run_dir: Path) -> None:
    """Write report.html into a run directory; a failure is logged, since a training must not suffer from it."""
    try:
        from ppo_fast import files
        from ppo_fast.report.files import read
        from ppo_fast.report.run import run_page

        files.write_atomic(run_dir / NAME, run_page(read(run_dir), run_dir / NAME))
    except Exception as err:
        log.warning("%s could not be written: %s", NAME, " ".join(f"{type(err).__name__}: {err}".split()))
