"""One suite for every kernel backend: the ``backend`` fixture runs each test that asks for it three times.

A backend that cannot be had is a skip with its reason; ``--require-backends=cpp,numba`` makes it a failure, because a
native test that is skipped for ever is how a fallback rots.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from commands import TINY

from ppo_fast import kernels
from ppo_fast.errors import BackendError

# The same examples every time; no deadline, because the first call compiles; the backend fixture is the same for all.
hypothesis.settings.register_profile(
    "ppo_fast",
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("ppo_fast")
BACKENDS = ("cpp", "numba", "reference")


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = "comma-separated kernel backends that must be there"
    parser.addoption("--require-backends", default="", metavar="NAMES", help=help_text)


def pytest_configure(config: pytest.Config) -> None:
    unknown = required_backends(config) - set(BACKENDS)
    if unknown:
        raise pytest.UsageError(f"--require-backends allows {', '.join(BACKENDS)}; got {', '.join(sorted(unknown))}")


def required_backends(config: pytest.Config) -> set[str]:
    return {name.strip() for name in config.getoption("--require-backends").split(",") if name.strip()}


def pytest_report_header() -> list[str]:
    try:
        lines = [f"ppo_fast kernels: {kernels.active()}"]
    except BackendError as err:
        lines = [f"ppo_fast kernels: {err}"]
    return lines + [f"  no {name}: {reason}" for name, reason in kernels.why_not().items()]


@pytest.fixture(scope="session", params=["torch", "native"])
def stack(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the options of a run whose actor and learner are both torch's, then both native."""
    if request.param == "torch":
        return {"actor": "torch", "learner": "torch", "update": "eager"}
    request.getfixturevalue("native_core")
    return {"actor": "native", "learner": "native", "update": "auto"}


@pytest.fixture(scope="session")
def native_core(request: pytest.FixtureRequest) -> None:
    """Skip, or fail if the core is required, where there is no native actor and learner."""
    from ppo_fast import native  # brings torch, which the tests of the kernels do without
    from ppo_fast.models import ActorCritic

    if reason := native.lacks(ActorCritic(1, 1)):
        give_up = pytest.fail if "cpp" in required_backends(request.config) else pytest.skip
        give_up(f"no native actor and learner: {reason}")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run, from the command line; tests read it and leave it alone."""
    import ppo_fast.train
    from ppo_fast.run_dir import RunDir

    run = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "draw", lambda self: None)
        try:
            assert ppo_fast.train.main([*TINY, "--quiet", "--run-dir", str(run)]) == 0
        finally:
            logging.captureWarnings(False)
    return run


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Select one backend for the test, by name, and put the former choice back."""
    name = request.param
    forced = os.environ.get("PPO_FAST_BACKEND")
    if forced not in (None, "", "auto", name):
        pytest.skip(f"PPO_FAST_BACKEND={forced}")
    reason = kernels.why_not().get(name)
    if reason is not None:
        if name in required_backends(request.config):
            pytest.fail(f"required kernel backend {name} is missing: {reason}", pytrace=False)
        pytest.skip(f"kernel backend {name} is missing: {reason}")
    before = kernels.active()
    kernels.use(name)
    yield name
    kernels.use(before)
