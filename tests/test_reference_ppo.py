"""The readable PPO: its losses by hand, its training by result, and the fast trainer held to it step by step.

Axes: T steps · N envs · B = T·N rows · M rows of a minibatch · D observation · A action.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import training
from oracles import gae_error_bound, gae_oracle
from torch import Tensor
from training import TwoTimesRule, one_thread  # noqa: F401

from ppo_fast import envs, kernels
from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.learners import torch_learner
from ppo_fast.learners.ppo_step import Minibatch, Optimizer
from ppo_fast.learners.torch_learner import TorchLearner
from ppo_fast.models import ActorCritic, Categorical
from ppo_fast.normalizers import ObsNormalizer, RewardScaler
from ppo_fast.reference import __main__ as command
from ppo_fast.reference import losses
from ppo_fast.reference.on_policy import RunningNormalizer
from ppo_fast.reference.policy import choose
from ppo_fast.reference.ppo import PPO, Settings
from ppo_fast.rollout import RolloutWorker
from ppo_fast.timing import PhaseTimer


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The losses by hand


def test_gaussian_log_prob_and_entropy_are_those_of_torch_distributions() -> None:
    rng = np.random.default_rng(0)
    mean, log_std, actions = (torch.from_numpy(rng.normal(size=shape)) for shape in ((20, 3), (3,), (20, 3)))
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    torch.testing.assert_close(
        losses.gaussian_log_prob(mean, log_std, actions), normal.log_prob(actions), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(losses.gaussian_entropy(log_std), normal.entropy()[0], rtol=1e-14, atol=0)


def test_categorical_log_prob_and_entropy_by_hand() -> None:
    # l = (c, c + ln 3): p = 1/4, 3/4, for any c.
    for c in (0.0, -7.0, 1000.0):
        logits = f64(c, c + math.log(3)).expand(2, -1)
        log_prob = losses.categorical_log_prob(logits, torch.tensor([0, 1]))
        assert log_prob.tolist() == pytest.approx([math.log(0.25), math.log(0.75)], rel=1e-12)
        entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
        assert losses.categorical_entropy(logits).tolist() == pytest.approx([entropy] * 2, rel=1e-12)


def test_categorical_log_prob_and_entropy_are_those_of_torch_distributions() -> None:
    rng = np.random.default_rng(0)
    logits, index = torch.from_numpy(rng.normal(scale=3.0, size=(50, 4))), torch.from_numpy(rng.integers(4, size=50))
    choice = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(
        losses.categorical_log_prob(logits, index), choice.log_prob(index), rtol=1e-12, atol=1e-14
    )
    torch.testing.assert_close(losses.categorical_entropy(logits), choice.entropy(), rtol=1e-12, atol=1e-14)


def test_a_choice_inverts_the_distribution_by_hand() -> None:
    # Equal logits: c = 1, 2, 3, 4, so that a = floor(4 u). With p = 0, 1/2, 0, 1/2, 0 only the second and fourth.
    u = np.array([[2.0**-53], [math.nextafter(0.25, 0)], [0.25], [0.5], [0.75], [1 - 2.0**-53]])
    assert choose(torch.full((6, 4), 9.0), u)[:, 0].tolist() == [0, 0, 1, 2, 3, 3]
    weightless = torch.tensor([[-200.0, 0.0, -200.0, 0.0, -200.0]]).expand(6, -1)
    assert choose(weightless, u)[:, 0].tolist() == [1, 1, 1, 3, 3, 3]


def test_the_two_implementations_choose_alike() -> None:
    rng = np.random.default_rng(1)
    logits, u = torch.from_numpy(rng.normal(size=(5000, 6)).astype(np.float32)), rng.random((5000, 1))
    assert torch.equal(choose(logits, u), Categorical(logits).sample(torch.from_numpy(u)))


def test_normalised_advantages_by_hand() -> None:
    # 1, 2, 6: mean 3, population variance (4 + 1 + 9)/3.
    std = math.sqrt(14 / 3)
    expected = [-2 / (std + 1e-8), -1 / (std + 1e-8), 3 / (std + 1e-8)]
    assert losses.normalize_advantages(f64(1, 2, 6)).tolist() == pytest.approx(expected, rel=1e-15)
    assert losses.normalize_advantages(f64(4)).tolist() == [0.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0), (1.1, 2.0, 2.2, 2.0), (1.5, 2.0, 2.4, 0.0), (0.5, 2.0, 1.0, 2.0),
        (1.0, -2.0, -2.0, -2.0), (0.9, -2.0, -1.8, -2.0), (0.5, -2.0, -1.6, 0.0), (1.5, -2.0, -3.0, -2.0),
        (3.0, 0.0, 0.0, 0.0),
    ],
)  # fmt: skip
def test_clipped_surrogate_by_hand(ratio: float, advantage: float, expected: float, slope: float) -> None:
    r = f64(ratio).requires_grad_()
    objective = losses.clipped_surrogate(r, f64(advantage), 0.2)
    objective.backward()
    assert float(objective.detach()) == pytest.approx(expected, rel=1e-15)
    assert float(r.grad) == slope


def test_value_losses_by_hand() -> None:
    # V = 1, R = 3: ½·4 = 2.  V = -1, R = 0: ½.  Mean 1.25.
    assert float(losses.value_loss(f64(1, -1), f64(3, 0))) == 1.25
    # From V_old = 0, V = 1 is held at 0.2:  R = 3 -> max(4, 2.8²);  R = 0 -> max(1, 0.04);  R = 1 -> max(0, 0.8²).
    for target, squared in ((3, 7.84), (0, 1.0), (1, 0.64)):
        assert float(losses.clipped_value_loss(f64(1), f64(0), f64(target), 0.2)) == pytest.approx(
            squared / 2, rel=1e-15
        )


def test_approx_kl_by_hand_and_never_negative() -> None:
    # log r = 0 and log 2: (0 + 2 - 1 - log 2) / 2.
    assert float(losses.approx_kl(f64(0, math.log(2)))) == pytest.approx((1 - math.log(2)) / 2, rel=1e-15)
    assert bool((torch.stack([losses.approx_kl(f64(x)) for x in np.linspace(-3, 3, 61)]) >= 0).all())


def test_approx_kl_estimates_the_kl_of_two_gaussians() -> None:
    # KL(N(0,1) || N(m,1)) = m²/2; k3 on samples of the first. Its standard deviation per sample is below 0.1 at
    # m = 0.3, so 1e6 samples give it to 1e-4: five of those.
    x = torch.from_numpy(np.random.default_rng(0).normal(size=1_000_000))
    log_ratio = losses.gaussian_log_prob(torch.full((1, 1), 0.3), f64(0), x[:, None]) - losses.gaussian_log_prob(
        torch.zeros(1, 1), f64(0), x[:, None]
    )
    k3 = torch.exp(log_ratio) - 1 - log_ratio
    assert float(k3.std()) < 0.1
    assert float(losses.approx_kl(log_ratio)) == pytest.approx(0.045, abs=5e-4)


# Parts of the trainer

SETTINGS = Settings(
    env="Hopper-v5", num_envs=4, num_steps=64, minibatch_size=64, update_epochs=8, total_timesteps=10_000
)


@pytest.fixture
def ppo() -> Any:
    trainer = PPO(SETTINGS)
    yield trainer
    trainer.envs.close()


def test_running_normalizer_is_mean_and_variance_of_the_rows_that_count() -> None:
    rng = np.random.default_rng(0)
    rows, valid = rng.normal(3.0, 2.0, size=(100, 2)), rng.random(100) < 0.7
    normalizer = RunningNormalizer(2)
    for part in (slice(0, 30), slice(30, 100)):
        normalizer.update(rows[part], valid[part])
    expected = (rows - rows[valid].mean(0)) / np.sqrt(rows[valid].var(0) + 1e-8)
    np.testing.assert_allclose(normalizer(rows), expected, rtol=1e-5, atol=1e-6)  # the result is float32
    assert normalizer(np.array([[1e6, -1e6]])).tolist() == [[10.0, -10.0]]


def test_rollout_flags_reset_rows_and_gives_one_value_more_than_steps(ppo: PPO) -> None:
    for _ in range(3):
        just_ended = ppo.just_ended.copy()
        batch = ppo.rollout()
        assert batch["values"].shape == (65, 4)
        np.testing.assert_array_equal(batch["valid"][0], ~just_ended)
        np.testing.assert_array_equal(batch["valid"][1:], ~batch["done"][:-1])
        assert not batch["rewards"][~batch["valid"]].any()
    assert ppo.finished


def test_time_limits_bootstrap_and_terminations_do_not_in_the_reference() -> None:
    limited = copy.deepcopy(gymnasium.spec("Hopper-v5"))
    limited.max_episode_steps = 20  # Hopper falls after 5 to 100 steps: both kinds of ends occur
    ppo = PPO(Settings(env=limited, num_envs=4, num_steps=64))  # type: ignore[arg-type]
    ppo.warm_up()
    batch = ppo.rollout()
    ppo.judge(batch)
    ppo.envs.close()
    cut = batch["done"] & ~batch["terminated"]
    assert cut.any()
    assert batch["terminated"].any()
    scaled = np.clip(batch["rewards"] / ppo.return_normalizer.std[0], -10, 10)
    args = scaled, batch["values"][:-1], batch["values"][1:], batch["terminated"], batch["done"]
    options = {"gamma": 0.99, "gae_lambda": 0.95}
    bound = gae_error_bound(*args[:3], batch["done"], unit_roundoff=2.0**-24, **options)
    assert np.all(np.abs(batch["advantages"] - gae_oracle(*args, **options)) <= bound)
    np.testing.assert_array_equal(batch["returns"], batch["advantages"] + batch["values"][:-1])


def test_nan_in_reset_rows_changes_nothing_that_the_reference_learns(ppo: PPO) -> None:
    ppo.warm_up()
    batch = ppo.rollout()
    ppo.judge(batch)
    assert (~batch["valid"]).sum() >= 3
    results = []
    for poison in (False, True):
        clone = object.__new__(PPO)
        clone.__dict__.update({k: copy.deepcopy(v) for k, v in vars(ppo).items() if k not in ("envs", "optimizer")})
        clone.optimizer = torch.optim.Adam(clone.net.parameters(), lr=1e-3, eps=1e-5)
        rows = {key: value.copy() for key, value in batch.items()}
        if poison:
            for key in ("actions", "log_probs", "rewards", "advantages", "returns"):
                rows[key][~rows["valid"]] = np.nan
        kl = clone.learn(rows)["approx_kl"]
        results.append(
            (kl, [p.detach().numpy().tobytes() for p in clone.net.parameters()], clone.obs_normalizer.m2.tobytes())
        )
    assert results[0] == results[1]
    assert math.isfinite(results[0][0])


def test_first_ratio_of_the_reference_is_one(ppo: PPO) -> None:
    ppo.warm_up()
    for _ in range(3):
        batch = ppo.rollout()
        ppo.judge(batch)
        keep = batch["valid"].reshape(-1)
        rows = {
            key: torch.from_numpy(batch[key].reshape(256, -1)[keep]) for key in ("norm_obs", "actions", "log_probs")
        }
        with torch.no_grad():
            log_probs = losses.gaussian_log_prob(ppo.net.actor(rows["norm_obs"]), ppo.net.log_std, rows["actions"])
        assert float((torch.exp(log_probs - rows["log_probs"][:, 0]) - 1).abs().max()) <= 1e-5
        ppo.learn(batch)


# The fast trainer against it


def fast_model(ppo: PPO) -> ActorCritic:
    s = ppo.settings
    return ActorCritic(ppo.obs_dim, ppo.act_dim, s.hidden_sizes, s.activation, s.shared_trunk, ppo.num_actions)


def flat_of(model: ActorCritic, ppo: PPO) -> Tensor:
    return model.flatten({k: v.detach() for k, v in training.reference_parameters(ppo.net).items()})


NETWORKS: dict[str, Any] = {"hidden_sizes": (32, 16, 8), "activation": "elu", "shared_trunk": True}


@pytest.mark.parametrize(
    ("env", "networks"),
    [
        ("Hopper-v5", {}), ("InvertedPendulum-v5", {}), ("Ant-v5", {}), ("CartPole-v1", {}), ("Hopper-v5", NETWORKS),
        ("CartPole-v1", NETWORKS),
    ],
)  # fmt: skip
def test_both_trainers_begin_alike_to_the_bit(env: str, networks: dict[str, Any]) -> None:
    """Same initial parameters, same seeds of the environments, same noise: the first rollout is the same."""
    settings = Settings(env=env, num_envs=3, num_steps=128, seed=5, **networks)
    ppo = PPO(settings)
    model = fast_model(ppo)
    flat = model.init(5, settings.log_std_init)
    assert torch.equal(flat, flat_of(model, ppo))

    fast_env = envs.make(env, 3, seed=5, backend="gymnasium")
    worker = RolloutWorker(
        fast_env, model, ObsNormalizer(ppo.obs_dim, clip=10.0), num_steps=128, seed=5, device=torch.device("cpu"),
        timer=PhaseTimer(),
    )  # fmt: skip
    for _ in range(2):  # before the first update the statistics are 0 and 1 in both
        rollout, batch = worker.collect(flat), ppo.rollout()
        for name in ("norm_obs", "actions", "terminated", "done", "valid"):
            ours = rollout.norm_obs[:-1] if name == "norm_obs" else getattr(rollout, name)
            np.testing.assert_array_equal(ours, batch[name], err_msg=name)
        np.testing.assert_array_equal(rollout.obs[:-1], batch["obs"].astype(np.float32))
        np.testing.assert_array_equal(rollout.rewards, batch["rewards"].astype(np.float32))
        assert rollout.done.any()
        assert rollout.num_valid == batch["valid"].sum()
    fast_env.close()
    ppo.envs.close()


def test_values_and_log_probs_of_a_rollout_are_as_exact_as_the_reference(ppo: PPO) -> None:
    model = fast_model(ppo)
    fast_env = envs.make("Hopper-v5", 4, seed=SETTINGS.seed, backend="gymnasium")
    worker = RolloutWorker(
        fast_env, model, ObsNormalizer(11, clip=10.0), num_steps=64, seed=SETTINGS.seed, device=torch.device("cpu"),
        timer=PhaseTimer(),
    )  # fmt: skip
    rule = TwoTimesRule()
    flat = flat_of(model, ppo)
    net = training.reference_net(model, flat, torch.float64)
    for _ in range(32):
        rollout, batch = worker.collect(flat), ppo.rollout()
        np.testing.assert_array_equal(rollout.actions, batch["actions"])
        x, actions = (torch.from_numpy(a.astype(np.float64)) for a in (rollout.norm_obs, batch["actions"]))
        with torch.no_grad():
            exact = {
                "values": net.critic(x)[..., 0].numpy(),
                "log_probs": losses.gaussian_log_prob(
                    net.actor(x[:-1]).reshape(256, 3), net.log_std, actions.reshape(256, 3)
                ).numpy(),
            }
        ours = {"values": rollout.values_all, "log_probs": rollout.log_probs.reshape(-1)}
        theirs = {"values": batch["values"], "log_probs": batch["log_probs"].reshape(-1)}
        rule.add(ours, theirs, exact)
    rule.check()
    fast_env.close()


def as_rollout(batch: dict[str, np.ndarray]) -> Rollout:
    """Return the reference's batch in the arrays of the fast trainer; everything learned from is float32 in both."""
    rollout = Rollout.allocate(*batch["valid"].shape, batch["obs"].shape[-1], batch["actions"].shape[-1])
    for name in ("actions", "log_probs", "terminated", "done", "valid", "advantages", "returns"):
        array = getattr(rollout, name)
        assert array.dtype == batch[name].dtype
        array[:] = batch[name]
    rollout.norm_obs[:-1], rollout.values_all[:] = batch["norm_obs"], batch["values"]
    return rollout


def test_scaled_rewards_and_advantages_are_those_of_the_reference(ppo: PPO) -> None:
    ppo.warm_up()
    scaler = RewardScaler(4, gamma=0.99, clip=10.0)
    scaler.discounted[:] = ppo.discounted_return
    scaler.moments.load({key: getattr(ppo.return_normalizer, key).copy() for key in ("count", "mean", "m2")})
    for _ in range(3):
        batch = ppo.rollout()
        rewards = batch["rewards"].astype(np.float32)
        batch["rewards"] = rewards.astype(np.float64)  # both now take in the same numbers
        ppo.judge(batch)
        scaler.update(rewards, batch["done"], batch["valid"])
        for key, array in scaler.moments.state().items():
            np.testing.assert_array_equal(array, getattr(ppo.return_normalizer, key), err_msg=key)
        scaled = scaler.scale(rewards, out=np.empty_like(rewards))
        # The reference divides in float64 and rounds once; ours rounds 1/σ and the product: a unit in the last place.
        theirs = np.clip(batch["rewards"] / ppo.return_normalizer.std[0], -10, 10).astype(np.float32)
        np.testing.assert_allclose(scaled, theirs, rtol=2.0**-23)
        values, next_values = batch["values"][:-1], batch["values"][1:]
        advantages, returns = kernels.gae(
            theirs, values, next_values, batch["terminated"], batch["done"], gamma=0.99, gae_lambda=0.95
        )
        np.testing.assert_array_equal(advantages, batch["advantages"])
        np.testing.assert_array_equal(returns, batch["returns"])


class Recording(PPO):
    """The reference, writing down every minibatch and the parameters and Adam's moments before and after it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.model = fast_model(self)
        self.steps: list[dict[str, Any]] = []

    def adam(self) -> dict[str, Tensor]:
        """Return parameters and moments as flat vectors."""
        named = training.reference_parameters(self.net)
        state = {name: self.optimizer.state.get(parameter, {}) for name, parameter in named.items()}
        zeros = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
        moments = {
            key: self.model.flatten({name: state[name].get(key, zeros[name]) for name in named}).clone()
            for key in ("exp_avg", "exp_avg_sq")
        }
        return {"flat": flat_of(self.model, self).clone(), **moments}

    def minibatch(self, rows: dict[str, Tensor]) -> float:
        before = self.adam()
        kl = super().minibatch(rows)
        self.steps.append({"rows": rows, "before": before, "after": self.adam()})
        return kl


def double_step(
    model: ActorCritic, settings: Settings, step: dict[str, Any], number: int, lr: float
) -> dict[str, Tensor]:
    """Return what the reference makes of one recorded minibatch in float64, from the float32 state before it."""
    oracle = object.__new__(PPO)
    oracle.settings = settings
    oracle.net = training.reference_net(model, step["before"]["flat"], torch.float64)
    oracle.optimizer = torch.optim.Adam(oracle.net.parameters(), lr=lr, eps=1e-5)
    named = training.reference_parameters(oracle.net)
    moments = {key: model.unflatten(step["before"][key]) for key in ("exp_avg", "exp_avg_sq")}
    for name, parameter in named.items():
        copies = {key: views[name].double() for key, views in moments.items()}
        oracle.optimizer.state[parameter] = {"step": torch.tensor(float(number)), **copies}
    oracle.minibatch({k: v.double() if v.is_floating_point() else v for k, v in step["rows"].items()})
    out = {f"{name} flat": parameter.detach() for name, parameter in named.items()}
    for key in ("exp_avg", "exp_avg_sq"):
        out |= {f"{name} {key}": oracle.optimizer.state[parameter][key] for name, parameter in named.items()}
    return out


def test_the_rate_falls_with_the_steps_before_the_rollout_as_the_trainers_does(tmp_path: Path) -> None:
    # Pendulum's episodes have 200 steps, so every rollout of 2 x 8 counts whole: 16 of 64 warm up, then three updates.
    options: dict[str, Any] = {
        "env": "Pendulum-v1", "num_envs": 2, "num_steps": 8, "minibatch_size": 16, "update_epochs": 1,
        "total_timesteps": 64, "learning_rate": 1e-3,
    }  # fmt: skip
    ppo = PPO(Settings(**options))
    rates: list[float] = []
    ppo.run(lambda _: rates.append(ppo.optimizer.param_groups[0]["lr"]))
    assert rates == pytest.approx([0.75e-3, 0.5e-3, 0.25e-3], rel=1e-12)

    run = training.train(training.config(tmp_path / "run", **options))
    assert [row["learning_rate"] for row in run.rows] == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize(
    ("env", "shared_trunk", "target_kl"),
    [("Hopper-v5", False, None), ("Hopper-v5", False, 0.02), ("Hopper-v5", True, None), ("CartPole-v1", True, None)],
)
def test_every_step_of_an_update_is_as_exact_as_the_reference_on_its_recorded_batch(
    monkeypatch: pytest.MonkeyPatch, env: str, shared_trunk: bool, target_kl: float | None
) -> None:
    # Teacher-forced: before each minibatch the learner is given the reference's parameters and moments, so that one
    # step is compared at a time, and not two trajectories that part for ever after their first rounding.
    options: dict[str, Any] = {
        "learning_rate": 0.02, "ent_coef": 0.01, "target_kl": target_kl, "seed": 3, "shared_trunk": shared_trunk
    }  # fmt: skip
    settings = Settings(
        env=env, num_envs=4, num_steps=64, minibatch_size=64, update_epochs=12, total_timesteps=4000, **options
    )
    ppo = Recording(settings)
    model = ppo.model
    ppo.warm_up()
    batch = ppo.rollout()
    ppo.judge(batch)
    assert (~batch["valid"]).sum() >= 3
    progress = ppo.progress()
    reference_kl = ppo.learn(batch)["approx_kl"]
    ppo.envs.close()

    cfg = Config(
        env=env, num_envs=4, num_steps=64, minibatch_size=64, update_epochs=12, total_timesteps=4000,
        update="eager", **options,
    )  # fmt: skip
    learner = TorchLearner(model, ppo.steps[0]["before"]["flat"], cfg, torch.device("cpu"))
    learner.set_progress(progress)
    lr = 0.02 * (1 - progress)
    assert learner.learning_rate == lr
    rule, taken = TwoTimesRule(), [0]
    step = torch_learner.minibatch_step

    def forced(model: ActorCritic, hp: Any, compiled: bool, opt: Optimizer, scalars: Tensor, mb: Minibatch) -> None:
        number = taken[0]
        recorded = ppo.steps[number]
        taken[0] += 1
        keep = mb.valid > 0
        for name in ("norm_obs", "actions", "log_probs", "advantages", "returns"):
            assert torch.equal(getattr(mb, name)[keep], recorded["rows"][name]), name  # the same rows in the same order
        opt.flat.copy_(recorded["before"]["flat"])
        opt.exp_avg.copy_(recorded["before"]["exp_avg"])
        opt.exp_avg_sq.copy_(recorded["before"]["exp_avg_sq"])
        step(model, hp, compiled, opt, scalars, mb)
        ours, theirs = (
            {
                f"{name} {key}": view.detach()
                for key, vector in vectors.items()
                for name, view in model.unflatten(vector).items()
            }
            for vectors in (
                {"flat": opt.flat.clone(), "exp_avg": opt.exp_avg.clone(), "exp_avg_sq": opt.exp_avg_sq.clone()},
                recorded["after"],
            )
        )
        rule.add(ours, theirs, double_step(model, settings, recorded, number, lr))

    monkeypatch.setattr(torch_learner, "minibatch_step", forced)
    metrics = learner.update(as_rollout(batch))
    assert taken[0] == len(ppo.steps) == 4 * metrics["epochs"]  # every minibatch has rows that count
    if target_kl is None:
        assert metrics["epochs"] == 12
        rule.check()  # over 48 steps
    else:  # both stopped after the same epoch, which leaves too few steps to pool
        assert 1 <= metrics["epochs"] < 8
        assert reference_kl > target_kl


# It learns


@pytest.mark.slow  # the reference learns the pole among the quick ones
def test_reference_solves_inverted_pendulum() -> None:
    # 1000 is the most there is: a reward of 1 in each of 1000 steps; 950 solves the task (Gymnasium's registry). Every
    # one of seeds 1 to 3 reached 1000.
    ppo = PPO(Settings(total_timesteps=30_000, num_envs=8, num_steps=128, minibatch_size=128, learning_rate=1e-3))
    rows: list[dict[str, Any]] = []
    ppo.run(rows.append)
    returns = ppo.evaluate()
    assert rows[-1]["env_steps"] >= 30_000 > rows[-2]["env_steps"]
    assert rows[0]["episode_return"] < 50
    assert returns.mean() >= 950


def test_reference_balances_the_pole() -> None:
    # A random policy holds it for about 22 steps; 500 is the most there is. Seeds 1 to 3 reached 500.
    options: dict[str, Any] = {"num_steps": 128, "minibatch_size": 128, "update_epochs": 4, "learning_rate": 1e-3}
    ppo = PPO(Settings(env="CartPole-v1", total_timesteps=25_000, hidden_sizes=(32, 32), shared_trunk=True, **options))
    ppo.run(lambda row: None)
    assert ppo.evaluate().mean() > 250


SMALL = ("--num-envs=2", "--num-steps=32", "--minibatch-size=32", "--update-epochs=1")


def test_reference_command_trains(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["ppo_fast.reference", *SMALL, "--total-timesteps", "200"])
    assert command.main() == 0
    assert "evaluation over 10 episodes" in capsys.readouterr().out


def test_ctrl_c_ends_the_reference_command_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: PPO, report: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PPO, "run", interrupted)
    monkeypatch.setattr("sys.argv", ["ppo_fast.reference", *SMALL, "--total-timesteps", "200"])
    assert command.main() == 130
    assert capsys.readouterr().err == "ppo_fast.reference: interrupted\n"


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("--minibatch-size", "48", "minibatch_size must divide num_envs * num_steps = 64, got 48"),
        ("--minibatch-size", "0", "minibatch_size must be at least 1, got 0"),
        ("--num-envs", "0", "num_envs must be at least 1, got 0"),
        ("--num-steps", "-2", "num_steps must be at least 1, got -2"),
        ("--update-epochs", "0", "update_epochs must be at least 1, got 0"),
        ("--total-timesteps", "0", "total_timesteps must be at least 1, got 0"),
        ("--seed", "-1", "seed must be in [0, 2**64), got -1"),
        ("--learning-rate", "-1", "learning_rate must be a finite number above 0, got -1.0"),
        ("--learning-rate", "nan", "learning_rate must be a finite number above 0, got nan"),
        ("--clip-coef", "0", "clip_coef must be a finite number above 0, got 0.0"),
        ("--max-grad-norm", "inf", "max_grad_norm must be a finite number above 0, got inf"),
        ("--ent-coef", "-1", "ent_coef must be a finite number, at least 0, got -1.0"),
        ("--vf-coef", "-1", "vf_coef must be a finite number, at least 0, got -1.0"),
        ("--gamma", "1.5", "gamma must be in [0, 1], got 1.5"),
        ("--gae-lambda", "-0.1", "gae_lambda must be in [0, 1], got -0.1"),
        ("--target-kl", "0", "target_kl must be a finite number above 0, or unset, got 0.0"),
        ("--adaptive-kl", "0.01", "adaptive_kl and anneal_lr both set the learning rate: --no-anneal-lr leaves it"),
        ("--log-std-init", "nan", "log_std_init must be finite, got nan"),
        ("--env", "Ant-v55", "unknown environment 'Ant-v55' (did you mean 'Ant-v5'"),
        ("--env", "no_such_module:Ant-v5", "no_such_module:Ant-v5: Gymnasium cannot make it: ModuleNotFoundError: "),
        ("--hidden-sizes", "0", "hidden_sizes must be one or more widths, each >= 1, got (0,)"),
        ("--env", "FrozenLake-v1", "FrozenLake-v1: its observation space Discrete(16) is not supported"),
    ],
)
def test_reference_command_refuses_in_one_line(
    option: str, value: str, error: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(command.ALGOS, "ppo", (Settings, None))  # refused before anything is built
    monkeypatch.setattr("sys.argv", ["ppo_fast.reference", *SMALL, option, value])
    assert command.main() == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert shown.err.startswith(f"ppo_fast.reference: error: {error}")
