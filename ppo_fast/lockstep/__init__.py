"""The fast path and the reference trainer in lock-step: same seeds, noise and orders, compared stage by stage.

``run.py`` drives the reference trainer (``teacher.py``), which shows each of its stages to the watchers in
``environments.py``, ``numerics.py``, ``actors.py`` and ``learners.py``; they hold the fast path to it by ``rules.py``.
"""

from __future__ import annotations
