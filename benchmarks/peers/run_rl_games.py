"""rl_games as one lane of ``python -m benchmarks.peers``; runs in rl_games' own virtual environment.

Its own recipe is the file that its package ships for the task, unchanged but for the task's version and the CPU. The
sample-efficient recipe is written over that file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rl_games
import torch
import yaml
from evaluate import evaluation
from pace import Pace, job, versions
from rl_games.common import vecenv
from rl_games.common.algo_observer import DefaultAlgoObserver
from rl_games.envs.envpool import Envpool
from rl_games.torch_runner import Runner

CONFIGS = Path(rl_games.__file__).parent / "configs" / "mujoco"


class CountingEnvpool(Envpool):
    """rl_games' own EnvPool wrapper, which also counts the rows that are transitions and not resets.

    rl_games counts and learns from reset rows as well; here as everywhere in these benchmarks they are no env steps.
    """

    env_steps = 0

    def step(self, action: Any) -> Any:
        result = super().step(action)
        self.env_steps += np.count_nonzero(result[3]["elapsed_step"])
        return result


class Observer(DefaultAlgoObserver):
    """Ends an iteration where rl_games reports one: after its update and its summaries."""

    def __init__(self, asked: dict[str, Any]) -> None:
        super().__init__()
        self.asked = asked
        self.pace = Pace(asked, self.facts)

    def after_print_stats(self, frame: int, epoch_num: int, total_time: float) -> None:
        super().after_print_stats(frame, epoch_num, total_time)
        self.pace.iteration(int(self.algo.vec_env.env_steps))

    def facts(self) -> dict[str, Any]:
        """Return what shows that it learns, and on what."""
        agent, optimizer = self.algo, self.algo.optimizer
        known = agent.game_rewards.current_size > 0
        return {
            "optimizer_steps": int(next(iter(optimizer.state.values()))["step"].item()),
            "episode_return": float(agent.game_rewards.get_mean()[0]) if known else None,
            "num_params": sum(p.numel() for p in agent.model.parameters()),
            "versions": versions("rl-games", "torch", "numpy", "envpool", "gymnasium"),
            **evaluation(self.asked, self.act),
        }

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Return what the policy takes for best, with the statistics as they are."""
        agent = self.algo
        training = agent.model.training
        agent.model.eval()
        with torch.no_grad():
            batch = {"is_train": False, "prev_actions": None, "obs": torch.from_numpy(obs).float(), "rnn_states": None}
            actions = agent.preprocess_actions(agent.model(batch)["mus"])
        agent.model.train(training)
        return np.asarray(actions)


def own_recipe(params: dict[str, Any]) -> dict[str, Any]:
    """Return what a recipe file says, in the words of ppo_fast's options."""
    config, network = params["config"], params["network"]
    return {
        "num_envs": config["num_actors"],
        "num_steps": config["horizon_length"],
        "minibatch_size": config["minibatch_size"],
        "update_epochs": config["mini_epochs"],
        "learning_rate": float(config["learning_rate"]),
        "vf_coef": float(config["critic_coef"]),  # both losses are half of it times the square
        "max_grad_norm": float(config["grad_norm"]),
        "clip_vloss": config["clip_value"],
        "clip_coef": config["e_clip"],
        "gamma": config["gamma"],
        "gae_lambda": config["tau"],
        "ent_coef": float(config["entropy_coef"]),
        "log_std_init": float(network["space"]["continuous"]["sigma_init"]["val"]),
        "hidden_sizes": network["mlp"]["units"],
        "activation": network["mlp"]["activation"],
        "shared_trunk": not network["separate"],
    }


def write_over(params: dict[str, Any], options: dict[str, Any]) -> None:
    """Replace the recipe of a file by ``options``, which are named as ppo_fast names them."""
    network = params["network"]
    network["separate"] = not options["shared_trunk"]
    network["mlp"]["units"], network["mlp"]["activation"] = options["hidden_sizes"], options["activation"]
    network["space"]["continuous"]["sigma_init"]["val"] = options["log_std_init"]
    params["config"] |= {
        "num_actors": options["num_envs"],
        "horizon_length": options["num_steps"],
        "minibatch_size": options["minibatch_size"],
        "mini_epochs": options["update_epochs"],
        "learning_rate": options["learning_rate"],
        "lr_schedule": "linear",
        "max_epochs": 1_000_000,  # it ends when it has been measured
        "critic_coef": options["vf_coef"],
        "grad_norm": options["max_grad_norm"],
        "clip_value": options["clip_vloss"],
        "e_clip": options["clip_coef"],
        "gamma": options["gamma"],
        "tau": options["gae_lambda"],
        "entropy_coef": options["ent_coef"],
    }


def main() -> None:
    """Train until the parent has seen enough."""
    asked = job()
    task, options, setting = asked["env_id"], asked["options"], asked["setting"]
    params = yaml.safe_load((CONFIGS / f"{task.split('-')[0].lower()}_envpool.yaml").read_text())["params"]
    if asked["recipe"] == "rl_games":
        params["config"]["max_epochs"] = -1
        if (found := own_recipe(params)) != (told := {name: options[name] for name in found}):
            raise SystemExit(f"rl_games ships another recipe for {task}: {found}, not {told}")
    else:
        write_over(params, options)
    params["seed"] = asked["seed"]
    if setting["torch_threads"]:
        params["torch_threads"] = setting["torch_threads"]
    params["config"] |= {
        "torch_compile": setting["torch_compile"],
        "device": "cpu",
        "mixed_precision": False,  # autocast for CUDA, which a CPU run turns off with a warning in every step
        "train_dir": "runs",
        # The files name the v4 tasks. env_type: what rl_games takes by default is EnvPool's old gym interface.
        "env_config": {
            "env_name": task, "env_type": "gymnasium", "seed": asked["seed"], "num_threads": asked["env_threads"],
        },
    }  # fmt: skip
    vecenv.register("ENVPOOL", lambda name, num_actors, **kwargs: CountingEnvpool(name, num_actors, **kwargs))
    runner = Runner(Observer(asked))
    runner.load({"params": params})
    runner.run({"train": True, "play": False})


if __name__ == "__main__":
    main()
