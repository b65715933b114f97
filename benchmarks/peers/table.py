"""The arithmetic of a comparison, and its table: ``python -m benchmarks.peers.table peers.json`` prints it again."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from .._measure import Sample
from .cases import OURS

TITLE = (
    "Env steps per second (never x frame_skip, reset rows not counted), median [min - max] of interleaved rounds. "
    "*gap closed*: of what the peer leaves to the ceiling, the share that ppo_fast takes. *1M steps*: at that rate; "
    "*start-up*: what a run takes beyond it (imports, compilation, first iterations)"
)
HEADER = ("env steps/s", "", "of ceiling", "ppo_fast is x", "gap closed", "1M steps, s", "start-up, s", "")


@dataclass
class Lane:
    """One thing that was timed, and what its process told; a ceiling lane has no process."""

    name: str
    trainer: str  # "" for a ceiling
    samples: list[Sample]
    launch_s: float | None = None  # from the command to the end of the warm-up
    warm_up_env_steps: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def rate(self) -> float:
        """Median env steps per second of the rounds."""
        return median(sample.rate for sample in self.samples)

    @property
    def startup_s(self) -> float | None:
        """Seconds of the launch beyond what its env steps take at the lane's rate."""
        return None if self.launch_s is None else self.launch_s - self.warm_up_env_steps / self.rate


def gap_closed(ours: float, peer: float, ceiling: float) -> float | None:
    """Return ``(ours - peer) / (ceiling - peer)``; None where the peer leaves no gap."""
    return (ours - peer) / (ceiling - peer) if peer < ceiling else None


def rows(section: str, lanes: list[Lane]) -> list[dict[str, Any]]:
    """Return a JSON-ready row for each lane; the ceiling is the fastest lane without a trainer, if there is one."""
    ceiling = max((lane.rate for lane in lanes if not lane.trainer), default=None)
    ours = next((lane.rate for lane in lanes if lane.trainer == OURS), None)
    out = []
    for lane in lanes:
        rates = [sample.rate for sample in lane.samples]
        peer = ours if lane.trainer not in ("", OURS) else None
        out.append(
            {
                "section": section,
                "name": lane.name,
                "trainer": lane.trainer,
                "env_steps_per_s": {"median": lane.rate, "min": min(rates), "max": max(rates)},
                "of_ceiling": None if ceiling is None else lane.rate / ceiling,
                "ppo_fast_over_this": None if peer is None else peer / lane.rate,
                "gap_closed": None if peer is None or ceiling is None else gap_closed(peer, lane.rate, ceiling),
                "seconds_per_1m_steps": 1e6 / lane.rate,
                "startup_s": lane.startup_s,
                "note": lane.note,
                "facts": {"launch_s": lane.launch_s, "warm_up_env_steps": lane.warm_up_env_steps, **lane.facts},
                "samples": [asdict(sample) for sample in lane.samples],
            }
        )
    return out


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the columns of one of :func:`rows`."""

    def number(value: float | None, style: str = ".2f") -> str:
        return "-" if value is None else format(value, style)

    rate = row["env_steps_per_s"]
    return (
        f"{rate['median']:,.0f}",
        f"[{rate['min']:,.0f} - {rate['max']:,.0f}]",
        number(row["of_ceiling"]),
        number(row["ppo_fast_over_this"]),
        number(row["gap_closed"]),
        number(row["seconds_per_1m_steps"], ".0f"),
        number(row["startup_s"], ".1f"),
        row["note"],
    )


def markdown(result: dict[str, Any]) -> list[str]:
    """Return the table of a result."""
    machine, commit = result["build"]["machine"], result["commit"] or "no commit"
    out = [f"{TITLE}. {machine['cpu']}, {machine['cpus']} CPUs, {result['date']}, {commit}."]
    if result["noise"]["noisy"]:
        out += ["", f"**Noisy**: {'; '.join(result['noise']['reasons'])}."]
    section = None
    for row in result["rows"]:
        if row["section"] != section:
            section = row["section"]
            out += ["", f"| {section} | {' | '.join(HEADER)} |", "|---|--:|---|--:|--:|--:|--:|--:|---|"]
        out.append(f"| {row['name']} | {' | '.join(cells(row))} |")
    return out


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.peers.table peers.json")
    print("\n".join(markdown(json.loads(Path(sys.argv[1]).read_text()))))
