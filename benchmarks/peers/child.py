"""The parent's half of a lane: a trainer in a process of its own, let go for a stretch when its turn comes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from time import perf_counter
from typing import Any

from .._measure import Sample
from .cases import OURS

HERE = Path(__file__).parent
WARM_UP = 2  # iterations; torch.compile works through the first
# What a user may have set for other programs; each lane sets its own.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")
LOG_TAIL = 3000


class Child:
    """A running trainer; see ``pace.py`` for what is said through the pipes.

    Args:
        name: of the trainer: ``run_<name>.py`` is its script.
        python: the interpreter that has it.
        job: what the script is to do.
        variables: set in its environment.
        folder: an empty one, for whatever it writes.

    Raises:
        RuntimeError: it ended before its loop was warm (the message has the end of its log), or does not make the
            optimizer steps of the recipe.
    """

    def __init__(self, name: str, python: str, job: dict[str, Any], variables: dict[str, str], folder: Path) -> None:
        folder.mkdir(parents=True)
        kept = {key: value for key, value in os.environ.items() if key not in THREAD_VARIABLES}
        # torch would answer from the cache of an earlier run, and the start-up would mean nothing.
        own = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), **variables}
        if name == OURS:
            own["PYTHONPATH"] = str(HERE.parents[1])  # the code that this process runs, wherever it is installed from
        self.name, self._log, self._iterations = name, folder / "log.txt", 0
        batch = job["options"]["num_envs"] * job["options"]["num_steps"]
        self._per_iteration = job["options"]["update_epochs"] * (batch // job["options"]["minibatch_size"])
        start = perf_counter()
        reading, writing = os.pipe()
        asked = json.dumps({**job, "warm_up": WARM_UP, "answers": writing})
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, str(HERE / f"run_{name}.py"), asked],
                cwd=folder, env=kept | own, start_new_session=True,
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, text=True, pass_fds=[writing],
            )  # fmt: skip
        os.close(writing)
        self._answers = os.fdopen(reading)
        self.facts: dict[str, Any] = {"optimizer_steps": 0}
        self.warm_up_iterations = WARM_UP
        try:
            self.warm_up = self._answer(WARM_UP)
        except BaseException:  # nobody else knows the process yet
            self.close()
            raise
        self.launch_s = perf_counter() - start  # from the command to the end of the warm-up

    def advance(self, iterations: int) -> Sample:
        """Let it go for ``iterations`` and return what it measured.

        Raises:
            RuntimeError: it ended, or made another number of optimizer steps than the recipe asks for.
        """
        assert self._process.stdin is not None
        print(iterations, file=self._process.stdin, flush=True)
        return self._answer(iterations)

    def settle(self, seconds: float) -> None:
        """Choose how many iterations its stretches have, so that one takes about ``seconds``."""
        sample = self.advance(WARM_UP)
        self._iterations = max(1, round(seconds * WARM_UP / sample.seconds))

    def lane(self) -> Sample:
        """Run one stretch."""
        return self.advance(self._iterations)

    def describe(self) -> dict[str, Any]:
        """Return what the results keep of it, JSON-ready."""
        facts = {key: value for key, value in self.facts.items() if key != "phases"}
        return {
            "optimizer_steps_per_iteration": self._per_iteration,
            "iterations_per_stretch": self._iterations,
            "launch_s": self.launch_s,
            "warm_up_env_steps": self.warm_up.env_steps,
            **facts,
        }

    def cpu_seconds(self) -> float:
        """Return the CPU time of its process and all that those started (they share its session)."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has just ended
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self._process.pid:
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it, and whatever it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._answers.close()

    def _answer(self, iterations: int) -> Sample:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended:\n{self._log.read_text()[-LOG_TAIL:]}")
        answer, before = json.loads(line), self.facts["optimizer_steps"]
        self.facts = answer["facts"]
        made, due = self.facts["optimizer_steps"] - before, iterations * self._per_iteration
        if made != due:
            raise RuntimeError(f"{self.name} made {made} optimizer steps where its recipe makes {due}")
        return Sample(answer["env_steps"], answer["seconds"], self.facts.get("phases", {}))
