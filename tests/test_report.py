"""Reports: pages that need nothing but themselves, tell what the files tell, and never harm a training."""

from __future__ import annotations

import json
import math
import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import TINY, call
from hypothesis import given, settings
from hypothesis import strategies as st
from training import Recorder, config

import ppo_fast as pf
from ppo_fast import plot, scores, train
from ppo_fast.cli import parse_config
from ppo_fast.errors import ConfigError, NonFiniteError
from ppo_fast.report import svg, write_report
from ppo_fast.report.compare import compare_page
from ppo_fast.report.files import read
from ppo_fast.report.options import command, options
from ppo_fast.report.run import run_page
from ppo_fast.trainer import Trainer

VOID = {"meta", "br"}


class Page(HTMLParser):
    """A page as a browser sees it: elements with their attributes, texts, and the source of each picture."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.source = data.decode()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def pictures(self) -> Iterator[ElementTree.Element]:
        """Parse each picture as XML."""
        depth, start = 0, 0
        for match in re.finditer(r"<svg\b|</svg>", self.source):
            if match[0] == "<svg":
                start = start if depth else match.start()
                depth += 1
            else:
                depth -= 1
                if not depth:
                    yield ElementTree.fromstring(self.source[start : match.end()])

    def check(self) -> Page:
        """Fail unless the page is sound: it loads nothing, runs nothing, and can be read by those who do not see."""
        names = [name for name, _ in self.elements]
        assert not set(names) & {"script", "link", "iframe", "object", "embed", "img", "base", "form"}
        for _, attributes in self.elements:
            assert not [key for key in attributes if key.startswith("on")]
            for key in attributes.keys() & {"href", "src", "xlink:href", "srcset", "action", "poster"}:
                assert not re.match(r"[\w+.-]+:|/|\\", attributes[key] or ""), attributes[key]
        style = self.source[self.source.index("<style>") : self.source.index("</style>")]
        assert not re.search(r"url\(|@import|https?:|expression", style)
        assert ("html", {"lang": "en"}) in self.elements
        assert names.count("title") >= names.count("h1") == 1
        pictures = list(self.pictures())
        assert len(pictures) == sum(attributes.get("role") == "img" for _, attributes in self.elements)
        for picture in pictures:
            assert picture.get("aria-label")
            assert picture.findtext("title")
            assert "nan" not in ElementTree.tostring(picture, encoding="unicode").lower()
        assert names.count("table") == names.count("caption")
        assert all(attributes.get("scope") in ("row", "col") for name, attributes in self.elements if name == "th")
        return self


ROW = {"sps": 1000.0, "approx_kl": 0.01, "value_loss": 0.5, "learning_rate": 3e-4, "epochs": 10.0}
OPTIONS = {"env": "Hopper-v5", "preset": "fast", "seed": 3, "total_timesteps": 1000}


def write(
    path: Path, rows: list[dict[str, Any]], evaluations: list[dict[str, Any]], info: Any = None, **options: Any
) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({**OPTIONS, **options}))
    for name, lines in (("metrics", rows), ("evaluations", evaluations)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if info is not None:
        (path / "run_info.json").write_text(json.dumps(info))
    return path


def rows(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [
        {"iteration": i, "env_steps": 100 * i, "wall_s": 0.1 * i, "episode_return": float(i), "episode_length": 5.0,
         "time/physics": 0.06, "time/update": 0.03, **ROW, **fields}
        for i in range(1, count + 1)
    ]  # fmt: skip


def evaluation(steps: int, *returns: float) -> dict[str, Any]:
    return {"env_steps": steps, "wall_s": steps / 1000, "returns": list(returns), "lengths": [7] * len(returns)}


def page(path: Path) -> Page:
    return Page(run_page(read(path), path / "report.html")).check()


# What the page says


def test_the_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    run = write(tmp_path / "r", rows(10), [evaluation(500, 9.0, 11.0), evaluation(1000, 2000.0, 3000.0, 4000.0)])
    (run / "checkpoints" / "step_000000001000").mkdir(parents=True)
    found = page(run)
    text = found.text
    # Mean 3000, sample standard deviation 1000, 1.96 * 1000 / sqrt(3) = 1131.6.
    assert "Final evaluation3,000.0 ± 1,131.6" in text
    assert "3 episodes, mean actions; std 1,000.0, 2,000.0 to 4,000.0" in text
    assert "Best evaluation3,000.0at step 1,000" in text
    assert "Training return10.0" in text
    assert "Env steps per second1,000" in text  # 1000 steps in 1.0 s
    assert "PPO · preset fast · seed 3 · 1,000 environment steps · 0:01 of training" in text
    # 10 rows: 0.6 s of physics, 0.3 s of updates, and 0.1 s that no phase counts.
    for phase, seconds, share, each in (("physics", "0.60", "60.0%", "600.0"), ("update", "0.30", "30.0%", "300.0"),
                                        ("the rest", "0.10", "10.0%", "100.0")):  # fmt: skip
        assert f"{phase}{seconds}{share}{each}" in text
    assert ("a", {"href": "checkpoints/step_000000001000"}) in found.elements
    assert "checkpoint, best evaluation" in text
    assert "alert" not in [attributes.get("class") for _, attributes in found.elements]
    curves = next(found.pictures())
    marks = [mark.findtext("title") for mark in curves.iter("circle")]
    assert marks == [f"evaluation, mean actions: {n} environment steps" for n in ("10.00 at 500.0", "3,000 at 1,000")]
    band = [point.split(",") for point in curves.find(".//polygon").get("points").split()]
    # 10 % and 90 % of (9, 11) and of (2000, 3000, 4000): up along 10.8, 3800, back along 2200, 9.2, of axes to 3800.
    heights = [1000 - float(y) for _, y in band]
    assert [x for x, _ in band] == ["500", "1000", "1000", "500"]
    assert (heights[1] - heights[2]) / (heights[1] - heights[3]) == pytest.approx(1600 / 3790.8, abs=1e-3)


def test_links_lead_from_wherever_the_page_is(tmp_path: Path) -> None:
    run = write(tmp_path / "a:b" / "r #1", rows(2), [evaluation(1000, 1.0)])
    (tmp_path / "pages").mkdir()
    found = Page(run_page(read(run), tmp_path / "pages" / "p.html")).check()
    assert ("a", {"href": "../a%3Ab/r%20%231/metrics.jsonl"}) in found.elements
    (run / "video.mp4").touch()
    (run / ".tmp-7-video.mp4").touch()  # one that is being written
    assert any(name == "video" and attributes["src"] == "video.mp4" for name, attributes in page(run).elements)


@pytest.mark.parametrize(
    "hostile",
    ["<script>alert(1)</script>", "\"><img src=x onerror='alert(1)'>", "</title></svg></style><b onclick=x>&amp;",
     "javascript:alert(1)", "'&quot;\u2028{{7*7}}"],
)  # fmt: skip
def test_hostile_words_stay_words(tmp_path: Path, hostile: str) -> None:
    path = tmp_path / hostile.replace("/", "_")
    made = write(
        path, rows(3, **{hostile: 1.5, f"time/{hostile}": 0.01}), [evaluation(1000, 1.0)],
        {"machine": {"cpu": hostile, hostile: hostile}}, env=hostile, preset=hostile, algo=hostile,
        **{hostile: hostile},
    )  # fmt: skip
    (path / "nonfinite.json").write_text(json.dumps({"error": hostile}))
    text = page(made).text
    assert text.count(hostile) >= 8
    assert "b" not in [name for name, _ in page(made).elements]
    other = Page(compare_page([scores.read_run(made)] * 2, tmp_path / "c.html")).check()
    assert other.text.count(hostile) >= 4


def test_what_no_page_can_hold_is_replaced(tmp_path: Path) -> None:
    run = write(tmp_path / "r\udcff", rows(2), [], env="a\x00b\ud800c")
    assert "a\ufffdb\ufffdc" in page(run).text


OLD = [{"env_steps": 100, "wall_s": 1.0, "episode_return": None}, {"env_steps": 200, "wall_s": 2.0}]
GARBAGE = [{"env_steps": "x", "wall_s": 1}, {"env_steps": 5}, {"env_steps": True, "wall_s": math.nan}, {}]


@pytest.mark.parametrize(
    ("metrics", "evaluations", "said"),
    [
        ([], [], ["0 of 1,000 steps", "No episode has ended, and no evaluation", "run_info.json is missing"]),
        (rows(1), [], ["100 of 1,000 steps", "No evaluation was made", "1 iterations"]),
        (rows(1), [evaluation(1000, 5.0)], ["5.0 ± 0.0"]),
        (rows(3, episode_return=None), [], ["No episode has ended"]),
        (rows(2, episode_return=None) + rows(4)[2:], [], ["Training return4.0"]),
        (OLD, [], ["200 of 1,000 steps"]),
        ([*GARBAGE, *rows(2)], [{"env_steps": 1, "wall_s": 1}, {**evaluation(9), "returns": ["x"]}], ["200 of 1,000"]),
        (rows(2, value_loss=1e300), [evaluation(900, -1e12, 1e12)], ["Last evaluation0.0"]),
        (rows(3, sps=0.0, wall_s=0.0), [evaluation(1000, 0.0, 0.0)], ["0.0 ± 0.0"]),
        (rows(2), [evaluation(10 * i, 1.0, i) for i in range(1, 101)], ["The last 20 of 100 evaluations"]),
    ],
)  # fmt: skip
def test_any_run_has_a_page(
    tmp_path: Path, metrics: list[dict[str, Any]], evaluations: list[dict[str, Any]], said: list[str]
) -> None:
    text = page(write(tmp_path / "r", metrics, evaluations)).text
    assert all(words in text for words in said), text


def test_the_commands_are_those_that_can_be_run(tmp_path: Path) -> None:
    own = page(write(tmp_path / "own", rows(2), [], {"processes": {"count": 1}}, env="robot:Walker")).text
    assert "--resume auto --env robot:Walker" in own
    assert ".mp4 --env robot:Walker" in own
    assert "torchrun" not in own
    many = page(write(tmp_path / "many", rows(2), [], {"processes": {"count": 4}}, env="WalkerWalk-v1")).text
    assert many.count("torchrun --nproc-per-node 4 -m ppo_fast.train") == 2
    assert "--video" not in many  # only EnvPool has it


def test_what_went_wrong_is_said_first(tmp_path: Path) -> None:
    run = write(tmp_path / "r", rows(3), [], {"resumed_at": 200, "versions": {"torch": "2"}})
    (run / "nonfinite.json").write_text(json.dumps({"error": "reward of env 3 is nan", "state": {"env_steps": 300}}))
    text = page(run).text
    assert "Not finished: 300 of 1,000 steps were taken." in text
    assert "NaN or infinity after step 300: reward of env 3 is nan." in text
    assert "Taken up at step 200" in text
    assert f"python -m ppo_fast.train --run-dir {shlex.quote(str(run))} --resume auto" in text


def test_no_page_without_options(tmp_path: Path) -> None:
    for text in (None, '{"lr": 1}'):  # none, and those of something else
        if text:
            (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match="is not the directory of a run"):
            read(tmp_path)


# Long runs


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_thinning_keeps_ends_and_extremes_in_order(y: list[float], buckets: int) -> None:
    kept = svg.thin(y, buckets)
    assert kept == sorted(set(kept))
    assert len(kept) <= max(2 * buckets, 1) + 2
    assert {0, len(y) - 1} <= set(kept)
    values = [y[i] for i in kept]
    assert (min(values), max(values)) == (min(y), max(y))


def test_a_long_run_has_a_small_page_that_shows_every_extreme(tmp_path: Path) -> None:
    many = rows(12_000, **{f"metric_{i}": 1.0 for i in range(5)})
    rng = np.random.default_rng(0)
    for row in many:
        row |= {"episode_return": rng.normal(), **{name: rng.normal() for name in row if name.startswith("metric")}}
    many[7001]["episode_return"] = 100.0
    run = write(tmp_path / "r", many, [evaluation(100 * i, 0.0, 1.0) for i in range(1, 12_000, 10)], total_timesteps=10)
    found = page(run)
    assert len(found.source) < 1_000_000
    line = next(found.pictures()).find(".//polyline").get("points").split()
    assert 500 < len(line) <= 602
    x, _ = min((point.split(",") for point in line), key=lambda point: float(point[1]))
    assert float(x) == pytest.approx(1000 * 7002 / 12_000, abs=0.06)
    assert "highest 100.0" in next(found.pictures()).get("aria-label")


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.sampled_from([3, 5]))
@settings(max_examples=200, deadline=None)
def test_ticks_are_round_and_even_and_tell_themselves_apart(low: float, span: float, about: int) -> None:
    high = low + span
    if high - low < 1e-9 * abs(low):
        return
    at = svg.ticks(low, high, about)
    step = np.diff(at)
    assert 1 <= len(at) <= 2 * about + 1
    assert low - 1e-6 * span <= min(at) <= max(at) <= high + 1e-6 * span
    np.testing.assert_allclose(step, step[:1].repeat(len(step)), rtol=1e-3)
    if max(map(abs, at)) < 100 * span:  # farther from 0, labels of this length cannot
        assert len(set(svg.labels(at))) == len(at)


def test_ticks_in_words() -> None:
    assert svg.labels(svg.ticks(0, 1_002_138)) == ["0", "0.2M", "0.4M", "0.6M", "0.8M", "1.0M"]
    assert svg.labels(svg.ticks(0, 60_376)) == ["0", "10k", "20k", "30k", "40k", "50k", "60k"]
    assert svg.labels(svg.ticks(-3.1, 3.4, 3)) == ["-2", "0", "2"]
    assert svg.labels(svg.ticks(0, 3e-4, 3)) == ["0", "1e-4", "2e-4", "3e-4"]
    assert svg.labels(svg.ticks(0.004, 0.023)) == ["0.005", "0.010", "0.015", "0.020"]


# The same run again


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"env": "Ant-v5", "preset": "sample", "seed": 7, "log_std_init": -0.5, "hidden_sizes": (32,), "log": ()},
        {"env": "Hopper-v5", "anneal_lr": False, "adaptive_kl": 0.01, "norm_obs": False, "clip_vloss": True},
        {"env": "HalfCheetah-v5", "algo": "trpo", "delta": 0.02, "kernels": "numba", "eval_every": 0},
        {"env": "Ant-v5", "env_kwargs": {"xml_file": "a b.xml", "healthy_z_range": [0.3, 1.2]}},
        {"env": "my env:Odd $-v0", "algo": "reinforce", "policy_weight": "reward_to_go", "gae_lambda": 1.0},
    ],
)
def test_the_command_line_gives_the_same_options(chosen: dict[str, Any]) -> None:
    cfg = pf.resolve(run_dir="somewhere", quiet=True, **chosen)
    stored = json.loads(json.dumps(cfg.to_dict()))
    words = shlex.split(command(stored))
    assert words[:3] == ["python", "-m", "ppo_fast.train"]
    again = parse_config(words[3:], prog="x", description="")
    assert again == pf.resolve(**chosen)
    own = {option.name for option in options(stored) if option.origin == "chosen"}
    assert own == {name for name in chosen if name != "env" or chosen[name] != "Ant-v5"} | {"run_dir", "quiet"}
    assert len(options(stored)) == len(stored)


def test_options_tell_where_they_come_from(tmp_path: Path) -> None:
    found = {o.name: o for o in options({"env": "Ant-v5", "preset": "sample", "log_std_init": -1.0, "gamma": 0.99,
                                         "seed": 4, "num_steps": 32, "gone": 1})}  # fmt: skip
    origins = {name: option.origin for name, option in found.items()}
    assert origins == {"env": "", "preset": "chosen", "log_std_init": "preset", "gamma": "", "seed": "chosen",
                       "num_steps": "chosen", "gone": "unknown"}  # fmt: skip
    assert found["log_std_init"].builtin == -0.5


# Comparisons


def test_runs_side_by_side(tmp_path: Path) -> None:
    def made(name: str, level: float, **options: Any) -> Path:
        metrics = rows(10)
        curve = [evaluation(500, level), evaluation(1000, 2 * level, 2 * level)]
        return write(tmp_path / name, metrics, curve, **options)

    paths = [made("a", 10.0), made("b", 20.0, seed=4, gamma=0.9), made("c", 5.0, algo="trpo", gamma=0.99)]
    paths.append(made("d", 7.0, env="Ant-v5", gamma=0.99))
    write_report(paths[0])
    runs = [scores.read_run(path) for path in paths]
    found = Page(compare_page(runs, tmp_path / "c.html")).check()
    text = found.text
    for line in scores.rows(runs):
        assert "".join(line[:-1]) in text
    assert [name for name, _ in found.elements].count("section") == 2 + 3
    assert "PPO, fast, 2 seeds" in text
    assert "TRPO, fast, 1 seed" in text
    assert "gamma0.990.90.99" in text  # Ant with PPO, Hopper with PPO (of the run that names it), Hopper with TRPO
    assert ("a", {"href": "a/report.html"}) in found.elements
    hopper = list(found.pictures())[2]
    assert len(hopper.findall(".//polyline")) == 2 + 1 + 1  # two seeds, their mean, and a run alone
    assert len(hopper.findall(".//polygon")) == 1


def test_plot_writes_pages(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write(tmp_path / name, rows(2), [evaluation(1000, 1.0)])
    write(tmp_path / "begun", rows(2), [])
    done = call(plot.main, capsys, "a", "b", "--html", "p.html")
    assert (done.code, done.err) == (0, "")
    assert "| Hopper-v5 | ppo, fast |" in done.out
    assert "comparison of runs" in Page(Path("p.html").read_bytes()).check().text
    assert not list(tmp_path.glob("*.png"))
    assert call(plot.main, capsys, "begun", "--html", "begun.html").code == 0
    assert "200 of 1,000 steps" in Page(Path("begun.html").read_bytes()).check().text
    assert call(plot.main, capsys, "a", "--html", "q.html", "--out", "q.png").code == 0
    assert Path("q.png").exists()
    for args, said in (
        ("a --html x.htm", "html must be a path that ends in .html"),
        ("a begun --html x.html", "no evaluation yet in begun"),
        ("missing --html x.html", "missing is not the directory of a run"),
    ):
        done = call(plot.main, capsys, *args.split())
        assert done.code == 2
        assert said in done.err
    assert not Path("x.html").exists()


# A training and its report


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppo_fast.plotting.draw_learning_curve", lambda path: path)  # half a second


@pytest.mark.usefixtures("no_picture")
def test_a_training_ends_with_a_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done = call(train.main, capsys, *TINY, "--run-dir", str(tmp_path / "r"))
    assert done.code == 0
    assert re.search(rf"^  report +{re.escape(str(tmp_path))}/r/report.html$", done.out, re.MULTILINE)
    found = Page((tmp_path / "r" / "report.html").read_bytes()).check()
    assert found.source.encode() == run_page(read(tmp_path / "r"), tmp_path / "r" / "report.html")
    mean, ci95 = re.search(r"final evaluation: ([\d.]+) \+- ([\d.]+)", done.out).groups()
    assert f"Final evaluation{float(mean):,.1f} ± {float(ci95):,.1f}" in found.text
    linked = {attributes["href"] for name, attributes in found.elements if name == "a"}
    assert all((tmp_path / "r" / str(href)).exists() for href in linked)
    assert len(linked) >= 5


@pytest.mark.usefixtures("no_picture")
def test_a_report_that_fails_is_one_warning(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> bytes:
        raise ValueError("line one\nline two")

    monkeypatch.setattr("ppo_fast.report.run.run_page", fail)
    done = call(train.main, capsys, *TINY, "--run-dir", str(tmp_path / "r"))
    assert done.code == 0
    assert "final evaluation" in done.out
    assert caplog.messages == ["report.html could not be written: ValueError: line one line two"]
    assert not (tmp_path / "r" / "report.html").exists()


@pytest.mark.usefixtures("no_picture")
def test_a_run_that_met_nan_has_a_report(tmp_path: Path) -> None:
    def poison(row: dict[str, Any]) -> None:
        if row["iteration"] == 2:
            trainer.learner.flat[0] = math.nan

    trainer = Trainer(config(tmp_path / "r"), [Recorder(poison)])
    with pytest.raises(NonFiniteError) as error:
        trainer.run()
    text = Page((tmp_path / "r" / "report.html").read_bytes()).check().text
    assert "Not finished" in text
    assert re.search(rf"NaN or infinity after step \d+: {re.escape(str(error.value))}\.", text)
