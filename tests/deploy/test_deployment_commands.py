"""Export, offline value, ranking and coded data of one small run, by the commands' own words."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from saqrl.cli import main
from saqrl.datasets import ReadOptions, load_dataset
from saqrl.deploy import export as exporting
from saqrl.deploy import runtime
from saqrl.policy.storage import load_policy
from saqrl.training import train as training
from saqrl.training.run_folder import kept_steps
from tests.walking import run, small

pytest.importorskip("onnxruntime")

CODES, CHUNK = 8, 2
# Episodes of fewer steps' worth of reward are left out when the run reads its data.
MIN_RETURN = 5.0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """14 episodes of a walk; the two whose rewards are low are not to be read."""
    generator, lengths = np.random.default_rng(0), [9, 10] * 7
    ends = np.cumsum(lengths) - 1
    rows = int(ends[-1]) + 1
    ended = np.isin(np.arange(rows), ends)
    rewards = generator.uniform(0.8, 1, rows).astype(np.float32)
    rewards[:9] = rewards[9:19] = 0.1
    path = tmp_path_factory.mktemp("data") / "walk.npz"
    np.savez(
        path,
        observations=generator.normal(size=(rows, 3)).astype(np.float32),
        actions=generator.uniform(-1, 1, (rows, 2)).astype(np.float32),
        rewards=rewards,
        next_observations=generator.normal(size=(rows, 3)).astype(np.float32),
        terminals=ended & (np.arange(rows) % 2 == 0),
        timeouts=ended & (np.arange(rows) % 2 == 1),
    )
    return path


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """A folder with one finished run, cql."""
    folder = tmp_path_factory.mktemp("runs")
    flags = {"env": None, "chunk": CHUNK, "log_every": 20, "keep_every": 10, "steps": 20}
    flags |= {"quantizer.codes": CODES, "dataset.min_return": MIN_RETURN}
    run(small(dataset, "cql", **flags), folder / "cql")
    return folder


def said(capsys) -> tuple[dict, str]:
    """The JSON of a command, and what it told a person."""
    captured = capsys.readouterr()
    return json.loads(captured.out.splitlines()[-1]), captured.err


def refused(capsys) -> str:
    """The one line with which a command refused."""
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("saqrl: error: ")]
    assert len(errors) == 1, lines
    return errors[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("p.onnx", ()),
        ("p.npz", ("--act", "sample")),
        ("e.onnx", ("--part", "encoder")),
        ("d.npz", ("--part", "decoder")),
        ("named.bin", ("--format", "npz")),
    ],
)
def test_export_writes_what_it_says(runs, tmp_path, capsys, name, words):
    out = tmp_path / "new" / name
    assert main(["export", str(runs / "cql"), "--out", str(out), *words, "--json"]) == 0
    record, told = said(capsys)
    assert record["largest_difference"] <= 1e-5
    assert record["bytes"] == out.stat().st_size
    assert [path.name for path in out.parent.iterdir()] == [name]
    assert "differs from the policy by at most" in told
    engine = runtime.load_graph(out)
    assert engine.metadata["part"] == record["part"]
    assert engine.metadata["dataset"] == "walk.npz"
    assert engine.metadata["run"] == "cql"
    if record["part"] == "policy":
        decision = runtime.load(out).act(np.zeros(3))
        assert decision.code in range(CODES)
        assert ("noise" in engine.metadata["draws"][0]["name"]) if words[:1] == ("--act",) else True


def test_export_compares_on_the_data_as_the_run_read_it(runs, tmp_path, monkeypatch):
    seen, export = {}, exporting.export

    def record(*arguments, **words):
        seen.update(words)
        return export(*arguments, **words)

    monkeypatch.setattr(exporting, "export", record)
    assert main(["export", str(runs / "cql"), "--out", str(tmp_path / "p.npz")]) == 0
    # Of 14 episodes the two poor ones are left out, one is held out.
    assert len(seen["observations"]) + len(seen["held_out"]) == 14 * 9.5 - 19


def test_export_says_what_is_wrong_and_leaves_nothing(runs, dataset, tmp_path, capsys, monkeypatch):
    out = tmp_path / "p.onnx"
    assert main(["export", str(runs / "cql"), "--out", str(tmp_path / "policy")]) == 2
    assert "add --format onnx or npz" in refused(capsys)
    assert main(["export", str(tmp_path), "--out", str(out)]) == 2
    assert "is not a run folder" in refused(capsys)
    shutil.copytree(runs / "cql", tmp_path / "unfinished")
    shutil.rmtree(tmp_path / "unfinished" / "policy")
    assert main(["export", str(tmp_path / "unfinished"), "--out", str(out)]) == 2
    assert "policy" in refused(capsys)
    other = tmp_path / "other.npz"
    with np.load(dataset) as arrays:
        wide = {name: np.hstack([a, a]) if a.ndim == 2 else a for name, a in arrays.items()}
    np.savez(other, **wide)
    words = ["export", str(runs / "cql"), "--out", str(out), "--dataset", str(other)]
    assert main(words) == 2
    assert re.search(r"3 observation columns and 2 action columns, .* 6 and 4", refused(capsys))
    other.unlink()
    original = exporting.graph_of

    def wrong(*arguments, **words):
        graph = original(*arguments, **words)
        graph.constants = {
            name: array + np.float32(0.01) if array.shape == (16, 4) else array
            for name, array in graph.constants.items()
        }
        return graph

    monkeypatch.setattr(exporting, "graph_of", wrong)
    assert main(["export", str(runs / "cql"), "--out", str(out)]) == 2
    assert "differs from the policy by" in refused(capsys)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unfinished"]


def test_serve_refuses_a_file_that_holds_no_policy(runs, tmp_path, capsys):
    pytest.importorskip("websockets")
    main(["export", str(runs / "cql"), "--out", str(tmp_path / "e.npz"), "--part", "encoder"])
    whole = (tmp_path / "e.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.onnx").write_text("hello")
    capsys.readouterr()
    for name, reason in (
        ("e.npz", "holds the encoder of a quantizer"),
        ("half.npz", "is damaged"),
        ("text.onnx", "not an ONNX file written by `saqrl export`"),
        ("none.onnx", "no such file"),
    ):
        assert main(["serve", str(tmp_path / name), "--port", "0"]) == 2
        assert reason in refused(capsys)
    main(["export", str(runs / "cql"), "--out", str(tmp_path / "p.npz")])
    capsys.readouterr()
    assert main(["serve", str(tmp_path / "p.npz"), "--host", "0.0.0.0"]) == 2
    assert "add --token" in refused(capsys)
    assert main(["serve", str(tmp_path / "p.npz"), "--port", "70000"]) == 2
    assert "0 to 65535" in refused(capsys)


def test_offline_value_is_kept_and_report_ranks_by_it(runs, tmp_path, capsys, monkeypatch):
    words = ["--offline", "--offline-steps", "20", "--json"]
    assert main(["evaluate", str(runs / "cql"), *words]) == 0
    record, told = said(capsys)
    found = record["offline"]
    assert found["low"] <= found["value"] <= found["high"]
    assert found["initial_states"] == 12  # as the run read its data, without the poor episodes
    assert told.splitlines()[-1].startswith(f"value {found['value']:.4g} [")
    kept = json.loads((runs / "cql" / "offline.json").read_text())
    assert kept["estimate"] == found
    # What is kept is not computed again; a run played in an environment tells its return.
    for number, name in enumerate(("first", "second", "third", "fourth")):
        run = tmp_path / "runs" / name
        shutil.copytree(runs / "cql", run, ignore=shutil.ignore_patterns("policies"))
        estimate = kept | {"estimate": found | {"value": 1.0 + number}}
        (run / "offline.json").write_text(json.dumps(estimate))
        summary = json.loads((run / "result.json").read_text()) | {"return_mean": 10.0 * number**2}
        (run / "result.json").write_text(json.dumps(summary))
    assert main(["report", str(tmp_path / "runs"), *words]) == 0
    (group,) = said(capsys)[0]["offline"]
    assert [run["run"] for run in group["runs"]] == ["fourth", "third", "second", "first"]
    assert (group["data"], group["rank_correlation"]) == ("walk", 1.0)
    markdown = (tmp_path / "runs" / "report" / "report.md").read_text()
    assert "| 1 | fourth | 4 [" in markdown
    assert "rank correlation with the return in the environment is 1.00 over 4 policies" in markdown


def test_policies_kept_along_a_run_are_valued_evaluated_and_exported(runs, tmp_path, capsys):
    run = tmp_path / "runs" / "cql"
    shutil.copytree(runs / "cql", run)
    assert kept_steps(run) == [10]  # the policy of step 20 is the run's own
    words = ["--offline", "--offline-steps", "20", "--json"]
    assert main(["evaluate", str(run), "--step", "10", *words]) == 0
    record, _ = said(capsys)
    kept = json.loads((run / "policies" / "10" / "offline.json").read_text())
    assert (record["step"], record["offline"]) == (10, kept["estimate"])
    # As if the run had been evaluated at that step, and its baseline too.
    scores = {"step": 10, "normalized_score": None, "success_rate": None}
    played = [{"stage": "agent", "return_mean": 3.0, **scores}]
    played += [{"stage": "baseline", "return_mean": -1.0, **scores}]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in played))
    summary = json.loads((run / "result.json").read_text()) | {"env": "Walk-v0"}
    (run / "result.json").write_text(json.dumps(summary))
    assert main(["report", str(tmp_path / "runs"), *words]) == 0
    (group,) = said(capsys)[0]["offline"]
    found = {line["step"]: (line["run"], line["return_mean"]) for line in group["runs"]}
    assert found == {10: ("cql", 3.0), None: ("cql", None)}
    values = [line["value"] for line in group["runs"]]
    assert values == sorted(values, reverse=True)
    assert "cql, step 10 |" in (tmp_path / "runs" / "report" / "report.md").read_text()
    out = tmp_path / "p.npz"
    assert main(["export", str(run), "--out", str(out), "--step", "10"]) == 0
    assert runtime.load_graph(out).metadata["step"] == 10
    capsys.readouterr()
    assert main(["export", str(run), "--out", str(out), "--step", "15"]) == 2
    assert "kept no policy at step 15: it kept 10" in refused(capsys)


def test_offline_value_is_refused_where_it_makes_no_sense(runs, tmp_path, capsys):
    assert main(["evaluate", str(runs / "cql"), "--offline", "--env", "Hopper-v4"]) == 2
    assert "--offline uses none: remove one of them" in refused(capsys)
    assert main(["report", str(runs), "--offline", "--offline-steps", "0"]) == 2
    assert "at least 1" in refused(capsys)
    shutil.copytree(runs / "cql", tmp_path / "poor")
    (tmp_path / "poor" / "offline.json").unlink(missing_ok=True)
    config = json.loads((tmp_path / "poor" / "config.json").read_text())
    config["settings"]["data"]["reading"] |= {"rewards": "none", "min_return": None}
    del config["data"]  # of a run that was trained on rewards; without it nothing is compared
    (tmp_path / "poor" / "config.json").write_text(json.dumps(config))
    assert main(["evaluate", str(tmp_path / "poor"), "--offline"]) == 2
    assert "no rewards" in refused(capsys)
    # The report goes on without it and says why.
    assert main(["report", str(tmp_path), "--offline", "--offline-steps", "20"]) == 0
    assert "| poor | the data have no rewards" in (tmp_path / "report" / "report.md").read_text()


def test_coded_data_is_the_runs_decisions(runs, dataset, tmp_path, capsys):
    out = tmp_path / "coded.npz"
    assert main(["convert", str(dataset), str(out), "--coded", str(runs / "cql"), "--json"]) == 0
    record, _ = said(capsys)
    data = load_dataset(str(dataset), options=ReadOptions(min_return=MIN_RETURN))
    policy, settings = load_policy(runs / "cql" / "policy"), training.saved_settings(runs / "cql")
    with np.load(out) as archive:
        coded = dict(archive)
    # Episodes of 9 and 10 steps in chunks of two: five decisions each.
    assert record == {"out": str(out), "episodes": 12, "decisions": 60}
    row = 0
    for start, end in zip(data.episode_starts, data.episode_ends, strict=True):
        for first in range(start, end, CHUNK):
            played = [min(first + i, end - 1) for i in range(CHUNK)]
            unit = policy.action_range.to_unit(data.actions[played]).reshape(-1)
            features = policy.observation_scaling(data.observations[first][None])[0]
            code = policy.controller.quantizer.encode(features, unit)
            assert coded["actions"][row, 0] == code
            rewards = [data.rewards[i] for i in range(first, min(first + CHUNK, end))]
            expected = sum(settings.agent.discount**age * r for age, r in enumerate(rewards))
            assert coded["rewards"][row, 0] == pytest.approx(expected, rel=1e-5)
            np.testing.assert_array_equal(coded["observations"][row], data.observations[first])
            last = first + CHUNK >= end
            assert coded["terminals"][row] == float(last and data.terminated[end - 1])
            assert coded["timeouts"][row] == float(last and not data.terminated[end - 1])
            row += 1
    assert row == len(coded["actions"])


def test_data_of_another_robot_is_not_coded(runs, dataset, tmp_path, capsys):
    with np.load(dataset) as archive:
        other = dict(archive)
    for name in ("observations", "next_observations"):
        other[name] = np.hstack([other[name]] * 2)
    np.savez(tmp_path / "other.npz", **other)
    words = ["convert", str(tmp_path / "other.npz"), str(tmp_path / "c.npz"), "--coded"]
    assert main([*words, str(runs / "cql")]) == 2
    assert re.search(r"3 observation columns and 2 action columns, .* 6 and 2", refused(capsys))
    assert not (tmp_path / "c.npz").exists()


def test_the_control_loop_of_the_documentation_runs_as_it_stands(runs, tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "robot.md"
    loop = page.read_text().split("```python\n")[1].split("```")[0]
    assert len(loop.splitlines()) <= 30
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(runs / "cql"), "--out", "policy.onnx"]) == 0

    class Robot:
        def __init__(self, observations):
            self.left, self.commands, self.held = list(observations), [], []

        def running(self):
            return bool(self.left)

        def observation(self):
            return self.left.pop(0)

        command = property(lambda self: self.commands.append)
        hold = property(lambda self: self.held.append)

    calm = Robot(np.zeros((4, 3)))
    exec(loop, {"robot": calm})
    assert [action.shape for action in calm.commands] == [(2,)] * 4
    assert not calm.held
    # Also while the rest of a chunk is being played.
    blind = Robot([np.zeros(3), np.full(3, np.nan)])
    exec(loop, {"robot": blind})
    assert "number 0 of the observation is nan" in blind.held[0]
    lost = Robot(np.full((2, 3), 1e3))
    exec(loop, {"robot": lost})
    assert lost.held[0].startswith("distance ")
    assert not lost.commands
