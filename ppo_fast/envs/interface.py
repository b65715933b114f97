"""What an environment calls the numbers it exchanges, and how often: for whoever connects a policy to a machine.

Nothing is guessed. Names come from Gymnasium's ``observation_structure`` and the MuJoCo model; where either is missing
they are indices, and a sentence says why.

Axes: D observation · A action.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from ppo_fast.envs.base import EnvSpec
from ppo_fast.envs.gymnasium import make_one
from ppo_fast.envs.registry import find_spec
from ppo_fast.envs.spaces import parts_of
from ppo_fast.errors import EnvError

# What a joint adds to qpos and to qvel, by mjtJoint: free, ball, slide, hinge. Of a free joint, position and linear
# velocity are in the world's frame, angular velocity in the body's; a quaternion begins with its real part.
_QUATERNION, _ANGULAR = (".qw", ".qx", ".qy", ".qz"), (".wx", ".wy", ".wz")
_QPOS = ((".x", ".y", ".z", *_QUATERNION), _QUATERNION, ("",), ("",))
_QVEL = ((".vx", ".vy", ".vz", *_ANGULAR), _ANGULAR, ("",), ("",))
_PER_BODY = {"cinert": 10, "cvel": 6, "cfrc_ext": 6}  # numbers of each body but the world
_FREE_DOFS = 6  # which Humanoid leaves out of qfrc_actuator, since nothing drives its root

# Wrappers of gymnasium.make that change neither observations nor actions.
_TRANSPARENT = ("PassiveEnvChecker", "OrderEnforcing", "TimeLimit")


@dataclass(frozen=True)
class Interface:
    """Names of D observations and A actions, and the control period in seconds with the simulator's steps in it."""

    observation_names: list[str]
    action_names: list[str]
    why_indices: str  # why observations are named by index; "" where they are not
    control_period_s: float | None
    frame_skip: int | None
    why_no_period: str


def describe(spec: EnvSpec) -> Interface:
    """Return what Gymnasium's environment of that id says of itself; one that only EnvPool has says nothing.

    Raises:
        EnvError: it cannot be made, or is not the one that ``spec`` describes.
    """
    if find_spec(spec.env_id) is None:
        return _unknown(spec, f"only EnvPool has {spec.env_id}, and does not say")
    env = make_one(spec.env_id, spec.env_kwargs)
    try:
        given = sum(part.size for part in parts_of(env.observation_space) or [])
        if given != spec.obs_dim:
            raise EnvError(
                f"{spec.env_id} has observations of {given} numbers here, and the policy takes {spec.obs_dim}"
            )
        return _describe(env, spec)
    finally:
        env.close()


def _unknown(spec: EnvSpec, why: str) -> Interface:
    return Interface(_numbered("obs", spec.obs_dim), _numbered("action", spec.act_dim), why, None, None, why)


def _describe(env: Any, spec: EnvSpec) -> Interface:
    if why := _why_unknown(env):
        return _unknown(spec, why)
    indices, action_indices = _numbered("obs", spec.obs_dim), _numbered("action", spec.act_dim)
    core = env.unwrapped
    names = _observation_names(core.model, getattr(core, "observation_structure", {}))
    why = ""
    if len(names) != spec.obs_dim:
        names, why = indices, f"{type(core).__name__} does not say what its observation is made of"
    actions = _actuator_names(core.model)
    if len(actions) != spec.act_dim or spec.num_actions:
        actions = action_indices
    return Interface(names, actions, why, float(core.dt), int(core.frame_skip), "")


def _why_unknown(env: Any) -> str:
    """Say why a MuJoCo model does not tell what passes through ``env``; "" where it does."""
    from gymnasium.envs.mujoco import MujocoEnv

    if not isinstance(env.unwrapped, MujocoEnv):
        return f"{env.spec.id} is not built on Gymnasium's MujocoEnv"
    while env is not env.unwrapped:
        if type(env).__name__ not in _TRANSPARENT:
            return f"{env.spec.id} is wrapped in {type(env).__name__}"
        env = env.env
    return ""


def _observation_names(model: Any, structure: dict[str, int]) -> list[str]:
    """Return a name for every component, block by block; a block that the model does not explain is numbered."""
    dofs = _of_joints(model, "qvel", _QVEL)
    known = {
        "qpos": _of_joints(model, "qpos", _QPOS)[structure.get("skipped_qpos", 0) :],
        "qvel": dofs,
        "qfrc_actuator": [name.replace("qvel", "qfrc_actuator") for name in dofs[_FREE_DOFS:]],
    }
    for block, width in _PER_BODY.items():
        bodies = (model.body(i).name or f"body {i}" for i in range(1, model.nbody))
        known[block] = [f"{block}[{body}][{i}]" for body, i in itertools.product(bodies, range(width))]
    names: list[str] = []
    for block, size in structure.items():
        if block != "skipped_qpos":
            labels = known.get(block, [])
            names += labels if len(labels) == size else _numbered(block, size)
    return names


def _of_joints(model: Any, block: str, parts: tuple[tuple[str, ...], ...]) -> list[str]:
    joints = (model.joint(i) for i in range(model.njnt))
    return [f"{block}[{joint.name or f'joint {joint.id}'}]{part}" for joint in joints for part in parts[joint.type[0]]]


def _actuator_names(model: Any) -> list[str]:
    """Return each actuator's name, or that of the joint it drives."""
    import mujoco

    names = []
    for i in range(model.nu):
        actuator = model.actuator(i)
        on_joint = actuator.trntype[0] == mujoco.mjtTrn.mjTRN_JOINT
        names.append(actuator.name or (model.joint(int(actuator.trnid[0])).name if on_joint else "") or f"action[{i}]")
    return names


def _numbered(name: str, size: int) -> list[str]:
    return [f"{name}[{i}]" for i in range(size)]
