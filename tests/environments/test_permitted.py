"""A data file sets what is listed, within bounds; everything else never reaches a constructor."""

import json
import math
import re

import gymnasium
import numpy as np
import pytest

from saqrl.datasets import DatasetError, load_dataset
from saqrl.environments.families import FAMILIES
from saqrl.environments.permitted import PERMITTED, may_be_named, permitted

LIFT = {
    "control_freq": 20,
    "controller_configs": {"type": "BASIC", "body_parts": {"right": {"kp": 150, "limits": None}}},
    "robots": ["Panda"],
    "reward_shaping": False,
}


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ("Hopper-v4", {"frame_skip": 4, "terminate_when_unhealthy": False}),
        ("AdroitHandDoor-v1", {"reward_type": "dense", "max_episode_steps": 200}),
        ("FrankaKitchen-v1", {"tasks_to_complete": ["microwave", "kettle"]}),
        ("PointMaze_UMaze-v3", {"maze_map": [[1, 1], ["r", 0]], "continuing_task": True}),
        ("robosuite/Lift", LIFT),
        ("Own-v0", {"max_episode_steps": 50, "observation_keys": ["a", "b/c"]}),
    ],
)
def test_what_recordings_really_hold_is_kept(environment, options):
    assert permitted(environment, options) == (options, [])


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ("Hopper-v4", {"render_mode": "human"}),
        ("Hopper-v4", {"xml_file": "/etc/passwd"}),
        ("Hopper-v4", {"frame_skip": 10**9}),
        ("Hopper-v4", {"frame_skip": True}),
        ("Hopper-v4", {"frame_skip": 2.5}),
        ("Hopper-v4", {"reset_noise_scale": math.nan}),
        ("Hopper-v4", {"anything": 1}),
        ("Hopper-v4", {"max_episode_steps": 10**9}),
        ("Hopper-v4", {"max_episode_steps": -1}),
        ("Own-v0", {"size": 3}),
        ("AdroitHandDoor-v1", {"reward_type": "human"}),
        ("PointMaze_UMaze-v3", {"maze_map": [[0] * 1000] * 1000}),
        ("robosuite/Lift", {"controller_configs": {"path": "../../secret.json"}}),
        ("robosuite/Lift", {"robots": ["x" * 10_000]}),
        ("dm_control/cheetah-run-v0", {"domain": "humanoid"}),
        ("Own-v0", {"observation_keys": "abc"}),
        ("Own-v0", {"observation_keys": [3]}),
    ],
)
def test_what_could_do_harm_is_left_out(environment, options):
    assert permitted(environment, options) == ({}, list(options))


def test_nested_options_end_somewhere():
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert permitted("robosuite/Lift", {"robots": deep}) == ({}, ["robots"])


def test_every_list_belongs_to_a_family():
    assert set(PERMITTED) <= {family.examples[0] for family in FAMILIES}


@pytest.mark.parametrize(
    ("name", "fine"),
    [("Hopper-v4", True), ("robosuite/Lift", True), ("os:Env-v0", False), ("", False)],
)
def test_a_module_is_never_named(name, fine):
    assert may_be_named(name) == fine


class Watched(gymnasium.Env):
    """An environment that remembers what it was made with."""

    observation_space = gymnasium.spaces.Box(-9, 9, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    made: list[dict] = []  # noqa: RUF012

    def __init__(self, **keywords):
        Watched.made.append(keywords)


@pytest.fixture
def watched():
    gymnasium.register("Watched-v0", entry_point=Watched)
    Watched.made.clear()
    yield "Watched-v0"
    del gymnasium.registry["Watched-v0"]


@pytest.mark.parametrize("named", [False, True])
def test_options_of_a_file_do_not_reach_the_constructor(tmp_path, watched, named):
    from saqrl.environments.make import make_environment

    extras = {"environment": {"id": watched, "options": {"render_mode": "human", "evil": 1}}}
    np.savez(
        tmp_path / "log.npz",
        observations=np.zeros((6, 2)),
        actions=np.linspace(-1, 1, 6)[:, None],
        timeouts=np.arange(6) % 3 == 2,
        saqrl=np.array(json.dumps(extras)),
    )
    log = load_dataset(str(tmp_path / "log.npz"), environment=watched if named else None)
    assert any(re.search("Ignored options of .*: render_mode, evil", n) for n in log.notes)
    make_environment(log.environment.id, options=log.environment.options).close()
    assert Watched.made == [{}]


def test_a_file_that_names_a_module_has_no_environment(tmp_path):
    arrays = {
        "observations": np.zeros((6, 2)),
        "actions": np.linspace(-1, 1, 6)[:, None],
        "timeouts": np.arange(6) % 3 == 2,
    }
    name = np.array("antigravity:Env-v0")
    np.savez(tmp_path / "log.npz", **arrays, environment_id=name)
    log = load_dataset(str(tmp_path / "log.npz"))
    assert log.environment is None
    assert any("may not import a module" in note for note in log.notes)
    extras = np.array(json.dumps({"environment": {"id": 3}}))
    np.savez(tmp_path / "log.npz", **arrays, saqrl=extras)
    with pytest.raises(DatasetError):
        load_dataset(str(tmp_path / "log.npz"))
