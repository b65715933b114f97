"""``python -m benchmarks.peers``: ppo_fast, rl_games and Stable-Baselines3 in turn, against EnvPool alone.

Every trainer is a process of its own that stands still until its turn comes; see ``benchmarks/peers/README.md``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ppo_fast import resolve
from ppo_fast.envs.envpool import default_num_threads
from ppo_fast.errors import PPOFastError
from ppo_fast.system import build_info

from .. import _measure
from .._ceiling import Recording, ceilings, record, steps_needed
from .._measure import Machine, Sample
from .._results import provenance, write
from .._training import PacedTrainer
from .cases import OURS, PEERS, RECIPES, SETTINGS, SMOKE, TASKS, Recipe, Setting
from .child import Child
from .table import Lane, markdown, rows
from .venvs import python_of

SEED = 1


@dataclass
class Comparison:
    """What every section shares.

    Args:
        rounds: how often each lane is timed.
        seconds: about how long a stretch of a trainer takes; one of a ceiling takes up to half of it.
        pythons: the interpreter of each trainer; those that are missing are left out.
        folder: for what the trainers write.
        smoke: tiny sizes; the numbers mean nothing.

    """

    rounds: int
    seconds: float
    pythons: dict[str, str]
    folder: Path
    smoke: bool = False
    machine: Machine = field(default_factory=lambda: Machine(default_num_threads(1 << 16)))
    rows: list[dict[str, Any]] = field(default_factory=list)
    configs: dict[str, Any] = field(default_factory=dict)
    _started: int = 0

    def section(self, env_id: str, recipe: Recipe, recording: Recording, ceiling_steps: int) -> None:
        """Compare the trainers of a recipe, each at its best settings, with EnvPool alone before, between and after."""
        alone = ceilings(recording, ceiling_steps)
        chosen = [(t, setting) for t in recipe.trainers if t in self.pythons for setting in SETTINGS[t] if setting.best]
        self._contest(f"{env_id}, {recipe.title}", env_id, recipe, chosen, alone)

    def trials(self, env_id: str, recipe: Recipe) -> None:
        """Compare the settings of each peer with each other."""
        for trainer in recipe.trainers:
            if trainer in self.pythons and len(SETTINGS[trainer]) > 1:
                settings = [(trainer, setting) for setting in SETTINGS[trainer]]
                self._contest(f"{env_id}, {recipe.title}: settings of {trainer}", env_id, recipe, settings, {})

    def recording(self, env_id: str) -> tuple[Recording, int]:
        """Return what a policy did that has learned briefly, and how many steps of it a ceiling stretch takes."""
        small = SMOKE | {"update": "eager"} if self.smoke else {}
        cfg = resolve(env=env_id, seed=SEED, run_dir=str(self._new_folder()), eval_every=0, quiet=True, **small)
        trained = PacedTrainer(cfg)
        try:
            rate = trained.advance(1 if self.smoke else 8).rate  # below the ceiling's
            steps = max(4, round(0.5 * self.seconds * rate / cfg.num_envs))
            worker = trained.worker(trained.actors()[0])
            try:
                needed = steps_needed(steps, self.rounds + 2)  # and a lane before and after the rounds
                return record(worker, trained.trainer.learner.flat, needed), steps
            finally:
                worker.env.close()
        finally:
            trained.close()

    def _contest(
        self,
        section: str,
        env_id: str,
        recipe: Recipe,
        trainers: list[tuple[str, Setting]],
        alone: dict[str, _measure.Lane],
    ) -> None:
        options = recipe.options(env_id) | (SMOKE if self.smoke else {})
        self.configs[section] = options
        with ExitStack() as stack:
            children: dict[str, Child] = {}
            for trainer, setting in trainers:
                print(f"{section}: starting {trainer}, {setting.name}", file=sys.stderr)
                child = self._start(trainer, setting, env_id, recipe, options)
                stack.callback(child.close)
                child.settle(self.seconds)
                children[f"{trainer}: {setting.name}"] = child
            self.machine.children = lambda: sum(child.cpu_seconds() for child in children.values())
            lanes = alone | {name: child.lane for name, child in children.items()}
            samples = _measure.interleave(lanes, self.rounds, self.machine)
            with self.machine.watch():
                for name, lane in alone.items():
                    samples[name].append(lane())
            self.machine.children = lambda: 0.0
            done = [described(name, samples[name], children.get(name)) for name in lanes]
        self.rows += rows(section, done)

    def _start(self, trainer: str, setting: Setting, env_id: str, recipe: Recipe, options: dict[str, Any]) -> Child:
        job = {
            "env_id": env_id,
            "seed": SEED,
            "recipe": recipe.name,
            "options": options,
            "setting": dict(setting.options),
            "env_threads": default_num_threads(options["num_envs"]),  # what ppo_fast takes by itself
        }
        return Child(trainer, self.pythons[trainer], job, dict(setting.variables), self._new_folder())

    def _new_folder(self) -> Path:
        self._started += 1
        return self.folder / f"{self._started}"


def described(name: str, samples: list[Sample], child: Child | None) -> Lane:
    """Return a lane with what its process said of itself."""
    if child is None:
        return Lane(name, "", samples)
    facts = child.describe()
    score = facts["episode_return"]
    note = f"{facts['num_params']:,} parameters, return {'not yet known' if score is None else format(score, '.0f')}"
    if child.name == OURS:
        note = f"{facts['info']['learner']['name']} learner, {note}"
    return Lane(name, child.name, samples, child.launch_s, child.warm_up.env_steps, facts, note)


def compare(envs: list[str], comparison: Comparison, *, trials: bool) -> dict[str, Any]:
    """Run every section and return the result, JSON-ready.

    Raises:
        ConfigError: there is no recipe for a task.
        RuntimeError: a trainer ended, or did not do the work of its recipe.
    """
    for env_id in envs:  # before anything takes time
        for recipe in RECIPES:
            recipe.options(env_id)
    torch.set_num_threads(1)  # as the trainer does
    for env_id in envs:
        if trials:
            for recipe in RECIPES:
                comparison.trials(env_id, recipe)
            continue
        recording, steps = comparison.recording(env_id)
        for recipe in RECIPES:
            comparison.section(env_id, recipe, recording, steps)
    return {
        **provenance(),
        "command": ["python", "-m", "benchmarks.peers", *sys.argv[1:]],
        "build": build_info(),
        "cpus_used": comparison.machine.cpus,
        "noise": comparison.machine.describe(),
        "rounds": comparison.rounds,
        "seconds_per_stretch": comparison.seconds,
        "configs": comparison.configs,
        "settings": {name: [asdict(setting) for setting in settings] for name, settings in SETTINGS.items()},
        "rows": comparison.rows,
    }


def main(argv: list[str] | None = None) -> int:
    """Parse the options, install what is missing, compare, print, save; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--env", nargs="+", default=list(TASKS), metavar="ID", help="tasks that rl_games has recipes for"
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="which to run beside ppo_fast")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a stretch, about")
    parser.add_argument("--trials", action="store_true", help="compare the settings of each peer instead")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, without peers: does our side of it still work"
    )
    parser.add_argument("--save-results", action="store_true", help="write benchmarks/results/<date>_peers_<commit>/")
    args = parser.parse_args(argv)
    if args.rounds < 1 or not args.seconds > 0:
        parser.error("--rounds must be at least 1, and --seconds above 0")
    if args.smoke and args.save_results:
        parser.error("--save-results has no meaning with --smoke")
    folder = Path(tempfile.mkdtemp(prefix="peers-"))
    try:
        pythons = {OURS: sys.executable} | {peer: python_of(peer) for peer in ([] if args.smoke else args.peers)}
        comparison = Comparison(
            1 if args.smoke else args.rounds, 0.05 if args.smoke else args.seconds, pythons, folder, args.smoke
        )
        result = compare(args.env, comparison, trials=args.trials)
    except PPOFastError as error:
        parser.error(str(error))
    finally:
        shutil.rmtree(folder)
    print("\n".join(markdown(result)))
    if args.save_results:
        print(f"\nsaved {write(result, 'trials.json' if args.trials else 'peers.json', kind='peers')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
