"""``python -m ppo_fast.train``: train a policy."""

from __future__ import annotations

import shlex
import sys
import textwrap
import time

_STARTED = time.perf_counter()

DESCRIPTION = (
    "Train a PPO policy on vectorised MuJoCo. Order: built-in < --preset < --config FILE.toml < other options."
)


def main(args: list[str] | None = None) -> int:
    """Parse the options, train, print where the results are; return the exit code."""
    from ppo_fast.cli import run_command

    argv = sys.argv[1:] if args is None else args
    return run_command(lambda: _train(argv), prog="ppo_fast.train")


def _train(argv: list[str]) -> None:
    from rich.console import Console

    from ppo_fast.cli import parse_config
    from ppo_fast.sinks.console import ConsoleSink
    from ppo_fast.trainer import Trainer

    cfg = parse_config(argv, prog="python -m ppo_fast.train", description=DESCRIPTION)
    console = Console(highlight=False, soft_wrap=True)
    live = console.is_terminal and not cfg.quiet
    status = console.status("starting") if live else None

    def write(line: str) -> None:
        if not cfg.quiet:
            console.print(line, markup=False)

    progress = ConsoleSink(cfg.total_timesteps, write, status.update if status else None)
    trainer = Trainer(cfg, [progress], started=_STARTED)
    console.print(banner(trainer), markup=False)
    if status:
        status.start()
    try:
        result = trainer.run()
    finally:
        if status:
            status.stop()
    run = result.run_dir
    film = shlex.join([sys.executable, "-m", "ppo_fast.play", str(run), "--video", str(run / "video.mp4")])
    console.print(
        f"\nfinal evaluation: {result.final.mean:.1f} +- {result.final.ci95:.1f} (95 % CI of the mean over "
        f"{len(result.final.returns)} episodes, std {result.final.std:.1f}) after {result.state.env_steps:,} steps "
        f"in {result.state.wall_s:.0f} s\n"
        f"  picture     {run / 'learning_curve.png'}\n"
        f"  checkpoint  {run / 'checkpoints'}/step_{result.state.env_steps:012d}\n"
        f"  video       {film}",
        markup=False,
    )


def banner(trainer: object) -> str:
    """Return what is about to run and on what, one fact a line."""
    from ppo_fast.trainer import Trainer

    assert isinstance(trainer, Trainer)
    cfg, info = trainer.cfg, trainer.info
    versions = info["versions"]
    update = info["update"]["mode"]
    if info["update"]["why_eager"]:
        update += f" ({info['update']['why_eager']})"
    elif trainer.learner.compile_s:
        update += f" (compiled in {trainer.learner.compile_s:.1f} s)"
    learner = info["learner"]
    how = f"SIMD {learner['simd']}" if learner["simd"] else f"update {update}"
    kernels = info["kernels"]
    missing = "; ".join(f"{name} missing: {textwrap.shorten(why, 200)}" for name, why in kernels["why_not"].items())
    lines = {
        "ppo_fast": f"{versions['ppo_fast']}, torch {versions['torch']}, envpool {versions['envpool']}, "
        f"gymnasium {versions['gymnasium']}, mujoco {versions['mujoco']}",
        "task": f"{cfg.env}, preset {cfg.preset}, seed {cfg.seed}, {cfg.total_timesteps:,} steps",
        "environments": f"{cfg.num_envs} on {info['env_backend']['name']} ({info['env_backend']['reason']}), "
        f"{info['env_backend']['mode']}, "
        f"observation {trainer.spec.obs_dim}, "
        + (f"{n} discrete actions" if (n := trainer.spec.num_actions) else f"action {trainer.spec.act_dim}"),
        "batch": f"{cfg.num_envs} envs x {cfg.num_steps} steps = {cfg.batch_size} rows, {cfg.update_epochs} epochs x "
        f"{cfg.num_minibatches} minibatches of {cfg.minibatch_size}",
        "network": f"{'-'.join(map(str, cfg.hidden_sizes))} {cfg.activation}{', shared trunk' * cfg.shared_trunk}, "
        f"{info['num_params']:,} parameters",
        "device": f"{info['device']['got']} (asked: {cfg.device})",
        "actor": info["actor"]["name"]
        + (f" ({info['actor']['reason']})" if info["actor"]["reason"] else "")
        + (f", SIMD {info['actor']['simd']}" if info["actor"]["simd"] else ""),
        "learner": learner["name"] + (f" ({learner['reason']})" if learner["reason"] else "") + f", {how}",
        "kernels": kernels["active"] + (f" ({missing})" if missing else ""),
        "machine": f"{info['machine']['cpu']}, {info['machine']['cpus']} CPUs",
        "threads": f"torch {info['torch_threads']}, {info['env_backend']['name']} {info['env_backend']['workers']}, "
        f"learner {learner['threads']}",
        "run dir": str(trainer.run_dir.path),
    }
    if info["resumed_at"]:
        lines["resumed"] = (
            f"from step {info['resumed_at']:,}; environments start new episodes, so the continuation is not bit-exact"
        )
    return "\n".join(f"{name + ':':<14}{text}" for name, text in lines.items())


if __name__ == "__main__":
    sys.exit(main())
