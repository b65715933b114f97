"""The result of a benchmark run: one table for the terminal, one JSON file, and the same table for the README.

python benchmarks/report.py benchmarks/results/<date>_<commit>/speed.json        prints Markdown
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._measure import Sample

TITLE = "env steps per second (never x frame_skip, reset rows not counted), median [min - max] of interleaved rounds"
HEADER = ("", "env steps/s", "", "of ceiling", "of reference", "")


@dataclass
class Row:
    """One thing that was timed."""

    name: str
    samples: list[Sample]
    ceiling: tuple[str, ...] = ()  # rows of the same section; the fastest is the ceiling
    reference: str = ""  # row of the same section
    note: str = ""

    @property
    def rates(self) -> list[float]:
        """Env steps per second of every round."""
        return [sample.rate for sample in self.samples]


@dataclass
class Report:
    """Sections of rows, in the order in which they were measured."""

    sections: dict[str, dict[str, Row]] = field(default_factory=dict)
    configs: dict[str, Any] = field(default_factory=dict)

    def add(self, section: str, row: Row) -> None:
        """Add a row, or more samples to the row of that name."""
        rows = self.sections.setdefault(section, {})
        if row.name in rows:
            rows[row.name].samples += row.samples
        else:
            rows[row.name] = row

    def of_ceiling(self, section: str, name: str) -> float | None:
        """Return the ratio of medians of a row to the ceiling measured in the same rounds."""
        return self._ratio(section, name, self.sections[section][name].ceiling)

    def of_reference(self, section: str, name: str) -> float | None:
        """Return the ratio of medians of a row to its reference."""
        reference = self.sections[section][name].reference
        return self._ratio(section, name, (reference,) if reference else ())

    def _ratio(self, section: str, name: str, others: tuple[str, ...]) -> float | None:
        rows = self.sections[section]
        rates = [median(rows[other].rates) for other in others if other in rows]
        return median(rows[name].rates) / max(rates) if rates else None

    def to_json(self) -> list[dict[str, Any]]:
        """Return every row with its raw samples."""
        return [
            {
                "section": section,
                "name": row.name,
                "env_steps_per_s": {"median": median(row.rates), "min": min(row.rates), "max": max(row.rates)},
                "of_ceiling": self.of_ceiling(section, row.name),
                "of_reference": self.of_reference(section, row.name),
                "note": row.note,
                "samples": [asdict(sample) for sample in row.samples],
            }
            for section, rows in self.sections.items()
            for row in rows.values()
        ]


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the columns of one row of :meth:`Report.to_json`."""

    def ratio(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"

    rate = row["env_steps_per_s"]
    spread = f"[{rate['min']:,.0f} - {rate['max']:,.0f}]"
    return (
        row["name"], f"{rate['median']:,.0f}", spread, ratio(row["of_ceiling"]), ratio(row["of_reference"]), row["note"]
    )  # fmt: skip


def text(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table as aligned lines."""
    table = [HEADER, *map(cells, rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEADER))]
    out, section = [TITLE], None

    def line(columns: tuple[str, ...]) -> str:
        numbers = [cell.rjust(width) for cell, width in zip(columns[1:5], widths[1:5], strict=True)]
        return f"  {columns[0].ljust(widths[0])}  {'  '.join(numbers)}  {columns[5]}".rstrip()

    for row in rows:
        if row["section"] != section:
            section = row["section"]
            out += ["", section.ljust(widths[0] + 2) + line(("", *HEADER[1:]))[widths[0] + 2 :]]
        out.append(line(cells(row)))
    return out


def markdown(result: dict[str, Any]) -> list[str]:
    """Return the table of a saved result for the README."""
    machine, commit = result["build"]["machine"], result["commit"] or "no commit"
    out = [f"{TITLE}. {machine['cpu']}, {machine['cpus']} CPUs, {result['date']}, {commit}.", ""]
    if result["noise"]["noisy"]:
        out += [f"**Noisy**: {'; '.join(result['noise']['reasons'])}.", ""]
    section = None
    for row in result["rows"]:
        if row["section"] != section:
            section = row["section"]
            out += ["", f"| {section} | {' | '.join(HEADER[1:])} |", "|---|--:|---|--:|--:|---|"]
        out.append(f"| {' | '.join(cells(row))} |")
    return out


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} speed.json")
    print("\n".join(markdown(json.loads(Path(sys.argv[1]).read_text()))))
