"""TRPO: Fisher-vector products, conjugate gradients, the line search, and the fast update against the readable one."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import training
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from training import one_thread, random_parameters, random_rollout  # noqa: F401

from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.learners import choose, natural
from ppo_fast.learners import trpo as fast
from ppo_fast.learners.trpo import TRPOLearner
from ppo_fast.models import ActorCritic, Categorical, Gaussian
from ppo_fast.presets import resolve
from ppo_fast.reference import losses, trpo

ACTIVATIONS = ("tanh", "relu", "elu", "silu")
SMALL = {"gaussian": (5, 2, 0), "categorical": (5, 1, 3)}


def small_model(kind: str, activation: str = "tanh") -> ActorCritic:
    obs_dim, act_dim, num_actions = SMALL[kind]
    return ActorCritic(obs_dim, act_dim, (4, 3), activation, num_actions=num_actions)


def states(model: ActorCritic, rows: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(rows, model.obs_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def textbook_kl(model: ActorCritic, old: Tensor, new: Tensor, norm_obs: Tensor) -> Tensor:
    """Return the mean KL divergence by torch.distributions, which is nobody's code here."""

    def distribution(flat: Tensor) -> torch.distributions.Distribution:
        params = model.params(flat)
        head = model.head(params, norm_obs)
        if model.num_actions:
            return torch.distributions.Categorical(logits=head)
        normal = torch.distributions.Normal(head, params.log_std.exp().expand_as(head))
        return torch.distributions.Independent(normal, 1)

    return torch.distributions.kl_divergence(distribution(old), distribution(new)).mean()


# The KL divergence


@pytest.mark.parametrize("kind", SMALL)
def test_kl_is_that_of_torch_distributions(kind: str) -> None:
    model = small_model(kind)
    old, new = (random_parameters(model, seed).double() for seed in (1, 2))
    norm_obs = states(model)
    expected = float(textbook_kl(model, old, new, norm_obs))
    heads = [model.head(model.params(flat), norm_obs) for flat in (old, new)]
    stds = [model.params(flat).log_std for flat in (old, new)]
    policies = [model.policy(head, log_std) for head, log_std in zip(heads, stds, strict=True)]
    assert expected > 1e-3
    assert float(fast.mean_kl(*policies)) == pytest.approx(expected, rel=1e-10)
    if model.num_actions:
        assert float(losses.categorical_kl(*heads).mean()) == pytest.approx(expected, rel=1e-10)
    else:
        theirs = losses.gaussian_kl(heads[0], stds[0], heads[1], stds[1])
        assert float(theirs.mean()) == pytest.approx(expected, rel=1e-10)


# The Fisher matrix


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", SMALL)
def test_fisher_vector_products_are_those_of_the_explicit_hessian_of_the_kl(kind: str, activation: str) -> None:
    model = small_model(kind, activation)
    flat, norm_obs = random_parameters(model, 3).double(), states(model)
    hessian = torch.autograd.functional.hessian(lambda new: textbook_kl(model, flat, new, norm_obs), flat)
    policy = torch.tensor(
        [name.startswith("actor") for name, view in model.unflatten(flat).items() for _ in view.ravel()]
    )
    assert hessian[policy][:, policy].abs().max() > 0.01
    assert not hessian[~policy].any()  # the critic has no part in it

    fisher = natural.Fisher(model, flat, norm_obs)
    products = torch.stack([fisher.times(v) for v in torch.eye(model.num_params, dtype=torch.float64)])
    torch.testing.assert_close(products, hessian, rtol=1e-8, atol=1e-10)

    net = training.reference_net(model, flat, torch.float64)
    named = training.reference_parameters(net)
    names = [name for name in model.shapes() if name.startswith("actor")]
    head_old = net(norm_obs)[0].detach()

    def kl() -> Tensor:
        if model.num_actions:
            return losses.categorical_kl(head_old, net(norm_obs)[0]).mean()
        return losses.gaussian_kl(head_old, net.log_std.detach(), net(norm_obs)[0], net.log_std).mean()

    parameters = [named[name] for name in names]
    size = sum(p.numel() for p in parameters)
    theirs = torch.stack([trpo.hessian_vector_product(kl, parameters, v) for v in torch.eye(size, dtype=torch.float64)])
    torch.testing.assert_close(theirs, hessian[policy][:, policy], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", SMALL)
def test_half_the_quadratic_form_is_what_a_small_step_costs(kind: str) -> None:
    model = small_model(kind)
    flat, norm_obs = random_parameters(model, 4).double(), states(model)
    v = torch.randn(model.num_params, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    quadratic = 0.5 * float(v @ natural.Fisher(model, flat, norm_obs).times(v))
    for size, accuracy in ((1e-2, 0.1), (1e-3, 0.01)):  # the error falls with the step
        cost = float(textbook_kl(model, flat, flat + size * v, norm_obs)) / size**2
        assert cost == pytest.approx(quadratic, rel=accuracy)


# Conjugate gradients


def spd(seed: int, size: int, condition: float) -> Tensor:
    """Return a random symmetric positive definite matrix with eigenvalues from 1 to ``condition``."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return torch.from_numpy(q * np.geomspace(1, condition, size) @ q.T)


@given(seed=st.integers(0, 10**6), size=st.integers(1, 12), power=st.floats(0, 3))
def test_conjugate_gradients_solve(seed: int, size: int, power: float) -> None:
    a = spd(seed, size, 10**power)
    b = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=size))
    expected = np.linalg.solve(a.numpy(), b.numpy())
    ours, residual = natural.conjugate_gradient(lambda v: a @ v, b, 3 * size)
    theirs = trpo.conjugate_gradient(lambda v: a @ v, b, 3 * size)
    for x in (ours, theirs):
        assert np.linalg.norm(x.numpy() - expected) <= 1e-6 * np.linalg.norm(expected)
    assert float(residual) < 1e-6


@pytest.mark.parametrize("solve", [lambda *a: natural.conjugate_gradient(*a)[0], trpo.conjugate_gradient])
def test_every_step_comes_closer_and_the_first_is_steepest_descent(solve: Any) -> None:
    a, b = spd(0, 30, 100.0), torch.ones(30, dtype=torch.float64)
    exact = torch.linalg.solve(a, b)
    errors = []
    for steps in range(12):
        x = solve(lambda v: a @ v, b, steps)
        errors.append(float((x - exact) @ a @ (x - exact)))  # the norm in which it is the best of its subspace
    assert all(after < before for before, after in itertools.pairwise(errors))
    torch.testing.assert_close(solve(lambda v: a @ v, b, 1), (b @ b) / (b @ a @ b) * b)


def test_nothing_to_solve_and_a_matrix_that_is_not_positive() -> None:
    zero = torch.zeros(4)
    x, residual = natural.conjugate_gradient(lambda v: v, zero, 10)
    assert not x.any()
    assert float(residual) == 0.0
    assert not trpo.conjugate_gradient(lambda v: v, zero, 10).any()
    x, _ = natural.conjugate_gradient(lambda v: -v, torch.ones(4), 10)
    assert not x.any()
    x, _ = natural.conjugate_gradient(lambda v: v * torch.nan, torch.ones(4), 10)
    assert not x.any()


# The line search

points = st.lists(
    st.tuples(st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True, allow_infinity=True)),
    min_size=1, max_size=12,
)  # fmt: skip


@given(found=points, before=st.floats(-1, 1), delta=st.floats(1e-6, 1.0))
def test_the_line_search_takes_the_longest_step_that_is_allowed_and_helps(
    found: list[tuple[float, float]], before: float, delta: float
) -> None:
    answers = iter(found)
    fraction = trpo.line_search(lambda _: next(answers), before, delta, len(found), 0.5)
    good = [objective > before and kl <= delta for objective, kl in found]  # False with NaN
    assert fraction == (0.5 ** good.index(True) if any(good) else 0.0)


def make(model: ActorCritic, flat: Tensor, **options: Any) -> TRPOLearner:
    defaults = {"learner": "torch", "update": "eager", "critic_epochs": 1, "delta": 0.01}
    cfg: Config = resolve(
        algo="trpo", env="Hopper-v5", num_envs=8, num_steps=16, minibatch_size=64, **{**defaults, **options}
    )
    learner, _ = choose.make_learner(model, flat, cfg, torch.device("cpu"))
    assert isinstance(learner, TRPOLearner)
    return learner


def on_policy_rollout(model: ActorCritic, flat: Tensor, seed: int, **options: Any) -> Rollout:
    """Return a random rollout whose log-probabilities are those of ``flat``."""
    rollout = random_rollout(model, flat, seed, **options)
    net = training.reference_net(model, flat, torch.float64)
    rows = torch.from_numpy(rollout.norm_obs[:-1].astype(np.float64)).reshape(rollout.valid.size, -1)
    actions = torch.from_numpy(rollout.actions.astype(np.float64)).reshape(rollout.valid.size, -1)
    with torch.no_grad():
        rollout.log_probs[:] = net.log_prob(net(rows)[0], actions).numpy().reshape(rollout.valid.shape)
    return rollout


MODELS = {
    "gaussian": ActorCritic(training.OBS_DIM, training.ACT_DIM, (16, 16)),
    "categorical": ActorCritic(training.OBS_DIM, 1, (16, 16), num_actions=4),
}


def valid_states(rollout: Rollout) -> Tensor:
    return training.valid_rows(rollout, torch.float64)["norm_obs"]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("damping", [0.1, 0.0])
@pytest.mark.parametrize("delta", [1e-4, 0.01, 0.5])
def test_no_update_moves_the_policy_further_than_delta(kind: str, damping: float, delta: float) -> None:
    # Long steps of few iterations of the solver, so that the quadratic model is wrong and the search has work to do.
    model, backtracked, moved = MODELS[kind], 0.0, 0
    for seed in range(12):
        flat = random_parameters(model, seed)
        rollout = on_policy_rollout(model, flat, seed)
        learner = make(model, flat, delta=delta, cg_damping=damping, cg_steps=1 + seed % 10)
        metrics = learner.update(rollout)
        kl = float(textbook_kl(model, flat.double(), learner.flat.double(), valid_states(rollout)))
        assert kl <= delta * (1 + 1e-3) + 1e-9  # it was measured in float32
        assert metrics["approx_kl"] <= delta
        assert metrics["approx_kl"] == pytest.approx(kl, rel=1e-2, abs=1e-7)
        backtracked += metrics["backtracks"]
        moved += metrics["step_fraction"] > 0
    assert moved >= 11
    assert backtracked > 0 or damping or delta < 0.5  # damping shortens steps


def test_a_step_that_is_too_long_is_cut_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["gaussian"]
    flat = random_parameters(model, 1)
    rollout = on_policy_rollout(model, flat, 1)

    def set_length(factor: float) -> TRPOLearner:
        """Lengthen the step behind the back of its scaling."""
        learner = make(model, flat, backtrack_steps=4)
        search = learner._search
        monkeypatch.setattr(
            learner, "_search", lambda old, before, step, rows: search(old, before, factor * step, rows)
        )
        return learner

    cut = set_length(1.3)
    metrics = cut.update(rollout)
    assert metrics["backtracks"] >= 1
    assert 0 < metrics["approx_kl"] <= 0.01
    for factor in (50.0, -1.0, math.nan, math.inf):  # far beyond, uphill turned down, broken
        refused = set_length(factor)
        metrics = refused.update(rollout)
        assert metrics["step_fraction"] == metrics["approx_kl"] == 0.0
        assert metrics["backtracks"] == 4
        before, after = model.unflatten(flat), model.unflatten(refused.flat)
        assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("actor"))


# The update


class Readable(trpo.TRPO):
    """The reference's policy step on rows and networks that are given, without environments."""

    def __init__(self, model: ActorCritic, flat: Tensor, dtype: torch.dtype, settings: trpo.Settings) -> None:
        self.settings, self.num_actions = settings, model.num_actions
        self.net = training.reference_net(model, flat, dtype)
        named = training.reference_parameters(self.net)
        self.names = [name for name in model.shapes() if name.startswith("actor")]
        self.policy_parameters = [named[name] for name in self.names]


@pytest.mark.parametrize("kind", MODELS)
def test_the_policys_step_is_the_references(kind: str) -> None:
    # Ten steps of the solver multiply what float32 loses in each product: the fast step may lose twice what the
    # readable one loses in float32, both against the readable one in float64, in the median over batches.
    model, ours_lost, theirs_lost = MODELS[kind], [], []
    for seed in range(32):
        flat = random_parameters(model, seed)
        rollout = on_policy_rollout(model, flat, seed)
        learner = make(model, flat, cg_steps=10)
        metrics = learner.update(rollout)
        steps = {}
        for dtype in (torch.float32, torch.float64):
            readable = Readable(model, flat, dtype, trpo.Settings(cg_steps=10))
            rows = training.valid_rows(rollout, dtype)
            rows["advantages"] = losses.normalize_advantages(rows["advantages"])
            start = trpo.flat(readable.policy_parameters).detach().clone()
            kl = readable.policy_step(rows)
            steps[dtype] = (trpo.flat(readable.policy_parameters).detach() - start).double()
        assert metrics["approx_kl"] == pytest.approx(kl, rel=1e-2)
        views = model.unflatten(learner.flat - flat)
        ours = trpo.flat([views[name] for name in readable.names]).double()
        truth = steps[torch.float64]
        assert float(truth.norm()) > 1e-3
        ours_lost.append(float((ours - truth).norm() / truth.norm()))
        theirs_lost.append(float((steps[torch.float32] - truth).norm() / truth.norm()))
    assert np.median(ours_lost) <= 2 * np.median(theirs_lost)
    assert max(ours_lost) < 1e-2


def test_the_critics_epochs_are_the_references() -> None:
    model = MODELS["gaussian"]
    flat = random_parameters(model, 8)
    rollout = on_policy_rollout(model, flat, 8)
    readable = Readable(
        model, flat, torch.float32, trpo.Settings(minibatch_size=64, critic_epochs=2, seed=1, anneal_lr=False)
    )
    readable.critic_optimizer = torch.optim.Adam(readable.net.critic.parameters(), lr=1e-3, eps=1e-5)
    readable.epochs_done = 0
    b = rollout.valid.size
    rows = {"norm_obs": rollout.norm_obs[:-1].reshape(b, -1), "returns": rollout.returns.reshape(b)}
    readable.fit_critic(
        {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in rows.items()}
        | {"valid": torch.from_numpy(rollout.valid.reshape(b).copy())}
    )
    learner = make(model, flat, critic_epochs=2)
    learner.update(rollout)
    named = training.reference_parameters(readable.net)
    for name, view in model.unflatten(learner.flat).items():
        if name.startswith("critic"):
            moved = (view - model.unflatten(flat)[name]).abs().max()
            apart = (view - named[name].detach()).abs().max()
            assert float(apart) < 1e-3 * float(moved), name  # 4 steps of Adam, from rounding


@pytest.mark.parametrize("kind", MODELS)
def test_reset_rows_reach_nothing_and_a_rollout_of_them_alone_moves_nothing(kind: str) -> None:
    model = MODELS[kind]
    flat = random_parameters(model, 2)
    results = []
    for poison in (False, True):
        rollout = on_policy_rollout(model, flat, 2)
        if poison:
            for array in (rollout.actions, rollout.log_probs, rollout.advantages, rollout.returns):
                array[~rollout.valid] = np.nan
        learner = make(model, flat)
        results.append((learner.update(rollout), learner.flat.numpy().tobytes()))
    assert results[0] == results[1]
    empty = on_policy_rollout(model, flat, 3)
    empty.valid[:] = False
    learner = make(model, flat)
    metrics = learner.update(empty)
    assert torch.equal(learner.flat, flat)
    assert metrics.keys() == results[0][0].keys()


def test_equal_advantages_give_no_direction_and_no_step() -> None:
    model = MODELS["gaussian"]
    flat = random_parameters(model, 5)
    rollout = on_policy_rollout(model, flat, 5)
    rollout.advantages[:] = 0.0
    learner = make(model, flat)
    metrics = learner.update(rollout)
    assert metrics["step_fraction"] == metrics["approx_kl"] == 0.0
    before, after = model.unflatten(flat), model.unflatten(learner.flat)
    assert all(torch.equal(before[name], after[name]) == name.startswith("actor") for name in before)
    assert metrics["entropy"] == pytest.approx(float(losses.gaussian_entropy(before["actor.log_std"])), rel=1e-5)


def test_the_moments_of_the_policys_parameters_stay_0_and_delta_shrinks_after_a_rollback() -> None:
    model = MODELS["gaussian"]
    flat = random_parameters(model, 6)
    learner = make(model, flat, critic_epochs=5)
    learner.set_progress(0.5, 0.25)
    metrics = learner.update(on_policy_rollout(model, flat, 6))
    assert 0 < metrics["approx_kl"] <= 0.01 * 0.25
    moments = learner.state()
    for name in ("exp_avg", "exp_avg_sq"):
        views = model.unflatten(moments[name])
        assert all(view.any() == name.startswith("critic") for name, view in views.items())
    assert metrics["learning_rate"] == pytest.approx(1e-3 * 0.5 * 0.25)


@pytest.mark.parametrize("policy", [Gaussian, Categorical])
def test_fisher_information_is_the_covariance_of_the_score(policy: Any) -> None:
    # M = E[∇log π ∇log πᵀ] over many sampled actions: another definition than the code's.
    rng = np.random.default_rng(0)
    n = 400_000
    if policy is Gaussian:
        mean, log_std = torch.tensor([[0.3, -1.0]]).double(), torch.tensor([-0.5, 0.2]).double()
        z = torch.from_numpy(rng.normal(size=(n, 2)))
        score = torch.cat([z / log_std.exp(), z**2 - 1], 1)
        one = Gaussian(mean, log_std)
        columns = [one.fisher(v[None, :2], v[2:]) for v in torch.eye(4).double()]
        matrix = torch.stack([torch.cat([head[0], std]) for head, std in columns])
    else:
        logits = torch.tensor([[0.5, -0.3, 1.0]]).double()
        probs = torch.softmax(logits, 1)[0]
        drawn = torch.from_numpy(rng.choice(3, size=n, p=probs.numpy()))
        score = torch.nn.functional.one_hot(drawn, 3).double() - probs
        matrix = torch.stack([Categorical(logits).fisher(v[None], v[:0])[0][0] for v in torch.eye(3).double()])
    covariance = score.T @ score / n
    torch.testing.assert_close(matrix, covariance, rtol=0.02, atol=0.02)


@pytest.mark.slow  # 25 s; the fast learner, whose steps are held to the reference's, learns in test_algos.py
def test_the_reference_solves_inverted_pendulum() -> None:
    # 1000 is the most there is; every one of seeds 1 to 3 reached it after 15,000 steps.
    agent = trpo.TRPO(trpo.Settings(total_timesteps=15_000, num_envs=8, num_steps=128, minibatch_size=128))
    rows: list[dict[str, Any]] = []
    agent.run(rows.append)
    assert agent.evaluate().mean() >= 950
    assert all(0.0 <= row["approx_kl"] <= 0.01 for row in rows)
