"""Who works when: rollout and update in turn, or the next rollout while the learner learns from the one before.

    in turn         collect(θ_k) -> rollout k -> learn: θ_k -> θ_{k+1}
    overlap         learn from rollout k: θ_k -> θ_{k+1}, and meanwhile collect(θ_k) -> rollout k+1

So an overlapped rollout was acted by parameters one update older than those that it improves: exactly one, because each
waits for the other. Its log-probabilities are those of the parameters that acted, and so are its values; PPO's ratio
starts from them. The statistics of observations that it was acted on hold every rollout before it, as in turn: they do
not wait for the learner.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from ppo_fast.batch import Rollout
from ppo_fast.errors import NonFiniteError
from ppo_fast.learners.base import Learner
from ppo_fast.rollout import Worker
from ppo_fast.timing import PhaseTimer


class Schedule:
    """Collect rollouts and have them learned from.

    Args:
        worker: collects, under its ``normalizer``; with overlap its buffers are swapped for others of the same shapes.
        learner: learns, with overlap in a thread of its own, and on CUDA in a stream of its own.
        timer: receives the phase ``update``: with overlap how long the learner was waited for after the collection.
    """

    def __init__(self, worker: Worker, learner: Learner, timer: PhaseTimer) -> None:
        self.worker, self.learner, self.timer = worker, learner, timer
        self._normalizer = worker.normalizer
        self._ahead: Rollout | NonFiniteError | None = None
        self._spare: Rollout | None = None
        #: What was last handed out, or what a collection that failed left.
        self.subject = worker.buffers
        self._stream: torch.cuda.Stream | None = None

    @property
    def is_ahead(self) -> bool:
        """Whether a rollout has been collected that has not been handed out."""
        return self._ahead is not None

    @property
    def steps_done(self) -> int:
        """Steps per environment up to the end of the last rollout that was handed out."""
        return self.worker.steps_done - self.worker.num_steps * self.is_ahead

    def rollout(self) -> Rollout:
        """Return the rollout that was collected ahead, or collect one now.

        Raises:
            NonFiniteError: as the worker's ``collect``, then or now.
        """
        ahead, self._ahead = self._ahead, None
        self.subject = self.worker.buffers
        if isinstance(ahead, NonFiniteError):
            raise ahead
        return self.worker.collect(self.learner.flat) if ahead is None else ahead

    def learn(self, rollout: Rollout, *, ahead: bool) -> dict[str, float]:
        """Update on the last rollout, take it into the statistics of observations, and return the update's metrics.

        With ``ahead`` the learner works while the statistics advance and the next rollout is collected under them. What
        is wrong with that one is raised when it is asked for, so that this update is complete.
        """
        if not ahead:
            with self.timer("update"):
                learned = self.learner.update(rollout)
                self._normalizer.update(rollout.obs[:-1], rollout.valid)
            return learned
        acting = self.learner.flat.detach().clone()  # the learner changes its own in place
        self._swap_buffers()
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as thread:
            pending = thread.submit(self._update, rollout)
            with self.timer("update"):
                self._normalizer.update(rollout.obs[:-1], rollout.valid)
            try:
                self._ahead = self.worker.collect(acting)
            except NonFiniteError as err:
                self._ahead = err
            with self.timer("update"):
                return pending.result()

    def _update(self, rollout: Rollout) -> dict[str, float]:
        device = self.learner.flat.device
        if device.type != "cuda":
            return self.learner.update(rollout)
        # On the actor's stream the copy of the parameters that acts would wait for the whole update.
        self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.default_stream(device))
        with torch.cuda.stream(self._stream):
            return self.learner.update(rollout)  # it waits for its metrics, and so for all that it does

    def _swap_buffers(self) -> None:
        """Let the worker write where nobody reads; it goes on from the observations of the last rollout."""
        last = self.worker.buffers
        if self._spare is None:
            *_, act_dim = last.actions.shape
            steps, envs = last.valid.shape
            self._spare = Rollout.allocate(steps, envs, last.obs.shape[-1], act_dim, last.first_env)
        self.worker.buffers, self._spare = self._spare, last
        self.worker.buffers.obs[-1] = last.obs[-1]
