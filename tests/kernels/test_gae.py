"""Generalised advantage estimation: every backend against the reference, the reference against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from arrays import Case, named_cases, rollout
from hypothesis import given
from hypothesis import strategies as st
from oracles import gae_error_bound, gae_oracle

from ppo_fast import kernels, reference

CASES = named_cases()
FLOAT32_ROUNDOFF, FLOAT64_ROUNDOFF = 2.0**-24, 2.0**-53
WEIGHTS = st.floats(0, 1)


@st.composite
def rollouts(draw: st.DrawFn, **options: float) -> Case:
    return rollout(draw(st.integers(1, 12)), draw(st.integers(1, 5)), seed=draw(st.integers(0, 2**32)), **options)


def fresh_out(case: Case) -> tuple[np.ndarray, np.ndarray]:
    return np.full_like(case.rewards, np.nan), np.full_like(case.rewards, np.nan)


# Every backend equals the reference, the reference equals the definition


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("name", CASES)
def test_is_bit_identical_to_the_float32_reference(backend: str, name: str, gae_lambda: float) -> None:
    case = CASES[name]
    expected = reference.gae(*case.args, gamma=0.99, gae_lambda=gae_lambda)
    actual = kernels.gae(*case.args, gamma=0.99, gae_lambda=gae_lambda)
    for wanted, got in zip(expected, actual, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_float64_reference_equals_the_mean_of_k_step_advantages(seed: int, gae_lambda: float) -> None:
    case = rollout(24, 6, seed=seed, dtype=np.float64)
    options = {"gamma": 0.97, "gae_lambda": gae_lambda}
    advantages, returns = reference.gae(*case.args, **options)
    bound = gae_error_bound(
        case.rewards, case.values, case.next_values, case.done, unit_roundoff=FLOAT64_ROUNDOFF, **options
    )
    # The oracle rounds too, each of its K sums of K terms: allow it ten times the sweep's bound, still about 1e-13.
    assert np.all(np.abs(advantages - gae_oracle(*case.args, **options)) <= 10 * bound)
    np.testing.assert_array_equal(returns, advantages + case.values)


def test_float32_reference_is_within_its_rounding_error_of_the_definition() -> None:
    options = {"gamma": 0.99, "gae_lambda": 0.95}
    for seed in range(32):
        case = rollout(32, 8, seed=seed)
        advantages, _ = reference.gae(*case.args, **options)
        bound = gae_error_bound(
            case.rewards, case.values, case.next_values, case.done, unit_roundoff=FLOAT32_ROUNDOFF, **options
        )
        assert np.all(np.abs(advantages - gae_oracle(*case.args, **options)) <= bound)


def test_the_students_double_sum_equals_the_sweep_even_if_next_values_are_unrelated() -> None:
    case = rollout(20, 5, dtype=np.float64)
    case = case.with_(next_values=np.random.default_rng(9).normal(size=case.values.shape))
    for wanted, got in zip(
        reference.gae_from_definition(*case.args, gamma=0.9, gae_lambda=0.8),
        reference.gae(*case.args, gamma=0.9, gae_lambda=0.8),
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-13)  # about 20 steps x a few 2**-53 x sums of size 10


def test_hand_arithmetic(backend: str) -> None:
    # gamma = lambda = 1/2, so gamma * lambda = 1/4; every number below is exact in float32.
    # t=0: delta = 1 + 2/2 - 4 = -2;  t=1: truncated, delta = 3 + 4/2 - 2 = 3, sum stops;
    # t=2: reset row; t=3: terminated, delta = 5 - 8 = -3 (its next value, 100, is not used);
    # t=4: delta = 1 + 6/2 - 2 = 2
    column = lambda *x: np.array(x, np.float32)[:, None]  # noqa: E731
    flags = lambda *x: np.array(x, np.bool_)[:, None]  # noqa: E731
    advantages, returns = kernels.gae(
        column(1, 3, 0, 5, 1),
        column(4, 2, 4, 8, 2),
        column(2, 4, 8, 100, 6),
        flags(0, 0, 0, 1, 0),
        flags(0, 1, 0, 1, 0),
        gamma=0.5,
        gae_lambda=0.5,
    )
    # A_4 = 2; A_3 = -3; A_2 = (0 + 8/2 - 4) + (-3)/4 = -0.75; A_1 = 3; A_0 = -2 + 3/4 = -1.25
    np.testing.assert_array_equal(advantages, column(-1.25, 3, -0.75, -3, 2))
    np.testing.assert_array_equal(returns, column(2.75, 5, 3.25, 5, 4))


# Sentences of theory


@given(case=rollouts(), gamma=WEIGHTS)
def test_lambda_0_gives_the_td_error(backend: str, case: Case, gamma: float) -> None:
    advantages, _ = kernels.gae(*case.args, gamma=gamma, gae_lambda=0)
    bootstrap = np.where(case.terminated, 0, case.next_values)
    np.testing.assert_array_equal(advantages, case.rewards + np.float32(gamma) * bootstrap - case.values)


@given(case=rollouts(), gae_lambda=WEIGHTS)
def test_gamma_0_gives_reward_minus_value(backend: str, case: Case, gae_lambda: float) -> None:
    advantages, _ = kernels.gae(*case.args, gamma=0, gae_lambda=gae_lambda)
    np.testing.assert_array_equal(advantages, case.rewards - case.values)


@given(case=rollouts(p_terminated=0, p_truncated=0), gamma=WEIGHTS)
def test_lambda_1_without_done_gives_discounted_return_minus_value(backend: str, case: Case, gamma: float) -> None:
    advantages, _ = kernels.gae(*case.args, gamma=gamma, gae_lambda=1)
    num_steps = len(case.rewards)
    rewards = np.vstack([case.rewards, case.next_values[-1:]]).astype(np.float64)  # the last value closes the sum
    expected = [sum(gamma ** (k - t) * rewards[k] for k in range(t, num_steps + 1)) for t in range(num_steps)]
    bound = gae_error_bound(
        case.rewards, case.values, case.next_values, case.done, gamma=gamma, gae_lambda=1, unit_roundoff=2.0**-24
    )
    assert np.all(np.abs(advantages - (np.array(expected) - case.values)) <= bound)


@given(
    reward=st.integers(-8, 8),
    log2_horizon=st.integers(1, 8),
    gae_lambda=WEIGHTS,
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_constant_reward_with_its_true_value_has_no_advantage(
    backend: str, reward: int, log2_horizon: int, gae_lambda: float, shape: tuple[int, int]
) -> None:
    # V = r / (1 - gamma), with gamma = 1 - 2**-k so that every number is exact and the answer is 0, not nearly 0.
    rewards = np.full(shape, reward, np.float32)
    values = np.full(shape, reward * 2**log2_horizon, np.float32)
    never = np.zeros(shape, np.bool_)
    gamma = 1 - 2.0**-log2_horizon
    advantages, returns = kernels.gae(rewards, values, values, never, never, gamma=gamma, gae_lambda=gae_lambda)
    np.testing.assert_array_equal(advantages, 0)
    np.testing.assert_array_equal(returns, values)


@given(data=st.data(), case=rollouts(), gamma=WEIGHTS, gae_lambda=WEIGHTS)
def test_cutting_a_rollout_where_all_are_done_gives_two_rollouts(
    backend: str, data: st.DataObject, case: Case, gamma: float, gae_lambda: float
) -> None:
    cut = data.draw(st.integers(1, len(case.rewards)))
    done = case.done.copy()
    done[cut - 1] = True
    case = case.with_(done=done)
    whole = kernels.gae(*case.args, gamma=gamma, gae_lambda=gae_lambda)
    first = kernels.gae(*case.steps(0, cut).args, gamma=gamma, gae_lambda=gae_lambda)
    second = kernels.gae(*case.steps(cut, len(done)).args, gamma=gamma, gae_lambda=gae_lambda)
    for together, a, b in zip(whole, first, second, strict=True):
        np.testing.assert_array_equal(together, np.vstack([a, b]))


@given(data=st.data(), case=rollouts(), gamma=WEIGHTS, gae_lambda=WEIGHTS)
def test_nothing_after_a_done_changes_what_is_before_it(
    backend: str, data: st.DataObject, case: Case, gamma: float, gae_lambda: float
) -> None:
    at = data.draw(st.integers(0, len(case.rewards) - 1))
    done = case.done.copy()
    done[at] = True
    case = case.with_(done=done)
    before, _ = kernels.gae(*case.args, gamma=gamma, gae_lambda=gae_lambda)
    rewards, values, next_values = (array.copy() for array in case.args[:3])
    for array in (rewards, values, next_values):
        array[at + 1 :] = np.nan
    case = case.with_(rewards=rewards, values=values, next_values=next_values)
    after, _ = kernels.gae(*case.args, gamma=gamma, gae_lambda=gae_lambda)
    np.testing.assert_array_equal(after[: at + 1], before[: at + 1])


@given(data=st.data(), case=rollouts(), gamma=WEIGHTS, gae_lambda=WEIGHTS)
def test_permuting_environments_permutes_columns(
    backend: str, data: st.DataObject, case: Case, gamma: float, gae_lambda: float
) -> None:
    order = data.draw(st.permutations(range(case.rewards.shape[1])))
    plain = kernels.gae(*case.args, gamma=gamma, gae_lambda=gae_lambda)
    permuted = kernels.gae(*case.envs(order).args, gamma=gamma, gae_lambda=gae_lambda)
    for a, b in zip(plain, permuted, strict=True):
        np.testing.assert_array_equal(a[:, order], b)


def test_a_time_limit_with_exact_values_has_no_bias_and_a_termination_has(backend: str) -> None:
    # Reward 1 for ever, gamma = 3/4, V = 4. Cut by a time limit the value target stays 4; called a termination, it
    # becomes 1: the world seems to end.
    ones, fours = np.ones((1, 1), np.float32), np.full((1, 1), 4, np.float32)
    yes, no = np.ones((1, 1), np.bool_), np.zeros((1, 1), np.bool_)
    _, truncated = kernels.gae(ones, fours, fours, no, yes, gamma=0.75, gae_lambda=0.5)
    _, terminated = kernels.gae(ones, fours, fours, yes, yes, gamma=0.75, gae_lambda=0.5)
    assert (truncated.item(), terminated.item()) == (4.0, 1.0)


# What the caller's arrays go through


def test_nan_in_rows_that_do_not_count_reaches_nobody(backend: str) -> None:
    case = rollout(64, 16, seed=3, p_terminated=0.2)
    assert np.count_nonzero(~case.valid) > 0
    clean = kernels.gae(*case.args, gamma=0.99, gae_lambda=0.95)
    dirty = case.with_(
        rewards=np.where(case.valid, case.rewards, np.float32(np.nan)),  # reward of a reset row
        next_values=np.where(
            case.terminated, np.float32(np.nan), case.next_values
        ),  # value beyond the end of the world
    )
    for a, b in zip(clean, kernels.gae(*dirty.args, gamma=0.99, gae_lambda=0.95), strict=True):
        np.testing.assert_array_equal(a[case.valid], b[case.valid])
        assert np.isfinite(b[case.valid]).all()


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_overwritten_whole_and_inputs_not_at_all(backend: str, name: str) -> None:
    case = CASES[name]
    copies = [array.copy() for array in case.args]
    out = fresh_out(case)
    results = kernels.gae(*case.args, gamma=0.99, gae_lambda=0.95, out=out)
    assert results[0] is out[0]
    assert results[1] is out[1]
    for result, fresh in zip(results, kernels.gae(*case.args, gamma=0.99, gae_lambda=0.95), strict=True):
        np.testing.assert_array_equal(result, fresh)
    for array, copy in zip(case.args, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_read_only_inputs_are_accepted(backend: str) -> None:
    arrays = [array.copy() for array in CASES["ordinary"].args]
    for array in arrays:
        array.setflags(write=False)
    advantages, _ = kernels.gae(*arrays, gamma=0.99, gae_lambda=0.95)
    np.testing.assert_array_equal(advantages, reference.gae(*arrays, gamma=0.99, gae_lambda=0.95)[0])


def test_gamma_is_rounded_once_to_float32(backend: str) -> None:
    # gamma * lambda = 0.9 * 0.9 = 0.81 in float64 then rounded, which is not float32(0.9) * float32(0.9).
    assert np.float32(0.9 * 0.9) != np.float32(0.9) * np.float32(0.9)
    zeros, never = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.bool_)
    rewards = np.array([[0], [1]], np.float32)
    advantages, _ = kernels.gae(rewards, zeros, zeros, never, never, gamma=0.9, gae_lambda=0.9)
    assert advantages[0, 0] == np.float32(0.9 * 0.9)
