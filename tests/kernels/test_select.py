"""Which backend runs, and what is said about it."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable

import memory
import numpy as np
import pytest

from ppo_fast import kernels
from ppo_fast.errors import BackendError
from ppo_fast.kernels import _select

MISSING = {"cpp": "no compiler in this test", "numba": "no numba in this test"}


@pytest.fixture
def unselected(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Forget the selection for one test, and what the environment asked for."""
    monkeypatch.setattr(_select, "_active", None)
    monkeypatch.delenv("PPO_FAST_BACKEND", raising=False)
    return monkeypatch


def pretend_missing(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    loaded = {name: module for name, module in _select._loaded.items() if name not in names}
    monkeypatch.setattr(_select, "_loaded", loaded)
    monkeypatch.setattr(_select, "_reasons", {name: MISSING[name] for name in names})


def test_a_forced_backend_is_the_one_that_runs(backend: str) -> None:
    assert kernels.active() == backend
    assert kernels.available()[backend] is True
    assert backend not in kernels.why_not()
    assert _select.backend().__name__ == f"ppo_fast.kernels._{backend}"  # type: ignore[attr-defined]


def test_auto_takes_the_first_that_loads(unselected: pytest.MonkeyPatch) -> None:
    first = next(name for name, there in kernels.available().items() if there)
    assert kernels.active() == first
    kernels.use("auto")
    assert kernels.active() == first


def test_auto_falls_to_numba_with_an_info_line(
    unselected: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if "numba" in kernels.why_not():
        pytest.skip(kernels.why_not()["numba"])
    pretend_missing(unselected, "cpp")
    with caplog.at_level(logging.INFO, "ppo_fast"):
        assert kernels.active() == "numba"
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage() == "kernels run on the numba backend (cpp: no compiler in this test)"


def test_auto_falls_to_the_reference_with_a_warning(
    unselected: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_missing(unselected, "cpp", "numba")
    with caplog.at_level(logging.INFO, "ppo_fast"):
        assert kernels.active() == "reference"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "cpp: no compiler in this test; numba: no numba in this test" in record.getMessage()
    assert kernels.available() == {"cpp": False, "numba": False, "reference": True}
    assert kernels.why_not() == MISSING


@pytest.mark.parametrize("name", ["cpp", "numba"])
def test_a_forced_backend_never_falls_back(unselected: pytest.MonkeyPatch, name: str) -> None:
    pretend_missing(unselected, name)
    kernels.use("reference")
    message = f"kernel backend '{name}' cannot be used: {MISSING[name]}"
    with pytest.raises(BackendError) as by_name:
        kernels.use(name)
    assert str(by_name.value) == message
    assert kernels.active() == "reference", "a failed choice must leave the former one"
    unselected.setattr(_select, "_active", None)
    unselected.setenv("PPO_FAST_BACKEND", name)
    with pytest.raises(BackendError) as by_environment:
        kernels.permutation(3, seed=0, stream=0)
    assert str(by_environment.value) == message


def test_use_beats_the_environment_which_is_read_once(unselected: pytest.MonkeyPatch) -> None:
    unselected.setenv("PPO_FAST_BACKEND", "reference")
    assert kernels.active() == "reference"
    unselected.setenv("PPO_FAST_BACKEND", "nonsense")
    assert kernels.active() == "reference"
    kernels.use("auto")
    assert kernels.active() == next(name for name, there in kernels.available().items() if there)


def test_an_empty_variable_means_auto(unselected: pytest.MonkeyPatch) -> None:
    unselected.setenv("PPO_FAST_BACKEND", "")
    assert kernels.active() in ("cpp", "numba", "reference")


def test_an_unknown_name_is_answered_with_the_known_ones(unselected: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError) as by_name:
        kernels.use("nunba")
    text = "must be one of auto, cpp, numba, reference, got 'nunba' (did you mean 'numba'?)"
    assert str(by_name.value) == f"kernel backend {text}"
    unselected.setenv("PPO_FAST_BACKEND", "nunba")
    with pytest.raises(BackendError) as by_environment:
        kernels.active()
    assert str(by_environment.value) == f"PPO_FAST_BACKEND {text}"


def test_a_backend_error_is_an_import_error() -> None:
    assert issubclass(BackendError, ImportError)


@pytest.mark.parametrize("choice", ["auto", "cpp", "numba", "reference"])
def test_import_and_use_under_each_value_of_the_variable(choice: str) -> None:
    reason = kernels.why_not().get(choice)
    if reason is not None:
        pytest.skip(reason)
    code = (
        "import sys, ppo_fast.kernels as k\n"
        "assert 'numba' not in sys.modules and 'torch' not in sys.modules, 'import must stay cheap'\n"
        "print(k.permutation(5, seed=1, stream=2).tolist(), k.active())"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PPO_FAST_BACKEND": choice},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    order = kernels.permutation(5, seed=1, stream=2).tolist()
    assert child.stdout.split("]")[0] + "]" == str(order)
    if choice != "auto":
        assert child.stdout.split()[-1] == choice


def test_backends_have_the_same_functions_and_parameters(backend: str) -> None:
    module = _select.backend()
    expected = [name for name in vars(_select.Backend) if name.endswith("_into")]
    assert sorted(module.__all__) == sorted(expected)  # type: ignore[attr-defined]
    for name in expected:
        function = getattr(module, name)
        wanted = [p for p in inspect.signature(getattr(_select.Backend, name)).parameters if p != "self"]
        if backend != "cpp":  # a compiled function has no signature; bindings.cpp names its arguments instead
            assert list(inspect.signature(function).parameters) == wanted
        else:
            text = function.__doc__
            assert all(f"{parameter}:" in text for parameter in wanted), text


# What holds for every kernel


def small_calls() -> dict[str, Callable[[], object]]:
    f32, flags = np.ones((4, 3), np.float32), np.zeros((4, 3), np.bool_)
    ids, index, valid = np.arange(3), np.array([1, 0]), np.ones(4, np.bool_)
    count, mean, m2 = np.zeros(1), np.zeros(3), np.zeros(3)
    return {
        "gae": lambda: kernels.gae(f32, f32, f32, flags, flags, gamma=0.9, gae_lambda=0.9),
        "permutation": lambda: kernels.permutation(5, seed=1, stream=1),
        "gather": lambda: kernels.gather(f32, index),
        "update_moments": lambda: kernels.update_moments(count, mean, m2, f32, valid),
        "normals": lambda: kernels.normals(ids, ids, 3, seed=1),
        "uniforms": lambda: kernels.uniforms(ids, ids, 3, seed=1),
    }


@memory.seen
@pytest.mark.parametrize("name", small_calls())
def test_ten_thousand_calls_leak_nothing(backend: str, name: str) -> None:
    call = small_calls()[name]
    for _ in range(1000):
        call()
    before = memory.resident_bytes()
    for _ in range(10_000):
        call()
    # 48 bytes, the smallest array or object, leaked per call would be 480 kB
    assert memory.resident_bytes() - before < 400_000
    tracemalloc.start()
    try:
        call()
        traced = tracemalloc.get_traced_memory()[0]
        for _ in range(200):
            call()
        assert tracemalloc.get_traced_memory()[0] - traced < 200 * 8  # less than a pointer per call
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compiled", ["cpp", "numba"])
def test_compiled_backends_release_the_gil(compiled: str) -> None:
    if compiled in kernels.why_not():
        pytest.skip(kernels.why_not()[compiled])
    before = kernels.active()
    kernels.use(compiled)
    kernels.permutation(2, seed=0, stream=0)  # compile
    out = np.empty(6_000_000, np.int64)
    span: list[float] = []

    def work() -> None:
        span.append(time.perf_counter())
        kernels.permutation(len(out), seed=0, stream=0, out=out)
        span.append(time.perf_counter())

    worker = threading.Thread(target=work)
    ticks = []
    worker.start()
    while worker.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.0005)
    worker.join()
    kernels.use(before)
    start, end = span
    quarter = (end - start) / 4
    assert any(start + quarter < tick < end - quarter for tick in ticks), "this thread stood still: the GIL was held"
