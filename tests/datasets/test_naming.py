"""Names of data sets: short, and different where the data are."""

import pytest

from saqrl.datasets.naming import dataset_name, distinct_names


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("npz:logs/walk.npz", "walk"),
        ("walk.npz", "walk"),
        ("minari:D4RL/door/human-v2", "human-v2"),
        ("lerobot:data/g1-pick-bottle/", "g1-pick-bottle"),
        ("npz:a.npz + 2*d4rl:b/c.hdf5", "a+c"),
        ("gym_pusht/PushT-v0", "PushT-v0"),
    ],
)
def test_a_data_set_is_called_as_its_file(spec, name):
    assert dataset_name(spec) == name


def test_equal_file_names_get_the_folders_that_tell_them_apart():
    specs = (
        "minari:D4RL/door/human-v2",
        "minari:D4RL/pen/human-v2",
        "robomimic:x/lift/ph/low_dim.hdf5",
        "robomimic:x/can/ph/low_dim.hdf5",
        "npz:walk.npz",
        "npz:walk.npz",
    )
    assert list(distinct_names(specs).items()) == [
        ("npz:walk.npz", "walk"),
        (specs[0], "door/human-v2"),
        (specs[1], "pen/human-v2"),
        (specs[2], "lift/ph/low_dim"),
        (specs[3], "can/ph/low_dim"),
    ]
