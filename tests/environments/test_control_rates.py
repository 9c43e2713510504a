"""The control rates that are known without an environment's package are those of the package."""

import pytest

from saqrl.datasets import load_dataset
from saqrl.environments.make import make_environment
from saqrl.environments.rates import as_rate, control_rate_of


@pytest.mark.parametrize("name", ["Hopper-v4", "Humanoid-v4", "Swimmer-v4", "AdroitHandDoor-v1"])
def test_the_known_rate_is_the_simulators(name):
    for module in ("mujoco", "gymnasium_robotics"):
        pytest.importorskip(module)
    made = make_environment(name)
    assert control_rate_of(name, {}) == pytest.approx(1 / made.unwrapped.dt)
    made.close()


def test_a_control_frequency_among_the_options_comes_first():
    assert control_rate_of("robosuite/Lift", {"control_freq": 50}) == 50
    assert control_rate_of("robosuite/Lift", {}) == 20
    assert control_rate_of("Hopper-v4", {"frame_skip": 2}) is None


def test_what_nobody_knows_has_no_rate():
    assert control_rate_of("CartPole-v1", {}) is None
    for wrong in (None, True, "20", 0, -3, float("nan"), float("inf"), [20], 10**400):
        assert as_rate(wrong) is None


@pytest.mark.parametrize(
    ("file", "environment", "rate"),
    [
        ("npz/pusht-human.npz", "gym_pusht/PushT-v0", 10),
        ("npz/pusht-human.npz", None, None),
        ("lerobot/g1-pick-bottle", None, 30),
        ("robomimic/lift/ph-scripted/low_dim.hdf5", None, 20),
        ("minari/adroit/door/human-v0", None, 100),
    ],
)
def test_real_files_have_the_rate_of_their_robot(file, environment, rate, real_data):
    if file.startswith("lerobot"):
        pytest.importorskip("pyarrow")
    assert load_dataset(str(real_data / file), environment=environment).control_rate == rate
