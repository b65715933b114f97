"""Environments by name: where one is registered, and which simulator steps it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ppo_fast.errors import BackendError, ConfigError, EnvError, did_you_mean

if TYPE_CHECKING:
    import gymnasium

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


def resolve_backend(env_id: str, backend: str, env_kwargs: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """Decide which simulator steps ``env_id``, and say why.

    ``'auto'`` takes EnvPool for :data:`ENVPOOL_TASKS` and for what Gymnasium does not register, and Gymnasium for the
    rest and wherever there are keyword arguments: EnvPool ends the process on some that it does not like.

    Returns:
        ``('envpool' | 'gymnasium', reason)``.

    Raises:
        ConfigError: ``backend`` is no backend, or is EnvPool and there are keyword arguments.
        EnvError: the environment is unknown, or the backend that was asked for by name does not have it.
        BackendError: EnvPool was asked for by name and cannot be imported.
    """
    if backend not in ("auto", "envpool", "gymnasium"):
        raise ConfigError(f"env_backend must be 'auto', 'envpool' or 'gymnasium', got {backend!r}")
    if env_kwargs and backend == "envpool":
        raise ConfigError(
            f"env_backend 'envpool' takes no env_kwargs, got {sorted(env_kwargs)}; leave it at 'auto', and Gymnasium "
            "makes the environment with them"
        )
    if backend == "envpool":
        return _envpool_by_name(env_id)
    registered = find_spec(env_id) is not None
    if backend == "gymnasium" or env_kwargs:
        if not registered:
            raise _unknown(env_id)
        return "gymnasium", "asked for by name" if backend == "gymnasium" else "because of env_kwargs"
    if registered and env_id not in ENVPOOL_TASKS:
        return "gymnasium", f"{env_id} is not among the tasks in which EnvPool was shown to equal it"
    try:
        known = env_id in ENVPOOL_TASKS or env_id in envpool_ids()
    except BackendError:
        known = False
    if not known:
        raise _unknown(env_id)
    from ppo_fast.envs.envpool_task import import_envpool

    try:
        import_envpool()
    except BackendError as error:
        return "gymnasium", str(error)
    return "envpool", f"EnvPool steps {env_id}" if registered else f"EnvPool has {env_id}, Gymnasium does not"


def envpool_ids() -> list[str]:
    """Return what EnvPool registers, supported or not.

    Raises:
        BackendError: EnvPool cannot be imported.
    """
    from ppo_fast.envs.envpool_task import import_envpool

    return list(import_envpool().list_all_envs())


def known_env_ids() -> list[str]:
    """Return the environments that can be named: what Gymnasium and, if it can be imported, EnvPool register."""
    import gymnasium

    try:
        others = envpool_ids()
    except BackendError:
        others = list(ENVPOOL_TASKS)
    return sorted({*gymnasium.registry, *others})


def find_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec | None:
    """Return Gymnasium's registry entry, or one made up for a class ``'module:Class'``; None if there is neither.

    Raises:
        EnvError: a module is named that cannot be imported, or that has no such environment.
    """
    import gymnasium

    module_name, _, name = env_id.rpartition(":")
    module = _import(env_id, module_name) if module_name else None
    entry = gymnasium.registry.get(name)
    if entry is not None or module is None:
        return entry
    _check_class(env_id, module, name)
    return gymnasium.envs.registration.EnvSpec(env_id, entry_point=env_id)


def registered_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """Return what :func:`find_spec` finds.

    Raises:
        EnvError: there is none; the message names near matches.
    """
    entry = find_spec(env_id)
    if entry is None:
        raise _unknown(env_id)
    return entry


def _import(env_id: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # the module is the user's: its code may raise anything, and so may a name like '.'
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise EnvError(f"environment {env_id!r}: module {name!r} cannot be imported ({reason})") from error


def _check_class(env_id: str, module: ModuleType, name: str) -> None:
    """Raise EnvError unless ``module`` has an environment class ``name``."""
    import gymnasium

    made = getattr(module, name, None)
    if inspect.isclass(made) and issubclass(made, gymnasium.Env):
        return
    where = f"environment {env_id!r}: module {module.__name__!r}"
    if made is not None:
        raise EnvError(f"{where} has a {name}, but it is no class derived from gymnasium.Env")
    classes = [
        key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, gymnasium.Env)
    ]
    raise EnvError(
        f"{where} registers no {name!r} and has no class of that name"
        + (did_you_mean(name, [*classes, *gymnasium.registry]) or (f"; it has {', '.join(classes)}" if classes else ""))
    )


def _envpool_by_name(env_id: str) -> tuple[str, str]:
    known = envpool_ids()
    if env_id not in known:
        registered_spec(env_id)  # what is wrong with it for Gymnasium too comes first
        raise EnvError(f"EnvPool has no environment {env_id!r}{did_you_mean(env_id, known)}; take env_backend 'auto'")
    return "envpool", "asked for by name"


def _unknown(env_id: str) -> EnvError:
    known = known_env_ids()
    if env_id in known:
        only = "only EnvPool does: env_backend 'auto' without env_kwargs takes it"
        return EnvError(f"Gymnasium registers no {env_id!r}, {only}")
    hint = did_you_mean(env_id.rpartition(":")[2], known)
    return EnvError(
        f"unknown environment {env_id!r}"
        + (hint or f"; known are {', '.join(ENVPOOL_TASKS)}, and what Gymnasium and EnvPool register")
    )
