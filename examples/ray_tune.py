"""Search for options with Ray Tune: python examples/ray_tune.py DIRECTORY [TRIALS] [STEPS].

Needs: pip install 'ray[tune]'. Trials are compared at equal seconds of training, and one whose process dies goes on
from its last checkpoint. On a cluster RAY_ADDRESS says where; DIRECTORY must then be one that all machines see.
"""

import math
import sys
from pathlib import Path

from ray import tune
from ray.tune.schedulers import MedianStoppingRule

import ppo_fast as pf

ONE_CORE = {"env_threads": 1, "learner_threads": 1}  # what Ray gives a trial
out = Path(sys.argv[1]).resolve()
trials, steps = (int(sys.argv[k]) if len(sys.argv) > k else otherwise for k, otherwise in ((2, 10), (3, 300_000)))


class Report(pf.Callback):
    """Tell Tune of evaluations."""

    def evaluation(self, record):
        """Report the mean return at a time of training."""
        mean = sum(record["returns"]) / len(record["returns"])
        tune.report({"evaluation_return": mean, "train_s": record["wall_s"], "env_steps": record["env_steps"]})


def train(options):
    """Train as one trial, or go on where its process ended."""
    run_dir = Path(tune.get_context().get_trial_dir()) / "run"
    cfg = pf.resolve(**options, **ONE_CORE, run_dir=str(run_dir), resume="auto", device="cpu")
    pf.Trainer(cfg, callbacks=[Report()]).run()


space = {
    "env": "Hopper-v5",
    "total_timesteps": steps,
    "eval_every": steps // 10,
    "checkpoint_every": steps // 10,
    "seed": tune.randint(1, 2**31),
    "learning_rate": tune.loguniform(1e-4, 1e-3),
    "num_steps": tune.choice([32, 64, 128]),
}
# Without the last option it would pause trials, which then repeat what came after their last checkpoint.
rule = MedianStoppingRule(time_attr="train_s", grace_period=60, min_time_slice=math.inf)
search = tune.TuneConfig(metric="evaluation_return", mode="max", num_samples=trials, scheduler=rule)
running = tune.RunConfig(name="hopper", storage_path=str(out), failure_config=tune.FailureConfig(max_failures=3))
results = tune.Tuner(tune.with_resources(train, {"cpu": 1}), param_space=space, tune_config=search, run_config=running)
best = results.fit().get_best_result()
print(f"best: {best.metrics['evaluation_return']:.1f}, {best.config}, {best.path}/run")
