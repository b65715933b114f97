"""What was compared with the reference: groups of stages by implementations, a rule in every cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ppo_fast.lockstep.rules import Rule

Stages = Mapping[str, type[Rule]]


@dataclass
class Group:
    """A table of rules.

    Args:
        title: what the stages have in common.
        stages: name -> kind of rule, a row each; a stage that is never reached is a complaint.
    """

    title: str
    stages: Stages
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)  # implementation -> stage -> rule
    missing: dict[str, str] = field(default_factory=dict)  # implementation -> why it cannot be had here

    def add_column(self, implementation: str) -> dict[str, Any]:
        """Return the rules of an implementation, one per stage."""
        self.columns[implementation] = {stage: kind() for stage, kind in self.stages.items()}
        return self.columns[implementation]

    def missing_by_reason(self) -> dict[str, list[str]]:
        """Return reason -> implementations."""
        return {
            reason: [name for name, why in self.missing.items() if why == reason]
            for reason in dict.fromkeys(self.missing.values())
        }


@dataclass
class Report:
    """What a run in lock-step found, and what it met: the shares say whether clipping was put to the test."""

    groups: list[Group]
    transitions: int
    resets: int
    minibatches: int
    clipped_ratios: float
    clipped_gradients: float

    @property
    def num_checks(self) -> int:
        """How many cells were filled."""
        return sum(len(rules) for group in self.groups for rules in group.columns.values())

    def failures(self) -> dict[tuple[str, str, str], str]:
        """Return (group, stage, implementation) -> complaint."""
        return {
            (group.title, stage, implementation): complaint
            for group in self.groups
            for implementation, rules in group.columns.items()
            for stage, rule in rules.items()
            if (complaint := rule.complaint())
        }
