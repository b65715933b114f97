"""`pytest benchmarks`: one table of env steps per second at the end, and what kind of machine it comes from.

--benchmark-disable  runs every body once on tiny shapes (CI); the numbers mean nothing and are not printed
--save-results       writes benchmarks/results/<date>_<commit>/speed.json
--all-tasks          Humanoid, Hopper and Walker2d as well
--scaling            over numbers of environments and sizes of networks, the start-up time, and the memory at 1024 Ants
--memory-minutes M   how long to watch the memory
--gate               fails if training Ant-v5 by the sample-efficient recipe is below 0.85 of the ceiling
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_fast import resolve
from ppo_fast.config import Config
from ppo_fast.envs.envpool import default_num_threads
from ppo_fast.system import build_info

from ._ceiling import Recording, record, steps_needed
from ._measure import Lane, Machine, interleave
from ._recipes import FAST, MORE_TASKS, TASKS, WORK, recipes
from ._results import provenance, write
from ._training import PacedTrainer
from .report import Quantity, Report, Row, text

# So few steps that a torch learner would not compile, where there is no native one.
SMOKE = {"num_envs": 4, "num_steps": 8, "minibatch_size": 16, "update_epochs": 2, "total_timesteps": 10_000}
GATE = 0.85  # of the ceiling: training Ant-v5 by the sample-efficient recipe
LANE = 6144  # env steps of a lane on Ant-v5: about half a second on two cores
_BENCH = pytest.StashKey["Bench"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ppo_fast benchmarks")
    group.addoption("--save-results", action="store_true", help="write benchmarks/results/<date>_<commit>/speed.json")
    group.addoption("--all-tasks", action="store_true", help=f"{', '.join(MORE_TASKS)} as well")
    group.addoption(
        "--scaling", action="store_true", help="numbers of environments, sizes of networks, start-up, memory"
    )
    group.addoption("--memory-minutes", type=float, default=1.0, help="how long --scaling watches the memory [1]")
    group.addoption("--gate", action="store_true", help=f"fail if Ant-v5 trains below {GATE} of the ceiling")


def pytest_configure(config: pytest.Config) -> None:
    smoke = config.getoption("benchmark_disable")
    for option in ("save_results", "gate", "scaling", "all_tasks"):
        if smoke and config.getoption(option):
            raise pytest.UsageError(f"--{option.replace('_', '-')} has no meaning with --benchmark-disable")
    config.option.benchmark_quiet = True  # the kernels' numbers are in our table
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "env_id" in metafunc.fixturenames:
        metafunc.parametrize("env_id", WORK if metafunc.config.getoption("all_tasks") else TASKS)


def pytest_report_header() -> str | None:
    machine = Machine(default_num_threads(1 << 16))
    busy = machine.load_average > 0.5 * machine.cpus
    return f"busy machine: load average {machine.load_average:.1f} on {machine.cpus} CPUs" if busy else None


@dataclass
class Bench:
    """What every benchmark shares: how much to do, the watch on the machine, and the report."""

    smoke: bool
    gate: bool
    machine: Machine
    folder: Path  # for runs of this session
    memory_minutes: float
    report: Report
    _policies: dict[str, PacedTrainer] = field(default_factory=dict)
    _recordings: dict[str, Recording] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """How often each lane is timed."""
        return 1 if self.smoke else 5

    def steps(self, full: int) -> int:
        """Return ``full``, or next to nothing in a smoke run."""
        return 4 if self.smoke else full

    def iterations(self, env_id: str, cfg: Config) -> int:
        """Return how many iterations of a trainer make a lane."""
        return self.steps(max(1, round(LANE * WORK[env_id] / cfg.batch_size)))

    def config(self, env_id: str, recipe: str = FAST, **overrides: Any) -> Config:
        """Return the options of a real run; the evaluations, which no clock counts, are left out."""
        run_dir = self.folder / f"run-{len(list(self.folder.iterdir()))}"
        common = {"env": env_id, "run_dir": str(run_dir), "eval_every": 0, "quiet": True}
        return resolve(**(common | recipes(env_id)[recipe] | (SMOKE if self.smoke else {}) | overrides))

    def contest(self, section: str, lanes: dict[str, Lane], rows: dict[str, dict[str, Any]]) -> None:
        """Time ``lanes`` against each other and report a row for each, with what ``rows`` says of them."""
        samples = interleave(lanes, self.rounds, self.machine)
        self.report.peaks[section] = {level: p[-self.rounds :] for level, p in self.machine.peaks.items()}
        for name, measured in samples.items():
            assert all(sample.env_steps > 0 and sample.seconds > 0 for sample in measured), name
            self.report.add(section, Row(name, measured, **rows.get(name, {})))

    def measured(self, section: str, quantity: Quantity) -> None:
        """Report something that is no rate of env steps."""
        self.report.quantities.setdefault(section, []).append(quantity)

    def keep(self, name: str, cfg: Config, **facts: Any) -> None:
        """Save the options of a run with the results, but not where its files were."""
        self.report.configs[name] = {k: v for k, v in cfg.to_dict().items() if k != "run_dir"} | facts

    def ceiling_steps(self, env_id: str) -> int:
        """Return how many steps of each of 64 environments a ceiling lane takes."""
        return self.steps(LANE // 64 * WORK[env_id])

    def policy(self, env_id: str) -> PacedTrainer:
        """Return a trainer of preset fast that has learned briefly and stands still; one for the whole session."""
        if env_id not in self._policies:
            # On the CPU, where a policy that only has to act need not wait for a compilation.
            self._policies[env_id] = PacedTrainer(self.config(env_id, device="cpu"))
            self._policies[env_id].advance(self.steps(8))
        return self._policies[env_id]

    def recording(self, env_id: str) -> Recording:
        """Return what that policy did, long enough for every ceiling lane."""
        if env_id not in self._recordings:
            trained = self.policy(env_id)
            worker = trained.worker(trained.actors()[0])
            steps = steps_needed(self.ceiling_steps(env_id), self.rounds + 1)
            self._recordings[env_id] = record(worker, trained.trainer.learner.flat, steps)
            worker.env.close()
        return self._recordings[env_id]

    def close(self) -> None:
        """End the trainers."""
        for trained in self._policies.values():
            trained.close()


@pytest.fixture
def scaling(request: pytest.FixtureRequest) -> None:
    """Skip a benchmark that was not asked for; a smoke run takes them all."""
    if not (request.config.getoption("scaling") or request.config.getoption("benchmark_disable")):
        pytest.skip("asked for by --scaling")


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    smoke = request.config.getoption("benchmark_disable")
    folder = tmp_path_factory.mktemp("benchmarks")
    if not smoke:  # else torch would answer from the cache of an earlier run, and compile times would mean nothing
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))
    torch.set_num_threads(1)  # as the trainers do
    logging.getLogger("torch.__trace").propagate = False  # thousands of lines that would bury a failed assertion
    machine = Machine(default_num_threads(1 << 16))
    option = request.config.getoption
    bench = Bench(smoke, option("gate"), machine, folder, option("memory_minutes"), Report(machine.cpus))
    request.config.stash[_BENCH] = bench
    yield bench
    bench.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    bench = config.stash.get(_BENCH, None)
    if bench is None or bench.smoke or not (bench.report.sections or bench.report.quantities):
        return
    terminalreporter.section("benchmarks")
    info, rows, quantities = build_info(), bench.report.to_json(), bench.report.quantities_to_json()
    machine, versions = info["machine"], info["versions"]
    shown = ", ".join(f"{name} {versions[name]}" for name in ("torch", "envpool", "mujoco"))
    terminalreporter.write_line(f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['system']}; {shown}")
    for level, peaks in bench.machine.peaks.items():
        terminalreporter.write_line(
            f"peak of one core, {level}: {min(peaks) / 1e9:.0f} to {max(peaks) / 1e9:.0f} GFLOP/s"
        )
    for line in text(rows, quantities):
        terminalreporter.write_line(line)
    for reason in bench.machine.reasons():
        terminalreporter.write_line(f"NOISY, do not quote these numbers: {reason}", red=True, bold=True)
    if config.getoption("save_results"):
        path = save(bench, info, list(config.invocation_params.args))
        terminalreporter.write_line(f"saved {os.path.relpath(path)}")


def save(bench: Bench, info: dict[str, Any], args: list[str]) -> Path:
    """Write everything that was measured to a new folder."""
    result = {
        **provenance(),
        "command": ["pytest", *args],
        "build": info,
        "torch_threads": torch.get_num_threads(),
        "cpus_used": bench.machine.cpus,
        "noise": bench.machine.describe(),
        "rounds": bench.rounds,
        "configs": bench.report.configs,
        "peak_flops_of_one_core": bench.report.peaks,
        "rows": bench.report.to_json(),
        "quantities": bench.report.quantities_to_json(),
    }
    return write(result, "speed.json")
