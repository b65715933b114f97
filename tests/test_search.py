"""The words that describe what is searched, and the flags that options become."""

from __future__ import annotations

import pytest

from ppo_fast.cli import parse_config
from ppo_fast.errors import ConfigError
from ppo_fast.presets import resolve_options
from ppo_fast.search import Choice, Range, read_space, to_flags

BASE = resolve_options({"env": "Hopper-v5"})


def test_words_are_read_by_the_types_of_the_options() -> None:
    words = (
        "learning_rate=log:1e-5:1e-3", "gae-lambda=range:0.9:1", "num_steps=range:32:128:32", "update_epochs=log:1:20",
        "hidden_sizes=choice:64-64,256", "activation=choice:tanh,silu", "clip_vloss=choice:true,false",
        "target_kl=choice:none,0.02", "adaptive_kl=range:0.005:0.02", "minibatch_size=choice:64,256",
        "kernels=choice:none,numba",
    )  # fmt: skip
    assert read_space(words, BASE) == {
        "learning_rate": Range(1e-5, 1e-3, log=True),
        "gae_lambda": Range(0.9, 1.0),
        "num_steps": Range(32, 128, 32, whole=True),
        "update_epochs": Range(1, 20, log=True, whole=True),
        "hidden_sizes": Choice({"64-64": (64, 64), "256": (256,)}),
        "activation": Choice({"tanh": "tanh", "silu": "silu"}),
        "clip_vloss": Choice({"true": True, "false": False}),
        "target_kl": Choice({"none": None, "0.02": 0.02}),
        "adaptive_kl": Range(0.005, 0.02),
        "minibatch_size": Choice({"64": 64, "256": 256}),
        "kernels": Choice({"none": None, "numba": "numba"}),
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "search must be one word or more, like option=log:LOW:HIGH"),
        ("gamma", "search must be words like option=log:LOW:HIGH, range:LOW:HIGH, .* got 'gamma'"),
        ("gamma=0.9", "search must be words like .* got 'gamma=0.9'"),
        ("gamma=normal:0:1", "search must be words like .* got 'gamma=normal:0:1'"),
        ("gama=range:0.9:1", "unknown option 'gama' .did you mean 'gamma'"),
        ("seed=range:1:5", "seed must be the same in all trials, or decides nothing, and is not searched"),
        ("total_timesteps=range:1:5", "total_timesteps must be the same in all trials"),
        ("delta=range:0.01:0.1", "delta belongs to TRPO, and algo is 'ppo'"),
        ("gamma=range:0.9:0.99 gamma=range:0.9:0.99", "gamma is given twice"),
        ("gamma=range:0.9:1.5", r"search: gamma must be in \[0, 1\], got 1.5"),
        ("gamma=choice:0.9,2", r"search: gamma must be in \[0, 1\], got 2.0"),
        ("hidden_sizes=choice:64,0", "hidden_sizes must be one or more widths, each >= 1"),
        ("gamma=range:1:0.9", "LOW and HIGH of gamma must be finite, the first below the second, got '1:0.9'"),
        ("log_std_init=range:-1:inf", "must be finite, the first below the second, got '-1:inf'"),
        ("log_std_init=range:nan:1", "must be finite, the first below the second, got 'nan:1'"),
        ("ent_coef=log:0:0.1", "must be finite, the first above 0 and below the second, got '0:0.1'"),
        ("gamma=range:0.9", "LOW, HIGH and STEP of gamma must each be a number, got '0.9'"),
        ("gamma=range:low:high", "LOW, HIGH and STEP of gamma must each be a number, got 'low:high'"),
        ("num_steps=range:32:64.5", "LOW, HIGH and STEP of num_steps must each be an integer, got '32:64.5'"),
        ("num_steps=range:32:64:0", "STEP of num_steps must be above 0 and at most HIGH - LOW, got '32:64:0'"),
        ("num_steps=range:32:64:64", "STEP of num_steps must be above 0 and at most HIGH - LOW"),
        ("num_steps=range:32:64:8:8", "search must be words like .* got '32:64:8:8' for num_steps"),
        ("learning_rate=log:1:2:1", "search must be words like .* got '1:2:1' for learning_rate"),
        ("activation=range:0:1", "activation must be one of 'tanh', .* which has no range; take choice:A,B,..."),
        ("clip_vloss=log:1:2", "clip_vloss must be true or false, which has no range"),
        ("activation=choice:tanh,tahn", "activation must be one of 'tanh', 'relu', 'elu', 'silu', got 'tahn'"),
        ("num_steps=choice:32,6.4", "num_steps must be an integer, got '6.4'"),
        ("clip_vloss=choice:true,1", "clip_vloss must be true or false, got '1'"),
        ("hidden_sizes=choice:64-64,64x64", "hidden_sizes must be a list .* got '64x64'"),
        ("gamma=choice:none,0.9", "gamma must be a number, got 'none'"),
        ("gamma=choice:0.9", "gamma must have two different values to choose from or more, got '0.9'"),
        ("gamma=choice:0.9,0.90", "gamma must have two different values to choose from or more, got '0.9,0.90'"),
    ],
)
def test_a_word_that_cannot_be_searched_is_refused(words: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_space(words.split(), BASE)


def test_what_is_set_otherwise_cannot_be_unset() -> None:
    base = {**BASE, "target_kl": 0.02}
    with pytest.raises(ConfigError, match=r"target_kl cannot be unset, because it is 0\.02 otherwise"):
        read_space(["target_kl=choice:none,0.05"], base)


def test_flags_give_the_options_back() -> None:
    options = {
        "learning_rate": 1.2345678901234567e-05, "num_steps": 128, "hidden_sizes": (32, 16), "anneal_lr": False,
        "clip_vloss": True, "activation": "elu", "target_kl": None, "log_std_init": -1.5,
    }  # fmt: skip
    cfg = parse_config(["--env", "Hopper-v5", *to_flags(options)], prog="", description="")
    assert {name: getattr(cfg, name) for name in options} == options
