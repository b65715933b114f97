"""What EnvPool answers with a crash, a hang or a wrong number is refused at our door, in one clear line.

The hazards are those measured of EnvPool 1.2.5: shapes are checked on the first call only, fewer rows than environments
abort the process, an inherited pool hangs, and a pool whose answer was never fetched is one step off for ever.
"""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.async_vector_env import AsyncState

from ppo_fast import envs
from ppo_fast.cpus import cpu_quota
from ppo_fast.envs.envpool import EnvPoolVectorEnv, default_num_threads
from ppo_fast.errors import BackendError, ConfigError, EnvError, NonFiniteError, ShapeError

N = 4


def arrays(env: envs.VectorEnv) -> dict[str, Any]:
    n, spec = env.num_envs, env.spec
    return {
        "actions": np.zeros((n, spec.act_dim), np.float32),
        "obs": np.zeros((n, spec.obs_dim), np.float32),
        "rewards": np.zeros(n, np.float32),
        "terminated": np.zeros(n, np.bool_),
        "truncated": np.zeros(n, np.bool_),
        "valid": np.zeros(n, np.bool_),
    }


@pytest.fixture
def ant() -> Any:
    env = envs.make("Ant-v5", N, seed=1, backend="envpool", num_threads=2)
    env.reset(arrays(env)["obs"])
    yield env
    env.close()


class Meddler:
    """A raw pool with a hand on it: counts what is sent, and may fail before or after an answer is fetched."""

    def __init__(self, pool: Any, *, fail: str = "") -> None:
        self.pool, self.fail, self.sent = pool, fail, 0

    def _send(self, data: Any) -> None:
        self.sent += 1
        self.pool._send(data)

    def _recv(self) -> Any:
        if self.fail == "before":
            raise KeyboardInterrupt
        state = self.pool._recv()
        if self.fail == "after":
            raise KeyboardInterrupt
        return state

    def _reset(self, env_ids: Any) -> None:
        self.pool._reset(env_ids)


# --- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True], ids=["first call", "later call"])
@pytest.mark.parametrize(
    "actions",
    [
        np.zeros((N, 4), np.float32),
        np.zeros((N - 1, 8), np.float32),
        np.zeros((N + 1, 8), np.float32),
        np.zeros(8, np.float32),
        np.zeros((N, 8), np.float64),
        np.full((N, 8), None),
        [[0.0] * 8] * N,
        None,
    ],
    ids=["too narrow", "too few", "too many", "flat", "float64", "objects", "list", "none"],
)
def test_actions_of_another_kind_never_reach_the_pool(ant: Any, actions: Any, later: bool) -> None:
    given = arrays(ant)
    if later:
        ant.step(**given)
    ant._pool = meddler = Meddler(ant._pool)
    with pytest.raises(ShapeError, match="actions must be"):
        ant.step(**{**given, "actions": actions})
    assert meddler.sent == 0
    ant.step(**given)
    assert np.isfinite(given["rewards"]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_actions_that_are_not_finite_never_reach_the_pool(ant: Any, value: float, capfd: Any) -> None:
    ant._pool = meddler = Meddler(ant._pool)
    given = arrays(ant)
    given["actions"][2, 5] = given["actions"][3, 0] = value
    with pytest.raises(NonFiniteError, match=r"Ant-v5 \(envpool\): actions of environments \[2, 3\] are not finite"):
        ant.step(**given)
    assert meddler.sent == 0
    assert capfd.readouterr() == ("", "")  # MuJoCo would have warned on stdout, and in a file


def test_the_pool_sees_no_action_beyond_the_range() -> None:
    env = envs.make("InvertedPendulum-v5", N, seed=1, backend="envpool")  # range [-3, 3]
    given = arrays(env)
    env.reset(given["obs"])
    given["actions"][:] = [[9.0], [-9.0], [0.5], [0.0]]
    env.step(**given)
    assert env._actions.tolist() == [[3.0], [-3.0], [1.5], [0.0]]  # type: ignore[attr-defined]
    env.close()


def test_raw_calls_equal_the_public_step(ant: Any) -> None:
    """The adapter calls ``_send`` and ``_recv``, which no documentation promises: they must do what ``step`` does."""
    import envpool

    from ppo_fast.kernels import env_seeds

    public = envpool.make("Ant-v5", env_type="gymnasium", num_envs=N, seed=env_seeds(1, 0, N).tolist())
    public.reset()
    rng, given = np.random.default_rng(0), arrays(ant)
    for _ in range(150):
        given["actions"][:] = rng.uniform(-1, 1, (N, 8))
        ant.step(**given)
        obs, rewards, terminated, truncated, info = public.step(given["actions"].astype(np.float64))
        np.testing.assert_array_equal(given["obs"], obs.astype(np.float32))
        np.testing.assert_array_equal(given["rewards"], rewards)
        np.testing.assert_array_equal(given["terminated"], terminated)
        np.testing.assert_array_equal(given["truncated"], truncated)
        np.testing.assert_array_equal(given["valid"], info["elapsed_step"] > 0)


# --- interruption, closing, forking -----------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", ["step", "reset"])
def test_an_interrupted_call_ends_the_use(ant: Any, moment: str, call: str) -> None:
    given = arrays(ant)
    ant._pool = Meddler(ant._pool, fail=moment)
    with pytest.raises(KeyboardInterrupt):
        ant.step(**given) if call == "step" else ant.reset(given["obs"])
    ant._pool.fail = ""
    with pytest.raises(EnvError, match=r"did not finish.*may be one step off: close this one and make a new one"):
        ant.step(**given)
    with pytest.raises(EnvError, match="did not finish"):
        ant.reset(given["obs"])
    ant.close()  # with an answer still waiting in the pool
    again = envs.make("Ant-v5", N, seed=1, backend="envpool")
    again.reset(given["obs"])
    again.step(**given)
    again.close()


def test_an_interrupted_asynchronous_call_closes_quietly(registered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches the workers as well, and their answer to it must not be raised out of close()."""
    env_id = registered("Interrupted-v0", entry_point=Interrupted)
    env: Any = envs.make(env_id, 2, seed=1, vectorization="async")
    given, inner = arrays(env), env._envs
    env.reset(given["obs"])

    def interrupted() -> None:
        assert all(pipe.poll(60) for pipe in inner.parent_pipes)  # the workers' answers wait to be fetched
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(inner, "step_wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            env.step(**given)
    assert inner._state is AsyncState.WAITING_STEP
    with pytest.raises(EnvError, match="did not finish"):
        env.step(**given)
    env.close()
    assert not any(process.is_alive() for process in inner.processes)


def test_close_frees_the_threads() -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    if not Path("/proc/self/task").exists():
        pytest.skip("counts threads in /proc")
    before = threads()
    env = envs.make("Hopper-v5", 3, seed=1, backend="envpool", num_threads=3)
    assert threads() >= before + 3
    env.close()
    assert threads() <= before


FORK = """
import multiprocessing, os, sys
import numpy as np
from ppo_fast import envs
from ppo_fast.errors import EnvError

env = envs.make("Hopper-v5", 2, seed=1, backend={backend!r}, vectorization={vectorization!r})
obs, rewards = np.zeros((2, 11), np.float32), np.zeros(2, np.float32)
flags = [np.zeros(2, np.bool_) for _ in range(3)]
step = lambda: env.step(np.zeros((2, 3), np.float32), obs, rewards, *flags)
env.reset(obs)
step()

def child():
    for use in (step, lambda: env.reset(obs)):
        try:
            use()
        except EnvError as error:
            assert "forked" in str(error) and "spawn" in str(error), error
        else:
            raise AssertionError("used in a child")
    env.close()
    own = envs.make("Hopper-v5", 2, seed=1, backend={backend!r})
    own.reset(obs)
    own.close()

# A bare fork that leaves by sys.exit would end the workers of asynchronous environments: so multiprocessing has it.
if {vectorization!r} == "sync":
    pid = os.fork()
    if pid == 0:
        child()
        sys.exit(0)  # not os._exit: the interpreter frees what it holds, on which an inherited pool would crash
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, status
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
assert process.exitcode == 0, process.exitcode
for _ in range(30):
    step()
env.close()
print("parent is well")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize(("backend", "vectorization"), [("envpool", "sync"), ("gymnasium", "async")])
def test_a_forked_child_is_refused_and_leaves_quietly(backend: str, vectorization: str, tmp_path: Path) -> None:
    script = tmp_path / "fork.py"
    body = textwrap.indent(FORK.format(backend=backend, vectorization=vectorization), "    ")
    script.write_text(f"if __name__ == '__main__':\n{body}")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=90, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "parent is well"), done.stderr
    assert "Traceback" not in done.stderr


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
@pytest.mark.parametrize("num_envs", [0, -1, 2.0, True, "4"])
def test_num_envs_is_a_count(backend: str, num_envs: Any) -> None:
    with pytest.raises(ConfigError, match=f"num_envs must be an integer >= 1, got {num_envs!r}"):
        envs.make("Ant-v5", num_envs, seed=1, backend=backend)


@pytest.mark.parametrize("num_threads", [-1, 1.5])
def test_num_threads_is_a_count(num_threads: Any) -> None:
    with pytest.raises(ConfigError, match=f"num_threads must be an integer >= 0, got {num_threads!r}"):
        envs.make("Ant-v5", 2, seed=1, backend="envpool", num_threads=num_threads)


def test_names_are_checked() -> None:
    with pytest.raises(ConfigError, match="env_backend must be 'auto', 'envpool' or 'gymnasium', got 'brax'"):
        envs.make("Ant-v5", 2, seed=1, backend="brax")
    with pytest.raises(ConfigError, match="vectorization must be 'sync' or 'async', got 'fork'"):
        envs.make("Ant-v5", 2, seed=1, vectorization="fork")


@pytest.mark.parametrize("backend", ["auto", "envpool", "gymnasium"])
@pytest.mark.parametrize(
    ("env_id", "hint"),
    [
        ("Antt-v5", r"did you mean 'Ant-v5'"),
        ("ant-v5", r"did you mean 'Ant-v5'"),
        ("Halfcheetah", r"did you mean 'HalfCheetah-v5'"),
        ("qqqq", r"known are Ant-v5"),
        ("", r"known are Ant-v5"),
        ("no_such_module:Ant-v5", r"module 'no_such_module' cannot be imported \(ModuleNotFoundError: "),
        (".:Ant-v5", r"module '\.' cannot be imported \(TypeError: "),
    ],
)
def test_unknown_ids_get_near_matches(backend: str, env_id: str, hint: str) -> None:
    for use in (lambda: envs.make(env_id, 2, seed=1, backend=backend), lambda: envs.spec(env_id, backend)):
        with pytest.raises(EnvError, match=hint) as caught:
            use()
        assert repr(env_id) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_module_that_raises_on_import_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises_on_import.py").write_text("raise RuntimeError('no licence\\nfound')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvError) as caught:
        envs.make("raises_on_import:Ant-v5", 2, seed=1)
    assert str(caught.value) == (
        "environment 'raises_on_import:Ant-v5': module 'raises_on_import' cannot be imported "
        "(RuntimeError: no licence found)"
    )


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("envpool", {"vectorization": "async"}, "vectorization 'async' belongs to the Gymnasium backend, and EnvPool"),
        ("gymnasium", {"num_threads": 3}, "env_threads 3 belongs to the EnvPool backend, and Gymnasium"),
    ],
)
def test_an_option_that_the_backend_would_ignore_is_refused(
    backend: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        envs.make("Hopper-v5", 2, seed=1, backend=backend, **options)
    with pytest.raises(ConfigError, match=message):
        envs.workers(backend, 2, **{"num_threads": 0, "vectorization": "sync", **options})


def test_workers_are_threads_or_processes() -> None:
    assert envs.workers("envpool", 8, num_threads=3, vectorization="sync") == 3
    assert envs.workers("envpool", 8, num_threads=0, vectorization="sync") == default_num_threads(8)
    assert envs.workers("gymnasium", 8, num_threads=0, vectorization="sync") == 1
    assert envs.workers("gymnasium", 8, num_threads=0, vectorization="async") == 8


def test_auto_takes_envpool_where_it_was_shown_equal_and_where_nothing_else_has_the_task() -> None:
    with pytest.raises(EnvError, match=r"EnvPool has no environment 'Taxi-v4' \(did you mean 'Taxi-v3'"):
        envs.make("Taxi-v4", 2, seed=1, backend="envpool")
    name, reason = envs.resolve_backend("Pendulum-v1", "auto")
    assert (name, reason) == ("gymnasium", "Pendulum-v1 is not among the tasks in which EnvPool was shown to equal it")
    assert envs.resolve_backend("Pendulum-v1", "envpool")[0] == "envpool"
    assert envs.resolve_backend("WalkerWalk-v1", "auto") == ("envpool", "EnvPool has WalkerWalk-v1, Gymnasium does not")
    with pytest.raises(EnvError, match="Gymnasium registers no 'WalkerWalk-v1', only EnvPool does"):
        envs.resolve_backend("WalkerWalk-v1", "gymnasium")
    assert len(envs.ENVPOOL_TASKS) == 11
    assert {*envs.ENVPOOL_TASKS, "WalkerWalk-v1"} <= set(envs.known_env_ids())
    for env_id in envs.ENVPOOL_TASKS:
        assert envs.resolve_backend(env_id, "auto")[0] == "envpool"
        assert envs.resolve_backend(env_id, "gymnasium")[0] == "gymnasium"


def test_without_envpool_auto_says_why_and_a_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    name, reason = envs.resolve_backend("Ant-v5", "auto")
    assert name == "gymnasium"
    assert "EnvPool cannot be imported (" in reason
    with pytest.raises(BackendError, match="EnvPool cannot be imported"):
        envs.make("Ant-v5", 2, seed=1, backend="envpool")
    env = envs.make("Hopper-v5", 1, seed=1)
    assert env.spec.backend == "gymnasium"
    env.close()


# --- spaces -----------------------------------------------------------------------------------------------------------


class Odd(gymnasium.Env[Any, Any]):
    """An environment that is nothing but its spaces."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space


FLAT = spaces.Box(-1.0, 1.0, (3,))
ODD = {
    "DiscreteObservation": (spaces.Discrete(3), FLAT, "observation"),
    "TooManyCombinations": (FLAT, spaces.MultiDiscrete([64, 65]), "action"),
    "ChoicesNotFromZero": (FLAT, spaces.MultiDiscrete([2, 3], start=[0, 1]), "action"),
    "ChoicesInAMatrix": (FLAT, spaces.MultiDiscrete([[2, 3], [4, 5]]), "action"),
    "MultiBinary": (FLAT, spaces.MultiBinary(3), "action"),
    "IntegerAction": (FLAT, spaces.Box(0, 3, (2,), np.int64), "action"),
    "MatrixAction": (FLAT, spaces.Box(-1.0, 1.0, (2, 2)), "action"),
    "Image": (spaces.Box(0, 255, (84, 84, 3), np.uint8), FLAT, "observation"),
    "Bytes": (spaces.Box(0, 255, (128,), np.uint8), FLAT, "observation"),
    "LargeMatrix": (spaces.Box(-1.0, 1.0, (64, 65)), FLAT, "observation"),
    "DictOfMore": (spaces.Dict({"position": FLAT, "gripper": spaces.Discrete(2)}), FLAT, "observation"),
    "EmptyDict": (spaces.Dict({}), FLAT, "observation"),
    "Words": (spaces.Text(5), FLAT, "observation"),
    "Nothing": (spaces.Box(-1.0, 1.0, (0,)), FLAT, "observation"),
}


@pytest.fixture
def registered() -> Any:
    """Register environments for one test."""
    ids = []

    def register(env_id: str, **options: Any) -> str:
        gymnasium.register(env_id, **options)
        ids.append(env_id)
        return env_id

    yield register
    for env_id in ids:
        del gymnasium.registry[env_id]


@pytest.mark.parametrize("kind", ODD)
def test_other_spaces_are_refused_in_one_line(kind: str, registered: Any) -> None:
    observation_space, action_space, role = ODD[kind]
    env_id = registered(f"Odd{kind}-v0", entry_point=lambda: Odd(observation_space, action_space))
    for use in (lambda: envs.make(env_id, 2, seed=1), lambda: envs.spec(env_id)):
        with pytest.raises(EnvError, match=f"{env_id}: its {role} space .* is not supported; allowed is a") as e:
            use()
        assert "\n" not in str(e.value)


def test_an_environment_that_cannot_be_made_says_why(registered: Any) -> None:
    def broken() -> Odd:
        raise RuntimeError("no licence\nfound")

    env_id = registered("Broken-v0", entry_point=broken)
    with pytest.raises(EnvError, match="Broken-v0: Gymnasium cannot make it: RuntimeError: no licence found"):
        envs.make(env_id, 2, seed=1)


class Interrupted(Odd):
    """Ctrl-C in the middle of its step: raised, because a signal that comes just before a blocking read is lost."""

    def __init__(self) -> None:
        super().__init__(FLAT, FLAT)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        raise KeyboardInterrupt


class FallsAtLimit(Odd):
    """Falls at its third step; registered with a time limit of three steps."""

    def __init__(self) -> None:
        super().__init__(FLAT, FLAT)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.time += 1
        return np.full(3, self.time, np.float32), 1.0, self.time == 3, False, {}


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_fall_at_the_limit_is_both_under_gymnasium(registered: Any, vectorization: str) -> None:
    """And an environment that only this process has registered steps in spawned processes, too."""
    env_id = registered("FallsAtLimit-v0", entry_point=FallsAtLimit, max_episode_steps=3)
    env = envs.make(env_id, 2, seed=1, vectorization=vectorization)
    given = arrays(env)
    env.reset(given["obs"])
    flags = []
    for _ in range(4):
        env.step(**given)
        flags.append([given[name].tolist() for name in ("terminated", "truncated", "valid")])
    yes, no = [True, True], [False, False]
    assert flags == [[no, no, yes], [no, no, yes], [yes, yes, yes], [no, no, no]]
    env.close()


def test_a_fall_at_the_limit_is_a_cut_under_envpool() -> None:
    """EnvPool's own reading, documented in base.py; if this test fails, EnvPool has changed for the better."""
    import envpool

    def first_end(**options: Any) -> tuple[int, bool, bool]:
        env = EnvPoolVectorEnv("Hopper-v5", 1, seed=1)
        env._pool = envpool.make("Hopper-v5", env_type="gymnasium", num_envs=1, seed=[5], **options)
        given = arrays(env)
        env.reset(given["obs"])
        given["actions"][:] = 1.0
        for time in range(1, 1000):
            env.step(**given)
            if given["terminated"][0] or given["truncated"][0]:
                env.close()
                return time, bool(given["terminated"][0]), bool(given["truncated"][0])
        raise AssertionError("never fell")

    fall, terminated, truncated = first_end()
    assert (terminated, truncated) == (True, False)
    assert first_end(max_episode_steps=fall) == (fall, False, True)


# --- threads ----------------------------------------------------------------------------------------------------------


def test_threads_never_outnumber_environments_or_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("ppo_fast.cpus.cpu_quota", lambda: math.inf)
    assert default_num_threads(64) == 8
    assert default_num_threads(3) == 3
    monkeypatch.setattr("ppo_fast.cpus.cpu_quota", lambda: 2.5)
    assert default_num_threads(64) == 3  # rounded up
    monkeypatch.setattr("ppo_fast.cpus.cpu_quota", lambda: 0.2)
    assert default_num_threads(64) == 1


@pytest.mark.parametrize(
    ("own", "outer", "quota"),
    [
        ("250000 100000", "max 100000", 2.5),
        ("max 100000", "150000 100000", 1.5),
        ("400000 100000", "150000 100000", 1.5),
        ("max 100000", "max 100000", math.inf),
        (None, "300000 100000", 3.0),
        ("nonsense", None, math.inf),
    ],
)
def test_quota_is_the_tightest_of_the_group_and_its_parents(
    tmp_path: Path, own: str | None, outer: str | None, quota: float
) -> None:
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "pod" / "job").mkdir(parents=True)
    proc.write_text("1:cpu:/elsewhere\n0::/pod/job\n")
    for folder, text in ((root / "pod" / "job", own), (root / "pod", outer)):
        if text is not None:
            (folder / "cpu.max").write_text(text)
    assert cpu_quota(proc, root) == quota


def test_no_quota_without_cgroups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "missing", tmp_path) == math.inf
    (tmp_path / "v1").write_text("1:cpu:/\n")
    assert cpu_quota(tmp_path / "v1", tmp_path) == math.inf
