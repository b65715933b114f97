"""A virtual environment for each peer, made on first use from its requirements file and ``constraints.txt``."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
CONSTRAINTS = HERE.parents[1] / "constraints.txt"


def requirements(peer: str) -> Path:
    """Return the file that says what a peer needs."""
    return HERE / f"requirements-{peer}.txt"


def python_of(peer: str) -> str:
    """Return the interpreter of a peer's environment; make the environment if it is missing or its files have changed.

    Raises:
        subprocess.CalledProcessError: pip failed; it has said why.
    """
    folder = HERE / ".venvs" / peer
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = f"{sys.version}\n{requirements(peer).read_text()}{CONSTRAINTS.read_text()}"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {peer} into {folder}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(requirements(peer)), "-c", str(CONSTRAINTS)], check=True)
        stamp.write_text(wanted)
    return str(python)
