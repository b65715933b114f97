"""Everything that knows a simulator, behind one contract (:mod:`ppo_fast.envs.base`).

>>> env = make("Ant-v5", num_envs=64, seed=1)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppo_fast.envs.base import CheckedVectorEnv, EnvSpec, VectorEnv
from ppo_fast.envs.registry import ENVPOOL_TASKS, known_env_ids, resolve_backend
from ppo_fast.envs.stream import Arrivals, StreamEnv
from ppo_fast.errors import ConfigError

__all__ = [
    "ENVPOOL_TASKS",
    "Arrivals",
    "EnvSpec",
    "StreamEnv",
    "VectorEnv",
    "known_env_ids",
    "make",
    "make_stream",
    "resolve_backend",
    "spec",
    "stream_mode",
    "workers",
]


def make(
    env_id: str,
    num_envs: int,
    *,
    seed: int,
    backend: str = "auto",
    num_threads: int = 0,
    first_env: int = 0,
    purpose: int = 0,
    vectorization: str = "sync",
    env_kwargs: Mapping[str, Any] | None = None,
) -> CheckedVectorEnv:
    """Make ``num_envs`` environments, which step together (:class:`VectorEnv`); the caller closes them.

    Args:
        env_id: name in Gymnasium's or EnvPool's registry; ``'module:Name-v0'`` to import the module that registers it;
            or ``'module:Class'``, an environment class of a module.
        num_envs: N >= 1.
        seed: run seed, 0 <= seed < 2**64.
        backend: ``'auto'``, ``'envpool'`` or ``'gymnasium'``; see :func:`resolve_backend`.
        num_threads: EnvPool's threads; 0 for as many as help. Gymnasium has none.
        first_env: global index of environment 0, where processes share a run.
        purpose: 0 training, 1 evaluation, above 1 training that was resumed; separates their seeds.
        vectorization: ``'sync'`` (this process) or ``'async'`` (one spawned process per environment), Gymnasium only.
        env_kwargs: keyword arguments of each environment, Gymnasium only.

    Raises:
        ConfigError: a number or name is out of range, or an option is given that the backend has no use for.
        EnvError: the environment is unknown or its spaces are not supported.
        BackendError: the backend asked for by name cannot be had.
    """
    name = _checked_backend(env_id, num_envs, backend, num_threads, vectorization, env_kwargs)
    if name == "envpool":
        from ppo_fast.envs.envpool import EnvPoolVectorEnv

        return EnvPoolVectorEnv(
            env_id, num_envs, seed=seed, num_threads=num_threads, first_env=first_env, purpose=purpose
        )
    from ppo_fast.envs.gymnasium import GymnasiumVectorEnv

    return GymnasiumVectorEnv(
        env_id,
        num_envs,
        seed=seed,
        first_env=first_env,
        purpose=purpose,
        vectorization=vectorization,
        env_kwargs=env_kwargs,
    )


def make_stream(
    env_id: str,
    num_envs: int,
    *,
    seed: int,
    backend: str = "auto",
    num_threads: int = 0,
    first_env: int = 0,
    purpose: int = 0,
    vectorization: str = "sync",
    env_kwargs: Mapping[str, Any] | None = None,
    batch_size: int = 0,
) -> StreamEnv:
    """Make ``num_envs`` environments that answer in any order where that is faster; the caller closes them.

    Each environment answers the same actions with the same bits as in :func:`make`, asynchronous or not.

    Args:
        env_id, num_envs, seed, backend, num_threads, first_env, purpose, vectorization, env_kwargs: as for
            :func:`make`.
        batch_size: rows that EnvPool gathers before it answers; N for synchronous stepping, 0 for the rule of
            :func:`~ppo_fast.envs.envpool_stream.default_batch_size`.

    Raises:
        ConfigError, EnvError, BackendError: as for :func:`make`; ConfigError also for a batch size above N, or for any
            where Gymnasium steps the environments.
    """
    name = _checked_backend(env_id, num_envs, backend, num_threads, vectorization, env_kwargs)
    _at_least("batch_size", batch_size, 0)
    if batch_size > num_envs:
        raise ConfigError(f"batch_size must be at most num_envs, {num_envs}, got {batch_size}")
    if name == "gymnasium" and batch_size:
        raise ConfigError(
            f"batch_size {batch_size} belongs to the EnvPool backend, and Gymnasium steps these environments; "
            "leave it at 0"
        )
    if name == "envpool":
        from ppo_fast.envs.envpool_stream import default_batch_size, make_envpool_stream

        threads = workers(name, num_envs, num_threads=num_threads, vectorization=vectorization)
        batch_size = batch_size or default_batch_size(num_envs, threads)
        if batch_size < num_envs:
            return make_envpool_stream(
                env_id, num_envs, batch_size, seed=seed, num_threads=threads, first_env=first_env, purpose=purpose
            )
    return make(
        env_id,
        num_envs,
        seed=seed,
        backend=name,
        num_threads=num_threads,
        first_env=first_env,
        purpose=purpose,
        vectorization=vectorization,
        env_kwargs=env_kwargs,
    )


def spec(env_id: str, backend: str = "auto", env_kwargs: Mapping[str, Any] | None = None) -> EnvSpec:
    """Describe ``env_id`` as ``backend`` steps it, without a pool; raises what :func:`make` raises.

    One of Gymnasium's environments is made, reset and stepped once, so that what is wrong with it shows at once.
    """
    name, _ = resolve_backend(env_id, backend, env_kwargs)
    if name == "envpool":
        from ppo_fast.envs.envpool_task import envpool_task

        return envpool_task(env_id).spec
    from ppo_fast.envs.gymnasium import gymnasium_spec

    return gymnasium_spec(env_id, env_kwargs, tried=True)


def workers(backend: str, num_envs: int, *, num_threads: int, vectorization: str) -> int:
    """Return how many threads (EnvPool) or processes (Gymnasium) step the environments that :func:`make` would make.

    Raises:
        ConfigError: an option is given that ``backend`` has no use for.
    """
    _check_used(backend, num_threads=num_threads, vectorization=vectorization)
    if backend == "envpool":
        from ppo_fast.envs.envpool import default_num_threads

        return num_threads or default_num_threads(num_envs)
    return num_envs if vectorization == "async" else 1


def stream_mode(backend: str, num_envs: int, *, num_threads: int) -> str:
    """Return in words how :func:`make_stream` would step: ``'synchronous'``, or ``'asynchronous, 32 of 64'``."""
    if backend == "envpool":
        from ppo_fast.envs.envpool_stream import default_batch_size

        batch_size = default_batch_size(num_envs, num_threads)
        if batch_size < num_envs:
            return f"asynchronous, {batch_size} of {num_envs}"
    return "synchronous"


def _checked_backend(
    env_id: str,
    num_envs: int,
    backend: str,
    num_threads: int,
    vectorization: str,
    env_kwargs: Mapping[str, Any] | None,
) -> str:
    """Check what :func:`make` and :func:`make_stream` have in common, and return the backend's name."""
    _at_least("num_envs", num_envs, 1)
    _at_least("num_threads", num_threads, 0)
    if vectorization not in ("sync", "async"):
        raise ConfigError(f"vectorization must be 'sync' or 'async', got {vectorization!r}")
    name, _ = resolve_backend(env_id, backend, env_kwargs)
    _check_used(name, num_threads=num_threads, vectorization=vectorization)
    return name


def _check_used(backend: str, *, num_threads: int, vectorization: str) -> None:
    """Refuse an option that ``backend`` would ignore, rather than let someone believe that it was followed."""
    if backend == "envpool" and vectorization == "async":
        raise ConfigError(
            "vectorization 'async' belongs to the Gymnasium backend, and EnvPool steps these environments; "
            "leave it at 'sync', or take env_backend 'gymnasium'"
        )
    if backend == "gymnasium" and num_threads:
        raise ConfigError(
            f"env_threads {num_threads} belongs to the EnvPool backend, and Gymnasium steps these environments; "
            "leave it at 0, or take vectorization 'async' for one process per environment"
        )


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be an integer >= {least}, got {value!r}")
