"""Trials before a comparison: as many for all, on nothing that a table is judged by."""

import json

import pytest

from saqrl import Run
from saqrl.commands import compare
from saqrl.studies import grid as grids
from saqrl.studies.grid import Task, plan
from saqrl.studies.methods import methods
from saqrl.studies.report import load_rows, write_report
from saqrl.studies.tuning import (
    TRIAL_EPISODE,
    TRIAL_SEED,
    ideas,
    read_tuned,
    trials_of,
    tune,
    tuned_section,
)
from saqrl.training.flags import changed
from saqrl.training.progress import Reporter
from saqrl.training.settings import Settings
from saqrl.training.train import saved_settings
from tests.studies.test_grid import Trainer
from tests.walking import run, small

EVERYTHING = ("bc", "iql", "cql", "brac", "gmm", "gaussian", "rebrac", "fql")


def cells(*agents, seeds=(TRIAL_SEED,), **more):
    compared = methods(agents, ("quantized", "continuous"))
    return plan([Task("walk", "npz:walk.npz")], compared, seeds, changes={}, **more)


class Decayed(Trainer):
    """A run scores what its weight decay is, and fails as it is."""

    def __call__(self, settings, out, *, resume, reporter):
        super().__call__(settings, out, resume=resume, reporter=reporter)
        if settings.agent.weight_decay < 0.3 and "as-it-is" in out.name:
            raise RuntimeError("the simulator fell over")
        score = settings.agent.weight_decay
        records = (out / "evaluations.jsonl").read_text().replace("0.9", str(score))
        (out / "evaluations.jsonl").write_text(records)


@pytest.fixture
def trainer(monkeypatch):
    made = Decayed()
    monkeypatch.setattr(grids, "train", made)
    monkeypatch.setattr(grids, "_refuse_unscored", lambda cells: None)
    monkeypatch.setattr(grids, "require_unchanged", lambda runs: None)
    return made


def test_every_method_has_five_ideas_that_differ():
    for cell in cells(*EVERYTHING):
        tried = [trial.settings for trial in trials_of(cell, 5)]
        assert len({json.dumps(each.to_json(), sort_keys=True) for each in tried}) == 5
        assert tried[0] == cell.settings


def test_both_kinds_of_an_agent_are_given_the_same_ideas():
    codes, plain = (dict(ideas(cell.settings)) for cell in cells("bc"))
    ways = {"greedy", "sampled at 0.5"}  # what codes are drawn by
    assert {name: codes[name] for name in codes if name not in ways} == plain


def test_the_best_idea_is_what_the_comparison_is_trained_with(trainer, tmp_path):
    say = Reporter(quiet=True)
    tuned = tune(cells("bc"), tmp_path, say, trials=3)
    assert {found.idea for found in tuned.values()} == {"weight decay 0.3"}
    assert tuned["walk", "bc"].scores == {
        "as it is": None,
        "inputs of deviation 0.3": pytest.approx(0.01),
        "weight decay 0.3": pytest.approx(30.0),
    }
    chosen = {key: found.flags for key, found in tuned.items()}
    assert {c.settings.agent.weight_decay for c in cells("bc", chosen=chosen)} == {0.3}
    # Nothing is tried twice, and what joins later is tried as often.
    asked = len(trainer.asked)
    assert tune(cells("bc"), tmp_path, say, trials=3) == tuned
    assert len(trainer.asked) == asked
    assert len(tune(cells("bc", "gmm"), tmp_path, say, trials=3)) == 3
    assert len(trainer.asked) == asked + 3
    with pytest.raises(ValueError, match="has 3 trials per method: pass --tune 3"):
        tune(cells("bc"), tmp_path, say, trials=4)


def test_trials_share_neither_seed_nor_episodes_with_the_table(trainer, tmp_path, capsys):
    words = ["--datasets", "npz:walk.npz", "--agents", "gmm", "--seeds", "2", "--tune", "2"]
    assert compare.main([*words, "--out", str(tmp_path), "--steps", "30"]) == 0
    assert "2 trials first: 2 for each method and data set" in capsys.readouterr().err

    def settings_below(folder) -> list[Settings]:
        return [saved_settings(path.parent) for path in folder.rglob("config.json")]

    trials, table = (settings_below(tmp_path / name) for name in ("tuning", "cells"))
    starts = [[(s.seed, s.evaluation.first) for s in found] for found in (trials, table)]
    assert starts[0] == [(TRIAL_SEED, TRIAL_EPISODE)] * 2
    assert sorted(starts[1]) == [(0, 0), (1, 0)]
    rows = load_rows(tmp_path)
    assert {row["method"] for row in rows} == {"gmm"}
    section = tuned_section(read_tuned(tmp_path))
    markdown, _ = write_report(rows, tmp_path / "report", title="walk", last=[section])
    assert "Settings chosen by trials" in markdown.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tune", "1"), "tune is 1; it must be at least 2"),
        (("--tune", "40"), r"tune is 40, but gmm has only \d settings to try"),
        (("--tune", "2", "--first-seed", "100"), "seeds from 100 on are reserved for trials"),
    ],
)
def test_trials_that_cannot_be_are_refused(trainer, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        compare.main(
            ["--datasets", "npz:walk.npz", "--agents", "gmm", "--out", str(tmp_path), *words]
        )
    assert trainer.asked == []


def test_other_episodes_have_other_starts(dataset, tmp_path):
    scores = {
        first: run(small(dataset, "bc", eval_first=first), tmp_path / str(first))["return_mean"]
        for first in (0, TRIAL_EPISODE)
    }
    policy = Run(tmp_path / "0")
    for first, mean in scores.items():
        assert policy.evaluate(3, seed=first).return_mean == mean
    assert scores[0] != scores[TRIAL_EPISODE]


def test_a_method_whose_trials_all_failed_is_named(monkeypatch, trainer, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("no simulator")

    monkeypatch.setattr(grids, "train", fail)
    with pytest.raises(ValueError, match="every trial of gmm on walk failed"):
        tune(cells("gmm"), tmp_path, Reporter(quiet=True), trials=2)
    assert read_tuned(tmp_path) == {}


def test_an_idea_names_flags_that_change_its_settings():
    for cell in cells(*EVERYTHING):
        for name, flags in ideas(cell.settings):
            assert (changed(cell.settings, flags) == cell.settings) == (name == "as it is")
