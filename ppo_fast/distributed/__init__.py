"""Processes that train one policy together: who they are, and the few things that they say to each other.

A run of one process has :data:`ALONE`, whose words reach nobody and cost nothing. :func:`connect` finds the others
where ``torchrun``, or whatever sets the same variables, has started several. ``torch.distributed`` is imported only
then, and nothing is pickled: what is sent are the bytes of arrays and of JSON.

Every method of :class:`Peers` must be called by all processes, in the same order.
"""

from __future__ import annotations

from ppo_fast.distributed.meeting import RENDEZVOUS_S, connect
from ppo_fast.distributed.peers import ALONE, Peers

__all__ = ["ALONE", "RENDEZVOUS_S", "Peers", "connect"]
