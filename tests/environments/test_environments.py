"""Environments by id. Simulators that are not installed are skipped, saying so."""

import importlib.util
import json
import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from saqrl.environments import simulators
from saqrl.environments.families import FAMILIES
from saqrl.environments.make import environment_versions, make_environment


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


IDS = [
    pytest.param("gym_pusht/PushT-v0", 5, 2, marks=needs("gym_pusht")),
    pytest.param("AdroitHandDoor-v1", 39, 28, marks=needs("gymnasium_robotics", "mujoco")),
    pytest.param("AdroitHandPen-v1", 45, 24, marks=needs("gymnasium_robotics", "mujoco")),
    pytest.param("AdroitHandHammer-v1", 46, 26, marks=needs("gymnasium_robotics", "mujoco")),
    pytest.param("Hopper-v4", 11, 3, marks=needs("mujoco")),
    pytest.param("HalfCheetah-v4", 17, 6, marks=needs("mujoco")),
    pytest.param("cube-single-singletask-task2-v0", 28, 5, marks=needs("ogbench")),
    pytest.param("scene-singletask-task1-v0", 40, 5, marks=needs("ogbench")),
    pytest.param("puzzle-3x3-singletask-v0", 55, 5, marks=needs("ogbench")),
    pytest.param("antmaze-medium-singletask-task1-v0", 29, 8, marks=needs("ogbench")),
    pytest.param("FrankaKitchen-v1", 93, 9, marks=needs("gymnasium_robotics", "mujoco")),
    pytest.param("PointMaze_UMaze-v3", 8, 2, marks=needs("gymnasium_robotics", "mujoco")),
    pytest.param("dm_control/cartpole-swingup-v0", 5, 1, marks=needs("dm_control")),
    # As many numbers as robomimic's files of the tasks have under their usual keys.
    *(
        pytest.param(name, *sizes, marks=[needs("robosuite", "numba"), pytest.mark.slow])
        for name, sizes in {
            "robosuite/Lift": (19, 7),
            "robosuite/ToolHang": (53, 7),
            "robosuite/TwoArmTransport": (59, 14),
        }.items()
    ),
]
# These report no success of their own.
SILENT = ("Hopper", "HalfCheetah", "dm_control")


@pytest.mark.parametrize(("environment_id", "observed", "acted"), IDS)
def test_an_episode_depends_on_its_seed_alone(environment_id, observed, acted, capfd):
    def start() -> list[np.ndarray]:
        environment = make_environment(environment_id)
        assert environment.observation_space.shape == (observed,)
        assert environment.action_space.shape == (acted,)
        space = environment.action_space
        action = (space.low + 0.3 * (space.high - space.low)).astype(np.float32)
        seen = [environment.reset(seed=5)[0]]
        for _ in range(3):
            observation, reward, terminated, truncated, info = environment.step(action)
            assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
            assert isinstance(info.get("success", False), bool)
            assert ("success" in info) == (not environment_id.startswith(SILENT))
            seen.append(observation)
        environment.close()
        return seen

    first, second = start(), start()
    for one, other in zip(first, second, strict=True):
        assert one.dtype == np.float32
        assert one.shape == (observed,)
        np.testing.assert_array_equal(one, other)
    # Standard output belongs to the caller's JSON.
    assert capfd.readouterr().out == ""
    assert set(environment_versions(environment_id)) >= {"gymnasium"}


@needs("dm_control")
def test_pictures_are_asked_for_without_a_warning():
    make_environment("dm_control/cartpole-swingup-v0").close()  # registers it
    environment = gymnasium.make("dm_control/cartpole-swingup-v0", render_mode="rgb_array")
    assert environment.metadata["render_fps"] == 100
    environment.close()


@needs("ogbench")
def test_versions_name_what_changes_ogbenchs_reward():
    make_environment("cube-single-singletask-task1-v0").close()
    versions = environment_versions("cube-single-singletask-task1-v0")
    assert set(versions) == {"gymnasium", "ogbench", "mujoco", "dm_control", "success_timing"}
    assert versions["success_timing"] == "pre"


@needs("gymnasium_robotics", "mujoco")
@pytest.mark.parametrize(("task", "steps"), [("Pen", 100), ("Door", 200)])
def test_adroit_tasks_are_as_long_as_the_scores_that_they_are_compared_with(task, steps):
    """Rajeswaran et al. 2018 and D4RL: 100 steps of the pen, 200 of the others."""
    environment = make_environment(f"AdroitHand{task}-v1")
    environment.reset(seed=0)
    lengths, done = 0, False
    while not done:
        *_, terminated, truncated, _ = environment.step(np.zeros(environment.action_space.shape))
        lengths, done = lengths + 1, terminated or truncated
    environment.close()
    assert lengths == steps


@needs("gym_pusht")
def test_push_t_succeeds_at_reward_1_and_stops_after_300_steps():
    environment = make_environment("gym_pusht/PushT-v0")
    assert environment.spec.max_episode_steps == 300
    # An agent well away from the block. Resetting to a state turns the block about another point
    # than its position, so the goal pose is set on the block itself, angle first.
    environment.reset(seed=0, options={"reset_to_state": [50.0, 50.0, 256.0, 256.0, 0.0]})
    block = environment.unwrapped.block
    block.angle = np.pi / 4
    block.position = (256.0, 256.0)
    _, reward, terminated, _, info = environment.step(np.array([50.0, 50.0], np.float32))
    assert (reward, info["success"], terminated) == (1.0, True, True)
    environment.reset(seed=0)
    _, reward, _, _, info = environment.step(np.array([50.0, 50.0], np.float32))
    assert reward < 1
    assert info["success"] is False


@needs("gym_pusht")
def test_push_t_draws_without_a_display():
    environment = make_environment("gym_pusht/PushT-v0", render=True)
    environment.reset(seed=0)
    frame = environment.render()
    assert frame.dtype == np.uint8
    assert frame.shape[2] == 3
    assert environment.metadata["render_fps"] == 10


@needs("ogbench")
def test_drawing_that_cannot_work_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(RuntimeError, match=r"cannot be rendered here.*apt-get install libegl1"):
        make_environment("cube-single-singletask-task2-v0", render=True)


def test_a_renderer_that_the_user_chose_stays(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert simulators.choose_renderer() == "glfw"


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("PushT-v0", "gym_pusht/PushT-v0"),
        ("Hoper-v4", "Hopper-v4"),
        ("AdroitHandDor-v1", "AdroitHandDoor-v1"),
        ("cubesingle-singletask-task2-v0", "cube-single-singletask-task2-v0"),
    ],
)
def test_an_unknown_id_names_the_nearest(given, nearest):
    with pytest.raises(ValueError, match=f"unknown environment '{given}'.*{nearest}"):
        make_environment(given)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.examples[0])
def test_a_missing_package_names_its_extra(family, monkeypatch):
    find = importlib.util.find_spec
    missing = family.modules[-1].partition(".")[0]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    for earlier in family.modules[:-1]:
        if find(earlier.partition(".")[0]) is None:
            pytest.skip(f"not installed: {earlier}, which is asked for first")
    remedy = rf'{missing}, which is not installed: pip install -e ".\[{family.extra}\]"'
    with pytest.raises(ImportError, match=remedy):
        make_environment(family.examples[0])


def test_a_package_that_fails_to_import_keeps_its_reason(tmp_path, monkeypatch):
    (tmp_path / "broken_simulator.py").write_text("raise ImportError('libGL.so.1 not found')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ImportError, match=r"cannot be imported \(libGL.so.1 not found\).*\.\[toy\]"
    ):
        simulators.import_simulator("Toy-v0", ("broken_simulator",), extra="toy")


class Toy(gymnasium.Env):
    """A registered environment of somebody else."""

    def __init__(self, observation_space, action_space=None):
        self.observation_space = observation_space
        self.action_space = action_space or gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observed(), {}

    def step(self, action):
        return self._observed(), 0, np.False_, False, {}

    def _observed(self):
        return {"a": np.array([[1.0, 2.0]]), "b": np.array([3.0])}


@needs("robosuite", "numba")
@pytest.mark.slow
def test_robosuite_replays_a_recorded_demonstration(real_data):
    import h5py

    from saqrl.datasets import load_dataset

    path = real_data / "robomimic/lift/ph-scripted/low_dim.hdf5"
    log = load_dataset(str(path))
    environment = make_environment(log.environment.id, options=log.environment.options)
    assert environment.layout == log.observation_keys
    assert environment.spec.max_episode_steps == 400
    environment.reset(seed=0)
    with h5py.File(path) as file:
        state = file["data/demo_0/states"][0]
        task = environment.unwrapped._task
        task.sim.set_state_from_flattened(state)
        task.sim.forward()
    # The first observation of a reset is forced; here the sensors are forced in the same way.
    seen = environment.observation(environment.unwrapped._observed())
    np.testing.assert_allclose(seen, log.observations[0], atol=2e-3)
    first, _ = environment.reset(seed=1)
    assert first[-3:].all(), "the cube relative to the gripper is zeros unless forced"
    environment.close()


@needs("robosuite", "numba")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ToolHang", "TwoArmTransport"])
def test_a_file_of_one_arm_or_two_is_read_trained_and_evaluated(name, tmp_path):
    import h5py

    import saqrl

    environment = make_environment(f"robosuite/{name}")
    sizes = [size for _, size in environment.layout]
    path, draw = tmp_path / "low_dim.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"env_name": name, "type": 1})
        for number in range(3):
            seen = [environment.reset(seed=number)[0]]
            actions = draw.uniform(-1, 1, (12, *environment.action_space.shape))
            seen += [environment.step(action.astype(np.float32))[0] for action in actions]
            demo, ends = file.create_group(f"data/demo_{number}"), np.arange(12) == 11
            demo["actions"], demo["rewards"], demo["dones"] = actions, 0.0 * ends, ends
            for place, rows in (("obs", seen[:-1]), ("next_obs", seen[1:])):
                parts = np.split(np.stack(rows), np.cumsum(sizes)[:-1], axis=1)
                for (key, _), part in zip(environment.layout, parts, strict=True):
                    demo[f"{place}/{key}"] = part
    environment.close()
    short = {"steps": 5, "quantizer_steps": 5, "quantizer.codes": 8, "eval_episodes": 1}
    said = {"out": tmp_path / "run", "recipe": "plain", "quiet": True, **short}
    run = saqrl.fit(f"robomimic:{path}", **said)
    assert run.policy.act(np.asarray(seen[0])).shape == actions[0].shape
    assert (run.result["success_rate"], run.result["length_mean"]) == (0, 700)


@needs("robosuite", "numba")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["lift", "can"])
def test_recorded_actions_solve_the_task_again(name, real_data):
    import h5py

    from saqrl.datasets import load_dataset

    path = real_data / f"robomimic/{name}/ph-scripted/low_dim.hdf5"
    log = load_dataset(str(path))
    environment = make_environment(log.environment.id, options=log.environment.options)
    task = environment.unwrapped._task
    with h5py.File(path) as file:
        for demo in (file[f"data/demo_{number}"] for number in range(3)):
            first, _ = environment.reset(seed=0)
            # Zeros: three of the relative position or more unless forced, two of an upright can.
            assert (first == 0).sum() <= 2
            if "model_file" in demo.attrs:  # the cube's size is drawn, the can is always the same
                task.reset_from_xml_string(task.edit_model_xml(demo.attrs["model_file"]))
            task.sim.reset()
            task.sim.set_state_from_flattened(demo["states"][0])
            task.sim.forward()
            ends = (environment.step(action)[2] for action in demo["actions"][()])
            assert any(ends), demo.name
    environment.close()


@needs("gymnasium_robotics", "mujoco")
def test_parts_of_a_dictionary_are_observed_in_the_order_asked_for():
    keys = ["observation", "achieved_goal"]
    environment = make_environment("PointMaze_UMaze-v3", options={"observation_keys": keys})
    assert environment.layout == (("observation", 4), ("achieved_goal", 2))
    observation, _ = environment.reset(seed=0)
    np.testing.assert_array_equal(observation[:2], observation[4:])
    with pytest.raises(
        ValueError, match="has no observation 'observatoin'; did you mean 'observation'"
    ):
        make_environment("PointMaze_UMaze-v3", options={"observation_keys": ["observatoin"]})


@needs("gymnasium_robotics", "mujoco")
def test_data_with_other_parts_than_the_environment_names_the_first_that_differs(tmp_path):
    from dataclasses import replace

    from saqrl.datasets import EnvironmentSpec, load_dataset
    from saqrl.training.evaluation import check_environment

    np.savez(
        tmp_path / "log.npz",
        observations=np.random.default_rng(0).normal(size=(5, 8)),
        actions=np.zeros((5, 2)),
        terminals=np.arange(5) == 4,
    )
    log = load_dataset(str(tmp_path / "log.npz"))
    spec = EnvironmentSpec("PointMaze_UMaze-v3")
    same = (("achieved_goal", 2), ("desired_goal", 2), ("observation", 4))
    check_environment(spec, replace(log, observation_keys=same))
    other = (("achieved_goal", 2), ("goal", 2), ("observation", 4))
    with pytest.raises(ValueError, match=r"part 1 .* is goal \(2\) in the data and desired_goal"):
        check_environment(spec, replace(log, observation_keys=other))


@pytest.fixture
def toy():
    gymnasium.register("SaqrlToy-v0", Toy)
    yield "SaqrlToy-v0"
    gymnasium.registry.pop("SaqrlToy-v0")


def test_a_registered_dictionary_becomes_one_vector(toy):
    box = gymnasium.spaces.Box
    space = gymnasium.spaces.Dict({"a": box(-9, 9, (1, 2)), "b": box(-9, 9, (1,))})
    environment = make_environment(toy, options={"observation_space": space})
    observation, _ = environment.reset(seed=0)
    np.testing.assert_array_equal(observation, np.array([1, 2, 3], np.float32))
    assert environment.observation_space.shape == (3,)


def test_images_and_discrete_actions_are_refused(toy):
    image = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match=r"observes images \(64, 64, 3\)"):
        make_environment(toy, options={"observation_space": image})
    vector = gymnasium.spaces.Box(-1, 1, (3,))
    options = {"observation_space": vector, "action_space": gymnasium.spaces.Discrete(2)}
    with pytest.raises(ValueError, match=r"expected continuous actions"):
        make_environment(toy, options=options)


def test_simulators_and_collection_do_not_import_jax():
    modules = "saqrl.environments.simulators, saqrl.environments.oracles.collect"
    code = f"import sys, {modules}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


@needs("gymnasium_robotics", "mujoco")
def test_an_id_that_no_family_lists_is_found_in_the_package_that_registers_it():
    """Fetch: parts of a dictionary in the order of its space, success by its own name, 50 steps."""
    reach = "FetchReach-v4" if "FetchReach-v4" in known_ids() else "FetchReach-v3"
    environment = make_environment(reach)
    raw, _ = environment.env.reset(seed=3)
    observation, _ = environment.reset(seed=3)
    parts = [raw[name] for name in environment.env.observation_space.spaces]
    np.testing.assert_array_equal(observation, np.concatenate(parts).astype(np.float32))
    assert environment.layout == (("achieved_goal", 3), ("desired_goal", 3), ("observation", 10))
    for step in range(1, 51):
        direction = np.clip(5 * (observation[3:6] - observation[:3]), -1, 1)
        observation, _, _, truncated, info = environment.step(np.append(direction, 0))
        assert info["success"] == bool(info["is_success"])
        assert truncated == (step == 50)
    assert info["success"]  # it has gone to its goal
    environment.close()


def known_ids() -> set[str]:
    import gymnasium_robotics  # noqa: F401

    return set(gymnasium.registry)
