"""What a run is made by, for run_info.json and the banner; and what of it a resumed run must share, to the bit."""

from __future__ import annotations

import json
from typing import Any

import torch

from ppo_fast import envs
from ppo_fast.config import Config
from ppo_fast.distributed import Peers
from ppo_fast.errors import ConfigError
from ppo_fast.native import simd_level
from ppo_fast.parts import Parts
from ppo_fast.system import build_info, versions


def require_alike(cfg: Config, peers: Peers) -> None:
    """Have all processes compare their options and versions.

    Raises:
        ConfigError: they differ, and the message names the first that does; or so many processes need more steps, or
            may not overlap.
    """
    _compare({**cfg.to_dict(), **{f"the version of {name}": text for name, text in versions().items()}}, peers)
    if peers.size > 1 and cfg.overlap != "none":
        raise ConfigError(
            f"overlap {cfg.overlap!r} is for one process, and there are {peers.size}, which would talk in two threads"
        )
    if peers.size > 1 and cfg.total_timesteps <= (first := peers.size * cfg.batch_size):
        raise ConfigError(
            f"total_timesteps must be above {peers.size} processes * num_envs * num_steps = {first}, the first "
            f"rollout, which is not learned from, got {cfg.total_timesteps}"
        )


def require_alike_ways(info: dict[str, Any], peers: Peers) -> None:
    """Have all processes compare the ways that each has chosen for itself: actor, learner, SIMD, kind of device.

    Raises:
        ConfigError: they differ; the message names the first that does.
    """
    ways = numerics(info) | {"device": info["device"]["got"].partition(":")[0]}
    _compare({name: way for name, way in ways.items() if name != "cpu"}, peers)


def _compare(facts: dict[str, Any], peers: Peers) -> None:
    own, *others = (json.loads(word) for word in peers.gather_bytes(json.dumps(facts).encode()))
    for rank, other in enumerate(others, 1):
        for name in sorted({*own, *other}):
            if own.get(name) != other.get(name):
                raise ConfigError(
                    f"{name} is {own.get(name)!r} in process 0 and {other.get(name)!r} in process {rank}: start all "
                    "processes with the same command and the same installation"
                )


def describe(
    cfg: Config, device: torch.device, parts: Parts, why_learner: str, actor: str, why_actor: str
) -> dict[str, Any]:
    """Return versions, machine, and every choice that was made for the run, with its reason."""
    backend, reason = envs.resolve_backend(cfg.env, cfg.env_backend, cfg.env_kwargs)
    workers = envs.workers(backend, cfg.num_envs, num_threads=cfg.env_threads, vectorization=cfg.vectorization)
    native, learner, peers = actor == "native", parts.learner, parts.peers
    mode = envs.stream_mode(backend, cfg.num_envs, num_threads=workers) if native else "synchronous"
    return {
        **build_info(all_backends=False),  # Numba's import would make every start a fifth slower
        "env_backend": {"name": backend, "reason": reason, "workers": workers, "mode": mode},
        "device": {"asked": cfg.device, "got": str(device)},
        "actor": {"name": actor, "reason": why_actor, "simd": simd_level() if native else None},
        "learner": {
            "name": learner.name,
            "reason": why_learner,
            "simd": learner.simd,
            "threads": learner.threads,
        },
        "update": {"mode": learner.mode, "why_eager": learner.why_eager},
        "torch_threads": torch.get_num_threads(),
        "num_params": learner.model.num_params,
        "processes": {"count": peers.size, "backend": peers.backend},
        "resume": {"exact": parts.log is not None, "why_not": parts.why_not_exact},
        "resumed_at": None,
    }


def numerics(info: dict[str, Any]) -> dict[str, Any]:
    """Return, of :func:`describe`'s facts, those on which the bits of a run depend beside its options."""
    level = {"avx512": "FMA", "avx2": "FMA"}  # equal bits, and aarch64's are the same
    learner, actor = info["learner"], info["actor"]
    return {
        "actor": actor["name"],
        "learner": learner["name"],
        "SIMD": sorted({level.get(simd, simd) for simd in (learner["simd"], actor["simd"]) if simd}),
        "update": info["update"]["mode"],
        "device": info["device"]["got"],
        "torch threads": info["torch_threads"],
        "processes": info["processes"]["count"],
        "cpu": info["machine"]["cpu"],
        **{name: info["versions"][name] for name in ("ppo_fast", "torch", "numpy", "envpool")},
    }


def facts(info: dict[str, Any]) -> dict[str, Any]:
    """Return what every checkpoint says of how and on what it was made."""
    return {"env_spec": info["env_spec"], "versions": info["versions"], "numerics": numerics(info)}


# Options without an effect on the numbers of a run, or whose effect `numerics` tells.
NO_EFFECT = {
    "preset", "run_dir", "resume", "env_backend", "env_threads", "vectorization", "device", "learner",
    "learner_threads", "actor", "update", "kernels", "torch_threads", "eval_every", "eval_episodes",
    "checkpoint_every", "keep_checkpoints", "on_nan", "log", "quiet",
}  # fmt: skip

# Options that say when nothing may be ahead of the learner, which with ``overlap`` is when a rollout has no lag.
DRAINS = {"eval_every", "checkpoint_every", "on_nan"}


def differences(state: dict[str, Any], now: dict[str, Any], cfg: Config) -> list[str]:
    """Return in words what keeps a run from going on with the bits of the one that was saved.

    Args:
        state: of the checkpoint.
        now: :func:`numerics` of this run.
        cfg: its options.
    """
    then, old = (value if isinstance(value, dict) else {} for value in (state.get("numerics"), state.get("config")))
    none = NO_EFFECT if cfg.overlap == "none" else NO_EFFECT - DRAINS
    new = {name: value for name, value in cfg.to_dict().items() if name not in none}
    if not cfg.anneal_lr:
        new.pop("total_timesteps")
    found = [
        f"{name} was {before[name]!r:.60}, is {value!r}"
        for before, after in ((then, now), (old, new))
        for name, value in after.items()
        if name in before and before[name] != value
    ]
    if cfg.overlap == "learner" and state.get("last"):
        found.append("it ended with nothing collected ahead, as --overlap learner would have had")
    return found
