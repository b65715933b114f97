"""The native learner: a whole epoch of minibatch steps in one call of the C++ core, on the CPU.

Axes: B rows · M rows of a minibatch · D observation · A action · P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ppo_fast import native
from ppo_fast.batch import Float32
from ppo_fast.config import Config
from ppo_fast.cpus import cpu_budget
from ppo_fast.distributed import ALONE, Peers
from ppo_fast.errors import BackendError, ShapeError
from ppo_fast.kernels._checks import FLOAT32, INT64, check_array, check_choices, check_layout, check_range
from ppo_fast.learners.ppo_base import Order, PPOLearner
from ppo_fast.learners.ppo_step import STATS, Minibatch
from ppo_fast.models import ActorCritic


def lacks(model: ActorCritic, device: torch.device) -> str:
    """Return what keeps the native learner from running this model on this device; empty if nothing does."""
    if device.type != "cpu":
        return f"it runs on the CPU, and the device is {device}"
    return native.lacks(model)


class NativeLearner(PPOLearner):
    """PPO by the C++ core, with the numbers of the torch learner up to rounding.

    Its threads do not show in the numbers: lanes of rows and their order are fixed by the minibatch's size. The core
    starts no more than it can use, one per network and lane of 256 rows.

    Args:
        model: shapes of the networks.
        flat: (P,) initial parameters; copied.
        cfg: the run's options.
        device: must be the CPU.
        simd: ``avx512``, ``avx2`` or ``baseline``; empty: what ``PPO_FAST_SIMD`` says, else the best there is.
        peers: the processes that share their gradients.

    Raises:
        BackendError: the core is missing or lacks something, or this processor does not run that SIMD level.
    """

    name = "native"
    mode = "native"

    def __init__(
        self,
        model: ActorCritic,
        flat: Tensor,
        cfg: Config,
        device: torch.device | None = None,
        *,
        simd: str = "",
        peers: Peers = ALONE,
    ) -> None:
        device = torch.device("cpu") if device is None else device
        if reason := lacks(model, device):
            raise BackendError(f"the native learner cannot be had: {reason}")
        super().__init__(model, flat, cfg, device, peers=peers)
        from ppo_fast import _core

        try:
            self.core = _core.PpoLearner(
                native.networks(model),
                max_batch=cfg.batch_size,
                max_rows=cfg.minibatch_size,
                clip_coef=self.hp.clip_coef,
                clip_vloss=self.hp.clip_vloss,
                norm_adv_minibatch=self.hp.norm_adv_minibatch,
                ent_coef=self.hp.ent_coef,
                vf_coef=self.hp.vf_coef,
                max_grad_norm=self.hp.max_grad_norm,
                adam_eps=self.hp.adam_eps,
                threads=cfg.learner_threads or max(1, int(cpu_budget())),
                simd=simd,
            )
        except (ValueError, RuntimeError) as err:  # RuntimeError: the system gives no more threads
            raise BackendError(f"the native learner cannot be had: {err}") from None
        self.threads = self.core.threads
        self.simd = self.core.simd_level

    # --- the update --------------------------------------------------------------------------------------------------
    def _begin(self) -> None:
        """Pack the parameters into the core; they live there until :meth:`_end`."""
        self.core.load(self.flat.numpy(), self.exp_avg.numpy(), self.exp_avg_sq.numpy(), self.adam_steps)

    def _epochs(self, batch: dict[str, Float32], passes: int) -> Tensor:
        cfg, stats = self.cfg, np.zeros((passes, len(STATS)))
        self._begin()
        made = self.core.update(
            *[batch[name] for name in Minibatch._fields],
            minibatch=cfg.minibatch_size,
            seed=cfg.seed,
            first_stream=self.epochs_done,
            learning_rate=self.learning_rate,
            target_kl=math.inf if cfg.target_kl is None else cfg.target_kl,
            stats=stats,
        )
        self._end()
        return torch.from_numpy(stats[:made])

    def _end(self) -> None:
        self.core.save(self.flat.numpy(), self.exp_avg.numpy(), self.exp_avg_sq.numpy())
        self.adam_steps = self.core.adam_steps

    # --- gradient and step apart, so that an all-reduce can go between them ------------------------------------------
    def gradient(self, batch: Mapping[str, Float32], index: Order) -> tuple[Tensor, Tensor]:
        """Return the gradient (P,) over the valid ones of the rows that ``index`` names, and the sums of ``STATS``.

        Args:
            batch: the fields of ``Minibatch``, each (B, ...) float32; of a row with ``valid`` 0 nothing else is read.
            index: (M,) int64 in [0, B), M at most ``cfg.minibatch_size``.

        Raises:
            ShapeError: a shape, dtype or index is not so, or an action of a valid row is no index of a categorical
                policy.
        """
        if set(batch) != set(Minibatch._fields):
            raise ShapeError(f"batch must have the fields {', '.join(Minibatch._fields)}, got {', '.join(batch)}")
        rows = len(batch["valid"])
        widths = {"norm_obs": ("(B, D)", self.model.obs_dim), "actions": ("(B, A)", self.model.act_dim)}
        for name in Minibatch._fields:
            axes, *width = widths.get(name, ("(B,)",))
            check_array(name, batch[name], FLOAT32, str(axes), (rows, *map(int, width)))
        check_layout("index", index, (INT64,))
        check_array("index", index, INT64, "(M,)", (min(index.size, self.cfg.minibatch_size),))
        check_range("index", index, rows, "B")
        if self.model.num_actions:
            check_choices(batch["actions"][index[batch["valid"][index] > 0]], self.model.num_actions)
        self._begin()
        return self._gradient_of(batch, index)

    def _gradient_of(self, batch: Mapping[str, Float32], index: Order) -> tuple[Tensor, Tensor]:
        out, stats = torch.zeros_like(self.flat), np.zeros(len(STATS))
        self.core.gradient(index, *[batch[name] for name in Minibatch._fields], out=out.numpy(), stats=stats)
        return out, torch.from_numpy(stats)

    def _shuffle(self, batch: dict[str, Float32], order: Order) -> None:
        self._shuffled = batch, order.reshape(self.cfg.num_minibatches, self.cfg.minibatch_size)

    def _gradient(self, k: int) -> tuple[Tensor, Tensor]:
        batch, order = self._shuffled
        return self._gradient_of(batch, order[k])

    def _step(self, gradient: Tensor) -> float:
        return self.core.step(gradient.numpy(), self.learning_rate)

    def step(self, gradient: Tensor) -> float:
        """Clip the gradient (P,), make one Adam step on ``flat``, and return the norm before clipping.

        Raises:
            ShapeError: ``gradient`` is not (P,) float32.
        """
        gradient = gradient.detach()
        check_array("gradient", gradient.numpy(), FLOAT32, "(P,)", (self.model.num_params,))
        self._begin()
        norm = self._step(gradient)
        self._end()
        return norm
