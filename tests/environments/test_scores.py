"""D4RL's normalised scores."""

import re

import pytest

from saqrl.environments.scores import REFERENCE_RETURNS, normalized_score


@pytest.mark.parametrize(
    ("environment_id", "minimum", "maximum"),
    [
        ("Hopper-v4", -20.272305, 3234.3),
        ("HalfCheetah-v4", -280.178953, 12135.0),
        ("Walker2d-v5", 1.629008, 4592.3),
        ("Ant-v4", -325.6, 3879.7),
        ("AdroitHandPen-v1", 96.262799, 3076.833102),
        ("AdroitHandHammer-v1", -274.856578, 12794.134825),
        ("AdroitHandDoor-v1", -56.512833, 2880.569309),
        ("AdroitHandRelocate-v1", -6.425911, 4233.877798),
        ("FrankaKitchen-v1", 0, 4),
        ("AntMaze_UMaze-v4", 0, 1),
        ("AntMaze_Large_Diverse_GR-v4", 0, 1),
    ],
)
def test_reference_returns_score_0_and_100(environment_id, minimum, maximum):
    assert normalized_score(environment_id, minimum) == pytest.approx(0, abs=1e-9)
    assert normalized_score(environment_id, maximum) == pytest.approx(100)


def test_published_score_of_human_demonstrations_is_reproduced():
    # door-human: mean return 794, published as 29.
    assert normalized_score("AdroitHandDoor-v1", 794) == pytest.approx(29, abs=0.5)


@pytest.mark.parametrize(
    "environment_id",
    [
        "gym_pusht/PushT-v0",
        "cube-single-singletask-task2-v0",
        "antmaze-large-v0",  # OGBench's: another reward under D4RL's old name
        "AdroitHandDoorSparse-v1",
        "AntMaze_UMazeDense-v4",
        "Hopper",
    ],
)
def test_other_rewards_have_no_reference(environment_id):
    assert normalized_score(environment_id, 1.0) is None


def test_an_id_has_one_reference():
    ids = ("Hopper-v4", "AdroitHandDoor-v1", "AntMaze_UMaze-v4", "Ant-v4")
    for environment_id in ids:
        assert sum(bool(re.fullmatch(p, environment_id)) for p in REFERENCE_RETURNS) == 1
