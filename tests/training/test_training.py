"""Whole runs on small data: folder, resume, bad input. In process, with tiny networks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from saqrl.datasets import load_dataset
from saqrl.policy.storage import load_policy
from saqrl.training import train as training
from saqrl.training.flags import changed
from saqrl.training.preparation import split
from saqrl.training.presets import build_settings
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import RunError, RunFolder, read_history, read_result
from saqrl.training.settings import Settings, first_difference
from tests.walking import ENVIRONMENT, killed, outcome, run, small


def test_a_run_folder_holds_what_was_asked_what_happened_and_a_policy(dataset, tmp_path):
    settings = small(dataset)
    summary = run(settings, tmp_path / "run")
    assert read_result(tmp_path / "run") == summary
    assert training.saved_settings(tmp_path / "run") == settings
    stages = [
        (record["stage"], record["step"]) for record in read_history(tmp_path / "run", "metrics")
    ]
    assert stages == [
        *(("quantizer", step) for step in (10, 20, 30)),
        *(("prior", step) for step in (10, 20)),
        *(("agent", step) for step in (10, 20, 30, 40)),
    ]
    evaluations = read_history(tmp_path / "run", "evaluations")
    assert [record["step"] for record in evaluations] == [20, 40]
    assert summary["return_mean"] == evaluations[-1]["return_mean"]
    assert summary["gradient_steps"] == 30 + 20 + 40
    policy = load_policy(tmp_path / "run" / "policy")
    assert policy.environment is not None
    assert policy.environment.id == ENVIRONMENT


@pytest.mark.parametrize(("agent", "blow"), [("iql", 2), ("iql", 6), ("bc", 5), ("cql", 9)])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    dataset, tmp_path, monkeypatch, agent, blow
):
    settings = small(dataset, agent)
    run(settings, tmp_path / "whole")
    killed(settings, tmp_path / "killed", monkeypatch, blow=blow)
    run(settings, tmp_path / "killed", resume=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_evaluating_more_often_does_not_change_what_is_trained(dataset, tmp_path):
    run(small(dataset), tmp_path / "often")
    run(small(dataset, eval_every=None), tmp_path / "once")
    often, once = outcome(tmp_path / "often"), outcome(tmp_path / "once")
    assert often.keys() == once.keys()
    for name in often.keys() - {"evaluations"}:
        assert often[name] == once[name], name


def test_codes_that_nothing_uses_are_said_while_the_quantizer_learns(tmp_path, capsys):
    # Two actions, the same in every state.
    sides = np.resize([-0.5, 0.5], (40, 1)).astype(np.float32)
    np.savez(
        tmp_path / "two.npz",
        observations=np.zeros((40, 2), np.float32),
        actions=np.hstack([sides, sides**2]),
        timeouts=np.arange(1, 41) % 20 == 0,
    )
    flags = {"env": None, "eval_every": None, "quantizer.revive_below": 0.0}
    settings = small(tmp_path / "two.npz", "bc", **flags)
    training.train(settings, tmp_path / "run", reporter=Reporter())
    said = capsys.readouterr().err
    assert said.count("of 8 codes are in use after 10 steps") == 1
    assert "6 of the 8 codes are not used by any action" in said


def test_a_damaged_checkpoint_is_passed_over_and_said(dataset, tmp_path, capsys):
    settings, out = small(dataset), tmp_path / "run"
    run(settings, out)
    whole = outcome(out)
    newest = sorted((out / "checkpoints").glob("*.ckpt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-10])
    (out / "result.json").unlink()  # a finished run would be left as it is
    training.train(settings, out, resume=True, reporter=Reporter())
    assert "damaged (its checksum" in capsys.readouterr().err
    assert outcome(out) == whole


def test_resuming_a_finished_run_changes_nothing(dataset, tmp_path):
    settings, out = small(dataset), tmp_path / "run"
    run(settings, out)
    whole = outcome(out)
    run(settings, out, resume=True)
    assert outcome(out) == whole


def test_a_run_folder_that_exists_is_refused_with_the_two_ways_out(dataset, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with pytest.raises(RunError, match=r"--resume.*another --out"):
        run(small(dataset), out)
    assert list(out.iterdir()) == []


def test_a_second_process_on_one_run_folder_is_refused(dataset, tmp_path):
    run(small(dataset), tmp_path / "run")
    first = RunFolder.open(tmp_path / "run", print)
    with pytest.raises(RunError, match="in use by another process"):
        RunFolder.open(tmp_path / "run", print)
    first.close()
    RunFolder.open(tmp_path / "run", print).close()


def narrow(path: Path) -> None:
    """The same file with one observation column less than the environment has."""
    with np.load(path) as archive:
        columns = dict(archive)
    for name in ("observations", "next_observations"):
        columns[name] = columns[name][:, :1]
    np.savez(path, **columns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "Nowhere-v0"}, "unknown environment 'Nowhere-v0'"),
        ({"data_best": 0.0}, "data-best is 0; it must be above 0 and at most 1"),
        ({"data_episodes": 99}, "99 episodes requested and the file has 12"),
        ({"angles": (7,)}, "angle column 7 does not exist"),
    ],
)
def test_what_does_not_fit_together_leaves_no_folder(dataset, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(small(dataset, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_environment_that_does_not_match_the_data_is_refused(dataset, tmp_path):
    other = Path(shutil.copy(dataset, tmp_path / "narrow.npz"))
    narrow(other)
    with pytest.raises(ValueError, match=r"has observations of shape \(2,\), the data \(1,\)"):
        run(small(other), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_codes_than_transitions_are_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"quantizer\.codes is 5000 but there are only"):
        run(small(dataset, **{"quantizer.codes": 5000}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": 0}, "chunk is 0"),
        ({"chunk": 2, "action_horizon": 3}, "action-horizon 3 is more than chunk 2"),
        ({"action_horizon": 2}, "action-horizon 2 is more than chunk 1"),
        ({"eval_episodes": 0}, "eval-episodes is 0"),
        ({"eval_every": 0}, "eval-every is 0"),
        ({"held_out": 1.0}, "held-out is 1.0: the share"),
        ({"held_out": -0.1}, "held-out is -0.1: the share"),
        ({"log_every": 0}, "log-every is 0"),
        ({"keep_every": 0}, "keep-every is 0"),
        ({"demonstrations": 0}, "demonstrations is 0"),
        ({"feature_deviation": 0.0}, "feature-deviation is 0.0; it must be above 0"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"quantizer_steps": 0}, "quantizer-steps is 0; it must be at least 1"),
        ({"agent.batch_size": 0}, "agent.batch-size is 0; it must be at least 1"),
        ({"quantizer.batch_size": 0}, "quantizer.batch-size is 0; it must be at least 1"),
        ({"quantizer.codes": 1}, "quantizer.codes is 1; it must be at least 2"),
        ({"quantizer.patience": -1}, "quantizer.patience is -1; it must be 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(dataset, changes, message):
    with pytest.raises(ValueError, match=message):
        small(dataset, **changes)


def test_settings_survive_json():
    for preset in ("default", "paper", "cube"):
        for agent in ("bc", "cql", "iql", "brac"):
            settings = build_settings(preset, agent=agent, quantizer="vqvae")
            assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_the_differing_field_is_named():
    one = build_settings("default", agent="cql", quantizer="vqvae")
    assert first_difference(one, one) is None
    for flags, said in (
        ({"agent.alpha": 1.0}, "agent.alpha is 5.0 in the run and 1.0 here"),
        ({"eval_episodes": 7}, "evaluation.episodes is 50 in the run and 7 here"),
        ({"dataset.fraction": 0.5}, "data.reading.fraction is 1.0 in the run and 0.5 here"),
    ):
        assert first_difference(one, changed(one, flags)) == said


def test_the_held_out_action_error_is_that_of_the_greedy_policy(dataset, tmp_path):
    """Row by row: one held-out log, one action at a time through the robot's own player."""
    settings = small(dataset, "bc", held_out=0.2)
    summary = run(settings, tmp_path / "run")
    policy = load_policy(tmp_path / "run" / "policy")
    held_out = split(load_dataset(settings.data.dataset), settings)[1]
    missed, spread = 0.0, 0.0
    for observation, action in zip(held_out.observations, held_out.actions, strict=True):
        planned = policy.player(act="greedy").act(observation)
        missed += float(np.square((planned - action).astype(np.float64)).sum())
        deviations = action.astype(np.float64) - held_out.actions.astype(np.float64).mean(0)
        spread += float(np.square(deviations).sum())
    assert summary["held_out_action_error"] == pytest.approx((missed / spread) ** 0.5, rel=1e-4)
    few = changed(settings, {"data_episodes": 5, "held_out": 0.1})  # less than one of them
    assert run(few, tmp_path / "few")["held_out_action_error"] is None


def test_chunks_are_played_and_scored(dataset, tmp_path):
    summary = run(small(dataset, chunk=3, action_horizon=2), tmp_path / "run")
    policy = load_policy(tmp_path / "run" / "policy")
    assert (policy.chunk, policy.action_horizon) == (3, 2)
    assert len(summary["quantizer"]["error"]) == 2


def test_a_continuous_run_goes_the_same_way(dataset, tmp_path):
    summary = run(small(dataset, "bc", actions="continuous"), tmp_path / "run")
    assert summary["actions"] == "continuous"
    assert summary["quantizer"] is None
    assert load_policy(tmp_path / "run" / "policy").description["kind"] == "continuous"
