"""Running statistics: over valid rows only, frozen between updates, with the numbers worked out by hand or by NumPy.

Axes: T steps · N envs · D observation.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from oracles import moments_oracle

from ppo_fast.normalizers import Moments, ObsNormalizer, RewardScaler

FLOAT32_ULP = 2.0**-23


def obs_of(*rows: float) -> np.ndarray:
    """Return observations (T, 1, 1)."""
    return np.array(rows, np.float32).reshape(-1, 1, 1)


def every(obs: np.ndarray) -> np.ndarray:
    return np.ones(obs.shape[:2], bool)


# Moments


def test_moments_of_many_batches_are_those_of_all_valid_rows_at_once() -> None:
    rng = np.random.default_rng(0)
    # Offsets of 1e4 with a spread of 0.1 in one component: a sum of squares would lose its variance.
    scale, offset = np.array([1.0, 0.1, 50.0]), np.array([0.0, 1e4, -3.0])
    moments = Moments(3)
    kept = []
    for size in (1, 7, 300, 1, 64):
        rows = (rng.normal(size=(size, 3)) * scale + offset).astype(np.float32)
        valid = rng.random(size) < 0.7
        moments.update(rows, valid)
        kept.append(rows[valid])
    together = np.concatenate(kept)
    mean, m2 = moments_oracle(together, np.ones(len(together), bool))
    assert moments.count[0] == len(together)
    # A float64 sum of n terms is off by at most n · 2^-53 · Σ|x|/n ... here of the mean: n · 2^-53 · max|x|.
    assert np.all(np.abs(moments.mean - mean) <= len(together) * 2.0**-53 * np.abs(together).max(0))
    # A deviation is off by what the mean is off, relative to the spread: 1e-14 in general, 3e-10/0.1 at the offset.
    np.testing.assert_allclose(moments.var[[0, 2]], (m2 / len(together))[[0, 2]], rtol=1e-12)
    np.testing.assert_allclose(moments.var[1], m2[1] / len(together), rtol=1e-8)


def test_variance_before_the_first_row_is_one() -> None:
    np.testing.assert_array_equal(Moments(2).var, [1.0, 1.0])


def test_loading_a_state_overwrites_in_place() -> None:
    source, target = Moments(2), Moments(2)
    source.update(np.array([[1.0, 2.0], [3.0, 6.0]]), np.ones(2, bool))
    mean = target.mean
    target.load(source.state())
    assert (target.count[0], target.mean.tolist(), target.m2.tolist()) == (2.0, [2.0, 4.0], [2.0, 8.0])
    assert target.mean is mean
    source.update(np.array([[9.0, 9.0]]), np.ones(1, bool))
    assert target.mean.tolist() == [2.0, 4.0]


# Observations


def test_normalised_observation_by_hand() -> None:
    # 1 and 3: mean 2, population variance 1, and 1/sqrt(1 + 1e-8) rounds to 1 in float32.
    normalizer = ObsNormalizer(1, clip=10.0)
    normalizer.update(obs_of(1, 3), every(obs_of(1, 3)))
    np.testing.assert_array_equal(normalizer.normalize(obs_of(2, 5, -1, 12, 12.5, -900)), obs_of(0, 3, -3, 10, 10, -10))


def test_normalised_rows_have_mean_zero_and_variance_one_per_component() -> None:
    rng = np.random.default_rng(1)
    obs = (rng.normal(size=(50, 8, 3)) * [1, 20, 0.01] + [0, 5, -1]).astype(np.float32)
    normalizer = ObsNormalizer(3, clip=100.0)
    normalizer.update(obs, every(obs))
    rows = normalizer.normalize(obs).reshape(-1, 3).astype(np.float64)
    # Component 2 sits 100 standard deviations from 0: its mean, rounded to float32, is off by 100 · 2^-24 of them.
    assert np.all(np.abs(rows.mean(0)) <= 101 * 2.0**-24 + 400 * 2.0**-53)
    # The variance is off by eps/var = 1e-8/1e-4 in the same component (the constant that keeps a 0 variance harmless).
    np.testing.assert_allclose(rows.var(0), [1, 1, 1 / (1 + 1e-8 / 1e-4)], rtol=3e-6)


def test_constant_component_becomes_zero_and_not_nan() -> None:
    normalizer = ObsNormalizer(1, clip=10.0)
    normalizer.update(obs_of(7, 7, 7), every(obs_of(7, 7, 7)))
    assert normalizer.normalize(obs_of(7)).item() == 0.0


def test_before_the_first_update_observations_are_only_clipped() -> None:
    normalizer = ObsNormalizer(1, clip=10.0)
    np.testing.assert_array_equal(normalizer.normalize(obs_of(0.25, -3, 11)), obs_of(0.25, -3, 10))


def test_reset_rows_do_not_enter_the_observation_statistics() -> None:
    rng = np.random.default_rng(2)
    obs = rng.normal(size=(20, 4, 3)).astype(np.float32)
    valid = rng.random((20, 4)) < 0.6
    poisoned = np.where(valid[..., None], obs, np.float32(np.nan))
    clean, blind = ObsNormalizer(3, clip=10.0), ObsNormalizer(3, clip=10.0)
    clean.update(obs, valid)
    blind.update(poisoned, valid)
    for name, array in clean.moments.state().items():
        np.testing.assert_array_equal(array, blind.moments.state()[name])
    mean, m2 = moments_oracle(obs.reshape(-1, 3), valid.reshape(-1))
    assert clean.moments.count[0] == valid.sum()
    np.testing.assert_allclose(clean.moments.mean, mean, rtol=0, atol=1e-15)  # 48 numbers of order 1 in float64
    np.testing.assert_allclose(clean.moments.m2, m2, rtol=1e-13)
    before = clean.normalize(obs)
    clean.update(poisoned, np.zeros_like(valid))
    np.testing.assert_array_equal(clean.normalize(obs), before)


def test_statistics_are_frozen_until_told() -> None:
    normalizer = ObsNormalizer(1, clip=10.0)
    normalizer.update(obs_of(1, 3), every(obs_of(1, 3)))
    normalizer.moments.update(np.array([[50.0]]), np.ones(1, bool))
    assert normalizer.normalize(obs_of(5)).item() == 3.0
    normalizer.freeze()  # 1, 3, 50: mean 18
    assert normalizer.normalize(obs_of(18)).item() == 0.0


def test_normalising_writes_to_out_and_to_nothing_else() -> None:
    normalizer = ObsNormalizer(1, clip=10.0)
    normalizer.update(obs_of(1, 3), every(obs_of(1, 3)))
    obs, out = obs_of(5, 6), np.full((2, 1, 1), np.nan, np.float32)
    assert normalizer.normalize(obs, out=out) is out
    np.testing.assert_array_equal(out, obs_of(3, 4))
    np.testing.assert_array_equal(obs, obs_of(5, 6))
    assert out.dtype == np.float32


def test_switched_off_gives_a_copy_of_the_raw_observation() -> None:
    normalizer = ObsNormalizer(1, clip=10.0, enabled=False)
    normalizer.update(obs_of(1, 3), every(obs_of(1, 3)))
    obs = obs_of(5, 600)
    out = normalizer.normalize(obs)
    np.testing.assert_array_equal(out, obs)
    assert not np.shares_memory(out, obs)


# Rewards


def test_reward_scale_is_the_standard_deviation_of_the_discounted_return_by_hand() -> None:
    # γ = 1/2. env 0: rewards 1, 2 (end), reset row, 4   -> returns passed through 1, 2.5, -, 4
    #           env 1: rewards 0, 3, 1, 1                  -> 0, 3, 2.5, 2.25
    # seven returns: sum 15.25, mean 61/28, sum of squares 1 + 6.25 + 16 + 9 + 6.25 + 5.0625 = 43.5625
    rewards = np.array([[1, 0], [2, 3], [0, 1], [4, 1]], np.float32)
    done = np.array([[0, 0], [1, 0], [0, 0], [0, 0]], bool)
    valid = np.array([[1, 1], [1, 1], [0, 1], [1, 1]], bool)
    scaler = RewardScaler(2, gamma=0.5, clip=10.0)
    scaler.update(rewards, done, valid)
    variance = 43.5625 / 7 - (15.25 / 7) ** 2
    assert scaler.moments.count[0] == 7
    assert scaler.moments.var[0] == pytest.approx(variance, rel=1e-14)
    scaled = scaler.scale(rewards, out=np.full_like(rewards, np.nan))
    # One rounding of 1/σ, one of the product. The mean stays: rewards keep their sign, and 0 stays 0.
    np.testing.assert_allclose(scaled, rewards / math.sqrt(variance + 1e-8), rtol=FLOAT32_ULP)
    assert scaled.dtype == np.float32


def test_accumulator_goes_on_across_rollouts_and_ends_with_the_episode() -> None:
    rng = np.random.default_rng(3)
    rewards = rng.normal(size=(40, 3)).astype(np.float32)
    done = rng.random((40, 3)) < 0.2
    valid = np.ones_like(done)
    valid[1:] = ~done[:-1]
    done &= valid
    valid[1:] = ~done[:-1]
    whole, halves = RewardScaler(3, gamma=0.9, clip=10.0), RewardScaler(3, gamma=0.9, clip=10.0)
    whole.update(rewards, done, valid)
    for part in (slice(0, 17), slice(17, 40)):
        halves.update(rewards[part], done[part], valid[part])
    np.testing.assert_array_equal(whole.discounted, halves.discounted)

    passed_through = []  # the definition, O(T²): Σ_k γ^(t-k) r_k over the running episode
    for t, env in np.argwhere(valid):
        ends = np.flatnonzero(done[:t, env])
        start = ends[-1] + 1 if len(ends) else 0
        passed_through.append(
            sum(0.9 ** (t - k) * float(rewards[k, env]) for k in range(start, t + 1) if valid[k, env])
        )
    assert whole.moments.count[0] == halves.moments.count[0] == valid.sum()
    for scaler in (whole, halves):
        # Sums of at most 120 numbers of order 1, in float64.
        assert scaler.moments.var[0] == pytest.approx(np.var(passed_through), rel=1e-12)


def test_reset_rows_neither_advance_nor_enter_the_return_statistics() -> None:
    rewards = np.array([[1], [2], [0], [4]], np.float32)
    done, valid = np.array([[0], [1], [0], [0]], bool), np.array([[1], [1], [0], [1]], bool)
    clean, blind = RewardScaler(1, gamma=0.5, clip=10.0), RewardScaler(1, gamma=0.5, clip=10.0)
    clean.update(rewards, done, valid)
    blind.update(np.where(valid, rewards, np.float32(np.nan)), done, valid)
    for name, array in clean.state().items():
        np.testing.assert_array_equal(array, blind.state()[name])
    assert clean.discounted.tolist() == [4.0]
    # A rollout that begins with a reset row: the accumulator is still 0 after it.
    clean.update(np.array([[1]], np.float32), np.array([[True]]), np.array([[True]]))
    clean.update(np.array([[np.nan], [3]], np.float32), np.zeros((2, 1), bool), np.array([[False], [True]]))
    assert clean.discounted.tolist() == [3.0]


def test_scaled_rewards_are_bounded_and_the_raw_ones_kept() -> None:
    scaler = RewardScaler(1, gamma=0.0, clip=2.0)
    seen = np.array([[1], [-1]], np.float32)  # variance 1
    scaler.update(seen, np.zeros((2, 1), bool), np.ones((2, 1), bool))
    rewards = np.array([[1], [100], [-100]], np.float32)
    np.testing.assert_array_equal(scaler.scale(rewards, out=np.empty_like(rewards)), [[1], [2], [-2]])
    np.testing.assert_array_equal(rewards, [[1], [100], [-100]])


def test_switched_off_rewards_pass_unchanged_and_unbounded() -> None:
    scaler = RewardScaler(1, gamma=0.0, clip=2.0, enabled=False)
    rewards = np.array([[5], [-100]], np.float32)
    scaler.update(rewards, np.zeros((2, 1), bool), np.ones((2, 1), bool))
    np.testing.assert_array_equal(scaler.scale(rewards, out=np.empty_like(rewards)), rewards)


def test_restored_reward_statistics_scale_alike_and_restart_the_accumulators() -> None:
    source, target = (RewardScaler(2, gamma=0.9, clip=10.0) for _ in range(2))
    rewards = np.array([[1, 2], [3, 5]], np.float32)
    source.update(rewards, np.zeros((2, 2), bool), np.ones((2, 2), bool))
    target.load({name: array.copy() for name, array in source.state().items()})
    np.testing.assert_array_equal(
        target.scale(rewards, out=np.empty_like(rewards)), source.scale(rewards, out=np.empty_like(rewards))
    )
    assert target.discounted.tolist() == [0.0, 0.0]  # a resumed run's simulators start new episodes
