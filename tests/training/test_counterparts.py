"""The continuous opponents of fine-tuning play in the same loop."""

from dataclasses import replace

import numpy as np
import pytest

import saqrl
from benchmarks.counterparts import go_on
from benchmarks.rlpd import RLPD
from saqrl.policy.storage import load_policy
from saqrl.training.online.settings import OnlineSettings
from saqrl.training.train import saved_settings
from tests.walking import run, small

LITTLE = {"steps": 60, "warm_up": 20, "eval_every": 30, "eval_episodes": 2, "lanes": 2}


@pytest.fixture(scope="module")
def parent(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("parents") / "iql"
    run(small(dataset, "iql", actions="continuous"), out)
    return out


def test_iql_begins_as_its_offline_run_has_ended_and_goes_on(parent, tmp_path):
    asked = OnlineSettings(**LITTLE)
    found = go_on(parent, saved_settings(parent), asked, tmp_path / "out", adopt=True)
    assert found["finetune"]["environment_steps"] >= 60
    assert found["finetune"]["updates"] >= 40
    still = OnlineSettings(**LITTLE | {"warm_up": 10_000})
    go_on(parent, saved_settings(parent), still, tmp_path / "still", adopt=True)
    seen = np.zeros((1, load_policy(parent / "policy").window_size), np.float32)
    first, same, moved = (
        load_policy(folder / "policy").act(seen[0])
        for folder in (parent, tmp_path / "still", tmp_path / "out")
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, moved)


def test_rlpd_begins_with_new_networks(parent, tmp_path, registries):
    saqrl.register("baseline", "rlpd", RLPD)
    settings = replace(saved_settings(parent), agent=RLPD(hidden=(8,), batch_size=16))
    found = go_on(parent, settings, OnlineSettings(**LITTLE), tmp_path / "out", adopt=False)
    assert found["agent"] == "rlpd"
    assert found["finetune"]["updates"] >= 40
