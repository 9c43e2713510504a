"""A folder of single runs: told apart by what differs, with their baselines, played or not."""

import json

from saqrl.cli import main
from saqrl.studies.report import load_rows, sections
from saqrl.studies.table import collect_rows
from tests.walking import small

SCORE = {
    "act": "greedy", "episodes": 20, "return_mean": 1.0, "return_std": 0.5, "success_rate": 0.5,
    "normalized_score": None, "max_reward_mean": 1.0,
}  # fmt: skip
CODES = {"error_per_deviation": 0.1, "perplexity": 5.0, "prior_accuracy": 0.5, "measured_on": "x"}


def made(folder, *, env="Point-v0", skill=0.5, **flags):
    """A finished run as `train` leaves one, without anything trained."""
    settings = small("npz:/data/walk.npz", "bc", **flags)
    folder.mkdir(parents=True)
    config = {"settings": settings.to_json(), "versions": {"jax": "1"}}
    held = {"held_out_skill": skill, "held_out_action_error": 0.2}
    played = SCORE if env else {"act": "greedy", "episodes": 0}
    result = {
        "run": str(folder), "agent": "bc", "actions": "quantized", "env": env,
        "dataset": settings.data.dataset, "seed": settings.seed, "gradient_steps": 9,
        "wall_seconds": 5.0, "seconds": {"agent": 2.0, "baseline": 1.0}, "quantizer": CODES,
        **played, **held,
    }  # fmt: skip
    stages = ["agent"]
    if settings.evaluation.baseline:
        result["baseline"] = {**played, "held_out_skill": 0.1, "held_out_action_error": 0.3}
        stages.append("baseline")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text(json.dumps(result))
    if env:
        records = [
            {"stage": stage, "step": 40, **SCORE, "success_rate": 0.9 if stage == "agent" else 0.4}
            for stage in stages
        ]
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def methods(folder):
    return sorted(row["method"] for row in collect_rows(folder))


def test_chunks_of_one_data_set_stand_beside_each_other(tmp_path):
    made(tmp_path / "a")
    made(tmp_path / "b", chunk=4)
    rows = list(collect_rows(tmp_path))
    assert {row["task"] for row in rows} == {"walk"}
    assert methods(tmp_path) == ["saq-bc (chunk=1)", "saq-bc (chunk=4)"]


def test_runs_are_named_by_as_few_settings_as_tell_them_apart(tmp_path):
    made(tmp_path / "a", chunk=2, **{"quantizer.codes": 8, "steps": 10})
    made(tmp_path / "b", chunk=4, **{"quantizer.codes": 4, "steps": 20})
    made(tmp_path / "c", chunk=4, **{"quantizer.codes": 4, "steps": 30})
    assert methods(tmp_path) == [
        "saq-bc (chunk=2, agent.steps=10)",
        "saq-bc (chunk=4, agent.steps=20)",
        "saq-bc (chunk=4, agent.steps=30)",
    ]
    differs = next(row["differs"] for row in collect_rows(tmp_path) if row["run"].endswith("a"))
    assert differs["quantizer.codes"] == 8


def test_seeds_of_the_same_settings_are_one_method(tmp_path):
    for seed in range(2):
        made(tmp_path / f"seed{seed}", seed=seed)
    assert methods(tmp_path) == ["saq-bc", "saq-bc"]


def test_the_baseline_that_a_run_trained_is_a_method_of_its_own(tmp_path):
    made(tmp_path / "a", baseline=True)
    ours, plain = collect_rows(tmp_path)
    assert (ours["method"], ours["score"], ours["held_out_skill"]) == ("saq-bc", 90, 0.5)
    assert (plain["method"], plain["score"], plain["held_out_skill"]) == ("bc", 40, 0.1)
    assert (plain["wall_seconds"], plain["gradient_steps"], plain["quantizer"]) == (1.0, 40, {})


def test_runs_that_share_their_baseline_show_it_once(tmp_path):
    for codes in (4, 8):
        made(tmp_path / f"codes{codes}", baseline=True, **{"quantizer.codes": codes})
    assert methods(tmp_path) == ["bc", "saq-bc (quantizer.codes=4)", "saq-bc (quantizer.codes=8)"]


def test_runs_that_were_played_nowhere_are_ordered_by_their_held_out_episodes(tmp_path, capsys):
    made(tmp_path / "a", env=None, skill=0.2)
    made(tmp_path / "b", env=None, skill=0.6, chunk=2)
    assert main(["report", str(tmp_path), "--json"]) == 0
    told = capsys.readouterr()
    assert "2 runs, 2 of them without scores in a simulator, 0 failed" in told.err
    found = {section.title: section.rows for section in sections(load_rows(tmp_path))}
    assert [row[1:] for row in found["Held-out episodes"]] == [
        ("saq-bc (chunk=2)", "0", "60 %", "20 %"),
        ("saq-bc (chunk=1)", "0", "20 %", "20 %"),
    ]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "chunk=2" in page


def test_codes_of_runs_that_differ_are_not_averaged(tmp_path):
    made(tmp_path / "a")
    made(tmp_path / "b", chunk=2)
    (codes,) = (s for s in sections(load_rows(tmp_path)) if s.title == "Codes")
    assert [row[0] for row in codes.rows] == ["walk (chunk=1)", "walk (chunk=2)"]


def test_a_folder_without_finished_runs_is_said(tmp_path, capsys):
    (made(tmp_path / "a") / "result.json").unlink()
    assert main(["report", str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err
