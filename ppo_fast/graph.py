"""A policy as one ONNX graph: raw observation in, what the environment's ``step`` takes out.

    x = clip((s − mean) · inv_std, ±clip_obs)                        the normaliser, with the constants that acting uses
    a = clip(μ(x) · (high − low)/2 + (high + low)/2, low, high)      continuous, in the environment's units
    a = first_action + argmax_k l_k(x)                               discrete; of a MultiDiscrete space its choices

Clipping after rescaling is clipping to [-1, 1] before it, but no rounding can leave the bounds. Observations are
float32, because training rounds them to float32 before anything else.

Axes: N rows · D observation · A action · K actions to choose from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppo_fast import __version__
from ppo_fast.envs.base import ActionRescaler
from ppo_fast.errors import BackendError, CheckpointError, ConfigError
from ppo_fast.evaluation import Policy

if TYPE_CHECKING:
    import onnx

OPSET = 17  # of 2022, so that older runtimes read it too
INPUT, OUTPUT = "observation", "action"
CHECKS = 10_000  # observations on which a file must act as the policy does
TOLERANCE = 1e-5  # of the action range, or of a logit; more where the network's own numbers are above 1
_FAR = 100.0  # standard deviations, where the normaliser clips

_Operand = str | NDArray[Any] | np.generic


class _Nodes:
    """Nodes and constants of a graph, in order."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, *operands: _Operand, output: str = "", **attributes: Any) -> str:
        """Append a node; an array among its operands becomes a constant. Return the name of its output."""
        from onnx import helper, numpy_helper

        name = output or f"{op.lower()}_{len(self.nodes)}"
        inputs = []
        for i, operand in enumerate(operands):
            if not isinstance(operand, str):
                self.constants.append(numpy_helper.from_array(np.asarray(operand), f"{name}.{i}"))
            inputs.append(operand if isinstance(operand, str) else f"{name}.{i}")
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name


_ACTIVATIONS: dict[str, Callable[[_Nodes, str], str]] = {
    "tanh": lambda nodes, x: nodes.add("Tanh", x),
    "relu": lambda nodes, x: nodes.add("Relu", x),
    "elu": lambda nodes, x: nodes.add("Elu", x, alpha=1.0),
    "silu": lambda nodes, x: nodes.add("Mul", x, nodes.add("Sigmoid", x)),
}


def build(policy: Policy) -> onnx.ModelProto:
    """Return the ONNX model of ``policy``, checked.

        continuous: observation (N, D) float32 -> action (N, A) float32; NaN where a mean is NaN
        discrete:   observation (N, D) float32 -> action (N,) int64, of a MultiDiscrete space (N, C); first_action - 1,
                    which is no action, where a logit is not finite

    Raises:
        BackendError: onnx is not installed.
        ConfigError: the policy has an activation that is not written here.
        CheckpointError: a parameter is NaN or infinite.
    """
    require_onnx()
    import onnx
    from onnx import TensorProto, helper

    if not torch.isfinite(policy.flat).all():
        raise CheckpointError("the policy's parameters are not finite; export an earlier checkpoint of the run")
    nodes = _Nodes()
    head = _network(nodes, policy, _normalised(nodes, policy))
    write = _index if policy.spec.num_actions else _action
    write(nodes, policy, head)
    spec, dtype = policy.spec, TensorProto.INT64 if policy.spec.num_actions else TensorProto.FLOAT
    row = [len(spec.choices)] if spec.choices else [] if spec.num_actions else [spec.act_dim]
    graph = helper.make_graph(
        nodes.nodes,
        "policy",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", policy.spec.obs_dim])],
        [helper.make_tensor_value_info(OUTPUT, dtype, ["batch", *row])],
        nodes.constants,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="ppo_fast", producer_version=__version__,
    )  # fmt: skip
    onnx.checker.check_model(model, full_check=True)
    return model


def require_onnx() -> None:
    """Raise ``BackendError`` where the extra is not installed."""
    try:
        import onnx  # noqa: F401
    except ImportError as err:
        raise BackendError(f"an ONNX file cannot be written ({err}): pip install 'ppo_fast[export]'") from None


def _normalised(nodes: _Nodes, policy: Policy) -> str:
    if not policy.normalizer.enabled:
        return INPUT
    mean, inv_std = policy.normalizer.constants
    x = nodes.add("Mul", nodes.add("Sub", INPUT, mean), inv_std)
    return nodes.add("Clip", x, -policy.normalizer.clip, policy.normalizer.clip)


def _network(nodes: _Nodes, policy: Policy, x: str) -> str:
    activation = policy.model.activation
    if activation not in _ACTIVATIONS:
        raise ConfigError(f"a policy with activation {activation!r} cannot be exported; {', '.join(_ACTIVATIONS)} can")
    params = policy.model.params(policy.flat)
    *hidden, last = params.trunk + params.actor
    for weight, bias in hidden:
        x = _ACTIVATIONS[activation](nodes, nodes.add("Gemm", x, weight.numpy(), bias.numpy(), transB=1))
    weight, bias = last
    return nodes.add("Gemm", x, weight.numpy(), bias.numpy(), transB=1)


def _action(nodes: _Nodes, policy: Policy, mean: str) -> None:
    low, high = bounds(policy)
    rescale = ActionRescaler(policy.spec, 1)
    center = rescale.low + rescale.half_range
    x = nodes.add("Mul", mean, rescale.half_range.astype(np.float32))
    x = nodes.add("Add", x, center.astype(np.float32))
    nodes.add("Min", nodes.add("Max", x, low), high, output=OUTPUT)


def bounds(policy: Policy) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what a continuous action is clipped to, (A,) float32 each; infinite without two finite bounds."""
    spec, bounded = policy.spec, ActionRescaler(policy.spec, 1).bounded
    low, high = np.where(bounded, spec.action_low, -np.inf), np.where(bounded, spec.action_high, np.inf)
    return low.astype(np.float32), high.astype(np.float32)


def _index(nodes: _Nodes, policy: Policy, logits: str) -> None:
    first, choices = np.int64(policy.spec.first_action), np.array(policy.spec.choices, np.int64)
    several = int(bool(policy.spec.choices))
    chosen = nodes.add("ArgMax", logits, axis=1, keepdims=several)
    if several:  # (N, 1) -> (N, C), the digits of the index, of which the last changes fastest
        places = np.array([choices[i + 1 :].prod() for i in range(len(choices))], np.int64)
        chosen = nodes.add("Mod", nodes.add("Div", chosen, places), choices)
    chosen = nodes.add("Add", chosen, first)
    # 0 · l is 0 for finite l alone; ArgMax itself may pass over a NaN.
    zero = nodes.add("ReduceSum", nodes.add("Mul", logits, np.float32(0)), np.array([1]), keepdims=several)
    nodes.add("Where", nodes.add("Equal", zero, np.float32(0)), chosen, first - 1, output=OUTPUT)


Runtime = Callable[[NDArray[np.float32]], NDArray[Any]]


def runtime(model: bytes) -> tuple[str, Runtime]:
    """Return the name of what runs ``model``, and a call of it: ONNX Runtime where installed, else onnx's reference."""
    try:
        import onnxruntime
    except ImportError:
        import onnx.reference

        evaluator = onnx.reference.ReferenceEvaluator(onnx.load_from_string(model))
        return f"onnx.reference {onnx.__version__}", lambda obs: np.asarray(evaluator.run(None, {INPUT: obs})[0])
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return f"onnxruntime {onnxruntime.__version__}", lambda obs: np.asarray(session.run(None, {INPUT: obs})[0])


def worst_difference(policy: Policy, run: Runtime) -> tuple[float, float]:
    """Return how far ``run`` is from ``policy`` at worst, over :data:`CHECKS` observations, and how far it may be.

        continuous: max |a' − a| / (high − low); a range without bounds counts as that of [-1, 1]
        discrete:   max (l_a − l_a'), by how much the logit of another choice is lower
        allowed:    TOLERANCE · max(1, |μ| or |l|), because float32 rounds large numbers by more

    Half of the observations are spread as those that the normaliser has seen, half a hundred times as wide. The first
    is infinite where the shape or type is not that of the policy's actions, or an action is NaN or none.
    """
    obs = _check_observations(policy)
    expected, given, head = policy(obs), run(obs), policy.head(obs)
    allowed = TOLERANCE * max(1.0, float(head.abs().max()))
    if given.shape != expected.shape or given.dtype != expected.dtype:
        return float("inf"), allowed
    if policy.spec.num_actions:
        chosen = policy.spec.index_actions(given)
        if not ((chosen >= 0) & (chosen < policy.spec.num_actions)).all():
            return float("inf"), allowed
        loss = head.amax(-1) - head.gather(-1, torch.from_numpy(chosen)[:, None])[:, 0]
        return float(loss.max()), allowed
    error = np.abs(given.astype(np.float64) - expected) / (2 * ActionRescaler(policy.spec, 1).half_range)
    return float(error.max()) if np.isfinite(error).all() else float("inf"), allowed


def _check_observations(policy: Policy) -> NDArray[np.float32]:
    normalizer = policy.normalizer
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((CHECKS, policy.spec.obs_dim))
    if normalizer.enabled:  # without it nothing is clipped, and a network on numbers this large only shows rounding
        obs[CHECKS // 2 :] *= _FAR
        obs = normalizer.moments.mean + obs * np.sqrt(normalizer.moments.var + 1e-8)
    return obs.astype(np.float32)
