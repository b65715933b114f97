"""The actor-critic over one flat vector, and its two kinds of policy, against definitions and torch's own modules.

Axes: B rows · D observation · A action · K actions to choose from · P parameters.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import training
from training import TwoTimesRule, one_thread  # noqa: F401

from ppo_fast import kernels
from ppo_fast.errors import ShapeError
from ppo_fast.models import ACTIVATIONS, ActorCritic, Categorical, gaussian_entropy, gaussian_log_prob
from ppo_fast.reference import losses

ANT = ActorCritic(105, 8)
SHARED = ActorCritic(105, 8, shared_trunk=True)
CHOICE = ActorCritic(4, 1, num_actions=3)
SHARED_CHOICE = ActorCritic(4, 1, (5,), shared_trunk=True, num_actions=3)


# The flat vector


def test_flat_vector_holds_every_weight_of_two_networks_and_one_log_std() -> None:
    # actor 105-64-64-8: 105·64+64 + 64·64+64 + 64·8+8 = 11 464;  log σ: 8;  critic: 6 784 + 4 160 + 64+1 = 11 009.
    assert ANT.num_params == 11_464 + 8 + 11_009
    assert ANT.shapes()["actor.0.weight"] == (64, 105)
    assert ANT.shapes()["actor.2.bias"] == (8,)
    assert ANT.shapes()["actor.log_std"] == (8,)
    assert ANT.shapes()["critic.2.weight"] == (1, 64)


def test_order_of_the_flat_vector() -> None:
    separate = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    actor, critic = ([f"{net}.{name}" for name in separate] for net in ("actor", "critic"))
    assert list(ANT.shapes()) == [*actor, "actor.log_std", *critic]
    assert list(CHOICE.shapes()) == [*actor, *critic]
    trunk = [f"trunk.{name}" for name in separate[:4]]
    actor, critic = ([f"{net}.{name}" for name in separate[:2]] for net in ("actor", "critic"))
    assert list(SHARED.shapes()) == [*trunk, *actor, "actor.log_std", *critic]
    assert list(SHARED_CHOICE.shapes()) == [*trunk[:2], *actor, *critic]


def test_a_shared_trunk_is_counted_once_and_a_choice_has_a_logit_for_each_action() -> None:
    # trunk 105-64-64: 6 784 + 4 160;  actor 64·8+8 = 520;  log σ: 8;  critic: 65.
    assert SHARED.num_params == 10_944 + 520 + 8 + 65
    # 4-5: 25;  actor 5·3+3 = 18;  critic 6.
    assert SHARED_CHOICE.num_params == 25 + 18 + 6
    assert (ANT.head_dim, CHOICE.head_dim) == (8, 3)
    assert CHOICE.shapes()["actor.2.weight"] == (3, 64)
    assert CHOICE.params(torch.zeros(CHOICE.num_params)).log_std.shape == (0,)


def test_a_choice_is_one_index() -> None:
    with pytest.raises(ShapeError, match="act_dim must be 1, the index of one of 3 actions, got 2"):
        ActorCritic(4, 2, num_actions=3)


@pytest.mark.parametrize("options", [{}, {"shared_trunk": True}], ids=["separate", "shared"])
@pytest.mark.parametrize("hidden_sizes", [(1,), (3,), (4, 5, 6)])
def test_unflatten_gives_views_that_tile_the_vector_and_flatten_inverts_it(
    hidden_sizes: tuple[int, ...], options: dict[str, bool]
) -> None:
    model = ActorCritic(2, 3, hidden_sizes, **options)
    flat = torch.arange(model.num_params, dtype=torch.float32)
    views = model.unflatten(flat)
    assert {name: tuple(view.shape) for name, view in views.items()} == model.shapes()
    assert sorted(torch.cat([view.reshape(-1) for view in views.values()]).tolist()) == list(range(model.num_params))
    assert torch.equal(model.flatten(views), flat)
    views["critic.0.bias"].fill_(-1.0)  # a view: writing to it writes to the vector
    assert int((flat == -1).sum()) == views["critic.0.bias"].numel()


def test_flatten_refuses_wrong_names_shapes_and_dtypes_by_name() -> None:
    good = ANT.unflatten(torch.zeros(ANT.num_params))
    for change, message in (
        ({"actor.9.bias": torch.zeros(1)}, "actor.9.bias"),
        ({"actor.0.bias": torch.zeros(63)}, r"actor.0.bias must have shape \(64,\).*\(63,\)"),
        ({"actor.0.bias": torch.zeros(64, dtype=torch.float64)}, "actor.0.bias.*float32.*float64"),
    ):
        with pytest.raises(ShapeError, match=message):
            ANT.flatten({**good, **change})
    del good["actor.log_std"]
    with pytest.raises(ShapeError, match="named"):
        ANT.flatten(good)


# Initial values


@pytest.mark.parametrize(
    ("model", "name", "gain"),
    [
        (ANT, "actor.0.weight", math.sqrt(2)), (ANT, "actor.1.weight", math.sqrt(2)), (ANT, "actor.2.weight", 0.01),
        (ANT, "critic.0.weight", math.sqrt(2)), (ANT, "critic.1.weight", math.sqrt(2)), (ANT, "critic.2.weight", 1.0),
        (SHARED, "trunk.0.weight", math.sqrt(2)), (SHARED, "trunk.1.weight", math.sqrt(2)),
        (SHARED, "actor.0.weight", 0.01), (SHARED, "critic.0.weight", 1.0), (CHOICE, "actor.2.weight", 0.01),
    ],
)  # fmt: skip
def test_initial_weights_are_orthogonal_with_their_gain(model: ActorCritic, name: str, gain: float) -> None:
    weight = model.unflatten(model.init(1, -0.5))[name].double()
    rows, columns = weight.shape
    gram = weight @ weight.T if rows <= columns else weight.T @ weight
    # Householder QR in float32 is orthogonal to about 64 unit roundoffs; ten times that.
    torch.testing.assert_close(
        gram, gain**2 * torch.eye(min(rows, columns), dtype=torch.float64), rtol=0, atol=gain**2 * 4e-5
    )


def test_initial_biases_are_zero_and_log_std_is_what_was_asked() -> None:
    for name, value in ANT.unflatten(ANT.init(1, -0.7)).items():
        if name.endswith("bias"):
            assert not value.any(), name
        if name == "actor.log_std":
            assert torch.equal(value, torch.full((8,), -0.7))


def test_initial_mean_action_is_near_zero_for_normalised_observations() -> None:
    # |W₃ h|: W₃ has norm 0.01, and |h| <= sqrt(64) = 8 because |tanh| < 1: no component can exceed 0.08.
    params = ANT.params(ANT.init(3, -0.5))
    mean = ANT.mean(params, torch.randn(1000, 105, generator=torch.Generator().manual_seed(0)).clamp(-10, 10))
    assert float(mean.abs().max()) <= 0.08
    assert float(mean.abs().max()) > 0


def test_initial_values_are_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = ANT.init(1, -0.5)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is neither used nor moved
    torch.manual_seed(6)
    assert torch.equal(ANT.init(1, -0.5), first)
    assert not torch.equal(ANT.init(2, -0.5), first)
    ANT.init(2**64 - 1, -0.5)  # the largest seed that a config allows


# The networks


def test_networks_compute_the_mlp_by_hand() -> None:
    # x = (1, 2); actor hidden: W = [[1, 1], [1, -1]], b = (0, -1) -> (3, -2) -> relu (3, 0); head [[2, 5]], b = 1 -> 7.
    # critic hidden: W = [[0, 1], [-1, 0]], b = (1, 4) -> (3, 3); head [[1, 10]], b = -3 -> 30.
    model = ActorCritic(2, 1, (2,), "relu")
    tensors = {
        "actor.0.weight": [[1.0, 1.0], [1.0, -1.0]], "actor.0.bias": [0.0, -1.0],
        "actor.1.weight": [[2.0, 5.0]], "actor.1.bias": [1.0], "actor.log_std": [0.0],
        "critic.0.weight": [[0.0, 1.0], [-1.0, 0.0]], "critic.0.bias": [1.0, 4.0],
        "critic.1.weight": [[1.0, 10.0]], "critic.1.bias": [-3.0],
    }  # fmt: skip
    params = model.params(model.flatten({name: torch.tensor(value) for name, value in tensors.items()}))
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    assert model.mean(params, x).tolist() == [[7.0], [7.0]]
    assert model.value(params, x).tolist() == [30.0, 30.0]


def test_heads_on_a_shared_trunk_by_hand() -> None:
    # x = (1, 2); trunk: W = [[1, 1], [1, -1]], b = (0, -1) -> (3, -2) -> relu (3, 0).
    # logits: [[2, 5], [1, 1], [-1, 0]], b = (1, 0, 0) -> (7, 3, -3);  V: [[10, 1]], b = -3 -> 27.
    model = ActorCritic(2, 1, (2,), "relu", shared_trunk=True, num_actions=3)
    tensors = {
        "trunk.0.weight": [[1.0, 1.0], [1.0, -1.0]], "trunk.0.bias": [0.0, -1.0],
        "actor.0.weight": [[2.0, 5.0], [1.0, 1.0], [-1.0, 0.0]], "actor.0.bias": [1.0, 0.0, 0.0],
        "critic.0.weight": [[10.0, 1.0]], "critic.0.bias": [-3.0],
    }  # fmt: skip
    params = model.params(model.flatten({name: torch.tensor(value) for name, value in tensors.items()}))
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    head, value = model.forward(params, x)
    assert head.tolist() == model.head(params, x).tolist() == [[7.0, 3.0, -3.0]] * 2
    assert value.tolist() == model.value(params, x).tolist() == [27.0, 27.0]


def test_forward_goes_through_a_shared_trunk_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *args: calls.append(1) or addmm(*args))
    for model, layers in ((SHARED, 2 + 1 + 1), (ANT, 3 + 3)):
        calls.clear()
        model.forward(model.params(model.init(1, -0.5)), torch.zeros(2, 105))
        assert len(calls) == layers


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("tanh", math.tanh),
        ("relu", lambda x: max(x, 0.0)),
        ("elu", lambda x: x if x > 0 else math.expm1(x)),
        ("silu", lambda x: x / (1 + math.exp(-x))),
    ],
)
def test_activation_is_the_function_of_its_name(name: str, function: object) -> None:
    points = [-5.0, -1.0, -0.1, 0.0, 0.3, 2.0, 9.0]
    expected = [function(x) for x in points]  # type: ignore[operator]
    assert ACTIVATIONS[name](torch.tensor(points, dtype=torch.float64)).tolist() == pytest.approx(expected, rel=1e-14)
    model = ActorCritic(1, 1, (1,), name)
    flat = torch.ones(model.num_params).double()
    params = model.params(flat)  # every weight and bias 1: mean = f(x + 1) + 1
    x = torch.tensor([[0.5], [-3.0]], dtype=torch.float64)
    assert model.mean(params, x)[:, 0].tolist() == pytest.approx([function(1.5) + 1, function(-2.0) + 1], rel=1e-14)  # type: ignore[operator]


def test_mean_and_value_are_those_of_the_reference_networks() -> None:
    rule = TwoTimesRule()
    model = ActorCritic(training.OBS_DIM, training.ACT_DIM)
    for seed in range(32):
        flat = training.random_parameters(model, seed)
        x = torch.randn(64, model.obs_dim, generator=torch.Generator().manual_seed(seed))
        params = model.params(flat)
        ours = {"mean": model.mean(params, x), "value": model.value(params, x)}
        single, double = (
            {"mean": net.actor(x.to(dtype)).detach(), "value": net.critic(x.to(dtype))[:, 0].detach()}
            for dtype in (torch.float32, torch.float64)
            for net in [training.reference_net(model, flat, dtype)]
        )
        rule.add(ours, single, double)
    rule.check()


def test_actor_and_critic_share_no_parameter() -> None:
    flat = training.random_parameters(ANT, 1).requires_grad_()
    x = torch.randn(5, 105, generator=torch.Generator().manual_seed(1))
    for which, other in (("actor", "critic"), ("critic", "actor")):
        params = ANT.params(flat)
        out = ANT.mean(params, x) if which == "actor" else ANT.value(params, x)
        (gradient,) = torch.autograd.grad(out.sum(), flat)
        for name, part in ANT.unflatten(gradient).items():
            touched = name.startswith(which) and name != "actor.log_std"
            assert bool(part.any()) == touched, (which, other, name)


def test_a_shared_trunk_serves_both_heads_and_the_heads_serve_themselves() -> None:
    flat = training.random_parameters(SHARED, 1).requires_grad_()
    x = torch.randn(5, 105, generator=torch.Generator().manual_seed(1))
    for which, out in zip(("actor", "critic"), SHARED.forward(SHARED.params(flat), x), strict=True):
        (gradient,) = torch.autograd.grad(out.sum(), flat, retain_graph=True)
        for name, part in SHARED.unflatten(gradient).items():
            touched = name.split(".")[0] in (which, "trunk") and name != "actor.log_std"
            assert bool(part.any()) == touched, (which, name)


# The Gaussian


def gaussian_case(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    arrays = rng.normal(size=(300, 4)), rng.normal(size=4), rng.normal(scale=3.0, size=(300, 4))
    return tuple(torch.from_numpy(array.astype(np.float32)).to(dtype) for array in arrays)  # type: ignore[return-value]


def test_log_prob_and_entropy_are_those_of_independent_normals() -> None:
    mean, log_std, actions = gaussian_case(0, torch.float64)
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    expected = normal.log_prob(actions)
    # float64, four terms of up to 1e3: 1e-12 relative is above their rounding, far below any mistake.
    torch.testing.assert_close(gaussian_log_prob(mean, log_std, actions), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gaussian_entropy(log_std), normal.entropy()[0], rtol=1e-12, atol=1e-12)


def test_float32_log_prob_is_as_exact_as_the_reference() -> None:
    rule = TwoTimesRule()
    for seed in range(32):
        single, double = gaussian_case(seed, torch.float32), gaussian_case(seed, torch.float64)
        names = ("log_prob", "entropy")
        ours = gaussian_log_prob(*single), gaussian_entropy(single[1])
        reference = losses.gaussian_log_prob(*single), losses.gaussian_entropy(single[1])
        oracle = losses.gaussian_log_prob(*double), losses.gaussian_entropy(double[1])
        rule.add(*(dict(zip(names, part, strict=True)) for part in (ours, reference, oracle)))
    rule.check()


def test_log_prob_of_the_mean_by_hand() -> None:
    # At a = μ with σ = (1, e): -log σ₁ - log σ₂ - 2 · ½ log 2π = -1 - log 2π.
    mean = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    log_std = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert float(gaussian_log_prob(mean, log_std, mean)) == pytest.approx(-1 - math.log(2 * math.pi), rel=1e-15)


def test_log_prob_differentiates_in_mean_and_log_std() -> None:
    # ∂/∂μ = (a - μ)/σ²,  ∂/∂log σ = ((a - μ)/σ)² - 1, summed over the rows.
    mean, log_std, actions = gaussian_case(1, torch.float64)
    mean.requires_grad_()
    log_std.requires_grad_()
    gaussian_log_prob(mean, log_std, actions).sum().backward()
    z = ((actions - mean) / log_std.exp()).detach()
    torch.testing.assert_close(mean.grad, z / log_std.exp().detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_std.grad, (z**2 - 1).sum(0), rtol=1e-12, atol=1e-10)


# The categorical


def test_categorical_log_prob_and_entropy_by_hand() -> None:
    # l = (c, c + ln 3) for any c: p = 1/4, 3/4.  Three equal logits: p = 1/3, H = ln 3.
    for c in (0.0, -7.0, 1000.0, -1000.0):
        choice = Categorical(torch.tensor([[c, c + math.log(3)]] * 2, dtype=torch.float64))
        log_prob = choice.log_prob(torch.tensor([[0.0], [1.0]]))
        assert log_prob.tolist() == pytest.approx([math.log(0.25), math.log(0.75)], rel=1e-12)
        entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
        assert choice.entropy().tolist() == pytest.approx([entropy] * 2, rel=1e-12)
    assert float(Categorical(torch.full((1, 3), 5.0).double()).entropy()) == pytest.approx(math.log(3), rel=1e-14)


def test_categorical_log_prob_and_entropy_are_those_of_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(300, 5, dtype=torch.float64, generator=generator)
    index = torch.randint(5, (300, 1), generator=generator)
    theirs = torch.distributions.Categorical(logits=logits)
    ours = Categorical(logits)
    torch.testing.assert_close(ours.log_prob(index.float()), theirs.log_prob(index[:, 0]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.entropy(), theirs.entropy(), rtol=1e-12, atol=1e-12)


def test_float32_categorical_is_as_exact_as_the_reference() -> None:
    rule = TwoTimesRule()
    for seed in range(32):
        rng = np.random.default_rng(seed)
        single = torch.from_numpy(rng.normal(scale=3.0, size=(300, 4)).astype(np.float32))
        index = torch.from_numpy(rng.integers(4, size=300))
        ours = {
            "log_prob": Categorical(single).log_prob(index[:, None].float()),
            "entropy": Categorical(single).entropy(),
        }
        reference = [
            {"log_prob": losses.categorical_log_prob(x, index), "entropy": losses.categorical_entropy(x)}
            for x in (single, single.double())
        ]
        rule.add(ours, *reference)
    rule.check()


def test_categorical_differentiates_in_the_logits() -> None:
    # ∂ log p_a/∂l_k = [k = a] − p_k,   ∂H/∂l_k = −p_k (log p_k + H)
    logits = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    index = torch.arange(50) % 4
    p = torch.softmax(logits.detach(), -1)
    entropy = -(p * p.log()).sum(-1, keepdim=True)
    (by_log_prob,) = torch.autograd.grad(Categorical(logits).log_prob(index[:, None].float()).sum(), logits)
    (by_entropy,) = torch.autograd.grad(Categorical(logits).entropy().sum(), logits)
    torch.testing.assert_close(by_log_prob, torch.nn.functional.one_hot(index, 4) - p, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(by_entropy, -p * (p.log() + entropy), rtol=1e-12, atol=1e-14)


def test_most_likely_choice_is_the_first_at_a_tie() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0], [0.0, -1.0, 0.5]])
    mode = Categorical(logits).mode()
    assert mode.tolist() == [[1.0], [0.0], [2.0]]
    assert mode.dtype == torch.float32


def choose(logits: torch.Tensor, *u: float) -> list[float]:
    noise = torch.tensor(u, dtype=torch.float64)[:, None]
    return Categorical(logits.expand(len(u), -1)).sample(noise)[:, 0].tolist()  # type: ignore[no-any-return]


def test_choice_by_hand_up_to_the_last_bit_of_u() -> None:
    # Equal logits: w = 1, c = 1, 2, 3, 4, so that a = #{k < 3 : k + 1 <= 4 u} = floor(4 u).
    below = [math.nextafter(x, 0) for x in (0.25, 0.5, 0.75)]
    u = [2.0**-53, below[0], 0.25, below[1], 0.5, below[2], 0.75, 1 - 2.0**-53]
    assert choose(torch.full((1, 4), -3.0), *u) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_an_action_without_weight_is_never_chosen() -> None:
    # exp(-200) is 0 in float32: the first, a middle and the last action have no weight.
    logits = torch.tensor([[-200.0, 0.0, -200.0, 0.0, -200.0]])
    assert choose(logits, 2.0**-53, math.nextafter(0.5, 0), 0.5, 1 - 2.0**-53) == [1, 1, 3, 3]


def test_choices_are_those_of_a_running_sum_in_float32() -> None:
    rng = np.random.default_rng(3)
    logits, u = rng.normal(scale=2.0, size=(4000, 7)).astype(np.float32), rng.random((4000, 1))
    weights = torch.exp(torch.from_numpy(logits - logits.max(1, keepdims=True))).numpy()  # what exp gives is given
    expected = []
    for row, draw in zip(weights, u[:, 0], strict=True):
        sums = [row[0]]
        for w in row[1:]:
            sums.append(np.float32(sums[-1] + w))
        expected.append(sum(float(c) <= draw * float(sums[-1]) for c in sums[:-1]))
    assert Categorical(torch.from_numpy(logits)).sample(torch.from_numpy(u))[:, 0].tolist() == expected


def test_choices_come_as_often_as_their_probabilities_say() -> None:
    p = np.array([0.5, 0.2, 0.05, 0.2, 0.05])
    n = 200 * 500
    u = kernels.uniforms(np.repeat(np.arange(200), 500), np.tile(np.arange(500), 200), 1, seed=7)
    logits = torch.from_numpy(np.log(p).astype(np.float32) + 3).expand(n, -1)
    counts = np.bincount(Categorical(logits).sample(torch.from_numpy(u))[:, 0].numpy().astype(int), minlength=5)
    chi_square = ((counts - n * p) ** 2 / (n * p)).sum()
    assert chi_square < 4 + 5 * math.sqrt(2 * 4)  # five standard deviations of chi-square with 4 degrees of freedom


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_logit_that_is_not_finite_gives_no_action(where: int, bad: float) -> None:
    logits = torch.zeros(2, 3)
    logits[1, where] = bad
    for actions in (
        Categorical(logits).mode(),
        Categorical(logits).sample(torch.full((2, 1), 0.9, dtype=torch.float64)),
    ):
        assert math.isfinite(actions[0])
        assert math.isnan(actions[1])
