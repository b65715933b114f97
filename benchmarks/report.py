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
    from ._limit import Work
    from ._measure import Sample

TITLE = "env steps per second (never x frame_skip, reset rows not counted), median [min - max] of interleaved rounds"
HEADER = ("", "env steps/s", "", "of ceiling", "of limit", "of reference", "of peak", "us per env step", "")
LEGEND = (
    "of ceiling: EnvPool alone, its faster mode; of limit: of training whose arithmetic runs at the measured peak of "
    "all CPUs; of reference: of the section's reference; of peak: the update's FLOP/s of its threads' peak"
)


@dataclass
class Row:
    """One thing that was timed."""

    name: str
    samples: list[Sample]
    ceiling: tuple[str, ...] = ()  # rows of the same section; the fastest is the ceiling
    reference: str = ""  # row of the same section
    work: Work | None = None
    note: str = ""

    @property
    def rates(self) -> list[float]:
        """Env steps per second of every round."""
        return [sample.rate for sample in self.samples]

    @property
    def env_steps(self) -> int:
        """Of all rounds."""
        return sum(sample.env_steps for sample in self.samples)

    def phases(self) -> dict[str, float]:
        """Return seconds by phase of all rounds; what no phase names is ``other``."""
        names = dict.fromkeys(name for sample in self.samples for name in sample.phases)
        out = {name: sum(sample.phases.get(name, 0.0) for sample in self.samples) for name in names}
        if out:
            out["other"] = sum(sample.seconds for sample in self.samples) - sum(out.values())
        return out


@dataclass
class Quantity:
    """Something measured that is no rate of env steps."""

    name: str
    unit: str
    values: list[float]
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)  # what the values came from


@dataclass
class Report:
    """Sections of rows, in the order in which they were measured."""

    cpus: int = 1
    sections: dict[str, dict[str, Row]] = field(default_factory=dict)
    peaks: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # by section and SIMD level, of every round
    quantities: dict[str, list[Quantity]] = field(default_factory=dict)
    configs: dict[str, Any] = field(default_factory=dict)

    def add(self, section: str, row: Row) -> None:
        """Add a row, or more samples to the row of that name."""
        rows = self.sections.setdefault(section, {})
        if row.name in rows:
            rows[row.name].samples += row.samples
        else:
            rows[row.name] = row

    def ceiling(self, section: str, name: str) -> float | None:
        """Return the median of the fastest ceiling of a row."""
        rows = self.sections[section]
        return max((median(rows[other].rates) for other in rows[name].ceiling if other in rows), default=None)

    def of_ceiling(self, section: str, name: str) -> float | None:
        """Return the ratio of medians of a row to the ceiling measured in the same rounds."""
        return self._over(section, name, self.ceiling(section, name))

    def of_reference(self, section: str, name: str) -> float | None:
        """Return the ratio of medians of a row to its reference."""
        rows = self.sections[section]
        reference = rows.get(rows[name].reference)
        return self._over(section, name, median(reference.rates) if reference else None)

    def of_limit(self, section: str, name: str) -> float | None:
        """Return the ratio of a row to its limit, at the best level's peak in the same rounds; see _limit.py."""
        ceiling, peak = self.ceiling(section, name), self.peak(section, "")
        work = self.sections[section][name].work
        if ceiling is None or peak is None or work is None:
            return None
        return self._over(section, name, work.limit(ceiling, self.cpus, peak))

    def of_peak(self, section: str, name: str) -> float | None:
        """Return the useful FLOP/s of a row's phase ``update`` over the peak of the threads that made it."""
        row = self.sections[section][name]
        seconds = row.phases().get("update")
        peak = self.peak(section, row.work.simd) if row.work else None
        if row.work is None or not row.work.learning or seconds is None or peak is None:
            return None
        return row.work.of_peak(row.env_steps, seconds, peak)

    def peak(self, section: str, simd: str) -> float | None:
        """Return the median FLOP/s of one core at a level, the best if it is empty, in a section's rounds."""
        peaks = self.peaks.get(section, {})
        level = simd or next(iter(peaks), "")
        return median(peaks[level]) if level in peaks else None

    def _over(self, section: str, name: str, other: float | None) -> float | None:
        return None if other is None else median(self.sections[section][name].rates) / other

    def to_json(self) -> list[dict[str, Any]]:
        """Return every row with its raw samples."""
        return [
            {
                "section": section,
                "name": row.name,
                "env_steps_per_s": {"median": median(row.rates), "min": min(row.rates), "max": max(row.rates)},
                "of_ceiling": self.of_ceiling(section, row.name),
                "of_limit": self.of_limit(section, row.name),
                "of_reference": self.of_reference(section, row.name),
                "of_peak": self.of_peak(section, row.name),
                "us_per_env_step": {phase: 1e6 * s / row.env_steps for phase, s in row.phases().items()},
                "work": asdict(row.work) if row.work else None,
                "note": row.note,
                "samples": [asdict(sample) for sample in row.samples],
            }
            for section, rows in self.sections.items()
            for row in rows.values()
        ]

    def quantities_to_json(self) -> list[dict[str, Any]]:
        """Return every quantity with its section."""
        return [{"section": name, **asdict(q)} for name, quantities in self.quantities.items() for q in quantities]


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the columns of one row of :meth:`Report.to_json`; rows of older results lack some."""

    def ratio(name: str) -> str:
        value = row.get(name)
        return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"

    rate = row["env_steps_per_s"]
    phases = row.get("us_per_env_step", {})
    return (
        row["name"],
        f"{rate['median']:,.0f}",
        f"[{rate['min']:,.0f} - {rate['max']:,.0f}]",
        *map(ratio, ("of_ceiling", "of_limit", "of_reference", "of_peak")),
        " + ".join(f"{phase} {us:.1f}" for phase, us in phases.items() if us >= 0.05),
        row["note"],
    )


def quantity_cells(quantity: dict[str, Any]) -> tuple[str, ...]:
    """Return name, median with unit, range and note of a quantity."""
    values = quantity["values"]
    spread = f"[{min(values):,.1f} - {max(values):,.1f}]" if len(values) > 1 else ""
    return quantity["name"], f"{median(values):,.1f} {quantity['unit']}", spread, quantity["note"]


def text(rows: list[dict[str, Any]], quantities: list[dict[str, Any]]) -> list[str]:
    """Return the tables as aligned lines."""
    table = [HEADER, *map(cells, rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEADER))]
    out, section = [TITLE, LEGEND], None

    def line(columns: tuple[str, ...]) -> str:
        numbers = [cell.rjust(width) for cell, width in zip(columns[1:7], widths[1:7], strict=True)]
        name, phases, note = columns[0].ljust(widths[0]), columns[7].ljust(widths[7]), columns[8]
        return f"  {name}  {'  '.join(numbers)}  {phases}  {note}".rstrip()

    for row in rows:
        if row["section"] != section:
            section = row["section"]
            out += ["", section, line(("", *HEADER[1:]))]
        out.append(line(cells(row)))
    for quantity in quantities:
        if quantity["section"] != section:
            section = quantity["section"]
            out += ["", section]
        name, value, spread, note = quantity_cells(quantity)
        out.append(f"  {name.ljust(widths[0])}  {value.rjust(16)}  {spread.rjust(20)}  {note}".rstrip())
    return out


def markdown(result: dict[str, Any]) -> list[str]:
    """Return the tables of a saved result for the README."""
    machine, commit = result["build"]["machine"], result["commit"] or "no commit"
    out = [f"{TITLE}. {machine['cpu']}, {machine['cpus']} CPUs, {result['date']}, {commit}.", "", LEGEND, ""]
    if result["noise"]["noisy"]:
        out += [f"**Noisy**: {'; '.join(result['noise']['reasons'])}.", ""]
    section = None
    for row in result["rows"]:
        if row["section"] != section:
            section = row["section"]
            out += ["", f"| {section} | {' | '.join(HEADER[1:])} |", "|---|--:|---|--:|--:|--:|--:|---|---|"]
        out.append(f"| {' | '.join(cells(row))} |")
    for quantity in result.get("quantities", []):
        if quantity["section"] != section:
            section = quantity["section"]
            out += ["", f"| {section} | | | |", "|---|--:|---|---|"]
        out.append(f"| {' | '.join(quantity_cells(quantity))} |")
    return out


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} speed.json")
    print("\n".join(markdown(json.loads(Path(sys.argv[1]).read_text()))))
