"""The native learner and actor against torch, by minibatch size, SIMD level and threads.

Networks of 2 x 64 on Ant-v5's 105 inputs and 8 actions. A lane is the fastest of several calls, because other programs
can only slow one down; the rounds of all lanes are interleaved.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import pytest
import torch

from ppo_fast import kernels, native
from ppo_fast.batch import Float32, Rollout
from ppo_fast.config import Config
from ppo_fast.errors import BackendError
from ppo_fast.learners.native import NativeLearner
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.learners.torch_learner import TorchLearner
from ppo_fast.models import ActorCritic, gaussian_log_prob
from ppo_fast.normalizers import ObsNormalizer

from ._limit import work
from ._measure import Lane, Sample
from ._training import how
from ._update import fastest_update, per_sample, random_rollout
from .conftest import Bench

_core = pytest.importorskip("ppo_fast._core", reason="the C++ core does not load", exc_type=ImportError)
if not hasattr(_core, "PpoLearner"):
    pytest.skip("the C++ core was built without the native learner", allow_module_level=True)

MODEL = ActorCritic(105, 8)
STEPS, ENVS, SEED = 32, 64, 1
AGREE = 1e-2  # bound on |step of one - step of the other| / |step| over a whole update: rounding differs
ACT_AGREE = 1e-4  # bound on the difference of actions and values, and of log-probabilities of about -8
Acted = tuple[Float32, ...]  # normalised observations (N, D), actions (N, A), log-probabilities (N,), values (N,)


def learners(flat: torch.Tensor, cfg: dict[str, int], *, smoke: bool) -> tuple[dict[str, PPOLearner], str]:
    """Return every learner by name, eager torch first, and what torch.compile took, or why it is missing."""
    cpu, compilation = torch.device("cpu"), ""
    out: dict[str, PPOLearner] = {"eager": TorchLearner(MODEL, flat, Config(**cfg, update="eager"), cpu)}
    if not smoke:
        try:
            out["compile"] = TorchLearner(MODEL, flat, Config(**cfg, update="compile"), cpu)
            compilation = how(out["compile"])
        except BackendError as error:  # a machine without a C++ compiler; the rest is worth measuring
            compilation = str(error)
    for simd in _core.simd_levels():
        out[f"native {simd}"] = NativeLearner(MODEL, flat, Config(**cfg, learner_threads=1), simd=simd)
    many = NativeLearner(MODEL, flat, Config(**cfg))
    if many.threads > 1:
        out[f"native {many.simd}, {many.threads} threads"] = many
    return out, compilation


@pytest.mark.parametrize("minibatch", [64, 256, 1024])
def test_native_update(minibatch: int, bench: Bench) -> None:
    flat, rollout = MODEL.init(1, -0.5), random_rollout(MODEL, STEPS, ENVS)
    epochs = 1 if bench.smoke else 10
    cfg = {"num_envs": ENVS, "num_steps": STEPS, "minibatch_size": minibatch, "update_epochs": epochs, "seed": SEED}
    contestants, compilation = learners(flat, cfg, smoke=bench.smoke)

    lanes = {}
    for name, learner in contestants.items():
        learner.update(rollout)
        moved, expected = learner.flat - flat, contestants["eager"].flat - flat
        error = float((moved - expected).norm() / expected.norm())
        assert error <= AGREE, f"{name}: the update differs from eager's by {error:.1e}"
        learner.load({name: torch.zeros_like(tensor) for name, tensor in learner.state().items()})
        repeats = bench.steps(8 if name.startswith("native") else 2)
        lanes[name] = fastest_update(learner, flat, rollout, repeats)

    section = f"105-64-64-(8, 1): update of {STEPS * ENVS} rows, {epochs} epochs, minibatch {minibatch}"
    reference = "compile" if "compile" in lanes else "eager"
    rows = {
        name: {"reference": reference, "work": work(MODEL, learner.cfg, threads=learner.threads, simd=learner.simd)}
        for name, learner in contestants.items()
    }
    bench.contest(section, lanes, rows)
    for name in lanes:
        row = bench.report.sections[section][name]
        row.note = per_sample(row.samples, epochs)
    if compilation:
        bench.report.sections[section][reference].note += f"; {compilation}"


def test_native_actor(bench: Bench) -> None:
    """One act of 64 environments: noise, normalised observations, actions, log-probabilities and values."""
    flat, obs = MODEL.init(1, -0.5), np.random.default_rng(2).normal(1.0, 2.0, (ENVS, MODEL.obs_dim))
    normalizer = ObsNormalizer(MODEL.obs_dim, clip=10.0)
    normalizer.update(obs.astype(np.float32)[None], np.ones((1, ENVS), np.bool_))
    calls: dict[str, Callable[[], Acted]] = {"torch": torch_act(flat, obs.astype(np.float32), normalizer)}
    for simd in _core.simd_levels():
        calls[f"native {simd}"] = native_act(flat, obs.astype(np.float32), normalizer, simd)

    expected = calls["torch"]()
    for name, call in calls.items():
        for got, want in zip(call(), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=ACT_AGREE, err_msg=name)

    section = f"105-64-64-(8, 1): act for {ENVS} environments"
    lanes = {name: fastest_act(call, bench.steps(500)) for name, call in calls.items()}
    bench.contest(section, lanes, {name: {"reference": "torch"} for name in lanes})
    for name in lanes:
        row = bench.report.sections[section][name]
        row.note = f"{1e6 * min(sample.seconds for sample in row.samples):.1f} us per call at best"


def fastest_act(call: Callable[[], Acted], repeats: int) -> Lane:
    def lane() -> Sample:
        seconds = []
        for _ in range(repeats):
            start = perf_counter()
            call()
            seconds.append(perf_counter() - start)
        return Sample(ENVS, min(seconds))

    return lane


def native_act(flat: torch.Tensor, obs: Float32, normalizer: ObsNormalizer, simd: str) -> Callable[[], Acted]:
    """Begin a rollout: the native actor answers every environment, in the environment's units as well."""
    buf, d = Rollout.allocate(1, ENVS, MODEL.obs_dim, MODEL.act_dim), MODEL.act_dim
    buf.obs[0] = obs
    core = _core.PpoActor(
        native.networks(MODEL), num_envs=ENVS, num_steps=1, seed=SEED, first_env=0, normalize=True,
        clip_obs=float(normalizer.clip), action_low=[-1.0] * d, half_range=[1.0] * d, bounded=[True] * d, simd=simd,
    )  # fmt: skip
    core.load(flat.numpy(), *normalizer.constants)
    env_ids, env_actions = np.empty(ENVS, np.int32), np.empty((ENVS, d))

    def call() -> Acted:
        answers = core.begin(
            buf.obs, buf.norm_obs, buf.actions, buf.log_probs, buf.values_all, buf.rewards, buf.terminated,
            buf.truncated, buf.valid, first_step=0, out_env_ids=env_ids, out_actions=env_actions,
        )  # fmt: skip
        assert answers == ENVS
        return buf.norm_obs[0], buf.actions[0], buf.log_probs[0], buf.values_all[0]

    return call


def torch_act(flat: torch.Tensor, obs: Float32, normalizer: ObsNormalizer) -> Callable[[], Acted]:
    """The same in NumPy and torch, but for the environment's units."""
    params = MODEL.params(flat)
    env_ids, steps = np.arange(ENVS, dtype=np.int64), np.zeros(ENVS, np.int64)
    norm_obs, noise = np.empty_like(obs), np.empty((ENVS, MODEL.act_dim))

    @torch.no_grad()
    def call() -> Acted:
        kernels.normals(env_ids, steps, MODEL.act_dim, seed=SEED, out=noise)
        x = torch.from_numpy(normalizer.normalize(obs, out=norm_obs))
        mean, values = MODEL.forward(params, x)
        actions = mean + torch.exp(params.log_std) * torch.from_numpy(noise.astype(np.float32))
        return norm_obs, actions.numpy(), gaussian_log_prob(mean, params.log_std, actions).numpy(), values.numpy()

    return call
