"""The actor-critic as pure functions of one flat parameter vector.

One contiguous float32 vector holds every weight, so that optimizer state, gradient clipping, checkpoints and (later) an
all-reduce are each a single operation; the functions here take it as an argument and never hold it.

Axes: B rows · D observation · A action · P parameters.
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


class Params(NamedTuple):
    """Views of the flat vector: weights (out, in) and biases (out,) of both networks, and log σ (A,)."""

    actor: list[tuple[Tensor, Tensor]]
    log_std: Tensor
    critic: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ActorCritic:
    """Separate MLPs for the mean of a diagonal Gaussian policy and for the value, over one flat vector.

    μ = actor(x),  σ = exp(log_std) (state-independent),  V = critic(x)
    """

    obs_dim: int
    act_dim: int
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of every parameter, in the order of the flat vector."""
        out: dict[str, tuple[int, ...]] = {}
        for net, out_dim in (("actor", self.act_dim), ("critic", 1)):
            widths = (self.obs_dim, *self.hidden_sizes, out_dim)
            for layer, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
                out[f"{net}.{layer}.weight"] = (n_out, n_in)
                out[f"{net}.{layer}.bias"] = (n_out,)
            if net == "actor":
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
        layers = range(len(self.hidden_sizes) + 1)
        actor, critic = (
            [(views[f"{net}.{i}.weight"], views[f"{net}.{i}.bias"]) for i in layers] for net in ("actor", "critic")
        )
        return Params(actor, views["actor.log_std"], critic)

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
        last = len(self.hidden_sizes)
        tensors: dict[str, Tensor] = {}
        for name, shape in self.shapes().items():
            value = torch.zeros(shape)
            if name.endswith("weight"):
                net, layer, _ = name.split(".")
                gain = head[net] if int(layer) == last else math.sqrt(2.0)
                torch.nn.init.orthogonal_(value, gain, generator=generator)
            elif name == "actor.log_std":
                value.fill_(log_std_init)
            tensors[name] = value
        return self.flatten(tensors)

    def mlp(self, layers: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
        """Apply affine layers with the activation between them, (B, in) -> (B, out)."""
        act = ACTIVATIONS[self.activation]
        for weight, bias in layers[:-1]:
            x = act(torch.addmm(bias, x, weight.t()))
        weight, bias = layers[-1]
        return torch.addmm(bias, x, weight.t())

    def mean(self, params: Params, norm_obs: Tensor) -> Tensor:
        """Return μ(x), (B, A)."""
        return self.mlp(params.actor, norm_obs)

    def value(self, params: Params, norm_obs: Tensor) -> Tensor:
        """Return V(x), (B,)."""
        return self.mlp(params.critic, norm_obs).squeeze(-1)


def gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Return log N(a; μ, diag σ²) = Σ_i −½((a_i − μ_i)/σ_i)² − log σ_i − ½ log 2π, (B,)."""
    z = (actions - mean) * torch.exp(-log_std)
    return -0.5 * (z * z).sum(-1) - log_std.sum() - LOG_SQRT_2PI * actions.shape[-1]


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Return H = Σ_i log σ_i + ½ log 2πe, a scalar."""
    return log_std.sum() + log_std.shape[0] * (LOG_SQRT_2PI + 0.5)
