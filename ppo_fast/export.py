"""``python -m ppo_fast.export RUN``: write a trained policy as one ONNX file, and its contract beside it."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ppo_fast.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from ppo_fast.checkpoint import Checkpoint
    from ppo_fast.envs.interface import Interface
    from ppo_fast.evaluation import Policy

CONTRACT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write a policy as one ONNX file: raw observation in, action in the environment's units out."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """run directory (its newest good checkpoint) or one checkpoint directory"""
    out: str = "policy.onnx"
    """ONNX file to write; its contract becomes <name>.contract.json beside it"""
    best: bool = False
    """the checkpoint with the best evaluation instead of the newest"""
    env: str = ""
    """needed, to confirm it, where the run's environment is imported from a module ('module:Name-v0')"""


def main(args: list[str] | None = None) -> int:
    """Parse the options, export, say what was written; return the exit code."""
    from ppo_fast.cli import parse_options, run_command

    def export() -> None:
        _export(parse_options(ExportOptions, args, prog="python -m ppo_fast.export"))

    return run_command(export, prog="ppo_fast.export")


def _export(options: ExportOptions) -> None:
    from ppo_fast import checkpoint, graph
    from ppo_fast.cli import target_file, trust_env
    from ppo_fast.envs.interface import describe
    from ppo_fast.evaluation import policy_from
    from ppo_fast.files import to_json, write_atomic

    out = target_file("out", options.out, ".onnx")
    graph.require_onnx()
    saved = checkpoint.locate(options.run, best=options.best)
    policy = policy_from(saved)
    if options.env not in ("", policy.spec.env_id):
        raise ConfigError(f"env {options.env!r} is not that of the run, {policy.spec.env_id!r}")
    trust_env(policy.spec.env_id, options.env)
    interface = describe(policy.spec)
    model = graph.build(policy).SerializeToString()
    runtime, run = graph.runtime(model)
    worst, allowed = graph.worst_difference(policy, run)
    if worst > allowed:  # before anything is written, so that no file is there that acts otherwise
        raise BackendError(
            f"nothing was written, because in {runtime} the file differs from the policy by {worst:.1e} of "
            f"{_unit(policy)}, and {allowed:.0e} is allowed"
        )
    contract = out.with_suffix(".contract.json")
    for path, data in ((out, model), (contract, to_json(make_contract(saved, policy, interface, out.name, model)))):
        try:
            write_atomic(path, data)
        except OSError as err:
            raise ConfigError(f"out {str(path)!r} cannot be written: {err.strerror}") from None
    print(
        f"{policy.spec.env_id}, {saved.path}\n"
        f"policy    {out}: observation normaliser, network, action in the environment's units\n"
        f"contract  {contract}\n"
        f"checked   {runtime}: on {graph.CHECKS:,} observations, half of them far out, at most {worst:.1e} of "
        f"{_unit(policy)} from the policy\n"
        "next      run it without ppo_fast, as the repository's example does: "
        f"python examples/run_onnx.py {shlex.quote(str(out))}",
        flush=True,
    )


def _unit(policy: Policy) -> str:
    return "a logit" if policy.spec.num_actions else "the action range"


def make_contract(saved: Checkpoint, policy: Policy, interface: Interface, file: str, model: bytes) -> dict[str, Any]:
    """Return what whoever connects the file to a machine must know, as JSON-ready values; see ``docs/deploy.md``.

    Args:
        saved: the checkpoint that ``policy`` is from.
        policy: what was exported.
        interface: what the environment says of itself.
        file: name of the ONNX file.
        model: its bytes.
    """
    import hashlib

    from ppo_fast import __version__, graph

    return {
        "format_version": CONTRACT_VERSION,
        "environment": {
            "id": policy.spec.env_id,
            "kwargs": dict(policy.spec.env_kwargs or {}),
            "control_period_s": interface.control_period_s,
            "frame_skip": interface.frame_skip,
            **({"why_null": interface.why_no_period} if interface.why_no_period else {}),
        },
        "observation": {
            "input": graph.INPUT,
            "dtype": "float32",
            "dim": policy.spec.obs_dim,
            "names": interface.observation_names,
            **({"why_indices": interface.why_indices} if interface.why_indices else {}),
        },
        "action": _action(policy, interface),
        "network": {
            "hidden_sizes": list(policy.model.hidden_sizes),
            "activation": policy.model.activation,
            "obs_clip": float(policy.normalizer.clip) if policy.normalizer.enabled else None,
        },
        "checkpoint": {
            "env_steps": saved.state.get("env_steps"),
            "model_sha256": saved.model_sha256,
        },
        "onnx": {"file": file, "sha256": hashlib.sha256(model).hexdigest(), "opset": graph.OPSET},
        "ppo_fast_version": __version__,
    }


def _action(policy: Policy, interface: Interface) -> dict[str, Any]:
    import math

    from ppo_fast import graph

    spec = policy.spec
    if spec.num_actions:
        return {
            "output": graph.OUTPUT, "kind": "discrete", "dtype": "int64", "num_actions": spec.num_actions,
            "first": spec.first_action, "if_not_finite": spec.first_action - 1,
            **({"choices": list(spec.choices)} if spec.choices else {}),
        }  # fmt: skip
    low, high = ([float(str(v)) if math.isfinite(v) else None for v in bound] for bound in graph.bounds(policy))
    return {
        "output": graph.OUTPUT, "kind": "continuous", "dtype": "float32", "dim": spec.act_dim,
        "names": interface.action_names, "low": low, "high": high, "if_not_finite": "NaN",
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
