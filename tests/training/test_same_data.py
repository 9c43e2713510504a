"""A run remembers its data: no other is taken for them, and they are found from any folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saqrl.cli import main
from saqrl.datasets import load_dataset
from saqrl.policy.storage import load_policy
from saqrl.training import train as training
from saqrl.training.data import IN_MEMORY, load_training_data, require_unchanged
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import read_config
from saqrl.training.train import saved_settings
from tests.walking import run, small


@pytest.fixture
def place(dataset, tmp_path, monkeypatch) -> Path:
    """A folder with the data, where the command stands; the run there named them from there."""
    monkeypatch.setattr("saqrl.cli.keep_compiled_programs", lambda: None)
    (tmp_path / "here").mkdir()
    shutil.copy(dataset, tmp_path / "here" / "walk.npz")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture
def trained(place) -> Path:
    run(small(Path("walk.npz"), "bc", env="none"), Path("run"))
    return place / "here" / "run"


def spoil(path: Path, name: str = "rewards") -> None:
    """One number of the file becomes another."""
    with np.load(path) as archive:
        columns = {key: archive[key] for key in archive}
    columns[name] = columns[name].copy()
    columns[name].flat[3] += 0.25
    np.savez(path, **columns)


def begun(out: Path) -> None:
    """As if the run had been interrupted at its last step."""
    (out / "result.json").unlink()


def data(out: Path, **where):
    settings = saved_settings(out)
    return load_training_data(out, settings, load_policy(out / "policy"), **where)


def test_the_record_tells_the_data_apart_and_where_they_lie(trained, dataset):
    record = read_config(trained)["data"]
    log = data(trained)
    assert record["path"] == f"npz:{trained.parent / 'walk.npz'}"
    assert (record["steps"], record["episodes"]) == (len(log), log.num_episodes)
    assert len(record["sha256"]) == 64


@pytest.mark.parametrize("name", ["rewards", "observations", "actions", "next_observations"])
def test_a_run_does_not_go_on_with_other_data_of_the_same_name(trained, name):
    begun(trained)
    spoil(Path("walk.npz"), name)
    before = sorted(path.stat().st_mtime_ns for path in trained.rglob("*.jsonl"))
    with pytest.raises(
        ValueError, match=r"walk\.npz is not the data that run was started with .then"
    ):
        training.train(
            saved_settings(trained), Path("run"), resume=True, reporter=Reporter(quiet=True)
        )
    assert sorted(path.stat().st_mtime_ns for path in trained.rglob("*.jsonl")) == before


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--out", "run", "--resume"),
        ("export", "run", "--out", "policy.npz"),
        ("evaluate", "run", "--offline", "--offline-steps", "2"),
    ],
    ids=lambda words: words[0],
)
def test_no_command_takes_other_data_for_those_of_the_run(trained, capsys, words):
    begun(trained)
    spoil(Path("walk.npz"))
    assert main(list(words)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "saqrl: error:" in line]
    assert len(errors) == 1
    assert "is not the data that run was started with" in errors[0]
    assert "--dataset" in errors[0]
    assert not Path("policy.npz").exists()


def test_data_named_with_their_format_are_found_from_another_folder(place, monkeypatch):
    settings = small(Path("walk.npz"), "bc", env="none")
    named = replace(settings, data=replace(settings.data, dataset="npz:walk.npz"))
    run(named, Path("run"))
    monkeypatch.chdir(place)
    out = place / "here" / "run"
    assert len(data(out)) == read_config(out)["data"]["steps"]


def test_data_are_found_from_another_folder_and_a_strangers_are_not_taken(
    trained, place, dataset, monkeypatch
):
    (place / "there").mkdir()
    monkeypatch.chdir(place / "there")
    assert len(data(trained)) == read_config(trained)["data"]["steps"]
    begun(trained)
    training.train(saved_settings(trained), trained, resume=True, reporter=Reporter(quiet=True))
    shutil.copy(dataset, "walk.npz")
    spoil(Path("walk.npz"))
    with pytest.raises(
        ValueError, match=r"walk\.npz also exists in this folder.*choose one with --dataset"
    ):
        data(trained)
    with pytest.raises(ValueError, match="is not the data that"):
        data(trained, dataset="walk.npz")


def test_data_that_moved_are_asked_for_and_found_where_they_lie_now(trained, place):
    shutil.move("walk.npz", place / "moved.npz")
    with pytest.raises(ValueError, match="pass their new path with --dataset"):
        data(trained)
    moved = data(trained, dataset=str(place / "moved.npz"))
    assert len(moved) == read_config(trained)["data"]["steps"]


def test_arrays_in_memory_are_compared_too(place):
    log = load_dataset("walk.npz")
    settings = small(Path(IN_MEMORY), "bc", env="none")
    out, quiet = Path("memory"), Reporter(quiet=True)
    training.train(settings, out, data=log, reporter=quiet)
    for _ in range(2):
        begun(out)
        training.train(settings, out, data=log, resume=True, reporter=quiet)
    begun(out)
    other = replace(log, actions=-log.actions)
    with pytest.raises(
        ValueError, match="arrays in memory is not the data that memory was started with"
    ):
        training.train(settings, out, data=other, resume=True, reporter=quiet)


def test_runs_of_a_study_are_of_one_state_of_the_data(trained):
    settings = saved_settings(trained)
    runs = [(Path("run"), settings), (Path("next"), settings)]
    require_unchanged(runs)
    spoil(Path("walk.npz"))
    require_unchanged(runs[:1])  # it has finished
    require_unchanged(runs[1:])  # nothing has begun
    with pytest.raises(ValueError, match="is not the data that run was started with"):
        require_unchanged(runs)


def test_a_run_from_before_data_were_recorded_goes_on(trained):
    config = read_config(trained)
    del config["data"]
    (trained / "config.json").write_text(json.dumps(config))
    begun(trained)
    spoil(Path("walk.npz"))
    require_unchanged([(trained, saved_settings(trained))])
    training.train(saved_settings(trained), trained, resume=True, reporter=Reporter(quiet=True))
