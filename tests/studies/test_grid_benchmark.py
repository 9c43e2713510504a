"""The record beside the benchmark's rows: what it says of rows that a run did not make."""

import json

from benchmarks import grid
from saqrl.studies.table import append_row


def test_a_part_of_the_grid_keeps_what_is_recorded_of_the_other_rows(tmp_path, monkeypatch):
    """`--only lift` must not lose the settings of a finished row on another data set."""
    results, out = tmp_path / "results", tmp_path / "runs"
    results.mkdir()
    rows = [
        {"task": "pusht", "method": "bc", "seed": 0},
        {"task": "pusht", "method": "gone", "seed": 0, "error": "ValueError: it fell over"},
        {"task": "lift", "method": "bc", "seed": 0},
    ]
    (results / "grid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recorded = {name: {"seed": name} for name in ("pusht bc", "pusht gone", "lift bc")}
    (results / "grid.json").write_text(json.dumps({"settings": recorded}))
    monkeypatch.setattr(grid, "RESULTS", results)
    monkeypatch.setattr(grid, "OUT", out)
    monkeypatch.setattr(grid, "run_grid", lambda *_: None)
    monkeypatch.setattr(grid, "tuned", lambda *_: {})
    monkeypatch.setattr("sys.argv", ["grid", "--only", "lift", "--rounds", "1"])
    grid.main()
    settings = json.loads((results / "grid.json").read_text())["settings"]
    assert settings["pusht bc"] == {"seed": "pusht bc"}
    assert settings["lift bc"] == {"seed": "lift bc"}  # as it was trained, whatever is planned now
    assert "pusht gone" not in settings
    assert settings["lift gmm"]["agent"]["name"] == "gmm"
    assert (results / "grid.jsonl").read_text() == (out / "table.jsonl").read_text()


def test_the_table_has_every_seed_in_order_and_no_failed_cell(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grid, "RESULTS", tmp_path)
    cell = {"task": "pusht", "method": "bc"}
    for seed, outcome in (
        (1, {"final": 58.2}),
        (2, {"error": "ValueError: it fell over"}),
        (0, {"final": 56.6}),
    ):
        append_row(tmp_path / "grid.jsonl", {**cell, "seed": seed, **outcome})
    monkeypatch.setattr("sys.argv", ["grid", "--table"])
    grid.main()
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("| | saq-bc | bc |")
    assert [line.split(" | ")[:3] for line in lines] == [["| pusht", "", "57, 58"]]
