"""Grids: what is planned, what survives a stop, what is shared."""

import json
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import jax
import numpy as np
import pytest

from saqrl.studies import grid as grids
from saqrl.studies.grid import Task, plan, run_grid
from saqrl.studies.methods import methods
from saqrl.studies.shared_codes import stages_in_common
from saqrl.studies.table import collect_rows, read_table
from saqrl.training.data import data_record, load_data
from saqrl.training.flags import changed
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import RunError, hold, read_config

BOTH = ("quantized", "continuous")
SCORES = {"normalized_score": None, "success_rate": None, "max_reward_mean": 0.5}


def names(*agents, actions=BOTH):
    return [method.name for method in methods(agents, actions)]


def test_an_agent_is_compared_in_each_kind_that_it_exists_for():
    assert names("bc", "gmm", "rebrac") == ["saq-bc", "bc", "gmm", "rebrac"]
    assert names("iql", actions=("quantized",)) == ["saq-iql"]
    assert names("saq-iql") == ["saq-iql"]


def test_acting_in_its_own_way_is_no_other_method():
    def planned(*agents, preset="default"):
        task = Task("walk", "npz:walk.npz", preset)
        return {
            cell.method.name: cell.settings.evaluation.act
            for cell in plan([task], methods(agents, BOTH), [0], changes={})
        }

    assert planned("bc:greedy") == {"saq-bc-greedy": "greedy", "bc": "greedy"}
    everything = {"saq-bc": "sample", "bc": "greedy", "bc-sample": "sample"}
    assert planned("bc", "bc:sample") == everything
    # Where the preset acts by the mean, sampling is what has to be said.
    both = planned("saq-bc:sample", "saq-bc:mean", preset="hopper-expert")
    assert both == {"saq-bc-sample": "sample", "saq-bc": "mean"}


def test_counterparts_have_equal_steps_unless_told_otherwise():
    def steps(*agents, preset="default", assignments=(), **changes):
        task, compared = Task("walk", "npz:walk.npz", preset), methods(agents, BOTH)
        planned = plan([task], compared, [0], changes=changes, assignments=assignments)
        return {cell.method.name: cell.settings.agent.steps for cell in planned}

    assert steps("bc", "gmm") == {"saq-bc": 30_000, "bc": 30_000, "gmm": 30_000}
    # A prior acts too: its steps are among those that all have.
    assert steps("iql", preset="cube-single-play") == {"saq-iql": 30_000, "iql": 40_000}
    assert steps("brac", "rebrac", preset="paper") == {
        "saq-brac": 2_500_000,
        "brac": 3_000_000,
        "rebrac": 3_000_000,
    }
    assert steps("bc", "iql") == {"saq-bc": 30_000, "bc": 30_000, "saq-iql": 20_000, "iql": 30_000}
    assert steps("bc", "iql", steps=9) == {"saq-bc": 9, "bc": 9, "saq-iql": 6, "iql": 9}
    assert steps("bc", assignments=["bc.steps=7"]) == {"saq-bc": 30_000, "bc": 7}
    assert steps("bc", steps=5) == {"saq-bc": 5, "bc": 5}


def test_unknown_agents_are_named():
    with pytest.raises(ValueError, match="agent 'igl'; did you mean 'iql'"):
        names("igl")
    with pytest.raises(ValueError, match="'gmm'"):
        names("gmm", actions=("quantized",))
    with pytest.raises(ValueError, match="greedy, sample or mean"):
        names("bc:best")


def cells(*agents, out_of=("walk",), seeds=(0,), **more):
    tasks = [Task(name, f"npz:{name}.npz") for name in out_of]
    return plan(tasks, methods(agents, BOTH), seeds, changes=more.pop("changes", {}), **more)


def test_assignments_reach_their_owner_only():
    planned = cells("iql", "bc", assignments=["saq-iql.tau=0.6", "iql.beta=5", "quantizer.codes=9"])
    by_name = {cell.method.name: cell.settings for cell in planned}
    assert by_name["saq-iql"].agent.expectile == 0.6
    assert by_name["iql"].agent.expectile == 0.7
    assert by_name["iql"].agent.beta == 5.0
    assert {settings.quantizer.codes for settings in by_name.values()} == {9}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("expectile=3", "expected OWNER.FIELD=VALUE"),
        (
            "iql.expectil=3",
            "unknown flag 'agent.expectil' .*did you mean 'agent.expectile'",
        ),
        ("igl.expectile=3", "unknown 'igl'"),
        (
            "iql.expectile=high",
            "agent.expectile is 'high'; expected a number",
        ),
        ("iql.hidden=a,b", "--set iql.hidden=a,b: agent.hidden is 'a'; expected an integer"),
        ("quantizer.encodings=typo", "quantizer.encodings is 'typo'; 'bounded' or 'free'"),
        ("iql.precision=float16", "agent.precision is 'float16'; 'float32' or 'bfloat16'"),
    ],
)
def test_assignments_that_mean_nothing_are_refused(assignment, message):
    with pytest.raises(ValueError, match=message):
        cells("iql", assignments=[assignment])


def test_assignments_choose_among_names():
    (cell,) = cells("saq-bc", assignments=["quantizer.encodings=free", "saq-bc.schedule=constant"])
    assert cell.settings.quantizer.encodings == "free"
    assert cell.settings.agent.schedule == "constant"


def test_a_given_chunk_is_played_whole_and_evaluations_are_spread_evenly():
    (cell, _) = cells("bc", changes={"chunk": 4, "steps": 100}, evaluations=5)
    features, evaluation = cell.settings.features, cell.settings.evaluation
    assert (features.chunk, evaluation.action_horizon, evaluation.every) == (4, 4, 20)


def test_two_data_sets_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two datasets have the name 'walk'"):
        cells("bc", out_of=("walk", "walk"))


class Trainer:
    """Stands for `train`: writes a finished run without training anything."""

    def __init__(self, fail=()):
        self.asked, self.fail = [], set(fail)

    def __call__(self, settings, out, *, resume, reporter):
        self.asked.append(f"{out.name}{' again' if resume else ''}")
        if out.name in self.fail:
            raise RuntimeError("the simulator\nfell over")
        out.mkdir(parents=True, exist_ok=True)
        config = {"settings": settings.to_json(), "versions": {"jax": "1"}}
        result = {"env": "gym_pusht/PushT-v0", "episodes": 2, "act": "greedy", "quantizer": None}
        result |= {"dataset": settings.data.dataset, "gradient_steps": 9, "wall_seconds": 1.0}
        result |= {"run": str(out), "agent": settings.agent_name, "actions": settings.actions}
        result |= {"seed": settings.seed, "seconds": {}}
        (out / "config.json").write_text(json.dumps(config))
        (out / "result.json").write_text(json.dumps(result))
        records = [
            SCORES | {"stage": "agent", "step": step, "max_reward_mean": step / 100}
            for step in (10, 20, 30, 90)
        ]
        (out / "evaluations.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")


@pytest.fixture
def trainer(monkeypatch):
    made = Trainer()
    monkeypatch.setattr(grids, "train", made)
    scored = SimpleNamespace(environment="gym_pusht/PushT-v0")
    monkeypatch.setattr(grids, "load_data", lambda _: scored)
    return made


def grid(planned, out):
    return run_grid(planned, out, Reporter(quiet=True))


def test_a_score_is_the_final_policy_s(trainer, tmp_path):
    (row,) = grid(cells("gmm"), tmp_path)
    assert row["score"] == pytest.approx(90)
    assert (row["best"], row["final"]) == (90, 90)
    assert row["measure"] == "highest reward, %"


def test_what_has_finished_is_not_trained_again(trainer, tmp_path):
    grid(cells("gmm", seeds=(0,)), tmp_path)
    rows = grid(cells("gmm", "iql", seeds=(0, 1)), tmp_path)
    assert len(rows) == 6
    assert trainer.asked.count("gmm-seed0") == 1
    assert len(read_table(tmp_path / "table.jsonl")) == 6


def test_a_cell_leaves_no_compiled_programs_behind(trainer, tmp_path):
    """A hundred cells' programs exhaust the memory mappings that a process may have."""
    twice = jax.jit(lambda number: 2 * number)
    twice(1.0)
    assert twice._cache_size() == 1
    grid(cells("gmm", seeds=(0,)), tmp_path)
    assert twice._cache_size() == 0


def test_a_cell_that_fails_is_recorded_skipped_and_tried_again(trainer, tmp_path):
    trainer.fail = {"gmm-seed0"}
    failed, finished = grid(cells("gmm", seeds=(0, 1)), tmp_path)
    assert failed["error"] == "RuntimeError: the simulator fell over"
    assert finished["score"] > 0
    trainer.fail = set()
    rows = grid(cells("gmm", seeds=(0, 1)), tmp_path)
    assert not any("error" in row for row in rows)
    assert trainer.asked == ["gmm-seed0", "gmm-seed1", "gmm-seed0"]
    assert len(read_table(tmp_path / "table.jsonl")) == 2


def test_a_table_torn_by_a_kill_is_mended(trainer, tmp_path):
    grid(cells("gmm", seeds=(0, 1)), tmp_path)
    table = tmp_path / "table.jsonl"
    whole = table.read_bytes()
    table.write_bytes(whole[:-40])
    assert len(read_table(table)) == 1
    grid(cells("gmm", seeds=(0, 1)), tmp_path)
    assert table.read_bytes() == whole
    assert trainer.asked == ["gmm-seed0", "gmm-seed1"]  # its folder tells the row again


def test_a_run_with_other_settings_is_refused_before_anything_is_trained(trainer, tmp_path):
    grid(cells("gmm"), tmp_path)
    with pytest.raises(ValueError, match="components is 5 in the run and 7 here"):
        grid(cells("iql", "gmm", assignments=["gmm.components=7"]), tmp_path)
    assert trainer.asked == ["gmm-seed0"]


def test_runs_that_no_grid_made_are_rows_too(trainer, tmp_path):
    grid = cells("gmm", changes={"chunk": 4}, seeds=(3, 4))
    for name, cell in zip(("mine", "unscored"), grid, strict=True):
        trainer(cell.settings, tmp_path / "deep" / name, resume=False, reporter=None)
    (tmp_path / "deep" / "unscored" / "evaluations.jsonl").unlink()
    mine, unscored = collect_rows(tmp_path)
    assert (mine["task"], mine["method"], mine["seed"]) == ("walk-chunk4", "gmm", 3)
    assert mine["best"] == 90
    assert "not evaluated in an environment" in unscored["error"]


def test_runs_that_were_trained_otherwise_are_not_seeds_of_one_method(trainer, tmp_path):
    """Nor are data sets of the same file name the same, nor does a copy count twice."""
    (first,) = cells("gmm")
    (second,) = cells("gmm", seeds=(1,))
    (other,) = cells("gmm", assignments=["gmm.components=7"])
    asked_more = changed(first.settings, {"eval_episodes": 7})
    elsewhere = changed(first.settings, {"dataset": "npz:folder/walk.npz"})
    for name, settings in {
        "a": first.settings, "b": second.settings, "c": other.settings, "d": asked_more,
        "e": elsewhere,
    }.items():  # fmt: skip
        trainer(settings, tmp_path / name, resume=False, reporter=None)
    rows = [(row["task"], row["method"], row["seed"]) for row in collect_rows(tmp_path)]
    assert sorted(rows) == [
        ("folder/walk", "gmm", 0),
        ("walk", "gmm (agent.components=5)", 0),
        ("walk", "gmm (agent.components=5)", 1),
        ("walk", "gmm (agent.components=7)", 0),
    ]


class Walk(gymnasium.Env):
    """Five steps in the plane that reward small actions."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 5
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        self.left -= 1
        here = self.np_random.normal(size=2).astype(np.float32)
        return here, -float(np.abs(action).sum()), False, self.left == 0, {}


@pytest.fixture
def walk(tmp_path):
    gymnasium.register("saqrl-tests/Walk-v0", entry_point=Walk)
    generator, rows = np.random.default_rng(0), 100
    ends = np.arange(rows) % 5 == 4
    np.savez(
        tmp_path / "walk.npz",
        observations=generator.normal(size=(rows, 2)).astype(np.float32),
        actions=generator.uniform(-1, 1, (rows, 2)).astype(np.float32),
        rewards=generator.normal(size=rows).astype(np.float32),
        next_observations=generator.normal(size=(rows, 2)).astype(np.float32),
        terminals=np.zeros(rows, bool),
        timeouts=ends,
    )
    yield Task("walk", f"npz:{tmp_path / 'walk.npz'}")
    del gymnasium.registry["saqrl-tests/Walk-v0"]


def test_a_shared_quantizer_changes_no_bit_of_a_run(walk, tmp_path):
    small = ["quantizer.codes=8", "quantizer.hidden=8", "quantizer.batch_size=8"]
    small += ["saq-bc.hidden=8", "saq-bc.batch_size=8"]

    def run(out: Path, *agents: str):
        planned = plan(
            [walk],
            methods(agents, BOTH),
            [0],
            changes={"env": "saqrl-tests/Walk-v0", "eval_episodes": 1, "log_every": 10}
            | {"steps": 20, "quantizer_steps": 20},
            evaluations=2,
            assignments=small,
        )
        return {row["method"]: row for row in grid(planned, out)}

    rows = run(tmp_path / "shared", "saq-bc", "saq-bc:greedy")
    alone = run(tmp_path / "alone", "saq-bc:greedy")
    assert rows["saq-bc-greedy"]["shared"] == ["quantizer"]
    assert alone["saq-bc-greedy"]["shared"] == []
    cells = tmp_path / "shared/cells/walk"
    taken, trained = (
        read_config(cells / f"{name}-seed0")["data"] for name in ("saq-bc-greedy", "saq-bc")
    )
    assert taken == trained
    assert len(taken["sha256"]) == 64
    one, other = (
        tmp_path / place / "cells/walk/saq-bc-greedy-seed0" for place in ("shared", "alone")
    )
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    with np.load(one / "policy/weights.npz") as ours, np.load(other / "policy/weights.npz") as own:
        assert ours.files == own.files
        for name in ours.files:
            np.testing.assert_array_equal(ours[name], own[name], err_msg=name)


def test_data_without_an_environment_are_refused_before_anything_is_trained(
    walk, tmp_path, monkeypatch
):
    trained = Trainer()
    monkeypatch.setattr(grids, "train", trained)
    planned = plan([walk], methods(("bc",), BOTH), [0], changes={})
    with pytest.raises(ValueError, match=r"walk\.npz names no environment.*--env ID"):
        grid(planned, tmp_path / "out")
    assert trained.asked == []
    assert not (tmp_path / "out").exists()


def test_data_are_read_once_for_all_cells_that_have_not_finished(trainer, tmp_path, monkeypatch):
    read = []

    def load(settings):
        read.append(settings.data.dataset)
        return SimpleNamespace(environment="gym_pusht/PushT-v0")

    monkeypatch.setattr(grids, "load_data", load)
    for _ in range(2):
        grid(cells("bc", "iql", seeds=(0, 1)), tmp_path)
    assert read == ["npz:walk.npz"]
    grid(cells("bc", seeds=(2,), changes={"env": "gym_pusht/PushT-v0"}), tmp_path)
    assert read == ["npz:walk.npz"]


def test_codes_are_shared_only_where_everything_they_depend_on_agrees():
    iql, cql, clone = (cells(name)[0].settings for name in ("saq-iql", "saq-cql", "saq-bc"))
    common = stages_in_common
    assert common(iql, cql) == ("quantizer", "prior")
    assert common(iql, clone) == ("quantizer",)
    assert common(iql, cells("saq-cql", seeds=(1,))[0].settings) == ()
    for assignment in ("quantizer.codes=32",):
        assert common(iql, cells("saq-cql", assignments=[assignment])[0].settings) == ()
    other_prior = cells("saq-cql", assignments=["prior.steps=7"])[0].settings
    assert common(iql, other_prior) == ("quantizer",)
    for change in ({"chunk": 2}, {"data_episodes": 3}, {"observation_scale": "none"}):
        assert common(iql, cells("saq-cql", changes=change)[0].settings) == ()


def test_a_second_comparison_on_one_folder_is_refused_while_the_first_trains(trainer, tmp_path):
    lock = hold(tmp_path)
    with pytest.raises(RunError, match=r"in use by another process \(process \d+ on"):
        grid(cells("bc"), tmp_path)
    assert trainer.asked == []
    lock.release()
    grid(cells("bc"), tmp_path)
    assert len(trainer.asked) == 2
    hold(tmp_path).release()


def test_cells_of_changed_data_are_refused_before_anything_is_trained(walk, tmp_path, monkeypatch):
    trained = Trainer()
    monkeypatch.setattr(grids, "train", trained)
    out, changes = tmp_path / "out", {"env": "saqrl-tests/Walk-v0"}

    def planned(seeds: int):
        return plan([walk], methods(("bc",), ("continuous",)), range(seeds), changes=changes)

    (cell,) = planned(1)
    grid([cell], out)
    config = read_config(cell.folder(out))
    config["data"] = data_record(load_data(cell.settings), cell.settings)
    (cell.folder(out) / "config.json").write_text(json.dumps(config))
    grid(planned(2), out)
    with np.load(tmp_path / "walk.npz") as archive:
        columns = dict(archive)
    np.savez(tmp_path / "walk.npz", **columns | {"rewards": -columns["rewards"]})
    with pytest.raises(
        ValueError, match=r"walk\.npz is not the data that .*bc-seed0 was started with"
    ):
        grid(planned(3), out)
    assert trained.asked == ["bc-seed0", "bc-seed1"]
    grid(planned(2), out)  # nothing is left to train
