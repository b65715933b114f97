"""Workers that collect rollouts: T steps of N environments under one frozen policy, with torch or the native actor."""

from __future__ import annotations

from ppo_fast.rollout.choose import Worker, choose_actor, make_worker
from ppo_fast.rollout.finite import check_advantages
from ppo_fast.rollout.native_worker import NativeRolloutWorker
from ppo_fast.rollout.torch_worker import RolloutWorker

__all__ = ["NativeRolloutWorker", "RolloutWorker", "Worker", "check_advantages", "choose_actor", "make_worker"]
