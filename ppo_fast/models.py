"""The actor-critic as pure functions of one flat parameter vector, and the two policies that its head can parametrise.

One contiguous float32 vector holds every weight, so that optimizer state, gradient clipping, checkpoints and (later) an
all-reduce are each a single operation; the functions here take it as an argument and never hold it.

Axes: B rows · D observation · A action · H head (A, or K) · K actions to choose from · P parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_fast.errors import ShapeError

LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "elu": torch.nn.functional.elu,
    "silu": torch.nn.functional.silu,
}


class Gaussian(NamedTuple):
    """A diagonal Gaussian with the same σ in every state: a = μ + σ ε, ε standard normal."""

    mean: Tensor  # (B, A)
    log_std: Tensor  # (A,)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return log π(a|s) of ``actions`` (B, A), (B,)."""
        return gaussian_log_prob(self.mean, self.log_std, actions)

    def entropy(self) -> Tensor:
        """Return H, a scalar, since it is the same in every state."""
        return gaussian_entropy(self.log_std)

    def mode(self) -> Tensor:
        """Return the most likely action, μ, (B, A)."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """Return the actions (B, A) that standard normals ``noise`` (B, A) choose."""
        return self.mean + torch.exp(self.log_std) * noise.to(self.mean.dtype)

    def kl(self, new: Gaussian) -> Tensor:
        """Return KL(self || new) = Σ_i log σ'_i/σ_i + (σ_i² + (μ_i − μ'_i)²) / 2σ'_i² − ½, (B,)."""
        shift, step = (self.mean - new.mean) * torch.exp(-new.log_std), new.log_std - self.log_std
        return 0.5 * (shift * shift).sum(-1) + (step + 0.5 * torch.expm1(-2.0 * step)).sum()

    def fisher(self, head: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        """Return the Fisher information of a state times a change of μ (B, A) and of log σ (A,): δμ / σ², 2 δlog σ.

        It is the Hessian of :meth:`kl` where both are equal.
        """
        return head * torch.exp(-2.0 * self.log_std), 2.0 * log_std


class Categorical(NamedTuple):
    """One of K actions, with probabilities p = softmax(l); an action array (B, 1) holds its index as a float."""

    logits: Tensor  # (B, K)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return log π(a|s) = l_a − log Σ_k exp l_k of ``actions`` (B, 1), (B,)."""
        return torch.log_softmax(self.logits, -1).gather(-1, actions.long()).squeeze(-1)

    def entropy(self) -> Tensor:
        """Return H = −Σ_k p_k log p_k, (B,)."""
        log_probs = torch.log_softmax(self.logits, -1)
        return -(log_probs.exp() * log_probs).sum(-1)

    def mode(self) -> Tensor:
        """Return the most likely action, the lowest index at a tie, (B, 1); NaN where a logit is not finite."""
        return self._or_nan(self.logits.argmax(-1, keepdim=True))

    def sample(self, noise: Tensor) -> Tensor:
        """Return the actions (B, 1) that uniforms ``noise`` (B, 1) in (0, 1) choose, by inverting the distribution.

            w_k = exp(l_k − max l),   c_k = w_0 + ... + w_k   (in this order),   a = #{k < K − 1 : c_k <= u c_{K−1}}

        An action without weight is never chosen. NaN where a logit is not finite, so that it is noticed before it is
        acted on.
        """
        weights = torch.exp(self.logits - self.logits.amax(-1, keepdim=True))
        sums = torch.stack(list(itertools.accumulate(weights.unbind(-1))), -1).double()
        return self._or_nan((sums[..., :-1] <= noise * sums[..., -1:]).sum(-1, keepdim=True))

    def kl(self, new: Categorical) -> Tensor:
        """Return KL(self || new) = Σ_k p_k (log p_k − log p'_k), (B,)."""
        log_probs = torch.log_softmax(self.logits, -1)
        return (log_probs.exp() * (log_probs - torch.log_softmax(new.logits, -1))).sum(-1)

    def fisher(self, head: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        """Return the Fisher information of one state times a change of the logits (B, K), p (δl − Σ p δl); no σ.

        It is the Hessian of :meth:`kl` where both are equal.
        """
        probs = torch.softmax(self.logits, -1)
        return probs * (head - (probs * head).sum(-1, keepdim=True)), log_std

    def _or_nan(self, index: Tensor) -> Tensor:
        broken = ~self.logits.isfinite().all(-1, keepdim=True)
        return index.to(self.logits.dtype).masked_fill(broken, torch.nan)


class Params(NamedTuple):
    """Views of the flat vector: weights (out, in) and biases (out,) of each network, and log σ (A,)."""

    trunk: list[tuple[Tensor, Tensor]]  # the hidden layers, where actor and critic share them
    actor: list[tuple[Tensor, Tensor]]
    log_std: Tensor  # empty where the policy is categorical
    critic: list[tuple[Tensor, Tensor]]

    def with_hidden(self, dtype: torch.dtype) -> Params:
        """Return the same with the hidden layers in ``dtype``; the last ones, and log σ, stay as they are."""

        def cast(layers: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
            return [(weight.to(dtype), bias.to(dtype)) for weight, bias in layers]

        actor, critic = (cast(layers[:-1]) + layers[-1:] for layers in (self.actor, self.critic))
        return Params(cast(self.trunk), actor, self.log_std, critic)


@dataclass(frozen=True)
class ActorCritic:
    """MLPs for a policy and for the value, over one flat vector.

        separate:  head = actor(x),   V = critic(x)
        shared:    h = trunk(x),   head = actor(h),   V = critic(h),   both affine
        π = Gaussian(μ = head, σ = exp(log_std)), state-independent, or Categorical(l = head)

    Args:
        obs_dim: D.
        act_dim: A, length of an action array; 1 for a categorical policy.
        hidden_sizes: widths of the hidden layers.
        activation: a name in ``ACTIVATIONS``.
        shared_trunk: whether actor and critic share the hidden layers.
        num_actions: K of a categorical policy; 0 for a Gaussian one.

    Raises:
        ShapeError: a categorical policy with ``act_dim`` other than 1.
    """

    obs_dim: int
    act_dim: int
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    shared_trunk: bool = False
    num_actions: int = 0

    def __post_init__(self) -> None:
        if self.num_actions and self.act_dim != 1:
            raise ShapeError(f"act_dim must be 1, the index of one of {self.num_actions} actions, got {self.act_dim}")

    @property
    def head_dim(self) -> int:
        """Width H of the actor's last layer."""
        return self.num_actions or self.act_dim

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of every parameter, in the order of the flat vector."""
        inner = (self.obs_dim, *self.hidden_sizes)
        if self.shared_trunk:
            nets = {"trunk": inner, "actor": (inner[-1], self.head_dim), "critic": (inner[-1], 1)}
        else:
            nets = {"actor": (*inner, self.head_dim), "critic": (*inner, 1)}
        out: dict[str, tuple[int, ...]] = {}
        for net, widths in nets.items():
            for layer, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
                out[f"{net}.{layer}.weight"] = (n_out, n_in)
                out[f"{net}.{layer}.bias"] = (n_out,)
            if net == "actor" and not self.num_actions:
                out["actor.log_std"] = (self.act_dim,)
        return out

    @property
    def num_params(self) -> int:
        """Length P of the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Return name -> view of ``flat`` (P,). One split, so that autograd's gradient is one concatenation."""
        shapes = self.shapes()
        chunks = torch.split(flat, [math.prod(shape) for shape in shapes.values()])
        return {name: chunk.view(shape) for (name, shape), chunk in zip(shapes.items(), chunks, strict=True)}

    def params(self, flat: Tensor) -> Params:
        """Return the views of ``flat`` (P,) by network."""
        views = self.unflatten(flat)
        nets: dict[str, list[tuple[Tensor, Tensor]]] = {"trunk": [], "actor": [], "critic": []}
        for name, weight in views.items():
            if name.endswith(".weight"):
                nets[name.split(".")[0]].append((weight, views[name.removesuffix("weight") + "bias"]))
        return Params(nets["trunk"], nets["actor"], views.get("actor.log_std", flat[:0]), nets["critic"])

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Concatenate named tensors into a flat vector (P,) float32.

        Raises:
            ShapeError: a name is missing or unknown, or a shape or dtype differs.
        """
        shapes = self.shapes()
        if set(tensors) != set(shapes):
            raise ShapeError(f"parameters must be named {sorted(shapes)}, got {sorted(tensors)}")
        for name, shape in shapes.items():
            if tuple(tensors[name].shape) != shape or tensors[name].dtype != torch.float32:
                got = f"{tuple(tensors[name].shape)} {tensors[name].dtype}"
                raise ShapeError(f"parameter {name} must have shape {shape} and dtype torch.float32, got {got}")
        return torch.cat([tensors[name].reshape(-1) for name in shapes])

    def init(self, seed: int, log_std_init: float) -> Tensor:
        """Return initial parameters (P,): orthogonal weights, gain √2 (hidden), 0.01 (actor head), 1 (critic head).

        Source: Andrychowicz et al., arXiv:2006.05990, §3.2; Huang et al., ICLR blog 2022, detail 2.
        """
        generator = torch.Generator().manual_seed(seed & (2**63 - 1))
        head = {"actor": 0.01, "critic": 1.0}
        last = 0 if self.shared_trunk else len(self.hidden_sizes)
        flat = torch.zeros(self.num_params)  # all of it first: what does not fit the memory fails at once
        for name, value in self.unflatten(flat).items():
            if name.endswith("weight"):
                net, layer, _ = name.split(".")
                gain = head[net] if net in head and int(layer) == last else math.sqrt(2.0)
                torch.nn.init.orthogonal_(value, gain, generator=generator)
            elif name == "actor.log_std":
                value.fill_(log_std_init)
        return flat

    def forward(
        self, params: Params, norm_obs: Tensor, hidden_dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return head (B, H) and V(x) (B,), with one pass through a shared trunk; hidden layers in ``hidden_dtype``."""
        if hidden_dtype is not None:
            params, norm_obs = params.with_hidden(hidden_dtype), norm_obs.to(hidden_dtype)
        hidden = self._trunk(params, norm_obs)
        return self._mlp(params.actor, hidden), self._mlp(params.critic, hidden).squeeze(-1)

    def head(self, params: Params, norm_obs: Tensor) -> Tensor:
        """Return what :meth:`policy` is made of: μ(x) (B, A), or the logits (B, K)."""
        return self._mlp(params.actor, self._trunk(params, norm_obs))

    def value(self, params: Params, norm_obs: Tensor) -> Tensor:
        """Return V(x), (B,)."""
        return self._mlp(params.critic, self._trunk(params, norm_obs)).squeeze(-1)

    def mean(self, params: Params, norm_obs: Tensor) -> Tensor:
        """Return μ(x) of a Gaussian policy, (B, A)."""
        return self.head(params, norm_obs)

    def policy(self, head: Tensor, log_std: Tensor) -> Gaussian | Categorical:
        """Return the distributions over actions of ``head`` (B, H); ``log_std`` (A,) is a Gaussian's."""
        return Categorical(head) if self.num_actions else Gaussian(head, log_std)

    def _trunk(self, params: Params, x: Tensor) -> Tensor:
        """Apply the hidden layers that actor and critic share, if they share any."""
        for weight, bias in params.trunk:
            x = ACTIVATIONS[self.activation](torch.addmm(bias, x, weight.t()))
        return x

    def _mlp(self, layers: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
        """Apply affine layers with the activation between them, (B, in) -> (B, out)."""
        act = ACTIVATIONS[self.activation]
        for weight, bias in layers[:-1]:
            x = act(torch.addmm(bias, x, weight.t()))
        weight, bias = layers[-1]
        return torch.addmm(bias, x.to(bias.dtype), weight.t())  # hidden layers may be in another dtype


def gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Return log N(a; μ, diag σ²) = Σ_i −½((a_i − μ_i)/σ_i)² − log σ_i − ½ log 2π, (B,)."""
    z = (actions - mean) * torch.exp(-log_std)
    return -0.5 * (z * z).sum(-1) - log_std.sum() - LOG_SQRT_2PI * actions.shape[-1]


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Return H = Σ_i log σ_i + ½ log 2πe, a scalar."""
    return log_std.sum() + log_std.shape[0] * (LOG_SQRT_2PI + 0.5)
