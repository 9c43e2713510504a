"""The record beside the benchmark's rows: what it says of rows that a run did not make."""

import importlib.util
import json
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "compare.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_of_methods", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_part_of_the_grid_keeps_what_is_recorded_of_the_other_rows(
    benchmark, tmp_path, monkeypatch
):
    """`--only lift` must not lose the settings of a finished row on another data set."""
    results, out = tmp_path / "results", tmp_path / "runs"
    results.mkdir()
    rows = [
        {"task": "pusht", "method": "bc", "seed": 0},
        {"task": "pusht", "method": "gone", "seed": 0, "error": "ValueError: it fell over"},
        {"task": "lift", "method": "bc", "seed": 0},
    ]
    (results / "compare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recorded = {name: {"seed": name} for name in ("pusht bc", "pusht gone", "lift bc")}
    (results / "compare.json").write_text(json.dumps({"settings": recorded}))
    monkeypatch.setattr(benchmark, "RESULTS", results)
    monkeypatch.setattr(benchmark, "OUT", out)
    monkeypatch.setattr(benchmark, "run_grid", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["compare.py", "--only", "lift", "--rounds", "1"])
    benchmark.main()
    settings = json.loads((results / "compare.json").read_text())["settings"]
    assert settings["pusht bc"] == {"seed": "pusht bc"}
    assert settings["lift bc"] == {"seed": "lift bc"}  # as it was trained, whatever is planned now
    assert "pusht gone" not in settings
    assert settings["lift gmm"]["agent"]["name"] == "gmm"
    assert (results / "compare.jsonl").read_text() == (out / "table.jsonl").read_text()
