"""Where the real logs are: SPECs below the folder that the variable SAQRL_DATA names."""

import os

DATA = os.environ.get("SAQRL_DATA", "../shared/data")
PUSHT = f"npz:{DATA}/npz/pusht-human.npz"
CUBE = f"ogbench:{DATA}/ogbench/cube-single-play-v0.npz"


def d4rl(name: str) -> str:
    return f"d4rl:{DATA}/d4rl/{name}.hdf5"


def robomimic(task: str) -> str:
    """The scripted demonstrations of a task."""
    return f"robomimic:{DATA}/robomimic/{task}/ph-scripted/low_dim.hdf5"
