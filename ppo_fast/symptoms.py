"""What the numbers of a run say is wrong with it, in words: what, why, what to try. They judge, and stop nothing.

The thresholds without another source were set so that none of the 13 runs in ``benchmarks/results/*learning`` and
``*make-train``, all of which learned, shows a symptom but that its learner was slow.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ppo_fast.timing import shares

WINDOW = 10  # rows: a symptom is a median over so many, and is gone when it has been absent for as many
JUDGED_EVERY = 5  # rows, because an iteration may take no longer than 20 ms, and a judgement 0.3
LONG = 20  # the same for the critic, which may need more than 10 iterations to predict anything

KL_OVER_TARGET = 3.0  # Spinning Up ends an update at 1.5 times the target; beyond twice it, rsl_rl lowers the rate
KL = 0.1  # where there is no target: about twice the highest value of the runs that learned, 0.054
CLIP_FRAC = 0.5  # most of the batch gives no gradient any more; runs that learned had at most 0.48
SIGMA = 0.02  # of half the action range: next to no exploration; runs that learned ended at 0.08 or above
ENTROPY_SHARE = 0.02  # of log K, discrete actions
UPDATE_SHARE = 0.5
# Of max_grad_norm. Being clipped at every step is the rule (4 to 60 times the bound in runs that learned), and Adam
# does not mind a constant factor; at 100 times the direction is that of a few rows.
GRAD_OVER_BOUND = 100.0
EPISODES = 2.0  # time limits that have passed without one finished episode
NO_LIMIT_STEPS = 10_000  # where there is no time limit, ten times that of MuJoCo's tasks

_HALF_LOG_2_PI_E = 0.5 * math.log(2 * math.pi * math.e)  # entropy of a normal distribution is this plus log sigma

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Symptom:
    """One thing that is wrong: a name that stays, and in words what is seen, what it means and what to try."""

    name: str
    what: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.cause}; {self.remedy}"


class Symptoms:
    """Look at the rows of a run as they come.

    Args:
        config: options of the run (:meth:`ppo_fast.config.Config.to_dict`).
        info: its ``env_spec`` tells ``act_dim``, ``num_actions`` and ``max_episode_steps``, its ``learner`` a ``name``.
    """

    def __init__(self, config: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        self._config, self._info = config, info
        self.forget()

    def forget(self) -> None:
        """Begin afresh: the rows of a run that is rolled back say nothing of what follows."""
        self._recent, self._rows = _Recent(self._config, self._info), 0
        self._absent: dict[str, int] = {}  # rows since each was last seen
        self._seen: dict[str, Symptom] = {}

    @property
    def present(self) -> list[Symptom]:
        """What is wrong now, the gravest first."""
        return [self._seen[name] for name in RULES if name in self._seen]

    def take(self, row: Row) -> list[Symptom]:
        """Take one row of metrics; return what was not wrong before."""
        self._recent.take(row)
        self._rows += 1
        if self._rows % JUDGED_EVERY:
            return []
        arisen = []
        for name, rule in RULES.items():
            if (words := rule(self._recent)) is not None:
                if name not in self._seen:
                    arisen.append(name)
                self._seen[name], self._absent[name] = Symptom(name, *words), 0
            elif name in self._seen:
                self._absent[name] += JUDGED_EVERY
                if self._absent[name] >= WINDOW:
                    del self._seen[name]
        return [self._seen[name] for name in arisen]


class _Recent:
    """The last rows, and what has to be remembered of those before."""

    def __init__(self, config: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        self.config, self.info = config, info
        self.spec: Mapping[str, Any] = info.get("env_spec") or {}
        self.rows: deque[Row] = deque(maxlen=LONG)
        self.first_return: float | None = None
        self.best_return = -math.inf

    def take(self, row: Row) -> None:
        self.rows.append(row)
        if (value := row.get("episode_return")) is not None:
            self.first_return = value if self.first_return is None else self.first_return
            self.best_return = max(self.best_return, value)

    def last(self, rows: int = WINDOW) -> list[Row]:
        """Return the last so many rows; none while there are fewer."""
        return list(self.rows)[-rows:] if len(self.rows) >= rows else []

    def median(self, name: str, rows: int = WINDOW) -> float | None:
        """Return the median over the last rows; None while there are too few, or one lacks the value."""
        values = [row[name] for row in self.last(rows) if row.get(name) is not None]
        return statistics.median(values) if len(values) == rows else None

    @property
    def is_ppo(self) -> bool:
        return bool(self.config.get("algo") == "ppo")


Words = tuple[str, str, str] | None


def _return_fell(recent: _Recent) -> Words:
    # Below half of the best and half the way back to where the run began: returns may be negative, or begin high.
    now, first, best = recent.rows[-1].get("episode_return"), recent.first_return, recent.best_return
    if now is None or first is None or not (now < best - abs(best) / 2 and now < (first + best) / 2):
        return None
    return (
        f"the return has fallen to {now:,.1f}, from {best:,.1f} at best",
        "the policy was changed too much at once, or the critic lost track",
        "lower --learning-rate or bound the steps with --target-kl; `ppo_fast.play --best` plays the best checkpoint"
        if recent.is_ppo
        else "take smaller steps; `ppo_fast.play --best` plays the best checkpoint",
    )


def _kl(recent: _Recent) -> Words:
    kl = recent.median("approx_kl")
    target = recent.config.get("adaptive_kl") or recent.config.get("target_kl")
    if kl is None or recent.config.get("algo") == "trpo" or kl <= (KL_OVER_TARGET * target if target else KL):
        return None
    what = f"KL is {kl / target:.1f}x its target of {target:g}" if target else f"KL is {kl:.2f}, above {KL:g}"
    if not recent.is_ppo:
        return what, "an update moves the policy far from the one that acted", "lower --policy-lr"
    remedy = "lower --learning-rate, or fewer --update-epochs" + ("" if target else ", or --target-kl 0.02")
    return what, "an update moves the policy far from the one that acted", remedy


def _clip_frac(recent: _Recent) -> Words:
    share = recent.median("clip_frac")
    if share is None or share <= CLIP_FRAC:
        return None
    return (
        f"{share:.0%} of the probability ratios are beyond the clip range",
        "the steps are too large, and most rows give no gradient any more",
        "lower --learning-rate, or fewer --update-epochs",
    )


def _explained_variance(recent: _Recent) -> Words:
    value = recent.median("explained_var", LONG)
    if value is None or value >= 0:
        return None
    options = "more --update-epochs, or --norm-reward if it is off" if recent.is_ppo else "more --critic-epochs"
    return (
        f"explained variance is {value:.2f}, below 0",
        "the critic predicts returns worse than their mean would, so that advantages are noise",
        f"{options}; see that the rewards are neither huge nor without pattern",
    )


def _entropy(recent: _Recent) -> Words:
    entropy = recent.median("entropy")
    kinds, dims = recent.spec.get("num_actions"), recent.spec.get("act_dim")
    if entropy is None or not dims:
        return None
    if kinds:
        if kinds < 2 or entropy >= ENTROPY_SHARE * math.log(kinds):
            return None
        what = f"entropy is {entropy:.3f}, {entropy / math.log(kinds):.1%} of that of equal chances"
    else:
        sigma = math.exp(entropy / dims - _HALF_LOG_2_PI_E)
        if sigma >= SIGMA:
            return None
        what = f"entropy has collapsed: the actions' standard deviation is {sigma:.1%} of half their range"
    remedy = "raise --ent-coef, or lower --learning-rate" if recent.is_ppo else "take smaller steps of the policy"
    return what, "the policy hardly explores any more, and cannot learn what it does not try", remedy


def _no_episode(recent: _Recent) -> Words:
    row, limit = recent.rows[-1], recent.spec.get("max_episode_steps")
    processes = (recent.info.get("processes") or {}).get("count", 1)  # whose environments env_steps counts, too
    each = row["env_steps"] / (recent.config["num_envs"] * processes)
    if row.get("episode_return") is not None or each <= (EPISODES * limit if limit else NO_LIMIT_STEPS):
        return None
    return (
        f"no episode has ended in {each:,.0f} steps of each environment",
        f"its time limit of {limit:,} steps is not kept" if limit else "it has no time limit",
        "see when it terminates and truncates" if limit else "register it with max_episode_steps",
    )


def _gradient(recent: _Recent) -> Words:
    norm, bound = recent.median("grad_norm"), recent.config.get("max_grad_norm")
    if norm is None or not bound or norm <= GRAD_OVER_BOUND * bound:
        return None
    return (
        f"the gradient's norm is {norm:,.0f}, {norm / bound:,.0f}x --max-grad-norm",
        "a few rows with huge errors, mostly of the critic, decide the step",
        "--norm-reward if it is off, or lower --vf-coef" if recent.is_ppo else "--norm-reward if it is off",
    )


def _slow_learner(recent: _Recent) -> Words:
    share = shares(recent.last()).get("update", 0.0)
    if share <= UPDATE_SHARE:
        return None
    learner = recent.info.get("learner") or {}
    chosen = learner.get("name") == "torch" and not learner.get("reason")  # else there is no native one to be had
    fewer = "fewer --update-epochs" if recent.is_ppo else "fewer --critic-epochs"
    return (
        f"{share:.0%} of the time goes into updates",
        "the learner is slower than the simulator",
        f"a larger --minibatch-size, {fewer}, or smaller --hidden-sizes" + (", or --learner native" if chosen else ""),
    )


#: In order of gravity: the live view shows the first ones.
RULES: dict[str, Callable[[_Recent], Words]] = {
    "return fell": _return_fell,
    "KL": _kl,
    "clip fraction": _clip_frac,
    "explained variance": _explained_variance,
    "entropy": _entropy,
    "no episode": _no_episode,
    "gradient": _gradient,
    "slow learner": _slow_learner,
}
