"""Write docs/flags.md: every option of a training run, from the sources that the program itself reads.

python docs/make_flags.py            write it (a test sees that it is up to date)
"""

from __future__ import annotations

import ast
import re
import typing
from pathlib import Path

from ppo_fast import presets
from ppo_fast.config import DEFAULTS, Config
from ppo_fast.typecheck import describe_type

DOCS = Path(__file__).parent
CONFIG = DOCS.parent / "ppo_fast" / "config.py"
HEADING = re.compile(r"# --- (.+?) -+$")


def options() -> dict[str, list[tuple[str, str]]]:
    """Return name and meaning of every option, below the headings of config.py."""
    source = CONFIG.read_text()
    headings = {
        number: found[1] for number, line in enumerate(source.splitlines(), 1) if (found := HEADING.search(line))
    }
    (config,) = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Config"]
    found: dict[str, list[tuple[str, str]]] = {}
    for field, text in zip(config.body, config.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(text, ast.Expr), field.target.id
            assert isinstance(text.value, ast.Constant), field.target.id
            heading = headings[max(line for line in headings if line < field.lineno)]
            found.setdefault(heading, []).append((field.target.id, " ".join(str(text.value.value).split())))
    return found


def flag(name: str) -> str:
    """Return how an option is written on a command line."""
    return f"`--{name.replace('_', '-')}`"


def shown(value: object) -> str:
    """Return a value as it is written on a command line."""
    if isinstance(value, (tuple, list)):
        return f"`{' '.join(map(str, value))}`" if value else "none"
    return f"`{value}`" if value not in ("", None, {}) else "none"


def given(option: str, value: object) -> str:
    """Return an option with its value as they are written on a command line."""
    if isinstance(value, bool):
        return flag(option if value else f"no_{option}")
    return f"{flag(option)[:-1]} {shown(value)[1:]}"


def escaped(text: str) -> str:
    """Return text that means the same in a cell of a Markdown table."""
    return text.replace("|", "/").replace("<", "&lt;")


def page() -> str:
    """Return the page."""
    hints = typing.get_type_hints(Config)
    lines = [
        "# Every option of a training run",
        "",
        "Made from [`config.py`](../ppo_fast/config.py) and [`presets.py`](../ppo_fast/presets.py) by "
        "`python docs/make_flags.py`.",
        "`python -m ppo_fast.train --env Hopper-v5 --help` shows the same with the defaults of that task.",
        "",
        "Order: built-in < preset of the task < `--config FILE.toml` < other options. What is true or false is "
        "switched off as `--no-anneal-lr`.",
    ]
    for heading, entries in options().items():
        lines += [
            "",
            f"## {heading[0].upper()}{heading[1:]}",
            "",
            "| option | value | built-in | meaning |",
            "|---|---|---|---|",
        ]
        for name, meaning in entries:
            kind = describe_type(hints[name]).replace("|", "or")
            lines.append(f"| {flag(name)} | {kind} | {shown(DEFAULTS[name])} | {escaped(meaning)} |")
    lines += ["", "## What the presets set", "", "| preset | task | options |", "|---|---|---|"]
    tables = {**presets.PRESETS, **{f"--algo {algo}, any preset": table for algo, table in presets.OTHERS.items()}}
    for name, tasks in tables.items():
        for task, chosen in tasks.items():
            text = ", ".join(given(option, value) for option, value in chosen.items())
            lines.append(f"| {name} | {'every task' if task == '*' else task} | {text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (DOCS / "flags.md").write_text(page())
