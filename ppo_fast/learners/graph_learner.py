"""The torch learner whose whole update, all passes and minibatches, is one fixed sequence of kernels: a CUDA graph.

Nothing in it asks the host. The orders of all passes and the length of every step travel with the batch, in one copy;
the KL rule turns the steps that it forbids into steps that change nothing; the metrics are summed on the device and
read once. On the CPU the same functions are called one by one, which is how the tests hold them to the eager learner.

Axes: E passes · K minibatches · M rows of one · B = K·M rows · T steps · N envs · P parameters.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppo_fast import kernels
from ppo_fast.batch import Float32, Rollout
from ppo_fast.config import Config
from ppo_fast.distributed import ALONE, Peers
from ppo_fast.errors import BackendError
from ppo_fast.learners.device_gae import gae
from ppo_fast.learners.ppo_step import ADV_EPS, STATS, Minibatch, Optimizer, minibatch_step_where
from ppo_fast.learners.precision import matmul_precision
from ppo_fast.learners.staging import Staging
from ppo_fast.learners.torch_learner import TorchLearner, compiled_apart, step_scalars
from ppo_fast.models import ActorCritic

log = logging.getLogger(__name__)

StepWhere = Callable[[Optimizer, Tensor, Minibatch, Tensor], None]

_KL, _ROWS = STATS.index("approx_kl"), STATS.index("rows")
_WARM_UPS = 2  # calls before the capture: the first compiles and picks algorithms, the second is as all later ones


class GraphLearner(TorchLearner):
    """PPO by torch with the update as one graph; numbers as of ``--update eager``, up to rounding on a GPU.

    After an early stop the rest of the graph still runs, and changes nothing: it saves no time.

    Args:
        model: shapes of the networks.
        flat: (P,) initial parameters; copied to ``device``.
        cfg: the run's options.
        device: where the update runs. On CUDA it is captured here, before there is an environment.
        peers: must be one.

    Raises:
        BackendError: several processes share their gradients, or CUDA cannot capture the update.
    """

    def __init__(
        self, model: ActorCritic, flat: Tensor, cfg: Config, device: torch.device, *, peers: Peers = ALONE
    ) -> None:
        super().__init__(model, flat, cfg, device, peers=peers)
        start = time.perf_counter()
        self._step_where: StepWhere = self._bind_where(compiled=False)
        self._staging = Staging(self._fields(), device)
        self._batch = {name: self._staging.device[name][: cfg.batch_size] for name in Minibatch._fields}
        self._stats = torch.zeros(cfg.update_epochs, len(STATS), device=device)
        # What the host reads of an update: the sums of each pass, and whether it was made.
        self._result = torch.zeros(cfg.update_epochs, len(STATS) + 1, device=device)
        self._read = torch.zeros(self._result.shape, pin_memory=device.type == "cuda")
        self._replay: Callable[[], None] = self._whole_update
        if device.type == "cuda":
            self._replay = self._captured()
            self.compile_s = time.perf_counter() - start

    def _fields(self) -> dict[str, tuple[Any, tuple[int, ...]]]:
        cfg, again = self.cfg, self.cfg.recompute_adv
        b, steps, envs = cfg.batch_size, cfg.num_steps, cfg.num_envs
        widths = {"norm_obs": (b + envs * again, self.model.obs_dim), "actions": (b, self.model.act_dim)}
        fields: dict[str, tuple[Any, tuple[int, ...]]] = {
            name: (np.float32, widths.get(name, (b,))) for name in Minibatch._fields
        }
        fields["orders"] = np.int64, (cfg.update_epochs, b)
        # Three numbers of each step, in rows of 16 bytes, at which compiled code reads fastest.
        fields["scalars"] = np.float32, (cfg.update_epochs, cfg.num_minibatches, 4)
        if again:
            fields["scaled_rewards"] = np.float32, (steps, envs)
            fields["terminated"] = fields["done"] = np.bool_, (steps, envs)
        return fields

    # --- what the host does ------------------------------------------------------------------------------------------
    def update(self, rollout: Rollout) -> dict[str, float]:
        """Run ``update_epochs`` passes over the rollout; waits for the device once, at the end.

        The KL rule: after each epoch, a mean KL over that epoch's valid rows above ``target_kl`` ends the update.

        Raises:
            ShapeError: as of :meth:`PPOLearner.update`.
        """
        batch = self.stage(rollout)
        if self.cfg.recompute_adv:
            batch["norm_obs"] = rollout.norm_obs.reshape(-1, self.model.obs_dim)  # the last row's successors too
            for name in ("scaled_rewards", "terminated", "done"):
                self._staging.host[name][...] = getattr(rollout, name)
        return self.learn(batch)

    def _epochs(self, batch: dict[str, Float32], passes: int) -> Tensor:
        """Run the whole update, of which ``passes`` is the number of passes, and wait for it."""
        cfg, host = self.cfg, self._staging.host
        for name in Minibatch._fields:
            host[name][...] = batch[name]
        for i, order in enumerate(host["orders"]):
            order[:] = kernels.permutation(cfg.batch_size, seed=cfg.seed, stream=self.epochs_done + i)
        counts = batch["valid"][host["orders"]].reshape(passes * cfg.num_minibatches, -1).sum(1)
        scalars = step_scalars(self.adam_steps, self.learning_rate, counts)
        host["scalars"].reshape(-1, 4)[:, :3] = scalars
        self._staging.send()
        self._replay()
        self._read.copy_(self._result, non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        stats = self._read[self._read[:, -1] > 0, : len(STATS)].clone()
        self.adam_steps += int(stats[:, STATS.index("steps")].sum())
        return stats

    # --- what the graph does -----------------------------------------------------------------------------------------
    def _whole_update(self) -> None:
        """Make all passes from the staged batch, as far as the KL rule lets them count, and write ``_result``."""
        staged, m = self._staging.device, self.cfg.minibatch_size
        self._stats.zero_()
        running = torch.ones((), dtype=torch.bool, device=self.device)
        for e, stats in enumerate(self._stats):
            if e and self.cfg.recompute_adv:
                self._judge_again()
            rows = {name: array.index_select(0, staged["orders"][e]) for name, array in self._batch.items()}
            opt = self.opt._replace(stats=stats)
            with matmul_precision(self.cfg.precision):
                for k, scalars in enumerate(staged["scalars"][e]):
                    minibatch = Minibatch(**{name: array[k * m : k * m + m] for name, array in rows.items()})
                    self._step_where(opt, scalars, minibatch, running)
            self._result[e, -1] = running
            if self.cfg.target_kl is not None:
                mean = stats[_KL].double() / stats[_ROWS].double().clamp(min=1.0)
                running = running & ~(mean > self.cfg.target_kl)  # a pass that was not made has a KL of 0
        self._result[:, :-1] = self._stats

    @torch.no_grad()
    def _judge_again(self) -> None:
        """Put advantages and returns as today's critic sees the rollout in place of those in the batch."""
        cfg, staged = self.cfg, self._staging.device
        values = self.model.value(self.model.params(self.flat), staged["norm_obs"]).reshape(cfg.num_steps + 1, -1)
        advantages, returns = gae(
            staged["scaled_rewards"], values[:-1], values[1:], staged["terminated"], staged["done"],
            gamma=cfg.gamma, gae_lambda=cfg.gae_lambda,
        )  # fmt: skip
        reset = staged["valid"] == 0
        advantages = advantages.reshape(-1).masked_fill(reset, 0.0)
        if cfg.norm_adv == "batch":
            exact, count = advantages.double(), staged["valid"].double().sum().clamp(min=1.0)
            centred = (exact - exact.sum() / count).masked_fill(reset, 0.0)
            advantages = (centred / ((centred * centred).sum() / count).sqrt().add(ADV_EPS)).float()
        staged["advantages"].copy_(advantages)
        staged["returns"].copy_(returns.reshape(-1).masked_fill(reset, 0.0))

    # --- capture -----------------------------------------------------------------------------------------------------
    def _choose_mode(self) -> None:
        self.mode = "graph"
        if self.peers.size > 1:
            raise BackendError(
                "--update graph: a graph is a whole update, and several processes sum their gradients in the middle of "
                "each step; leave --update at 'auto'"
            )
        if self.device.type == "cpu":
            self.why_eager = "on the CPU plain calls, which --update eager does with less"

    def _bind_where(self, *, compiled: bool) -> StepWhere:
        model, hp = self.model, self.hp

        def step(opt: Optimizer, scalars: Tensor, mb: Minibatch, running: Tensor) -> None:
            minibatch_step_where(model, hp, compiled, opt, scalars, mb, running)

        return step

    def _captured(self) -> Callable[[], None]:
        """Capture the update and return what replays it; before there is a batch no row counts, so nothing moves.

        Its steps are compiled if a compiler works here, else eager, which is said aloud.
        """
        eager = self._step_where
        self._step_where = compiled_apart(self._bind_where(compiled=True))
        try:
            self._warm_up()
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as err:  # torch documents no common base of its compiler errors; the reason is passed on
            reason = str(err).strip().split("\n")[0]
            log.warning("torch.compile does not work here, the graph is made of eager steps: %s", reason)
            self.why_eager = f"of eager steps, torch.compile does not work here: {reason}"
            self._step_where = eager
            self._warm_up()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._whole_update()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as err:
            reason = str(err).strip().split("\n")[0]
            raise BackendError(f"--update graph: CUDA does not capture the update here: {reason}") from err
        return graph.replay

    def _warm_up(self) -> None:
        """Run the update on a stream of its own, as a capture asks for."""
        current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._whole_update()
        current.wait_stream(side)
        torch.cuda.synchronize(self.device)
