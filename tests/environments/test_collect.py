"""Collected demonstrations: reproducible, successful, whole."""

import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from saqrl.cli import main
from saqrl.datasets import load_dataset
from saqrl.datasets.formats.writers import check_destination, save_arrays
from saqrl.environments.oracles.collect import collect
from saqrl.environments.oracles.demonstrator import SEED_BIT
from saqrl.environments.oracles.planners import lights_out
from tests import processes

CUBE = "cube-single-singletask-task2-v0"
KEYS = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")


def identical(one, other):
    return all(np.array_equal(one[key], other[key]) for key in KEYS)


@pytest.fixture(scope="module")
def demonstrations():
    pytest.importorskip("ogbench", reason="not installed: ogbench, which has the oracles")
    return collect(CUBE, style="expert", episodes=3, seed=7)


def test_same_seed_gives_the_same_bits_whatever_came_before(demonstrations):
    np.random.seed(1)  # noqa: NPY002 - the oracles draw from the global generator
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    again = collect(CUBE, style="expert", episodes=2, seed=7)
    rows = len(again["rewards"])
    assert identical({key: demonstrations[key][:rows] for key in KEYS}, again)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    other = collect(CUBE, style="expert", episodes=2, seed=8)
    assert not identical(again, other)


@pytest.mark.slow  # each worker imports the simulator
def test_workers_do_not_change_the_data(demonstrations):
    assert identical(collect(CUBE, style="expert", episodes=3, seed=7, workers=2), demonstrations)


def test_every_demonstration_succeeds_and_the_next_observation_follows(demonstrations):
    ends = np.flatnonzero(demonstrations["terminals"])
    assert len(ends) == 3
    assert not demonstrations["timeouts"].any()
    assert ends[-1] == len(demonstrations["rewards"]) - 1
    # The single task pays -1 a step and 0 once the cube is there, which also ends it.
    np.testing.assert_array_equal(demonstrations["rewards"][ends], 0)
    assert (np.delete(demonstrations["rewards"], ends) == -1).all()
    inside = np.setdiff1d(np.arange(len(demonstrations["rewards"]) - 1), ends)
    np.testing.assert_array_equal(
        demonstrations["next_observations"][inside], demonstrations["observations"][inside + 1]
    )
    assert np.abs(demonstrations["actions"]).max() <= 1


def test_saved_collection_reads_back_as_transitions(demonstrations, tmp_path):
    path = tmp_path / "cube.npz"
    save_arrays(path, demonstrations)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cube.npz"]
    transitions = load_dataset(f"npz:{path}")
    assert transitions.num_episodes == 3
    assert transitions.environment.id == CUBE
    np.testing.assert_array_equal(transitions.actions, demonstrations["actions"])
    np.testing.assert_array_equal(transitions.action_range.low, -np.ones(5))
    provenance = json.loads(demonstrations["provenance"].item())
    assert (provenance["style"], provenance["seed"], provenance["noise"]) == ("expert", 7, 0.1)
    assert {"ogbench", "mujoco", "success_timing"} <= provenance["versions"].keys()


def test_an_existing_file_is_never_overwritten(demonstrations, tmp_path):
    path = tmp_path / "cube.npz"
    path.write_bytes(b"kept")
    with pytest.raises(FileExistsError, match=r"cube.npz exists and is not overwritten"):
        save_arrays(path, demonstrations)
    assert path.read_bytes() == b"kept"


def test_a_failed_write_leaves_nothing(tmp_path):
    class Unwritable:
        def __array__(self, dtype=None, copy=None):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_arrays(tmp_path / "cube.npz", {"observations": np.zeros(3), "actions": Unwritable()})
    assert list(tmp_path.iterdir()) == []


def test_destinations_are_checked_before_the_work(tmp_path):
    with pytest.raises(ValueError, match=r"ends in .npz"):
        check_destination(tmp_path / "cube.hdf5")
    with pytest.raises(FileNotFoundError, match=r"its folder does not exist"):
        check_destination(tmp_path / "missing" / "cube.npz")


@pytest.mark.parametrize(
    ("environment_id", "style"),
    [
        (CUBE, "play"),
        ("scene-singletask-task1-v0", "noisy"),
        ("puzzle-3x3-singletask-v0", "play"),
    ],
)
def test_play_and_noisy_data_carry_the_rewards_of_the_task(environment_id, style):
    pytest.importorskip("ogbench", reason="not installed: ogbench, which has the oracles")
    progress = []
    arrays = collect(
        environment_id,
        style=style,
        episodes=2,
        seed=0,
        max_steps=40,
        progress=lambda done, total: progress.append((done, total)),
    )
    assert progress == [(1, 2), (2, 2)]
    assert len(arrays["rewards"]) <= 80
    ends = arrays["terminals"] | arrays["timeouts"]
    assert ends[-1]
    assert not (arrays["terminals"] & arrays["timeouts"]).any()
    np.testing.assert_array_equal(arrays["rewards"] == 0, arrays["terminals"])
    assert arrays["observations"].dtype == np.float32


@pytest.mark.parametrize(
    ("base", "style"), [("cube-double", "noisy"), ("scene", "play"), ("puzzle-3x3", "play")]
)
def test_data_without_a_task_are_read_with_the_rewards_of_any(tmp_path, base, style):
    pytest.importorskip("ogbench", reason="not installed: ogbench, which has the oracles")
    asked = {"style": style, "episodes": 2, "seed": 0, "max_steps": 40}
    arrays = collect(f"{base}-v0", **asked)
    np.testing.assert_array_equal(np.flatnonzero(arrays["terminals"]), [40, 81])
    path = tmp_path / "play.npz"
    save_arrays(path, arrays)
    task = f"{base}-singletask-task2-v0"
    read = load_dataset(str(path), environment=task)
    assert read.environment.id == task
    assert json.loads(arrays["provenance"].item())["style"] == style
    # A collection for the task itself keeps one row of each stay in a solved state.
    own = collect(task, **asked)
    kept = ~(read.terminated & np.append(False, read.terminated[:-1]))
    np.testing.assert_array_equal(read.rewards[kept], own["rewards"])
    np.testing.assert_array_equal(read.observations[kept], own["observations"])


def test_the_command_names_a_task_for_data_without_one(tmp_path, capsys):
    pytest.importorskip("ogbench", reason="not installed: ogbench, which has the oracles")
    out = tmp_path / "play.npz"
    words = ["collect", "--env", "cube-single-v0", "--style", "play", "--episodes", "1"]
    assert main([*words, "--out", str(out), "--json"]) == 0
    said, task = capsys.readouterr(), "cube-single-singletask-task1-v0"
    assert f"saqrl train --dataset {out} --env {task}" in said.err
    steps = json.loads(said.out)["steps"]
    assert len(load_dataset(str(out), environment=task).rewards) == steps


@pytest.mark.slow  # hundreds of simulated steps each
@pytest.mark.parametrize(
    "environment_id",
    ["cube-double-singletask-task4-v0", "scene-singletask-task4-v0", "puzzle-3x3-singletask-v0"],
)
def test_tasks_of_several_steps_are_solved(environment_id):
    # Two cubes that change places, a cube for a shut drawer, a board of lights.
    pytest.importorskip("ogbench", reason="not installed: ogbench, which has the oracles")
    arrays = collect(environment_id, style="expert", episodes=1, seed=0)
    assert arrays["terminals"][-1]


def test_a_hopeless_demonstration_ends_in_an_error(monkeypatch):
    pytest.importorskip("ogbench", reason="not installed: ogbench, which has the oracles")
    monkeypatch.setattr("saqrl.environments.oracles.demonstrator.ATTEMPTS", 2)
    with pytest.raises(RuntimeError, match=r"episode 0 failed 2 times.*at most 5 steps"):
        collect(CUBE, style="expert", episodes=1, seed=0, max_steps=5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"environment_id": "Hopper-v4"}, r"no scripted oracle for 'Hopper-v4'"),
        ({"environment_id": "cube-sngle-v0"}, r"did you mean .*cube-single"),
        ({"environment_id": "cube-single-v0"}, r"one fixed task.*cube-single-singletask-task1-v0"),
        ({"style": "exprt"}, r"unknown style 'exprt'; did you mean 'expert'"),
        ({"episodes": 0}, r"episodes is 0; expected a whole number of at least 1"),
        ({"seed": -1}, r"seed is -1"),
        ({"noise": 1.5}, r"noise is 1.5; expected 0 to 1"),
        ({"max_steps": 0}, r"max_steps is 0"),
    ],
)
def test_what_cannot_be_collected_is_refused_at_once(given, message):
    asked = {"environment_id": CUBE, "style": "expert", "episodes": 1, "seed": 0} | given
    with pytest.raises(ValueError, match=message):
        collect(asked.pop("environment_id"), **asked)


def test_seeds_of_data_and_of_evaluation_cannot_meet():
    assert SEED_BIT > 100_000


def toggled(presses):
    """Press by press, neighbours by index: the rule itself."""
    board = np.zeros_like(presses)
    rows, columns = presses.shape
    for row, column in np.argwhere(presses):
        for dy, dx in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
            if 0 <= row + dy < rows and 0 <= column + dx < columns:
                board[row + dy, column + dx] ^= True
    return board


@pytest.mark.parametrize("shape", [(3, 3), (4, 4), (4, 5), (4, 6)])
def test_lights_out_is_solved(shape):
    generator = np.random.default_rng(0)
    for _ in range(20):
        presses = generator.random(shape) < 0.5
        solution = lights_out(toggled(presses))
        np.testing.assert_array_equal(toggled(solution), toggled(presses))
        assert solution.sum() <= presses.sum()


def test_lights_out_is_the_shortest_solution_on_a_small_board():
    # A 2x3 board has several solutions of different length.
    boards = [np.array(p, bool).reshape(2, 3) for p in itertools.product((0, 1), repeat=6)]
    for target in (toggled(board) for board in boards):
        fewest = min(b.sum() for b in boards if np.array_equal(toggled(b), target))
        assert lights_out(target).sum() == fewest


def test_lights_that_no_presses_reach_are_refused():
    single = np.zeros((4, 4), bool)
    single[0, 0] = True
    with pytest.raises(ValueError, match=r"no presses toggle exactly these lights of a 4x4 board"):
        lights_out(single)


WORKER = """
import multiprocessing, os
from saqrl.environments.oracles.collect import _end_with_parent

def work(up):
    up.send(True)
    _end_with_parent()

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    worker = context.Process(target=work, args=(there,))
    worker.start()
    here.recv()
    print(worker.pid, flush=True)
    os._exit(0)
"""


@processes.NEEDS_PROC
def test_a_worker_ends_with_the_process_that_it_works_for(tmp_path):
    (tmp_path / "parent.py").write_text(WORKER)
    parent = subprocess.run(
        [sys.executable, str(tmp_path / "parent.py")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=processes.HANGS,
    )
    struck = time.monotonic()
    while processes.alive(int(parent.stdout)):
        assert time.monotonic() - struck < processes.limit()
