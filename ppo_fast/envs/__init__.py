"""Everything that knows a simulator, behind one contract (:mod:`ppo_fast.envs.base`).

>>> env = make("Ant-v5", num_envs=64, seed=1)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ppo_fast.envs.base import CheckedVectorEnv, EnvSpec, VectorEnv
from ppo_fast.envs.stream import Arrivals, StreamEnv
from ppo_fast.errors import BackendError, ConfigError, EnvError, did_you_mean

if TYPE_CHECKING:
    import gymnasium

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

#: The tasks whose EnvPool version is checked against Gymnasium, to the bit (``tests/envs/test_alignment.py``).
ENVPOOL_TASKS = (
    "Ant-v5",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5",
    "Pusher-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Walker2d-v5",
)


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
) -> CheckedVectorEnv:
    """Make ``num_envs`` environments, which step together (:class:`VectorEnv`); the caller closes them.

    Args:
        env_id: registry name, or ``'module:Name-v0'`` to import the module that registers it.
        num_envs: N >= 1.
        seed: run seed, 0 <= seed < 2**64.
        backend: ``'auto'``, ``'envpool'`` or ``'gymnasium'``; see :func:`resolve_backend`.
        num_threads: EnvPool's threads; 0 for as many as help. Gymnasium has none.
        first_env: global index of environment 0, where processes share a run.
        purpose: 0 training, 1 evaluation, above 1 training that was resumed; separates their seeds.
        vectorization: ``'sync'`` (this process) or ``'async'`` (one spawned process per environment), Gymnasium only.

    Raises:
        ConfigError: a number or name is out of range, or an option is given that the backend has no use for.
        EnvError: the environment is unknown or its spaces are not supported.
        BackendError: the backend asked for by name cannot be had.
    """
    name = _checked_backend(env_id, num_envs, backend, num_threads, vectorization)
    if name == "envpool":
        from ppo_fast.envs.envpool import EnvPoolVectorEnv

        return EnvPoolVectorEnv(
            env_id, num_envs, seed=seed, num_threads=num_threads, first_env=first_env, purpose=purpose
        )
    from ppo_fast.envs.gymnasium import GymnasiumVectorEnv

    return GymnasiumVectorEnv(
        env_id, num_envs, seed=seed, first_env=first_env, purpose=purpose, vectorization=vectorization
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
    batch_size: int = 0,
) -> StreamEnv:
    """Make ``num_envs`` environments that answer in any order where that is faster; the caller closes them.

    Each environment answers the same actions with the same bits as in :func:`make`, asynchronous or not.

    Args:
        env_id, num_envs, seed, backend, num_threads, first_env, purpose, vectorization: as for :func:`make`.
        batch_size: rows that EnvPool gathers before it answers; N for synchronous stepping, 0 for the rule of
            :func:`~ppo_fast.envs.envpool_stream.default_batch_size`.

    Raises:
        ConfigError, EnvError, BackendError: as for :func:`make`; ConfigError also for a batch size above N, or for any
            where Gymnasium steps the environments.
    """
    name = _checked_backend(env_id, num_envs, backend, num_threads, vectorization)
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
    )


def resolve_backend(env_id: str, backend: str) -> tuple[str, str]:
    """Decide which simulator steps ``env_id``, and say why.

    Returns:
        ``('envpool' | 'gymnasium', reason)``.

    Raises:
        ConfigError: ``backend`` is no backend.
        EnvError: the environment is unknown, or EnvPool was asked for by name and does not have it.
        BackendError: EnvPool was asked for by name and cannot be imported.
    """
    if backend not in ("auto", "envpool", "gymnasium"):
        raise ConfigError(f"env_backend must be 'auto', 'envpool' or 'gymnasium', got {backend!r}")
    registered_spec(env_id)
    if backend == "gymnasium":
        return "gymnasium", "asked for by name"
    if env_id not in ENVPOOL_TASKS:
        if backend == "envpool":
            raise EnvError(f"the EnvPool backend does not step {env_id!r}; it steps {', '.join(ENVPOOL_TASKS)}")
        return "gymnasium", f"{env_id} is not among the tasks that the EnvPool backend steps"
    from ppo_fast.envs.envpool import import_envpool

    try:
        import_envpool()
    except BackendError as error:
        if backend == "envpool":
            raise
        return "gymnasium", str(error)
    return "envpool", "asked for by name" if backend == "envpool" else f"EnvPool steps {env_id}"


def spec(env_id: str, backend: str = "auto") -> EnvSpec:
    """Describe ``env_id`` as ``backend`` steps it, without a pool; raises what :func:`make` raises."""
    name, _ = resolve_backend(env_id, backend)
    if name == "envpool":
        from ppo_fast.envs.envpool import envpool_spec

        return envpool_spec(env_id)
    from ppo_fast.envs.gymnasium import gymnasium_spec

    return gymnasium_spec(env_id)


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


def known_env_ids() -> list[str]:
    """Return the environments that can be named: Gymnasium's registry and EnvPool's tasks."""
    import gymnasium

    return sorted({*gymnasium.registry, *ENVPOOL_TASKS})


def registered_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """Return Gymnasium's registry entry.

    Raises:
        EnvError: there is none; the message names near matches.
    """
    import gymnasium

    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # the module is the user's: its code may raise anything, and so may a name like '.'
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise EnvError(f"environment {env_id!r}: module {module!r} cannot be imported ({reason})") from error
    entry = gymnasium.registry.get(name)
    if entry is None:
        known = known_env_ids()
        hint = did_you_mean(name, known) or f"; known are {', '.join(ENVPOOL_TASKS)} and what Gymnasium registers"
        raise EnvError(f"unknown environment {env_id!r}{hint}")
    return entry


def _checked_backend(env_id: str, num_envs: int, backend: str, num_threads: int, vectorization: str) -> str:
    """Check what :func:`make` and :func:`make_stream` have in common, and return the backend's name."""
    _at_least("num_envs", num_envs, 1)
    _at_least("num_threads", num_threads, 0)
    if vectorization not in ("sync", "async"):
        raise ConfigError(f"vectorization must be 'sync' or 'async', got {vectorization!r}")
    name, _ = resolve_backend(env_id, backend)
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
