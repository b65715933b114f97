"""REINFORCE: its estimate is the policy gradient, its baseline pays, and the fast one is the readable one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import training
from mdp import HORIZON, TinyMDP
from numpy.typing import NDArray
from torch import Tensor
from training import TwoTimesRule, one_thread, random_parameters, random_rollout  # noqa: F401

from ppo_fast import kernels
from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.errors import ShapeError
from ppo_fast.learners import choose
from ppo_fast.learners.reinforce import ReinforceLearner, total_returns
from ppo_fast.models import ActorCritic
from ppo_fast.presets import resolve
from ppo_fast.reference import losses, reinforce

KINDS = ("total_return", "reward_to_go", "advantage")
THETA = torch.from_numpy(np.random.default_rng(7).normal(size=(3, 2)))


def weights(mdp: TinyMDP, kind: str, gamma: float) -> NDArray[np.float64]:
    """Return what the reference weights each step of each episode with, (n, H): episodes are its environments."""
    e = mdp.episodes()
    shape = (HORIZON, len(e.states))
    ends = np.zeros(shape, bool)
    ends[-1] = True
    to_go = reinforce.rewards_to_go(e.rewards.T, np.full(shape, np.nan), ends, ends, gamma)
    if kind == "total_return":
        starts = np.zeros(shape, bool)
        starts[0] = True
        return reinforce.total_returns(to_go, starts).T
    baseline = mdp.values(THETA, gamma)[np.arange(HORIZON), e.states] if kind == "advantage" else 0.0
    return to_go.T - baseline


def estimates(mdp: TinyMDP, psi: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the estimate that each single episode gives, (n, S·K), by the reference's loss."""
    e = mdp.episodes()

    def one(theta: Tensor, states: Tensor, actions: Tensor, weight: Tensor) -> Tensor:
        log_probs = torch.log_softmax(theta, 1)[states, actions]
        return -HORIZON * reinforce.policy_gradient_loss(log_probs, weight)  # the mean over steps, back to their sum

    each = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0, 0))
    out = each(THETA, torch.from_numpy(e.states), torch.from_numpy(e.actions), torch.from_numpy(psi))
    return out.reshape(len(psi), -1).numpy()


# The estimate


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_estimate_over_all_episodes_is_the_exact_gradient(kind: str, seed: int) -> None:
    mdp = TinyMDP(seed, offset=1000.0)
    probability = mdp.probability(THETA, mdp.episodes()).numpy()
    assert probability.sum() == pytest.approx(1.0, abs=1e-12)
    mean = probability @ estimates(mdp, weights(mdp, kind, 1.0))
    np.testing.assert_allclose(mean, mdp.gradient(THETA, 1.0).ravel(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_discount_the_later_weights_lack_gamma_to_the_t_and_nothing_else(kind: str) -> None:
    gamma, mdp = 0.8, TinyMDP(5)
    psi = weights(mdp, kind, gamma)
    if kind != "total_return":
        psi = psi * gamma ** np.arange(HORIZON)
    mean = mdp.probability(THETA, mdp.episodes()).numpy() @ estimates(mdp, psi)
    np.testing.assert_allclose(mean, mdp.gradient(THETA, gamma).ravel(), rtol=1e-9, atol=1e-12)


def test_any_baseline_of_the_state_leaves_the_mean_and_a_wrong_weight_does_not() -> None:
    mdp, rng = TinyMDP(3), np.random.default_rng(1)
    e, exact = mdp.episodes(), mdp.gradient(THETA, 1.0).ravel()
    probability, to_go = mdp.probability(THETA, e).numpy(), weights(mdp, "reward_to_go", 1.0)
    by_state = rng.normal(size=(HORIZON, 3))[np.arange(HORIZON), e.states]
    by_action = rng.normal(size=(3, 2))[e.states, e.actions]
    np.testing.assert_allclose(probability @ estimates(mdp, to_go - by_state), exact, rtol=1e-9, atol=1e-12)
    assert np.abs(probability @ estimates(mdp, to_go - by_action) - exact).max() > 0.01
    assert np.abs(probability @ estimates(mdp, to_go[:, ::-1].copy()) - exact).max() > 0.01


# The variance


@pytest.mark.parametrize("seed", range(4))
def test_each_weight_has_less_variance_than_the_one_before(seed: int) -> None:
    # Of one episode's estimate, summed over its components. Sampled, as in training: 20,000 episodes, the same for all
    # three, and 500 resamples of them: every one must agree, so the chance that this is luck is below 1 in 100.
    mdp, rng = TinyMDP(seed, offset=10.0), np.random.default_rng(seed)
    probability = mdp.probability(THETA, mdp.episodes()).numpy()
    exact = mdp.gradient(THETA, 1.0).ravel()
    drawn = rng.choice(len(probability), size=20_000, p=probability / probability.sum())
    squares = {}
    for kind in KINDS:
        each = estimates(mdp, weights(mdp, kind, 1.0))[drawn]
        error = each.std(0, ddof=1) / np.sqrt(len(drawn))
        assert (np.abs(each.mean(0) - exact) < 5 * error).all(), kind  # the mean is the gradient's
        squares[kind] = ((each - exact) ** 2).sum(1)
    for _ in range(500):
        again = rng.integers(len(drawn), size=len(drawn))
        total, to_go, advantage = (squares[kind][again].mean() for kind in KINDS)
        assert total > to_go > advantage


# Weights of a rollout


def random_episodes(seed: int, steps: int = 40, num_envs: int = 6) -> Rollout:
    """Return a rollout as environments give it: rewards, ends of both kinds, and a reset row after each end."""
    rng = np.random.default_rng(seed)
    rollout = Rollout.allocate(steps, num_envs, 4, 2)
    just_ended = rng.random(num_envs) < 0.2
    for t in range(steps):
        rollout.valid[t] = ~just_ended
        ends = (rng.random(num_envs) < 0.15) & ~just_ended
        rollout.terminated[t] = ends & (rng.random(num_envs) < 0.5)
        rollout.truncated[t] = ends & ~rollout.terminated[t]
        rollout.done[t] = ends
        just_ended = ends
    rollout.scaled_rewards[:] = np.where(rollout.valid, rng.normal(size=(steps, num_envs)), 0.0)
    rollout.values_all[:] = rng.normal(size=(steps + 1, num_envs))
    return rollout


@pytest.mark.parametrize("seed", range(3))
def test_gae_with_lambda_1_gives_the_references_rewards_to_go_and_totals(seed: int) -> None:
    rollout, gamma = random_episodes(seed), 0.97
    assert (~rollout.valid).sum() > 10
    assert rollout.terminated.any()
    assert rollout.truncated.any()
    kernels.gae(
        rollout.scaled_rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.done,
        gamma=gamma, gae_lambda=1.0, out=(rollout.advantages, rollout.returns),
    )  # fmt: skip
    to_go = reinforce.rewards_to_go(
        rollout.scaled_rewards.astype(float), rollout.next_values.astype(float), rollout.terminated, rollout.done, gamma
    )
    keep = rollout.valid
    np.testing.assert_allclose(rollout.returns[keep], to_go[keep], rtol=1e-4, atol=1e-5)
    starts = ~keep
    starts[1:] |= ~keep[:-1]
    np.testing.assert_allclose(
        total_returns(rollout)[keep], reinforce.total_returns(to_go, starts)[keep], rtol=1e-4, atol=1e-5
    )


def test_rewards_to_go_by_hand() -> None:
    # One environment: two steps to a terminal state, a reset row, one step to a time limit, a reset row, one step.
    rewards = np.array([[1.0], [2.0], [0.0], [4.0], [0.0], [8.0]])
    next_values = np.array([[np.nan], [np.nan], [np.nan], [100.0], [np.nan], [10.0]])
    terminated = np.array([[False], [True], [False], [False], [False], [False]])
    done = terminated | np.array([[False], [False], [False], [True], [False], [False]])
    to_go = reinforce.rewards_to_go(rewards, next_values, terminated, done, 0.5)
    assert to_go[[0, 1, 3, 5], 0].tolist() == [2.0, 2.0, 54.0, 13.0]
    starts = np.array([[False], [False], [True], [True], [True], [True]])
    assert reinforce.total_returns(to_go, starts)[[0, 1, 3, 5], 0].tolist() == [2.0, 2.0, 54.0, 13.0]
    longer = reinforce.rewards_to_go(
        np.ones((3, 1)), np.zeros((3, 1)), np.zeros((3, 1), bool), np.zeros((3, 1), bool), 1
    )
    assert longer[:, 0].tolist() == [3.0, 2.0, 1.0]
    assert reinforce.total_returns(longer, np.zeros((3, 1), bool))[:, 0].tolist() == [3.0, 3.0, 3.0]


# The fast learner

MODELS = {
    "gaussian": ActorCritic(training.OBS_DIM, training.ACT_DIM, (16, 16)),
    "categorical": ActorCritic(training.OBS_DIM, 1, (16, 16), num_actions=4),
}


def make(model: ActorCritic, flat: Tensor, **options: Any) -> ReinforceLearner:
    defaults = {"learner": "torch", "update": "eager", "critic_epochs": 2}
    cfg: Config = resolve(
        algo="reinforce", env="Hopper-v5", num_envs=8, num_steps=16, minibatch_size=64, **{**defaults, **options}
    )
    learner, _ = choose.make_learner(model, flat, cfg, torch.device("cpu"))
    assert isinstance(learner, ReinforceLearner)
    return learner


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("norm_adv", ["none", "batch"])
def test_the_policys_step_is_as_exact_as_the_reference(kind: str, norm_adv: str) -> None:
    model, rule = MODELS[kind], TwoTimesRule()
    policy = [name for name in model.shapes() if name.startswith("actor")]
    for seed in range(32):
        flat = random_parameters(model, seed)
        rollout = random_rollout(model, flat, seed)
        learner = make(model, flat, norm_adv=norm_adv, policy_lr=0.01)
        learner.update(rollout)
        stepped = []
        for dtype in (torch.float32, torch.float64):
            net = training.reference_net(model, flat, dtype)
            rows = training.valid_rows(rollout, dtype)
            psi = losses.normalize_advantages(rows["advantages"]) if norm_adv == "batch" else rows["advantages"]
            head, _ = net(rows["norm_obs"])
            named = training.reference_parameters(net)
            optimizer = torch.optim.Adam([named[name] for name in policy], lr=0.01, eps=1e-5)
            reinforce.policy_gradient_loss(net.log_prob(head, rows["actions"]), psi).backward()
            torch.nn.utils.clip_grad_norm_([named[name] for name in policy], 0.5)
            optimizer.step()
            stepped.append({name: named[name].detach() for name in policy})
        ours = {name: view for name, view in model.unflatten(learner.flat).items() if name in policy}
        rule.add(ours, *stepped)
    rule.check()


@pytest.mark.parametrize("learner_name", ["torch", "native"])
def test_the_critic_is_fitted_and_the_policys_step_does_not_depend_on_it(
    request: pytest.FixtureRequest, learner_name: str
) -> None:
    if learner_name == "native":
        request.getfixturevalue("native_core")  # fails where the core is required, skips with the reason elsewhere
    model = MODELS["gaussian"]
    flat = random_parameters(model, 1)
    rollout = random_rollout(model, flat, 1)
    update = "eager" if learner_name == "torch" else "auto"
    short, long = (make(model, flat, learner=learner_name, update=update, critic_epochs=n) for n in (1, 30))
    losses_seen = [learner.update(rollout)["value_loss"] for learner in (short, long)]
    assert losses_seen[1] < 0.9 * losses_seen[0]  # the mean over epochs falls
    for name, view in model.unflatten(short.flat).items():
        assert torch.equal(view, model.unflatten(long.flat)[name]) == name.startswith("actor"), name


def test_reset_rows_reach_nothing_and_a_rollout_of_them_alone_moves_nothing() -> None:
    model = MODELS["gaussian"]
    flat = random_parameters(model, 2)
    for weight, gae_lambda in (("advantage", 0.95), ("reward_to_go", 1.0), ("total_return", 1.0)):
        results = []
        for poison in (False, True):
            rollout = random_rollout(model, flat, 2)
            if poison:
                for array in (rollout.actions, rollout.log_probs, rollout.advantages, rollout.returns):
                    array[~rollout.valid] = np.nan
            learner = make(model, flat, policy_weight=weight, gae_lambda=gae_lambda)
            metrics = learner.update(rollout)
            results.append((learner.flat.numpy().tobytes(), metrics))
        assert results[0] == results[1]
        assert learner.is_finite()
    empty = random_rollout(model, flat, 3)
    empty.valid[:] = False
    learner = make(model, flat)
    metrics = learner.update(empty)
    assert torch.equal(learner.flat, flat)
    assert metrics.keys() == make(model, flat).update(random_rollout(model, flat, 3)).keys()


def test_the_three_weights_take_three_steps() -> None:
    model = MODELS["gaussian"]
    flat = random_parameters(model, 4)
    steps = set()
    for weight in KINDS:
        learner = make(model, flat, policy_weight=weight, gae_lambda=1.0)
        learner.update(random_rollout(model, flat, 4))
        steps.add(learner.flat.numpy().tobytes())
    assert len(steps) == 3


def test_state_goes_round_and_a_forged_one_is_refused() -> None:
    model = MODELS["gaussian"]
    flat = random_parameters(model, 5)
    first = make(model, flat)
    first.update(random_rollout(model, flat, 5))
    second = make(model, first.flat)
    second.load(first.state())
    for learner in (first, second):
        learner.set_progress(0.25)
        learner.update(random_rollout(model, flat, 6))
    assert torch.equal(first.flat, second.flat)
    for name, value in {
        "policy_exp_avg": torch.zeros(3),
        "policy_exp_avg_sq": -torch.ones_like(flat),
        "policy_steps": torch.tensor([-1]),
    }.items():
        with pytest.raises(ShapeError, match=name):
            second.load({**first.state(), name: value})
    with pytest.raises(ShapeError, match="finite"):
        second.load({**first.state(), "policy_exp_avg": torch.full_like(flat, torch.nan)})


def test_both_rates_are_annealed_and_scaled() -> None:
    model = MODELS["gaussian"]
    learner = make(model, random_parameters(model, 6), policy_lr=0.02, learning_rate=0.01)
    learner.set_progress(0.75, 0.5)
    metrics = learner.update(random_rollout(model, learner.flat, 6))
    assert metrics["policy_lr"] == pytest.approx(0.02 * 0.25 * 0.5)
    assert metrics["learning_rate"] == pytest.approx(0.01 * 0.25 * 0.5)


def test_the_reference_learns_to_balance_a_pole() -> None:
    # A policy without training balances it for about 20 steps.
    settings = reinforce.Settings(
        env="CartPole-v1", total_timesteps=25_000, num_envs=8, num_steps=64, minibatch_size=128, critic_epochs=5,
        policy_lr=0.01, gae_lambda=1.0,
    )  # fmt: skip
    agent = reinforce.Reinforce(settings)
    agent.run(lambda row: None)
    assert agent.evaluate().mean() >= 100
