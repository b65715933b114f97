"""The torch learner: PPO epochs over shuffled minibatches, eager or compiled, on any device."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import FunctionType

import numpy as np
import torch
from torch import Tensor

from ppo_fast import kernels
from ppo_fast.batch import Float32, aligned_zeros
from ppo_fast.config import Config
from ppo_fast.distributed import ALONE, Peers
from ppo_fast.errors import BackendError
from ppo_fast.learners.ppo_base import Order, PPOLearner
from ppo_fast.learners.ppo_step import (
    ADAM_BETAS,
    STATS,
    Minibatch,
    Optimizer,
    adam_step,
    eager_gradient,
    minibatch_step,
)
from ppo_fast.learners.precision import matmul_precision, require_precision
from ppo_fast.models import ActorCritic

log = logging.getLogger(__name__)

Step = Callable[[Optimizer, Tensor, Minibatch], None]

# On two CPU cores a compilation costs about 17 s, 5 s when it has been made before, and saves 0.6 to 0.9 ms per step
# (benchmarks/bench_native.py): it pays after 6,000 to 25,000 steps.
COMPILE_PAYS_AFTER = 15_000


class TorchLearner(PPOLearner):
    """PPO by torch: autograd and a step of Adam on the flat vector, on any device.

    Args:
        model: shapes of the networks.
        flat: (P,) initial parameters; copied to ``device``.
        cfg: the run's options.
        device: where the update runs.
        peers: the processes that share their gradients.

    Raises:
        BackendError: ``cfg.update == "compile"`` and no compiler works here, or processes share their gradients; or the
            GPU has no products of ``cfg.precision``.
        ConfigError: ``cfg.precision`` would have no effect on the device.
    """

    name = "torch"

    def __init__(
        self, model: ActorCritic, flat: Tensor, cfg: Config, device: torch.device, *, peers: Peers = ALONE
    ) -> None:
        require_precision(cfg.precision, device)
        super().__init__(model, flat, cfg, device, peers=peers)
        stats = torch.zeros(len(STATS), dtype=torch.float32, device=device)
        self.opt = Optimizer(self.flat, self.exp_avg, self.exp_avg_sq, stats)
        self._shuffled = self._allocate()
        self.mode = "eager"
        self._whole_step: Step = self._bind(compiled=False)
        self._choose_mode()

    # --- the update --------------------------------------------------------------------------------------------------
    def _epochs(self, batch: dict[str, Float32], passes: int) -> Tensor:
        """Run the passes; waits for the device after each only with ``target_kl``."""
        stats: list[Tensor] = []
        while len(stats) < passes and not self._stops(stats[-1:]):
            stream = self.epochs_done + len(stats)
            stats.append(
                self._epoch(batch, kernels.permutation(self.cfg.batch_size, seed=self.cfg.seed, stream=stream))
            )
        return torch.stack(stats)

    def _epoch(self, batch: dict[str, Float32], order: Order) -> Tensor:
        """Shuffle the batch once, then step through it in minibatches of M contiguous rows."""
        cfg = self.cfg
        self.opt.stats.zero_()
        self._shuffle(batch, order)
        counts = self._shuffled["valid"].reshape(cfg.num_minibatches, -1).sum(1)
        scalars = self._scalars(counts)
        with matmul_precision(cfg.precision):
            for i in np.flatnonzero(counts).tolist():  # a minibatch of reset rows alone makes no step
                self._whole_step(self.opt, scalars[i], self._minibatch(i))
        return self.opt.stats.clone()

    def _begin(self) -> None:
        """Nothing to do: ``flat`` and Adam's moments are what is stepped."""

    def _end(self) -> None:
        """Nothing to do."""

    def _shuffle(self, batch: dict[str, Float32], order: Order) -> None:
        for name, source in batch.items():
            kernels.gather(source, order, out=self._shuffled[name])
        self._views = {name: torch.from_numpy(array).to(self.device) for name, array in self._shuffled.items()}

    def _minibatch(self, k: int) -> Minibatch:
        start, rows = k * self.cfg.minibatch_size, self.cfg.minibatch_size
        return Minibatch(**{name: view[start : start + rows] for name, view in self._views.items()})

    def _gradient(self, k: int) -> tuple[Tensor, Tensor]:
        mb = self._minibatch(k)
        with matmul_precision(self.cfg.precision):
            return eager_gradient(self.model, self.hp, self.flat, 1.0 / mb.valid.sum(), mb)

    def _step(self, gradient: Tensor) -> Tensor:
        scalars = self._scalars(np.ones(1, np.float32))[0]
        return adam_step(self.hp, self.opt, scalars[1], scalars[2], gradient)

    def _scalars(self, counts: Float32) -> Tensor:
        """Return what :func:`step_scalars` says of the next minibatches, on the device, and count their steps."""
        scalars = step_scalars(self.adam_steps, self.learning_rate, counts)
        self.adam_steps += int((counts > 0).sum())
        return torch.from_numpy(scalars).to(self.device)

    # --- eager or compiled -------------------------------------------------------------------------------------------
    def _choose_mode(self) -> None:
        cfg = self.cfg
        planned = cfg.total_timesteps // cfg.batch_size * cfg.update_epochs * cfg.num_minibatches
        if cfg.update == "eager":
            self.why_eager = "asked for"
        elif self.peers.size > 1:
            if cfg.update == "compile":
                raise BackendError(
                    "--update compile: what is compiled is a whole step, and several processes sum their gradients in "
                    "the middle of it; leave --update at 'auto'"
                )
            self.why_eager = "processes sum their gradients in the middle of a step"
        elif cfg.update == "auto" and self.device.type == "cpu" and planned < COMPILE_PAYS_AFTER:
            self.why_eager = f"{planned} minibatch steps do not repay a compilation"
        else:
            self._compile(forced=cfg.update == "compile")
        if self.mode == "eager" and self.device.type == "cuda":
            self._rehearse(self._whole_step)  # what does not fit the GPU shows before there is an environment

    def _compile(self, *, forced: bool) -> None:
        """Compile the step on copies: the first real minibatch runs at speed, and a missing compiler shows now."""
        start = time.perf_counter()
        step = compiled_apart(self._bind(compiled=True))
        try:
            self._rehearse(step)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as err:  # torch documents no common base of its compiler errors; the reason is passed on
            reason = str(err).strip().split("\n")[0]
            if forced:
                raise BackendError(f"--update compile: torch.compile does not work here: {reason}") from err
            log.warning("torch.compile does not work here, updates run eagerly: %s", reason)
            self.why_eager = f"torch.compile does not work here: {reason}"
            return
        self._whole_step, self.mode, self.compile_s = step, "compile", time.perf_counter() - start

    def _rehearse(self, step: Step) -> None:
        """Make a step on copies."""
        opt = Optimizer(*(tensor.clone() for tensor in self.opt))
        rows = {name: torch.from_numpy(array).to(self.device) for name, array in self._shuffled.items()}
        mb = Minibatch(**{name: view[: self.cfg.minibatch_size] for name, view in rows.items()})
        with matmul_precision(self.cfg.precision):
            step(opt, torch.ones(2, 3, device=self.device)[1], mb)

    def _bind(self, *, compiled: bool) -> Step:
        model, hp = self.model, self.hp

        def step(opt: Optimizer, scalars: Tensor, mb: Minibatch) -> None:
            minibatch_step(model, hp, compiled, opt, scalars, mb)

        return step

    def _allocate(self) -> dict[str, Float32]:
        b = self.cfg.batch_size
        widths = {"norm_obs": (b, self.model.obs_dim), "actions": (b, self.model.act_dim)}
        return {name: aligned_zeros(*widths.get(name, (b,))) for name in Minibatch._fields}


def compiled_apart(step: Callable[..., None]) -> Callable[..., None]:
    """Return ``step`` by torch.compile, apart from all that has the same code.

    torch counts the compilations of a code object and gives up after eight, so each learner of a process has its own.
    """
    own = FunctionType(step.__code__.replace(), step.__globals__, step.__name__, step.__defaults__, step.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)


def step_scalars(adam_steps: int, learning_rate: float, counts: Float32) -> Float32:
    """Return 1 / valid rows, lr / (1 − β₁ᵗ) and 1 / sqrt(1 − β₂ᵗ) of n minibatches, (n, 3); t counts real steps.

    Args:
        adam_steps: steps before the first of them.
        learning_rate: lr.
        counts: (n,) float32, valid rows of each; one without makes no step.
    """
    beta1, beta2 = ADAM_BETAS
    t = adam_steps + np.maximum(np.cumsum(counts > 0), 1)
    columns = (1.0 / np.maximum(counts, 1.0), learning_rate / (1.0 - beta1**t), 1.0 / np.sqrt(1.0 - beta2**t))
    return np.stack(columns, 1).astype(np.float32)
