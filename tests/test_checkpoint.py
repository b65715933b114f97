"""Checkpoints: what is written comes back, nothing half-written is ever found, and damage is named."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_fast import checkpoint, files
from ppo_fast.errors import CheckpointError

NAMES = ("model.safetensors", "train.safetensors", "state.json", "manifest.json")


def save(directory: Path, step: int, *, keep: int = 3) -> Path:
    """Write a checkpoint whose every part says ``step``."""
    return checkpoint.save(
        directory,
        step,
        model={"actor.0.weight": torch.full((3, 2), float(step)), "obs_normalizer.mean": torch.arange(4).double()},
        train={"learner.counters": torch.tensor([step, -step])},
        state={"env_steps": step, "config": {"env": "Ant-v5"}},
        keep=keep,
    )


def check(saved: checkpoint.Checkpoint, step: int) -> None:
    """Fail unless ``saved`` is what :func:`save` wrote."""
    assert saved.state == {"format_version": 2, "env_steps": step, "config": {"env": "Ant-v5"}}
    assert set(saved.model) == {"actor.0.weight", "obs_normalizer.mean"}
    torch.testing.assert_close(saved.model["actor.0.weight"], torch.full((3, 2), float(step)), rtol=0, atol=0)
    assert saved.model["obs_normalizer.mean"].dtype == torch.float64
    assert saved.model["obs_normalizer.mean"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert saved.train["learner.counters"].tolist() == [step, -step]


def seal(path: Path) -> None:
    """Write the manifest that fits the files as they are, as a forger would."""
    facts = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name in NAMES[:3]
        for data in [(path / name).read_bytes()]
    }
    (path / "manifest.json").write_text(json.dumps({"format_version": 2, "files": facts}))


# --- writing ---------------------------------------------------------------------------------------------------------
def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 250_000)
    assert path.name == "step_000000250000"
    assert sorted(p.name for p in path.iterdir()) == sorted(NAMES)
    check(checkpoint.load(path), 250_000)
    check(checkpoint.locate(path), 250_000)
    check(checkpoint.locate(tmp_path), 250_000)
    check(checkpoint.locate(str(tmp_path)), 250_000)


def test_the_manifest_holds_size_and_sha256_of_the_other_files(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    for name in NAMES[:3]:
        data = (path / name).read_bytes()
        assert manifest["files"][name] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_views_and_transposes_are_saved_as_what_they_show(tmp_path: Path) -> None:
    flat = torch.arange(6.0)
    path = checkpoint.save(
        tmp_path, 1, model={"t": flat.view(2, 3).t()}, train={"v": flat[2:4].clone()}, state={}, keep=1
    )
    saved = checkpoint.load(path)
    assert saved.model["t"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert saved.train["v"].tolist() == [2.0, 3.0]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400):
        save(tmp_path, step, keep=2)
    assert [p.name for p in checkpoint.find(tmp_path)] == ["step_000000000400", "step_000000000300"]
    save(tmp_path, 500, keep=1)
    assert [p.name for p in checkpoint.find(tmp_path)] == ["step_000000000500"]


def test_the_one_just_written_is_kept_even_if_others_claim_later_steps(tmp_path: Path) -> None:
    for step in (700, 800, 900):
        save(tmp_path, step)
    path = save(tmp_path, 100)
    check(checkpoint.load(path), 100)
    assert [int(p.name[5:]) for p in checkpoint.find(tmp_path)] == [900, 800, 100]


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    first = save(tmp_path, 100)
    (first / "state.json").write_text("damaged")
    check(checkpoint.load(save(tmp_path, 100)), 100)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000000100"]


def test_what_cannot_be_json_is_refused_before_the_disk_is_touched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path / "c", 1, model={}, train={}, state={"wall_s": float("nan")}, keep=1)
    assert not (tmp_path / "c").exists()


# --- kill and disk failure at every call that touches the disk -------------------------------------------------------
class Killed(BaseException):
    """Stands for the end of the process: no handler of errors sees it."""


class Failpoint:
    """Raise at the ``fatal``-th of the calls that touch the disk; before that, count them."""

    def __init__(self, patch: pytest.MonkeyPatch, fatal: int | None, error: BaseException) -> None:
        self.calls, self.fatal, self.error, self.armed = 0, fatal, error, True
        for owner, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "open"), (os, "mkdir")):
            patch.setattr(owner, name, self._before(getattr(owner, name)))
        for owner in (builtins, io):  # pathlib's way is the second
            patch.setattr(owner, "open", self._open(open))

    def _before(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._count()
            return real(*args, **kwargs)

        return call

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = real(path, mode, *args, **kwargs)
            if "w" in mode:
                write = file.write
                half = self

                class Torn:
                    """A file whose write may stop in the middle."""

                    def __enter__(self) -> Torn:
                        return self

                    def __exit__(self, *exc: object) -> None:
                        file.close()

                    def __getattr__(self, name: str) -> Any:
                        return getattr(file, name)

                    def write(self, data: bytes) -> int:
                        write(data[: len(data) // 2])
                        half._count()
                        return int(write(data[len(data) // 2 :]))

                return Torn()
            return file

        return call

    def _count(self) -> None:
        if self.armed:
            self.calls += 1
            if self.calls == self.fatal:
                raise self.error


def count_calls(work: Callable[[], object]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        point = Failpoint(patch, None, Killed())
        work()
        return point.calls


@pytest.mark.parametrize("how", [Killed(), OSError(28, "No space left on device")], ids=["kill", "disk full"])
def test_a_checkpoint_cut_short_anywhere_costs_nothing(tmp_path: Path, how: BaseException) -> None:
    save(tmp_path / "count", 100)
    calls = count_calls(lambda: save(tmp_path / "count", 200))
    assert calls >= 4 * 2 + 4  # write and fsync of four files; mkdir, rename, fsync of two directories
    outcomes, stopped = set(), 0
    for fatal in range(1, calls + 1):
        directory = tmp_path / str(fatal)
        save(directory, 100)
        error: BaseException | None = None
        with pytest.MonkeyPatch.context() as patch:
            Failpoint(patch, fatal, how)
            try:
                save(directory, 200)
            except (Killed, CheckpointError) as err:
                error = err
        stopped += error is not None
        if error is None:  # making a directory that is there already may fail without harm
            check(checkpoint.load(directory / "step_000000000200"), 200)
        elif isinstance(how, OSError):
            assert "cannot be written: No space left on device" in str(error)
            assert not list(directory.glob(".tmp-*"))  # a process that lives on clears up at once
        found = checkpoint.load_newest(directory)
        outcomes.add(found.state["env_steps"])
        check(found, found.state["env_steps"])
        check(checkpoint.load(directory / "step_000000000100"), 100)
        check(checkpoint.load(save(directory, 300)), 300)
        assert not list(directory.glob(".tmp-*"))
    assert outcomes == {100, 200}  # before the rename the old one, after it the new one
    assert stopped >= calls - 1


def test_a_full_disk_while_the_same_step_is_replaced_keeps_the_old_one(tmp_path: Path) -> None:
    save(tmp_path / "count", 100)
    calls = count_calls(lambda: save(tmp_path / "count", 100))
    for fatal in range(1, calls + 1):
        path = save(tmp_path / str(fatal), 100, keep=1)
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(CheckpointError):
            Failpoint(patch, fatal, OSError(28, "No space left on device"))
            save(tmp_path / str(fatal), 100, keep=1)
        check(checkpoint.load(path), 100)


@pytest.mark.parametrize("how", [Killed(), OSError(28, "No space left on device")], ids=["kill", "disk full"])
def test_a_file_cut_short_anywhere_is_the_old_or_the_new(tmp_path: Path, how: BaseException) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"old")
    calls = count_calls(lambda: files.write_atomic(path, b"brand new"))
    assert calls >= 4  # write, fsync, replace, fsync of the directory
    for fatal in range(1, calls + 1):
        path.write_bytes(b"old")
        with pytest.MonkeyPatch.context() as patch:
            Failpoint(patch, fatal, how)
            with pytest.raises(type(how)):
                files.write_atomic(path, b"brand new")
        assert path.read_bytes() in (b"old", b"brand new")
        assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


SAVER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from ppo_fast import checkpoint
directory, kills = Path(sys.argv[1]), int(sys.argv[2])
random.seed(1)
torch.set_num_threads(1)  # a pool of threads does not survive a fork
for kill in range(kills):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        step = 1000 * kill
        while True:
            step += 1
            model = {"w": torch.full((40_000,), float(step))}
            checkpoint.save(directory, step, model=model, train={}, state={"s": step}, keep=2)
            os.write(write, b".")
    os.read(read, 1)  # its first save is done
    time.sleep(random.random() * 0.04)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    for path in checkpoint.find(directory):
        saved = checkpoint.load(path)
        assert saved.model["w"].eq(saved.state["s"]).all() and path.name == f"step_{saved.state['s']:012d}"
    assert checkpoint.find(directory), "nothing was ever saved"
stale = len(list(directory.glob(".tmp-*")))
checkpoint.remove_stale(directory)
print("loaded after every kill;", stale, "->", len(list(directory.glob(".tmp-*"))))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_a_real_kill_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SAVER, str(tmp_path), "200"], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("loaded after every kill;")
    assert result.stdout.strip().endswith("-> 0")


# --- damage ----------------------------------------------------------------------------------------------------------
def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def extend(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(1))


def zero(path: Path, rng: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def become_directory(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("damage", "times"), [(flip, 60), (truncate, 10), (extend, 1), (zero, 1), (delete, 1), (become_directory, 1)]
)
def test_damage_is_found_and_its_file_named(
    tmp_path: Path, name: str, damage: Callable[[Path, random.Random], None], times: int
) -> None:
    rng = random.Random(f"{name} {damage.__name__}")
    whole = save(tmp_path / "whole", 100)
    for attempt in range(times):
        path = tmp_path / str(attempt) / whole.name
        shutil.copytree(whole, path)
        damage(path / name, rng)
        if (path / name).is_file() and (path / name).read_bytes() == (whole / name).read_bytes():
            continue
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(path)
        assert str(path) in str(caught.value)
        if name != "manifest.json":
            assert str(path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_swapped_files_are_found(tmp_path: Path) -> None:
    path = save(tmp_path, 100)
    model, train = path / "model.safetensors", path / "train.safetensors"
    (tmp_path / "aside").write_bytes(model.read_bytes())
    shutil.copy(train, model)
    shutil.copy(tmp_path / "aside", train)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        checkpoint.load(path)


def test_files_of_another_checkpoint_are_found(tmp_path: Path) -> None:
    path, other = save(tmp_path, 100), save(tmp_path, 200)
    shutil.copy(other / "model.safetensors", path)  # same size, other contents
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its SHA-256"):
        checkpoint.load(path)


def test_a_damaged_newest_is_named_set_aside_and_the_previous_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (100, 200, 300):
        save(tmp_path, step)
    (tmp_path / "step_000000000300" / "model.safetensors").write_bytes(b"")
    (tmp_path / "step_000000000200" / "state.json").unlink()
    check(checkpoint.load_newest(tmp_path, rename_damaged=True), 100)
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(texts) == 2
    assert "set aside as step_000000000300.corrupt" in texts[0]
    assert str(tmp_path / "step_000000000300" / "model.safetensors") in texts[0]
    assert "set aside as step_000000000200.corrupt" in texts[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_000000000100",
        "step_000000000200.corrupt",
        "step_000000000300.corrupt",
    ]


def test_a_reader_renames_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    for step in (100, 200):
        save(run / "checkpoints", step)
    (run / "checkpoints" / "step_000000000200" / "manifest.json").unlink()
    before = sorted(p.name for p in (run / "checkpoints").iterdir())
    check(checkpoint.locate(run), 100)
    assert "damaged checkpoint passed over" in caplog.text
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == before


def test_no_checkpoint_and_none_that_is_good_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoint.load_newest(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no run or checkpoint at"):
        checkpoint.locate(tmp_path / "nowhere")
    save(tmp_path, 100)
    (tmp_path / "step_000000000100" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"all 1 checkpoints in .* are damaged"):
        checkpoint.load_newest(tmp_path)


# --- what a forger may write -----------------------------------------------------------------------------------------
def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "model.safetensors/../../secret", "C:\\secret", ""])
def test_a_manifest_can_name_no_other_file(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 100)
    (tmp_path.parent / "secret").write_bytes(b"x")
    entry = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    for change in (
        lambda m: m["files"].update({name: entry}),  # one more
        lambda m: m["files"].update({name: m["files"].pop("state.json")}),  # one in another's place
    ):
        copy = tmp_path / "copy"
        shutil.copytree(path, copy, dirs_exist_ok=True)
        rewrite(copy / "manifest.json", change)
        with pytest.raises(
            CheckpointError, match=r"must list exactly model\.safetensors, train\.safetensors, state\.json"
        ):
            checkpoint.load(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("files"),
        lambda m: m.update(files=["model.safetensors"]),
        lambda m: m["files"].update({"state.json": None}),
        lambda m: m["files"]["state.json"].pop("sha256"),
        lambda m: m["files"]["state.json"].update(size="many"),
        lambda m: m["files"]["state.json"].update(sha256=None),
        lambda m: m["files"]["state.json"].update(size=-1),
    ],
)
def test_a_nonsensical_manifest_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = save(tmp_path, 100)
    rewrite(path / "manifest.json", change)
    with pytest.raises(CheckpointError, match="step_000000000100"):
        checkpoint.load(path)


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.target,))


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_under_a_valid_seal_is_not_executed(tmp_path: Path, name: str, protocol: int) -> None:
    path = save(tmp_path, 100)
    bomb = pickle.dumps(Bomb(str(tmp_path / "boom")), protocol)
    (path / name).write_bytes(bomb)
    seal(path)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    torch.save(Bomb(str(tmp_path / "boom")), path / name)
    seal(path)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 8,
        struct.pack("<Q", 10 * 2**30) + b"{}",  # a header of 10 GB
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 62) + b'{"t":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4]}}  ' + b"\x00" * 4,
        struct.pack("<Q", 56) + b'{"t":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}  ' + b"\x00" * 4,
    ],
)
def test_absurd_tensors_under_a_valid_seal_are_refused(tmp_path: Path, data: bytes) -> None:
    path = save(tmp_path, 100)
    (path / "model.safetensors").write_bytes(data)
    seal(path)
    with pytest.raises(CheckpointError, match="holds tensors that cannot be read"):
        checkpoint.load(path)


@pytest.mark.parametrize("data", [b"", b"[]", b"5", b"\xff", b"[" * 200_000])
@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_absurd_json_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    path = save(tmp_path, 100)
    (path / name).write_bytes(data)
    if name == "state.json":
        seal(path)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        checkpoint.load(path)


def test_another_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    save(tmp_path, 100)
    path = save(tmp_path, 200)
    for name in ("manifest.json", "state.json"):
        rewrite(path / name, lambda value: value.update(format_version=99))
    for load in (lambda: checkpoint.load(path), lambda: checkpoint.load_newest(tmp_path, rename_damaged=True)):
        with pytest.raises(CheckpointError, match="has checkpoint format 99; this version reads 1 and 2"):
            load()
    assert path.exists()  # a newer version may want it; an older checkpoint is not taken in its place


def test_a_format_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 100)
    for version in (True, "2", None, 2.0, [2], 10**400):
        rewrite(path / "manifest.json", lambda value, version=version: value.update(format_version=version))
        with pytest.raises(CheckpointError):
            checkpoint.load(path)


def test_a_checkpoint_under_the_name_of_another_step_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 100)
    os.rename(save(tmp_path, 200), tmp_path / "step_000000000300")
    with pytest.raises(CheckpointError, match="holds the state of another step, 200"):
        checkpoint.load(tmp_path / "step_000000000300")
    check(checkpoint.load_newest(tmp_path), 100)
    shutil.copytree(tmp_path / "step_000000000100", tmp_path / "backup")  # under a name that claims nothing
    check(checkpoint.load(tmp_path / "backup"), 100)


@pytest.mark.parametrize("name", NAMES)
def test_links_and_pipes_are_not_followed(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 100)
    os.rename(path / name, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", path / name)  # its bytes are right
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        checkpoint.load(path)
    os.unlink(path / name)
    os.mkfifo(path / name)  # opening it would wait for ever
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        checkpoint.load(path)


def test_a_directory_that_is_a_link_is_no_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path / "a", 100)
    (tmp_path / "b").mkdir()
    os.symlink(path, tmp_path / "b" / path.name)
    assert checkpoint.find(tmp_path / "b") == []


@pytest.mark.parametrize("name", NAMES)
def test_files_beyond_the_limit_are_refused_unread(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 100)
    size = 40 * 2**30  # sparse: it takes no space, and reading it would take 40 GB
    os.truncate(path / name, size)
    if name != "manifest.json":
        rewrite(path / "manifest.json", lambda value: value["files"][name].update(size=size))
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} cannot be read: it has {size} bytes"):
        checkpoint.load(path)


def test_a_checkpoint_beyond_the_limit_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checkpoint.MAX_BYTES, ".safetensors", 100)
    with pytest.raises(CheckpointError, match=r"cannot be written: model\.safetensors would have \d+ bytes"):
        save(tmp_path, 100)
    assert not list(tmp_path.iterdir())


def test_five_hundred_mutations_are_refused_and_the_one_before_is_used(tmp_path: Path) -> None:
    rng = random.Random(500)
    good = save(tmp_path / "run", 100)
    refused = 0
    while refused < 500:
        path = save(tmp_path / "run", 200)
        name = rng.choice(NAMES)
        damage = rng.choice([flip, flip, truncate, extend, zero_a_page, delete, swap])
        before = {n: (path / n).read_bytes() for n in NAMES}
        damage(path / name, rng)
        if {n: (path / n).read_bytes() for n in NAMES if (path / n).exists()} == before:
            continue  # a page of zeros was zero before
        if name == "manifest.json" and same_json(path / name, before[name]):
            continue  # a space more
        with pytest.raises(CheckpointError, match=r"step_000000000200"):
            checkpoint.load(path)
        check(checkpoint.load_newest(tmp_path / "run", rename_damaged=True), 100)
        assert not path.exists()
        refused += 1
    assert good.exists()


def zero_a_page(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    path.write_bytes(data)


def swap(path: Path, rng: random.Random) -> None:
    other = path.with_name(rng.choice([name for name in NAMES if name != path.name]))
    mine, yours = path.read_bytes(), other.read_bytes()
    path.write_bytes(yours)
    other.write_bytes(mine)


def same_json(path: Path, before: bytes) -> bool:
    try:
        return bool(json.loads(path.read_bytes()) == json.loads(before))
    except (OSError, ValueError):
        return False


def test_the_best_stays_beside_the_newest(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400, 500):
        checkpoint.save(
            tmp_path, step, model={}, train={}, state={"env_steps": step, "best_step": 200}, keep=2,
            best=100 if step == 100 else 200,
        )  # fmt: skip
    assert [int(p.name[5:]) for p in checkpoint.find(tmp_path)] == [500, 400, 200]
    assert checkpoint.load_best(tmp_path).state["env_steps"] == 200


def test_a_kill_while_the_only_checkpoint_is_replaced_loses_nothing(tmp_path: Path) -> None:
    save(tmp_path / "count", 100, keep=1)
    calls = count_calls(lambda: save(tmp_path / "count", 100, keep=1))
    for fatal in range(1, calls + 1):
        directory = tmp_path / str(fatal)
        path = save(directory, 100, keep=1)
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            Failpoint(patch, fatal, Killed())
            save(directory, 100, keep=1)
        checkpoint.remove_stale(directory)  # what every start does first
        check(checkpoint.load(path), 100)
        assert [p.name for p in directory.iterdir()] == [path.name]


def test_what_is_set_aside_twice_is_kept_twice(tmp_path: Path) -> None:
    names = {checkpoint.set_aside(save(tmp_path, 100), ".abandoned").name for _ in range(3)}
    assert len(names) == 3
    assert {p.name for p in tmp_path.iterdir()} == names
    for name in names:
        check(checkpoint.load(tmp_path / name), 100)


def test_a_flipped_bit_in_the_format_is_damage_and_no_format(tmp_path: Path) -> None:
    save(tmp_path, 100)
    path = save(tmp_path, 200)
    rewrite(path / "manifest.json", lambda value: value.update(format_version=3))
    check(checkpoint.load_newest(tmp_path, rename_damaged=True), 100)
    assert not path.exists()
