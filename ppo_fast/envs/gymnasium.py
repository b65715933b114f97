"""Gymnasium's vector environments: whatever EnvPool lacks, and the yardstick that EnvPool is held to."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from ppo_fast.apart import make_apart
from ppo_fast.envs.base import Bool, CheckedVectorEnv, EnvSpec, Float32
from ppo_fast.envs.registry import registered_spec
from ppo_fast.envs.spaces import parts_of, spec_from_spaces, write_flat
from ppo_fast.errors import ConfigError, EnvError, NonFiniteError, did_you_mean
from ppo_fast.kernels import env_seeds

log = logging.getLogger(__name__)


def gymnasium_spec(env_id: str, env_kwargs: Mapping[str, Any] | None = None, *, tried: bool = False) -> EnvSpec:
    """Describe ``env_id``, from one environment that is made and closed; ``tried`` has it reset and stepped, too.

    Raises:
        EnvError: it cannot be made, or its spaces are not supported, or it does not do as it says.
        ConfigError: it does not take one of ``env_kwargs``.
    """
    env = make_one(env_id, env_kwargs)
    try:
        spec = _describe(env, env_id, env_kwargs)
        if tried:
            with _blamed(f"{env_id} (gymnasium)", "its first reset() and step()"):
                _try(env)
        return spec
    finally:
        env.close()


def make_rendered(spec: EnvSpec, render_mode: str, **of_mujoco: Any) -> Any:
    """Make one environment of ``spec`` that renders; an observation of it is the vector that a policy takes.

    A MuJoCo task gets the options ``of_mujoco``, and the camera that follows the robot where it has one: the default
    one of some (Ant) stands still, and the robot leaves the picture.

    Raises:
        EnvError, ConfigError: as for :func:`gymnasium_spec`.
    """
    env = make_one(spec.env_id, spec.env_kwargs, render_mode=render_mode)
    if hasattr(env.unwrapped, "mujoco_renderer"):
        model = env.unwrapped.model
        camera = {"camera_name": "track"} if "track" in [model.camera(i).name for i in range(model.ncam)] else {}
        env.close()
        env = make_one(spec.env_id, spec.env_kwargs, render_mode=render_mode, **of_mujoco, **camera)
    parts = parts_of(env.observation_space)
    if parts is None or not spec.obs_layout:
        return env

    def flat(tree: Any) -> Float32:
        obs = np.empty((1, spec.obs_dim), np.float32)
        write_flat(parts, tree, obs)
        return obs.reshape(-1)

    space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float32)
    return gymnasium.wrappers.TransformObservation(env, flat, space)


class GymnasiumVectorEnv(CheckedVectorEnv):
    """N environments in a Gymnasium vector environment.

    ``valid`` is "the previous step was not done". Asynchronous environments run in spawned processes, one each: no
    thread or lock of this process is inherited half-way, but a script that makes them needs ``if __name__ ==
    "__main__"``.

    An error that an environment raises becomes an EnvError, which names the environment and the line.

    Args:
        env_id: registry name, or ``'module:Class'``.
        num_envs: N >= 1.
        seed: run seed.
        first_env: global index of environment 0.
        purpose: 0 training, 1 evaluation; separates their seeds.
        vectorization: ``'sync'`` or ``'async'``.
        env_kwargs: keyword arguments of each environment.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int,
        first_env: int = 0,
        purpose: int = 0,
        vectorization: str = "sync",
        env_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(gymnasium_spec(env_id, env_kwargs), num_envs)
        maker = _maker(env_id, env_kwargs)
        try:
            self._envs: Any = (
                AsyncVectorEnv(
                    [functools.partial(make_apart, maker, os.getpid())] * num_envs,
                    shared_memory=True, copy=False, context="spawn", autoreset_mode=AutoresetMode.NEXT_STEP,
                )
                if vectorization == "async"
                else SyncVectorEnv([maker] * num_envs, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
            )  # fmt: skip
        except Exception as error:
            raise EnvError(f"{env_id}: Gymnasium cannot make {num_envs} of it: {_one_line(error)}") from error
        self._parts = parts_of(self._envs.single_observation_space) or []
        self._seeds: list[int] | None = env_seeds(seed, first_env, num_envs, purpose).tolist()
        self._was_done = np.zeros(num_envs, np.bool_)

    def _reset(self, obs: Float32) -> None:
        with _blamed(self._name(), "reset()"):
            first, _ = self._envs.reset(seed=self._seeds)
        self._seeds = None  # a second reset goes on with the same streams, as EnvPool's does
        self._write(first, obs, "reset()")
        self._was_done.fill(False)

    def _step(
        self, actions: Float32, obs: Float32, rewards: Float32, terminated: Bool, truncated: Bool, valid: Bool
    ) -> None:
        chosen = self.spec.name_actions(actions[:, 0]) if self.spec.num_actions else actions
        with _blamed(self._name(), "step()"):
            after, reward, ended, cut, _ = self._envs.step(chosen)
        self._write(after, obs, "step()")
        np.copyto(rewards, reward, casting="same_kind")
        np.copyto(terminated, ended)
        np.copyto(truncated, cut)
        np.logical_not(self._was_done, out=valid)
        np.logical_or(terminated, truncated, out=self._was_done)

    def _write(self, tree: Any, obs: Float32, where: str) -> None:
        write_flat(self._parts, tree, obs)
        if not np.isfinite(obs.sum(dtype=np.float64)):  # else the policy would be blamed, for actions made of them
            bad = np.flatnonzero(~np.isfinite(obs).all(axis=1)).tolist()
            if bad:
                raise NonFiniteError(
                    f"{self._name()}: {where} of environments {bad} gave observations that are not finite"
                )

    def _close(self, *, interrupted: bool) -> None:
        if not (interrupted and isinstance(self._envs, AsyncVectorEnv)):
            self._envs.close()
            return
        # Gymnasium's close() would wait for the pending answers.
        for process in self._envs.processes:
            process.terminate()
            process.join()
        self._envs.closed = True


def _describe(env: Any, env_id: str, env_kwargs: Mapping[str, Any] | None) -> EnvSpec:
    for name in ("observation_space", "action_space"):
        if not isinstance(getattr(env, name, None), gymnasium.Space):
            raise EnvError(f"{env_id}: its {name} must be a gymnasium.Space, got {getattr(env, name, None)!r:.80}")
    return spec_from_spaces(env_id, "gymnasium", env.observation_space, env.action_space, _time_limit(env), env_kwargs)


def _try(env: Any) -> None:
    """Reset and step ``env`` once, and raise ValueError where what comes back is not what it says of itself."""
    _check_answer(env, "reset()", env.reset(seed=0), "observation, info")
    env.action_space.seed(0)
    out = env.step(env.action_space.sample())
    _check_answer(env, "step()", out, "observation, reward, terminated, truncated, info")
    if np.shape(out[1]) != ():
        raise ValueError(f"the reward must be one number, got the shape {np.shape(out[1])}")


def _check_answer(env: Any, call: str, out: Any, names: str) -> None:
    if not isinstance(out, tuple) or len(out) != len(names.split(", ")):
        got = f"{len(out)} values" if isinstance(out, tuple) else type(out).__name__
        raise ValueError(f"{call} must return ({names}), got {got}")
    for part in parts_of(env.observation_space) or []:
        leaf = out[0]
        for key in part.path:
            leaf = leaf[key]
        if np.shape(leaf) != part.shape:
            what = ".".join(("observation", *part.path))
            raise ValueError(f"{what} must have the shape {part.shape} of observation_space, got {np.shape(leaf)}")


@contextmanager
def _blamed(name: str, where: str) -> Iterator[None]:
    """Turn whatever the body raises into an EnvError that says which environment, which call and which line."""
    try:
        yield
    except Exception as error:  # the environment is the user's: its code may raise anything
        log.info("%s failed in %s", name, where, exc_info=True)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{frame.filename}, line {frame.lineno}"
        raise EnvError(f"{name}: it failed in {where}: {_one_line(error)} ({at})") from error


def _maker(env_id: str, env_kwargs: Mapping[str, Any] | None, **options: Any) -> functools.partial[Any]:
    # The registry entry travels, not the name: a spawned process may not have run the code that registered it. Of
    # this package next to nothing travels, so that such a process starts quickly. Gymnasium's checker would cost time
    # in every step.
    return functools.partial(
        gymnasium.make, registered_spec(env_id), disable_env_checker=True, **{**(env_kwargs or {}), **options}
    )


def make_one(env_id: str, env_kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """Make one environment; the caller closes it.

    Raises:
        EnvError: it cannot be made.
        ConfigError: it does not take one of ``env_kwargs``.
    """
    maker = _maker(env_id, env_kwargs, **options)
    try:
        return maker()
    except Exception as error:  # anything: a missing simulator, a retired version, a bug in the environment
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if refused and refused[1] in (env_kwargs or {}):
            known = _keywords(maker.args[0])
            hint = did_you_mean(refused[1], known) or f"; it takes {', '.join(sorted(known))}"
            raise ConfigError(f"env_kwargs: {env_id} takes no {refused[1]!r}{hint}") from error
        given = f" with env_kwargs {dict(env_kwargs)}" if env_kwargs else ""
        raise EnvError(f"{env_id}: Gymnasium cannot make it{given}: {_one_line(error)}") from error


def _keywords(entry: Any) -> set[str]:
    """Return the keywords that an environment's constructor and those of its bases name, and those of Gymnasium."""
    creator = entry.entry_point
    if isinstance(creator, str):
        creator = gymnasium.envs.registration.load_env_creator(creator)
    functions = [vars(base).get("__init__") for base in creator.__mro__] if inspect.isclass(creator) else [creator]
    named = {
        name
        for function in functions
        if inspect.isroutine(function) and function is not object.__init__
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    return named - {"self", "model_path", "observation_space", "render_mode"} | {"max_episode_steps"}


def _time_limit(env: Any) -> int | None:
    limit = None if env.spec is None else env.spec.max_episode_steps
    return None if limit is None else int(limit)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
