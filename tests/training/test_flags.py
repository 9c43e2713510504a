"""Flags say the same from the command line, from Python and from a sweep's file."""

import math
from typing import Literal

import numpy as np
import pytest

from saqrl.cli import main
from saqrl.commands.train import read_words
from saqrl.registry import QUANTIZERS
from saqrl.studies.sweep import Plan, Trial
from saqrl.studies.trials import jobs_of
from saqrl.training.flags import CHOICES, changed, known_flags, typed
from saqrl.training.presets import build_settings, settings_from


@pytest.fixture(scope="module")
def plain():
    return build_settings("default", agent="cql")


SAID = [
    ({"chunk": 4}, ("features", "chunk"), 4),
    ({"chunk": 4}, ("evaluation", "action_horizon"), 4),
    ({"chunk": 4, "action_horizon": 2}, ("evaluation", "action_horizon"), 2),
    ({"action_horizon": 2, "chunk": "4"}, ("evaluation", "action_horizon"), 2),
    ({"chunk": 4, "execute": "2"}, ("evaluation", "action_horizon"), 2),
    ({"eval_episodes": 7}, ("evaluation", "episodes"), 7),
    ({"eval-every": "100"}, ("evaluation", "every"), 100),
    ({"eval_every": "none"}, ("evaluation", "every"), None),
    ({"data_episodes": 5}, ("data", "episodes"), 5),
    ({"data-best": "0.1"}, ("data", "best"), 0.1),
    ({"held-out": "0.25"}, ("data", "held_out"), 0.25),
    ({"angles": ["1", "2"]}, ("data", "angles"), (1, 2)),
    ({"log_every": 3}, ("output", "log_every"), 3),
    ({"baseline": True}, ("evaluation", "baseline"), True),
    ({"seed": "9"}, ("seed",), 9),
    ({"steps": 11}, ("agent", "steps"), 11),
    ({"agent.steps": 11}, ("agent", "steps"), 11),
    ({"quantizer-steps": "12"}, ("quantizer", "steps"), 12),
    ({"agent.alpha": "1"}, ("agent", "alpha"), 1.0),
    ({"agent.batch-size": ["32"]}, ("agent", "batch_size"), 32),
    ({"agent.layer_norm": "false"}, ("agent", "layer_norm"), False),
    ({"agent.layer-norm": ["False"]}, ("agent", "layer_norm"), False),
    ({"prior.hidden": 64}, ("prior", "hidden"), (64,)),
    ({"quantizer.schedule": ["constant"]}, ("quantizer", "schedule"), "constant"),
    ({"dataset.fraction": "0.5"}, ("data", "reading", "fraction"), 0.5),
    ({"dataset.min-return": None}, ("data", "reading", "min_return"), None),
    ({"dataset.keys": ["bottom burner", "b"]}, ("data", "reading", "keys"), ("bottom burner", "b")),
]


@pytest.mark.parametrize(("flags", "place", "value"), SAID, ids=lambda value: str(value)[:40])
def test_a_flag_sets_its_field_as_its_type(plain, flags, place, value):
    found = changed(plain, flags)
    for name in place:
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_what_no_flag_names_stays(plain):
    assert changed(plain, {}) == plain
    flags = {"chunk": 4, "dataset.fraction": 0.5, "agent.alpha": 1.0, "eval_episodes": 7}
    one_by_one = plain
    for name, value in flags.items():
        one_by_one = changed(one_by_one, {name: value})
    assert one_by_one == changed(plain, flags)
    back = {"chunk": 1, "dataset.fraction": 1.0, "agent.alpha": 5.0, "eval_episodes": 50}
    assert changed(one_by_one, back) == plain


def test_the_chunk_that_settings_have_already_leaves_their_horizon(plain):
    """So that a run with a shorter horizon is resumed by the flags that began it, or fewer."""
    chunked = changed(plain, {"chunk": 4, "action_horizon": 2})
    assert changed(chunked, {"chunk": 4}) == chunked
    assert changed(chunked, {"chunk": 3}).evaluation.action_horizon == 3


@pytest.mark.parametrize(
    "words",
    ["256 128", "256,128", "256, 128", ["256", "128"], ["256,128"], [256, 128], (256, 128)],
    ids=repr,
)
def test_several_numbers_are_divided_by_spaces_or_commas(plain, words):
    assert changed(plain, {"quantizer.hidden": words}).quantizer.hidden == (256, 128)


def test_words_at_the_terminal_say_what_python_says():
    words = [
        *("--dataset", "a.npz", "2*b.npz", "--chunk", "4", "--execute=2", "--agent", "cql"),
        *("--quantizer.hidden", "64", "32", "--agent.no-layer-norm", "--prior.hidden=16,8"),
        *("--dataset.min-return", "-5", "--dataset.keys", "a", "b", "--baseline", "--seed", "3"),
        *("--agent.alpha", "1", "--agent.alpha", "2", "--json"),
    ]
    own, flags = read_words(words)
    assert own.json
    assert settings_from(flags) == settings_from(
        {
            "dataset": "a.npz + 2*b.npz",
            "chunk": 4,
            "action_horizon": 2,
            "agent": "cql",
            "quantizer.hidden": (64, 32),
            "agent.layer_norm": False,
            "prior.hidden": (16, 8),
            "dataset.min_return": -5.0,
            "dataset.keys": ("a", "b"),
            "baseline": True,
            "seed": 3,
            "agent.alpha": 2.0,
        }
    )


def test_what_a_sweep_types_is_what_its_file_says(tmp_path):
    flags = {
        "dataset": "a.npz",
        "agent": "cql",
        "agent.layer_norm": False,
        "quantizer.layer_norm": True,
        "quantizer.hidden": [64, 32],
        "agent.learning_rate": 1e-05,
        "dataset.min_return": -2.5,
        "dataset.keys": ["bottom burner", "b"],
        "baseline": True,
        "held_out": 0.2,
        "angles": [0, 1],
        "quantizer_steps": 30,
        "seed": 4,
    }
    (job,) = jobs_of(Plan((Trial(flags, {}),), tmp_path, None, "highest"), tmp_path)
    own, said = read_words(job.words[1:])
    assert own.resume
    assert settings_from(said) == settings_from(flags)


WRONG = [
    ("chunk", "a", "chunk is 'a'; expected an integer"),
    ("chunk", 2.0, "chunk is 2.0; expected an integer"),
    ("chunk", np.float32(2.5), "expected an integer"),
    ("chunk", None, "chunk is None; expected an integer"),
    ("chunk", True, "chunk is True; expected an integer"),
    ("eval-episodes", "1.5", "eval-episodes is '1.5'; expected an integer"),
    ("eval_episodes", ["1", "2"], r"eval-episodes is \['1', '2'\]; expected an integer"),
    ("held_out", "much", "held-out is 'much'; expected a number"),
    ("held_out", "nan", "held-out is 'nan'; expected a finite number"),
    ("held_out", math.nan, "held-out is nan; expected a finite number"),
    ("agent.alpha", "inf", "agent.alpha is 'inf'; expected a finite number"),
    ("agent.alpha", True, "agent.alpha is True; expected a number"),
    ("agent.layer_norm", "perhaps", "agent.layer-norm is 'perhaps'; expected true or false"),
    ("agent.layer_norm", 1, "agent.layer-norm is 1; expected true or false"),
    ("quantizer.hidden", "64 x", "quantizer.hidden is 'x'; expected an integer"),
    ("reward_scale", "uint", "reward-scale is 'uint'; 'unit' or 'return-range' or 'none'"),
    ("env", 3, "env is 3; expected str"),
    ("seed", "first", "seed is 'first'; expected an integer"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_a_value_of_another_type_is_refused_and_its_flag_named(plain, name, value, message):
    with pytest.raises(ValueError, match=message):
        changed(plain, {name: value})


def test_none_is_a_value_only_of_what_may_be_left_out():
    assert typed("env", str | None, None) is None
    assert typed("env", str | None, "none") == "none"  # a word: no environment at all
    assert typed("every", int | None, ["none"]) is None
    assert typed("scale", Literal["unit", "none"], "none") == "none"
    with pytest.raises(ValueError, match="integer"):
        typed("steps", int, "none")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("chnk", "did you mean 'chunk'"),
        ("eval_episods", "did you mean 'eval-episodes'"),
        ("held.out", "did you mean 'held-out'"),
        ("agent.alpah", "with agent cql and quantizer VQVAE; did you mean 'agent.alpha'"),
        ("agent.expectile", "unknown flag 'agent.expectile' with agent cql"),
        ("quantizer.code", "did you mean 'quantizer.codes'"),
        ("prior.step", "did you mean 'prior.steps'"),
        ("dataset.fracton", "did you mean 'dataset.fraction'"),
        ("reading", "unknown flag 'reading'"),
        ("agnt.alpha", "did you mean 'agent.alpha'"),
    ],
)
def test_an_unknown_flag_is_refused_with_the_nearest(plain, name, near):
    with pytest.raises(ValueError, match="unknown flag") as refused:
        changed(plain, {name: 1})
    assert near in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_known_flag_is_one(plain):
    for name in known_flags(plain):
        if name not in CHOICES:
            with pytest.raises(ValueError, match=r"is \{\}|is \{"):
                changed(plain, {name: {}})


def test_flags_of_an_algorithm_are_those_of_the_one_that_is_named():
    for name in QUANTIZERS:
        settings = settings_from({"dataset": "a.npz", "quantizer": name, "quantizer.codes": 9})
        assert QUANTIZERS.name_of(settings.quantizer) == name
        assert settings.quantizer.codes == 9
    with pytest.raises(ValueError, match=r"unknown flag 'quantizer\.code-size'"):
        settings_from({"dataset": "a.npz", "quantizer": "kmeans", "quantizer.code_size": 4})
    with pytest.raises(ValueError, match="agent 'rebrac' needs continuous actions"):
        settings_from({"dataset": "a.npz", "agent": "rebrac"})
    continuous = {"dataset": "a.npz", "actions": "continuous", "agent": "rebrac"}
    settings = settings_from({**continuous, "agent.actor_penalty": 0.5})
    assert settings.agent.actor_penalty == 0.5


def test_flags_win_over_the_preset():
    settings = settings_from({"preset": "pusht-chunk8", "dataset": "a.npz"})
    assert (settings.features.chunk, settings.evaluation.action_horizon) == (8, 8)
    shorter = {"preset": "pusht-chunk8", "dataset": "a.npz", "execute": 3}
    assert settings_from(shorter).evaluation.action_horizon == 3
    single = settings_from({"preset": "pusht-chunk8", "dataset": "a.npz", "chunk": 1})
    assert (single.features.chunk, single.evaluation.action_horizon) == (1, 1)


def test_what_a_resumed_run_cannot_change_is_refused(plain):
    assert settings_from({"agent": "cql", "quantizer": "vqvae"}, base=plain) == plain
    for name, value in (("agent", "iql"), ("quantizer", "fsq"), ("actions", "continuous")):
        with pytest.raises(ValueError, match=f"--resume: {name} is .* in the run and '{value}'"):
            settings_from({name: value}, base=plain)


def test_the_command_refuses_an_unknown_flag_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr("saqrl.cli.keep_compiled_programs", lambda: None)
    for words, answer in (
        (["--cunk", "8"], "unknown flag --cunk; did you mean '--chunk'"),
        (["--agent.alpah", "8", "--agent", "cql"], "did you mean 'agent.alpha'"),
        (["--agnt.alpha", "8"], "unknown flag --agnt.alpha; did you mean '--agent'"),
    ):
        assert main(["train", "--dataset", "a.npz", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("saqrl: error: ")
        assert answer in line
