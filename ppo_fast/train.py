"""``python -m ppo_fast.train``: train a policy."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from ppo_fast.envs.base import EnvSpec
    from ppo_fast.sinks import Sink
    from ppo_fast.trainer import RunResult, Trainer

_STARTED = time.perf_counter()
_ECHO_S = 3.0  # within which a second one is an echo of the first, but Ctrl-C to one process

DESCRIPTION = (
    "Train a policy on vectorised MuJoCo, with PPO unless --algo says otherwise. Order: built-in < --preset < "
    "--config FILE.toml < other options."
)


def main(args: list[str] | None = None) -> int:
    """Parse the options, train, print where the results are; return the exit code."""
    argv = sys.argv[1:] if args is None else args
    with signals_handled_by(_leave):  # until there is a trainer, there is nothing to save
        from ppo_fast.cli import run_command

        return run_command(lambda: _train(argv), prog="ppo_fast.train")


def _train(argv: list[str]) -> int:
    from ppo_fast.cli import parse_config
    from ppo_fast.distributed import connect
    from ppo_fast.sinks.console import ConsoleSink, lasting_console
    from ppo_fast.sinks.live import LiveSink, can_be_live
    from ppo_fast.sinks.symptoms import SymptomSink
    from ppo_fast.trainer import Trainer

    cfg = parse_config(argv, prog="python -m ppo_fast.train", description=DESCRIPTION)
    peers = connect()
    # The file is named, so that the console goes on to write there when the live view replaces sys.stdout. The first of
    # several processes speaks for all.
    console = lasting_console(file=sys.stdout, highlight=False, soft_wrap=True, quiet=peers.rank > 0)

    def write(line: str) -> None:
        if not cfg.quiet:
            console.print(line, markup=False)

    symptoms, live = SymptomSink(), None
    if can_be_live(console) and not cfg.quiet and peers.rank == 0:
        live = LiveSink(cfg.total_timesteps, console, lambda: symptoms.present)
    heard: list[Sink] = [symptoms, live or ConsoleSink(cfg.total_timesteps, write)] if peers.rank == 0 else []
    trainer = Trainer(cfg, heard, started=_STARTED, peers=peers)
    console.print(banner(trainer), markup=False)
    if live:
        live.title, live.place = title(trainer), str(trainer.run_dir.path)
    with stop_on_signals(trainer, live.interrupt if live else lambda say: say()):
        result = trainer.run()
    console.print(ending(result, peers.size), markup=False)
    peers.close()  # a process that left before the first has said so would have torchrun end the others
    return 128 + signal.Signals[result.stopped] if result.stopped else 0


@contextlib.contextmanager
def stop_on_signals(trainer: Trainer, interrupt: Callable[[Callable[[], None]], None]) -> Iterator[list[int]]:
    """Have SIGINT, SIGTERM and SIGHUP stop the trainer at its next boundary, and a second one end the process at once.

    So does the first one where nothing has been done yet that could be saved, as while environments are replayed.
    Ending at once loses what came after the last checkpoint and nothing else, since whatever is written is atomic.
    A run may get a signal twice, from the scheduler and from torchrun, a study or a sweep, or from the terminal that is
    closed and from its shell: an echo counts once. Ctrl-C is of a person, who means it each time, unless there are
    several processes.

    Args:
        trainer: what to stop.
        interrupt: calls what it is given as soon as the terminal is free for a word.

    Yields:
        The signals received so far.
    """
    received: list[int] = []
    echoes_until = 0.0

    def handle(number: int, frame: object) -> None:
        nonlocal echoes_until
        if received and time.monotonic() < echoes_until:
            return
        if received or not trainer.can_stop:
            _leave(number, frame)
        received.append(number)
        echoes = trainer.peers.size > 1 or number != signal.SIGINT
        echoes_until = time.monotonic() + (_ECHO_S if echoes else 0.0)
        name = signal.Signals(number).name
        trainer.stop(name)
        interrupt(lambda: _say(f"{name}: saving after this iteration; once more to leave at once"))

    with signals_handled_by(handle):
        yield received


@contextlib.contextmanager
def signals_handled_by(handle: Callable[[int, object], None]) -> Iterator[None]:
    """Give SIGINT, SIGTERM and, but under nohup, SIGHUP to ``handle``, and put back what had them before."""
    if threading.current_thread() is not threading.main_thread():  # only that one may
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [n for n in numbers if n in numbers[:2] or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _: object) -> NoReturn:
    _say(f"ppo_fast.train: {signal.Signals(number).name}: leaving at once")
    os._exit(128 + number)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # as in a pipeline that the same Ctrl-C has ended
        os.write(2, f"\n{line}\n".encode())  # not print, which a signal may find in the midst of its work


def title(trainer: Trainer) -> str:
    """Return in a line what runs and on what, for the live view."""
    from ppo_fast.algos import NAMES
    from ppo_fast.system import device_name

    cfg, device = trainer.cfg, trainer.device
    parts = (cfg.env, NAMES[cfg.algo], f"preset {cfg.preset}", f"seed {cfg.seed}", f"{device} ({device_name(device)})")
    return " · ".join(parts)


def ending(result: RunResult, processes: int = 1) -> str:
    """Return where a run has come to, and what can be done with it."""
    from ppo_fast.video import can_be_filmed

    run, steps, env = result.run_dir, result.state.env_steps, result.policy.spec.env_id
    confirm = ["--env", env] if ":" in env else []  # which both commands ask for
    if result.final is None or result.stopped:
        go_on = shlex.join(
            [sys.executable, "-m", "ppo_fast.train", "--run-dir", str(run), "--resume", "auto", *confirm]
        )
        many = "" if processes == 1 else f" in {processes} processes, by torchrun as before"
        return f"\nstopped by {result.stopped} after {steps:,} steps; to go on{many}:\n  {go_on}"
    film = shlex.join([sys.executable, "-m", "ppo_fast.play", str(run), "--video", str(run / "video.mp4"), *confirm])
    return (
        f"\nfinal evaluation: {result.final.mean:.1f} +- {result.final.ci95:.1f} (95 % CI of the mean over "
        f"{len(result.final.returns)} episodes, std {result.final.std:.1f}) after {steps:,} steps "
        f"in {result.state.wall_s:.0f} s\n"
        f"  report      {run / 'report.html'}\n"
        f"  picture     {run / 'learning_curve.png'}\n"
        f"  checkpoint  {run / 'checkpoints'}/step_{steps:012d}\n"
        + (f"  video       {film}" if can_be_filmed(env) else "  no video, since only EnvPool has this environment")
    )


def _actions(spec: EnvSpec) -> str:
    if spec.choices:
        return f"{len(spec.choices)} discrete actions at once, {spec.num_actions} combinations"
    return f"{spec.num_actions} discrete actions" if spec.num_actions else f"action {spec.act_dim}"


def _update(trainer: Trainer) -> str:
    """Return how torch runs the update, and why."""
    words = str(trainer.info["update"]["mode"])
    if trainer.cfg.precision != "float32":
        words += f" in {trainer.cfg.precision}"
    if why := trainer.info["update"]["why_eager"]:
        words += f" ({why})"
    elif trainer.learner.compile_s:
        words += f" (compiled in {trainer.learner.compile_s:.1f} s)"
    return words


def banner(trainer: Trainer) -> str:
    """Return what is about to run and on what, one fact a line."""
    from ppo_fast.algos import NAMES
    from ppo_fast.keywords import write_keywords

    cfg, info = trainer.cfg, trainer.info
    is_ppo = cfg.algo == "ppo"
    epochs, whose = (cfg.update_epochs, "") if is_ppo else (cfg.critic_epochs, " of the critic, 1 step of the policy")
    versions = info["versions"]
    learner = info["learner"]
    how = f"SIMD {learner['simd']}" if learner["simd"] else f"update {_update(trainer)}"
    kernels = info["kernels"]
    missing = "; ".join(f"{name} missing: {textwrap.shorten(why, 200)}" for name, why in kernels["why_not"].items())
    lines = {
        "ppo_fast": f"{versions['ppo_fast']}, torch {versions['torch']}, envpool {versions['envpool']}, "
        f"gymnasium {versions['gymnasium']}, mujoco {versions['mujoco']}",
        "algorithm": NAMES[cfg.algo],
        "task": f"{cfg.env}, preset {cfg.preset}, seed {cfg.seed}, {cfg.total_timesteps:,} steps",
        "environments": f"{cfg.num_envs} on {info['env_backend']['name']} ({info['env_backend']['reason']}), "
        f"{info['env_backend']['mode']}, "
        f"observation {trainer.spec.obs_dim}{f' ({layout})' if (layout := trainer.spec.obs_layout) else ''}, "
        + _actions(trainer.spec),
        "processes": f"{n['count']} ({n['backend']}), {cfg.num_envs} environments each"
        if (n := info["processes"])["count"] > 1
        else "",
        "batch": f"{cfg.num_envs} envs x {cfg.num_steps} steps = {cfg.batch_size} rows, {epochs} epochs x "
        f"{cfg.num_minibatches} minibatches of {cfg.minibatch_size}" + whose,
        "network": f"{'-'.join(map(str, cfg.hidden_sizes))} {cfg.activation}{', shared trunk' * cfg.shared_trunk}, "
        f"{info['num_params']:,} parameters",
        "device": f"{info['device']['got']} (asked: {cfg.device})",
        "actor": info["actor"]["name"]
        + (f" ({info['actor']['reason']})" if info["actor"]["reason"] else "")
        + (f", SIMD {info['actor']['simd']}" if info["actor"]["simd"] else ""),
        "learner": learner["name"]
        + (f" ({learner['reason']})" if learner["reason"] else "")
        + f", {how}"
        + ("" if is_ppo else "; the policy's step on torch")
        + (", while the next rollout is collected" if cfg.overlap == "learner" else ""),
        "kernels": kernels["active"] + (f" ({missing})" if missing else ""),
        "machine": f"{info['machine']['cpu']}, {info['machine']['cpus']} CPUs",
        "threads": f"torch {info['torch_threads']}, {info['env_backend']['name']} {info['env_backend']['workers']}, "
        f"learner {learner['threads']}",
        "run dir": str(trainer.run_dir.path),
    }
    if cfg.env_kwargs:
        lines["task"] += f", {' '.join(write_keywords(cfg.env_kwargs))}"
    exact = info["resume"]["exact"]
    lines["resume"] = "bit-exact" if exact else f"with new episodes, not bit-exact: {info['resume']['why_not']}"
    if taken_up := info.get("taken_up"):
        new = taken_up["why_restarted"]
        differs = [f"environments start new episodes: {new}"] if new else []
        differs += taken_up["differs"]
        lines["resumed"] = f"from step {info['resumed_at']:,}, " + (
            f"not bit-exactly ({'; '.join(differs)})" if differs else "bit-exactly, by replaying the environments"
        )
    elif cfg.resume:
        lines["resumed"] = "nothing, because the run dir holds no checkpoint: this is a new run"
    return "\n".join(f"{name + ':':<14}{text}" for name, text in lines.items() if text)


if __name__ == "__main__":
    sys.exit(main())
