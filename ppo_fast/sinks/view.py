"""What the live view shows: lines for a terminal of any size, the dearest first. Nothing here knows a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ppo_fast.sinks.progress import Evaluation, History, Progress, clock
from ppo_fast.symptoms import Symptom

_LABEL, _WIDEST = 12, 100  # columns
_SPARKS = "▁▂▃▄▅▆▇█"
_MOST_SYMPTOMS = 3
_PHASES = ("physics", "act", "advantage", "update", "checkpoint")
_UPDATE = {  # what a row may hold, as it is called and written here
    "approx_kl": ("KL", "{:.4f}"),
    "clip_frac": ("clipped", "{:.0%}"),
    "entropy": ("entropy", "{:.2f}"),
    "explained_var": ("explained variance", "{:.2f}"),
    "learning_rate": ("learning rate", "{:.1e}"),
    "grad_norm": ("gradient norm", "{:.2f}"),
}


Line = list[tuple[str, str]]  # words and their style, as rich calls it


@dataclass(frozen=True)
class Block:
    """Lines that are shown together or not at all; those of the lowest rank come first."""

    rank: int
    lines: list[Line]


def frame(
    title: str, place: str, progress: Progress, symptoms: Sequence[Symptom], *, width: int, height: int
) -> list[Line]:
    """Return at most ``height`` lines of at most ``width`` columns.

    Args:
        title: what runs.
        place: the run directory.
        progress: with at least one row.
        symptoms: the gravest first.
        width, height: columns and lines there are.
    """
    width = min(width, _WIDEST)
    blocks = [
        Block(0, [[(_printable(title), "bold cyan")]]),
        Block(9, [[(_printable(place), "dim")]]),
        Block(1, [_bar(progress.share, width)]),
        *_first_matters(2, _flow("", _where(progress), width)),
        *_first_matters(4, _flow("speed", _speed(progress), width)),
        Block(4, [_curve("return", progress.returns, width, "green")]),
        Block(8, [_curve("length", progress.lengths, width, "blue")]),
        *_first_matters(5, _flow("evaluation", _evaluations(progress), width)),
        *_first_matters(6, _flow("update", _update(progress), width)),
    ]
    for more, symptom in enumerate(symptoms[:_MOST_SYMPTOMS]):
        blocks.append(Block(3 + 2 * more, _wrapped(symptom.what, "▲ ", width, "bold yellow")))
        blocks.append(Block(6 + more, _wrapped(f"{symptom.cause}; {symptom.remedy}", "  ", width, "yellow")))
    return [_cropped(line, width) for block in _fitting(blocks, height) for line in block.lines]


def sparkline(values: Sequence[float]) -> str:
    """Return one block character a value, from the lowest to the highest."""
    if not values:
        return ""
    low, span = min(values), max(values) - min(values)
    return "".join(_SPARKS[round((value - low) / span * (len(_SPARKS) - 1)) if span > 0 else 0] for value in values)


def _fitting(blocks: Sequence[Block], height: int) -> list[Block]:
    """Return those that fit, chosen by rank, in their order."""
    chosen, left = set(), height
    for index in sorted(range(len(blocks)), key=lambda index: blocks[index].rank):
        if len(blocks[index].lines) <= left:
            left -= len(blocks[index].lines)
            chosen.add(index)
    return [block for index, block in enumerate(blocks) if index in chosen]


def _first_matters(rank: int, lines: list[Line]) -> list[Block]:
    """Return a block of the first line, and one of the others, which are the first to go when space is short."""
    return [Block(rank, lines[:1]), Block(max(rank, 7), lines[1:])]


def _bar(share: float, width: int) -> Line:
    percent = f" {share:6.1%}"
    columns = max(width - len(percent), 1)
    done = round(share * columns)
    return [("━" * done, "green"), ("━" * (columns - done), "bright_black"), (percent, "bold")]


def _where(progress: Progress) -> list[str]:
    left = progress.seconds_left
    return [
        f"{progress.steps:,} of {progress.total:,} steps",
        f"{'-' if left is None else clock(left)} to go",
        f"{clock(progress.wall_s)} so far",
    ]


def _speed(progress: Progress) -> list[str]:
    shares = progress.shares
    names = [*_PHASES, *(name for name in shares if name not in _PHASES)]
    parts = [f"{name} {shares[name]:.0%}" for name in names if name in shares]
    if parts:
        parts[0] += " of the time"
    return [f"{progress.sps:,.0f} steps/s", *parts]


def _curve(label: str, history: History, width: int, style: str) -> Line:
    line = [(label.ljust(_LABEL), "dim")]
    if history.latest is None:
        return [*line, ("no episode has ended yet", "")]
    latest, most = f"{history.latest:,.0f}", f"most {history.highest:,.0f}"
    room = width - _LABEL - len(latest) - len(most) - 6
    gap = ("   ", "")
    return [*line, (latest, "bold"), gap, (most, ""), gap, (sparkline(history.values(max(room, 0))), style)]


def _evaluations(progress: Progress) -> list[str]:
    if progress.last is None or progress.best is None:
        return ["none yet"]

    def shown(of: Evaluation) -> str:
        return f"{of.mean:,.1f} ± {of.std:,.1f} at {of.env_steps:,}"

    if progress.last is progress.best:
        return [f"{shown(progress.last)}, the best"]
    return [shown(progress.last), f"best {shown(progress.best)}"]


def _update(progress: Progress) -> list[str]:
    values = {name: progress.row.get(name) for name in _UPDATE}
    return [f"{_UPDATE[k][0]} {_UPDATE[k][1].format(v)}" for k, v in values.items() if v is not None]


def _flow(label: str, parts: Iterable[str], width: int) -> list[Line]:
    """Return parts side by side, in as many lines as they need, behind a label if there is one."""
    indent = _LABEL if label else 0
    rows = [""]
    for part in parts:
        longer = f"{rows[-1]}   {part}" if rows[-1] else part
        if rows[-1] and indent + len(longer) > width:
            rows.append(part)
        else:
            rows[-1] = longer
    return [[(("" if i else label).ljust(indent), "dim"), (words, "")] for i, words in enumerate(rows)]


def _wrapped(words: str, mark: str, width: int, style: str) -> list[Line]:
    lines = textwrap.wrap(words, max(width - len(mark), 8), break_on_hyphens=False)  # an option stays whole
    return [[(" " * len(mark) if i else mark, style), (line, style)] for i, line in enumerate(lines)]


def _cropped(line: Line, width: int) -> Line:
    """Return the line, which ends in dots if it was longer."""
    if sum(len(words) for words, _ in line) <= width:
        return line
    kept: Line = []
    left = width - 1
    for words, style in line:
        kept.append((words[:left], style))
        left -= len(words[:left])
    return [*kept, ("…", "")]


def _printable(words: str) -> str:
    """Return the words without what would move the cursor: a directory may be called anything."""
    return "".join(c if c.isprintable() else "?" for c in words)
