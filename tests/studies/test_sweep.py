"""Sweeps: the plan that a file makes, and trials that cannot disturb each other."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saqrl.cli import main
from saqrl.studies import trials as running
from saqrl.studies.sweep import Plan, Trial, read_plan
from saqrl.studies.trials import Job, Outcome, score_of, summarize
from saqrl.training.data import data_record, load_data
from saqrl.training.interrupts import EXIT_INTERRUPTED
from saqrl.training.presets import settings_from
from tests import processes


def plan(folder: Path, text: str) -> Plan:
    file = folder / "sweep.toml"
    file.write_text(text)
    return read_plan(file)


FULL = """
seeds = [0, 1]
[train]
steps = 10
quantizer.codes = 8
[grid]
"agent.alpha" = [1.0, 5.0]
[random]
trials = 3
"agent.learning-rate" = { log_uniform = [1e-4, 1e-2] }
agent.hidden = { choice = [[8], [16, 16]] }
chunk = { integers = [1, 4] }
"""


def test_a_plan_crosses_grid_draws_and_seeds(tmp_path):
    trials = plan(tmp_path, FULL).trials
    assert len(trials) == 2 * 3 * 2
    assert len({trial.name for trial in trials}) == 12
    for trial in trials:
        assert trial.flags["steps"] == 10
        assert trial.flags["quantizer.codes"] == 8
        assert 1e-4 <= trial.flags["agent.learning_rate"] <= 1e-2
        assert trial.flags["chunk"] in (1, 2, 3, 4)
        assert trial.flags["agent.hidden"] in ([8], [16, 16])


def test_more_draws_keep_the_trials_there_are(tmp_path):
    few = plan(tmp_path, FULL).trials
    many = plan(tmp_path, FULL.replace("trials = 3", "trials = 5")).trials
    assert {trial.name for trial in few} < {trial.name for trial in many}


def test_names_of_different_trials_differ():
    values = ["a/b", "a-b", "a b", "x" * 200, "x" * 201, 1, 1.5]
    names = {Trial({"seed": 0}, {"dataset": value}).name for value in values}
    assert len(names) == len(values)
    assert all("/" not in name and len(name) < 120 for name in names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trian]\n", "unknown section 'trian'; did you mean 'train'"),
        ("seeds = 'a'\n", "seeds is 'a'; expected a list of integers"),
        ("grid = 3\n", r"grid is a table: write \[grid\]"),
        ("[grid]\nchunk = 3\n", "grid.chunk is 3; expected a list of values"),
        ("[random]\nchunk = {choice = [1]}\n", "random.trials is None; expected the number"),
        ("[random]\ntrials = 1\nchunk = {unifrm = [0, 1]}\n", "did you mean 'uniform'"),
        ("[random]\ntrials = 1\nchunk = {log_uniform = [0, 1]}\n", "both above 0"),
        ("[random]\ntrials = 1\nchunk = {integers = [1.5, 3]}\n", r"\[lowest, highest\]"),
        ("[train\n", "is not valid TOML"),
        ("[train]\nagent = 'cql'\nagent.alpha = 1\n", "quote dotted names"),
        ("best = 'most'\n", "'highest' or 'lowest'"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        plan(tmp_path, text)


def test_scores_follow_the_protocol():
    result = {"return_mean": 1.0, "success_rate": None, "quantizer": {"error": 0.5}}
    assert score_of(result, None) == ("return_mean", 1.0)
    assert score_of({**result, "mean_of_last_three": {"return_mean": 2.0}}, None)[1] == 2.0
    assert score_of(result, "quantizer.error") == ("quantizer.error", 0.5)
    assert score_of({}, None) is None


def test_the_best_setting_stands_last_and_failures_first(tmp_path):
    made = plan(tmp_path, "seeds = [0, 1]\n[grid]\nchunk = [1, 2, 3]\n")
    values = {1: 5.0, 2: None, 3: 1.0}
    outcomes = [
        Outcome(t, tmp_path, None, "no") if (v := values[t.flags["chunk"]]) is None
        else Outcome(t, tmp_path, {"return_mean": v + t.seed, "wall_seconds": 1})
        for t in made.trials
    ]  # fmt: skip
    rows = summarize(outcomes, made)
    assert [row["chunk"] for row in rows] == [2, 3, 1]
    assert (rows[0]["failed"], rows[-1]["mean"], rows[-1]["seeds"]) == (2, 5.5, 2)
    assert rows[-1]["deviation"] == pytest.approx(np.sqrt(0.5))
    text = running.table_text(rows).splitlines()
    assert len(text) == 4
    assert len(set(map(len, text))) == 1
    assert running.table_csv(outcomes, made).count("\n") == 7


def test_a_trial_that_fails_tells_its_line_and_stops_no_other(tmp_path):
    made = plan(tmp_path, "[grid]\nchunk = [1, 2]\n")
    jobs = [
        Job(
            trial,
            ("train", "--dataset", f"absent{i}.npz"),
            tmp_path / "no",
            tmp_path / f"{i}.log",
            settings_from({}),
        )
        for i, trial in enumerate(made.trials)
    ]
    outcomes: list[Outcome] = []
    running.run_here(jobs[:1], workers=2, cores=1, finished=outcomes.append)
    assert outcomes[0].result is None
    assert "absent0.npz" in outcomes[0].error
    assert "see" in outcomes[0].error


SMALL = """
seeds = [0, 1]
[train]
dataset = "steps.npz"
agent = "bc"
steps = 10
quantizer_steps = 10
"quantizer.codes" = 4
"quantizer.hidden" = 8
"agent.hidden" = [8]
[grid]
chunk = [1, 2]
"""


def saqrl(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "saqrl.cli", *words],
        cwd=cwd, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.fixture
def place(tmp_path) -> Path:
    generator, rows = np.random.default_rng(0), 60
    np.savez(
        tmp_path / "steps.npz",
        observations=generator.normal(size=(rows, 3)).astype(np.float32),
        actions=generator.uniform(-1, 1, (rows, 2)).astype(np.float32),
        rewards=generator.uniform(0, 1, rows).astype(np.float32),
        next_observations=generator.normal(size=(rows, 3)).astype(np.float32),
        terminals=np.zeros(rows, bool),
        timeouts=np.arange(rows) % 10 == 9,
    )
    (tmp_path / "a.toml").write_text(SMALL)
    return tmp_path


def test_unknown_fields_are_refused_before_anything_starts(place):
    text = (place / "a.toml").read_text().replace("quantizer.codes", "quantizer.cods")
    (place / "a.toml").write_text(text)
    done = saqrl("sweep", "a.toml", cwd=place)
    assert done.returncode == 2
    assert "unknown flag 'quantizer.cods'" in done.stderr
    assert "did you mean 'quantizer.codes'" in done.stderr
    assert not (place / "sweeps").exists()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_sweep_finishes_reports_and_goes_on(place, engine):
    if engine == "ray":
        pytest.importorskip("ray")
    words = ["sweep", "a.toml", "--workers", "2", "--json", "--engine", engine]
    done = saqrl(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert len(record["table"]) == 2
    assert all(trial["error"] is None for trial in record["trials"])
    runs = sorted((place / "sweeps" / "a").glob("*/result.json"))
    assert len(runs) == 4
    times = [path.stat().st_mtime_ns for path in runs]
    runs[0].unlink()  # as if the sweep had been stopped there
    again = saqrl(*words, cwd=place)
    assert again.returncode == 0, again.stderr
    assert [path.stat().st_mtime_ns for path in runs[1:]] == times[1:]
    (place / "a.toml").write_text((place / "a.toml").read_text().replace("steps = 10", "steps = 9"))
    changed = saqrl(*words, cwd=place)
    assert changed.returncode == 2
    assert "choose another --out for the changed sweep" in changed.stderr


def test_trials_have_fixed_settings_unless_the_file_asks_for_the_recipe(place):
    (job, *_) = running.jobs_of(read_plan(place / "a.toml"), place / "out")
    assert " ".join(job.words).startswith("train --recipe plain ")
    text = SMALL.replace("[train]", '[train]\nrecipe = "auto"')
    (place / "a.toml").write_text(text)
    (job, *_) = running.jobs_of(read_plan(place / "a.toml"), place / "out")
    assert " ".join(job.words).startswith("train --recipe auto ")
    job.folder.mkdir(parents=True)
    chosen = replace(job.settings, members=3).to_json()  # as the recipe may
    config = {"settings": chosen, "versions": {}, "data": {}}
    (job.folder / "config.json").write_text(json.dumps(config))
    running.jobs_of(read_plan(place / "a.toml"), place / "out")  # resumes it
    (place / "a.toml").write_text(text.replace("steps = 10", "steps = 9"))
    with pytest.raises(ValueError, match="steps is 10 in the run and 9 here"):
        running.jobs_of(read_plan(place / "a.toml"), place / "out")
    (place / "a.toml").write_text(text.replace('"bc"', '"cql"'))
    with pytest.raises(ValueError, match="choose another --out for the changed sweep"):
        running.jobs_of(read_plan(place / "a.toml"), place / "out")


def long_sweep(place: Path) -> subprocess.Popen[str]:
    """A sweep whose two trials are under way, and would be for long."""
    text = (place / "a.toml").read_text().replace("steps = 10", "steps = 100000000")
    (place / "long.toml").write_text(text)
    process = processes.start("sweep", "long.toml", "--workers", "2", cwd=place)

    def under_way() -> bool:
        trials = processes.children(process.pid)
        return len(trials) == 2 and all(map(processes.answers, trials))

    processes.wait_until(process, under_way)
    return process


@processes.NEEDS_PROC
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_ended_takes_its_trials_with_it(place, number):
    process = long_sweep(place)
    trials = processes.children(process.pid)
    struck = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=processes.HANGS)[1].strip().splitlines()
    while any(map(processes.alive, trials)):
        assert time.monotonic() - struck < processes.limit()
    if number == signal.SIGTERM:
        assert process.returncode == EXIT_INTERRUPTED
        assert said[-1] == "saqrl: interrupted; to resume: the same command"


@pytest.mark.slow
@processes.NEEDS_PROC
def test_a_sweep_that_was_killed_goes_on_with_the_same_command(place):
    text = (place / "a.toml").read_text().replace("steps = 10", "steps = 3000")
    (place / "a.toml").write_text(text)
    process = processes.start("sweep", "a.toml", "--workers", "2", cwd=place)
    begun = (place / "sweeps" / "a").glob
    processes.wait_until(process, lambda: len(list(begun("*/config.json"))) == 2)
    process.kill()
    process.communicate()
    done = saqrl("sweep", "a.toml", "--workers", "2", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "failed: " not in done.stderr


def test_trials_of_changed_data_are_refused_before_anything_starts(place, monkeypatch, capsys):
    monkeypatch.setattr("saqrl.cli.keep_compiled_programs", lambda: None)
    monkeypatch.chdir(place)
    first, *_ = running.jobs_of(read_plan(Path("a.toml")), Path("sweeps/a"))
    log = load_data(first.settings)
    config = {
        "settings": first.settings.to_json(),
        "versions": {},
        "data": data_record(log, first.settings),
    }
    first.folder.mkdir(parents=True)
    (first.folder / "config.json").write_text(json.dumps(config))
    with np.load("steps.npz") as archive:
        columns = dict(archive)
    np.savez("steps.npz", **columns | {"rewards": -columns["rewards"]})
    assert main(["sweep", "a.toml"]) == 2
    assert (
        f"steps.npz is not the data that {first.folder} was started with" in capsys.readouterr().err
    )
    assert list(first.folder.parent.glob("*/result.json")) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"quantizer.encodings" = "typo"', "trial .*: quantizer.encodings is 'typo'; 'bounded' or"),
        ('"agent.hidden" = ["wide"]', "trial .*: agent.hidden is 'wide'; expected an integer"),
        ("quantizer = 'residul'", "trial .*: unknown quantizer 'residul'; did you mean 'residual'"),
        ("resume = true", "trial .*: the sweep sets --resume itself: remove it"),
    ],
)
def test_what_train_would_refuse_is_refused_for_the_trial_that_asks(tmp_path, line, message):
    made = plan(tmp_path, f"[train]\ndataset = 'steps.npz'\n{line}\n[grid]\nchunk = [1, 2]\n")
    with pytest.raises(ValueError, match=message):
        running.jobs_of(made, tmp_path / "out")


def test_a_file_that_is_nested_too_deeply_is_one_line(tmp_path):
    (tmp_path / "deep.toml").write_text("a = " + 100_000 * "[")
    with pytest.raises(ValueError, match=r"deep\.toml is not valid TOML"):
        read_plan(tmp_path / "deep.toml")
