"""What would be wrong without a sign is warned of, and what only looks like it is not."""

import json
from dataclasses import replace

import numpy as np
import pytest

from saqrl.datasets import DatasetError, EnvironmentSpec, load_dataset
from saqrl.datasets.assembly import assemble
from saqrl.datasets.audit.findings import audit
from saqrl.datasets.audit.suspicions import suspicions
from tests.datasets.test_audit import REAL_FILES, smooth_log

CLEAN = [
    "d4rl/door-expert.hdf5",
    "d4rl/hopper-medium.hdf5",
    "d4rl/halfcheetah-expert.hdf5",
    "lerobot/g1-pick-bottle",
    "minari/adroit/door/human-v0",
    "ogbench/cube-single-play-v0.npz",
    "robomimic/lift/ph-scripted/low_dim.hdf5",
    "robomimic/can/ph-scripted/low_dim.hdf5",
]


def walks(lengths, *, terminated, offset=0.0):
    """Episodes of these lengths with true successors; which of them terminate."""
    draw = np.random.default_rng(2)
    starts = [draw.normal(size=4) * 3 + offset for _ in lengths]
    paths = [
        s + np.cumsum(0.02 * draw.normal(size=(n + 1, 4)), 0)
        for s, n in zip(starts, lengths, strict=True)
    ]
    ends = np.cumsum(lengths) - 1
    flags = np.zeros((2, sum(lengths)), bool)
    flags[0, ends[np.asarray(terminated)]] = True
    flags[1, ends] = ~flags[0, ends]
    return {
        "observations": np.concatenate([p[:-1] for p in paths]),
        "next_observations": np.concatenate([p[1:] for p in paths]),
        "actions": draw.uniform(-0.9, 0.9, (sum(lengths), 2)),
        "rewards": draw.normal(size=sum(lengths)),
        "terminals": flags[0],
        "timeouts": flags[1],
    }


def found(arrays, environment=None):
    spec = None if environment is None else EnvironmentSpec(environment)
    return suspicions(assemble(arrays, source="log", environment=spec))


@pytest.mark.parametrize("name", CLEAN)
def test_real_files_raise_no_suspicion(shared_file, name):
    if name.startswith("lerobot"):
        pytest.importorskip("pyarrow")
    assert suspicions(load_dataset(str(shared_file(name)))) == ()


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_recordings_do_not_hold_their_own_actions(shared_file, name):
    assert audit(load_dataset(str(shared_file(name)))).copied_actions == ()


def test_time_limits_among_terminations_of_mixed_length():
    lengths = [50, 23, 50, 31, 44, 50, 12, 50]
    warnings = found(walks(lengths, terminated=[True] * 8))
    assert len(warnings) == 1
    assert "4 of 8 terminated episodes have exactly the longest length, 50 steps" in warnings[0]


def test_the_environments_own_limit_needs_fewer():
    lengths = [50, 49, 48, 50, 47, 46]
    assert found(walks(lengths, terminated=[True] * 6)) == ()
    log = replace(
        assemble(walks(lengths, terminated=[True] * 6), source="log"),
        environment=EnvironmentSpec("Own-v0", {"max_episode_steps": 50}),
    )
    assert "the limit of Own-v0" in suspicions(log)[0]


@pytest.mark.parametrize(
    ("lengths", "terminated"),
    [
        ([50, 23, 50, 31, 50], [False, True, False, True, False]),  # stored as they should be
        ([5, 6, 7, 8, 5, 6, 7, 8, 8, 7], [True] * 10),  # short tasks end alike
        ([20, 31, 44, 52, 60, 71], [True] * 6),
    ],
)
def test_true_terminations_are_not_suspected(lengths, terminated):
    assert found(walks(lengths, terminated=terminated)) == ()


def test_a_flag_that_stays_set_is_found():
    arrays = smooth_log()
    arrays["terminals"][[35, 36, 37, 38]] = True
    warnings = found(arrays)
    assert "terminals is set on 4 rows that follow another such row" in warnings[0]
    # Rows of play data that stay solved are no fault of the recording.
    computed, recorded = {"success_timing": "pre"}, {}
    for provenance in (computed, {"parts": [computed, computed]}):
        assert suspicions(assemble(arrays, source="made here", provenance=provenance)) == ()
    mixed = assemble(arrays, source="made here", provenance={"parts": [computed, recorded]})
    assert "that follow another such row" in suspicions(mixed)[0]


def test_next_observations_of_a_reset_are_found():
    arrays = walks([40, 30, 50, 45], terminated=[False] * 4)
    ends = np.cumsum([40, 30, 50]) - 1
    assert found(arrays) == ()
    arrays["next_observations"][ends] = arrays["observations"][ends + 1]
    assert "at 3 time limits are the first observation of the next episode" in found(arrays)[0]


def test_a_recording_that_is_cut_into_pieces_is_no_reset():
    path = np.cumsum(0.02 * np.random.default_rng(3).normal(size=(201, 4)), 0)
    arrays = {
        "observations": path[:-1],
        "next_observations": path[1:],
        "actions": np.random.default_rng(4).uniform(-0.9, 0.9, (200, 2)),
        "timeouts": np.arange(200) % 50 == 49,
    }
    assert found(arrays) == ()


def test_a_glitch_among_rewards_is_found():
    arrays = smooth_log()
    arrays["rewards"][17] = 1e6
    assert "1 reward over 50 times the spread" in found(arrays)[0]
    assert "row 17: 1e+06" in found(arrays)[0]


@pytest.mark.parametrize("bonus", [[39, 89, 149], [5, 47, 100, 160]])
def test_a_bonus_is_no_glitch(bonus):
    arrays = smooth_log()
    arrays["rewards"] = 0.01 * arrays["rewards"]
    arrays["rewards"][bonus] = 100  # at the ends, or as an event that comes again
    assert found(arrays) == ()


def test_sparse_rewards_are_no_glitch():
    rewards = np.zeros(300, np.float32)
    rewards[[3, 200]] = 1
    assert found(smooth_log(rewards=rewards)) == ()


def test_values_that_float32_cannot_tell_apart_are_counted():
    arrays = walks([60, 40], terminated=[False, False])
    arrays["observations"][:, 1] += 5e6
    arrays["next_observations"][:, 1] += 5e6
    warnings = found(arrays)
    assert len(warnings) == 2  # of observations and of next_observations
    assert "observations lose precision in float32 in column 1: 100 distinct" in warnings[0]
    assert "subtract an offset in float64" in warnings[0]


def test_encoder_counts_are_counted_too():
    arrays = smooth_log()
    counts = 2**40 + np.arange(300)
    arrays["observations"] = np.stack([counts, np.arange(300)], 1)
    del arrays["next_observations"]
    assert "column 0: 300 distinct values become 1;" in found(arrays)[0]


def test_the_noise_of_arithmetic_is_no_meaning():
    arrays = smooth_log()
    draw = np.random.default_rng(5)
    still = np.array([1.0, 500.0]) * (1 + 1e-14 * draw.normal(size=(300, 2)))
    arrays["observations"] = np.hstack([arrays["observations"], still])
    del arrays["next_observations"]
    assert found(arrays) == ()


@pytest.mark.parametrize(("field", "value"), [("observations", 3e38), ("actions", 1e19)])
def test_what_overflows_when_it_is_squared_is_refused(field, value):
    arrays = smooth_log()
    arrays[field][5, 1] = value
    with pytest.raises(DatasetError, match=rf"{field} row 5, column 1 .* squares of values above"):
        assemble(arrays, source="log")


def test_an_action_range_of_all_numbers_is_none():
    arrays = smooth_log(
        action_low=np.array([-1, -1, -3.4e38]), action_high=np.array([1, 1, 3.4e38])
    )
    arrays["actions"][:, 2] = np.linspace(-4, 4, 300)
    log = assemble(arrays, source="log")
    assert log.action_range.high.tolist() == [1, 1, 4]


def test_rewards_below_float32_are_refused():
    rewards = np.full(300, 1e-42)
    with pytest.raises(
        DatasetError, match=r"rewards are at most 1e-42 in size, too small for float32"
    ):
        assemble(smooth_log(rewards=rewards), source="log")


def test_an_observation_that_holds_the_action_is_found():
    arrays = smooth_log()
    arrays["observations"][:, 3] = arrays["actions"][:, 1]
    del arrays["next_observations"]
    log = audit(assemble(arrays, source="log"))
    assert log.copied_actions == ((1, 3),)
    assert any("observation 3 = action 1" in warning for warning in log.warnings)


def test_warnings_of_a_reader_reach_the_audit_and_survive_a_conversion(tmp_path):
    from saqrl.commands.convert import main

    arrays = walks([60, 40], terminated=[False, False])
    arrays["observations"][:, 1] += 5e6
    np.savez(tmp_path / "log.npz", **arrays)
    log = load_dataset(str(tmp_path / "log.npz"))
    assert audit(log).warnings[0] == log.warnings[0]
    assert main([str(tmp_path / "log.npz"), str(tmp_path / "out"), "--format", "mapped"]) == 0
    again = load_dataset(f"mapped:{tmp_path / 'out'}")
    assert again.warnings == log.warnings
    json.dumps(audit(again).to_json())


def test_a_training_tells_them(tmp_path):
    import io

    from rich.console import Console

    from saqrl.training.presets import build_settings
    from saqrl.training.progress import Reporter
    from saqrl.training.train import read_data

    np.savez(tmp_path / "log.npz", **walks([50, 23, 50, 31, 50], terminated=[True] * 5))
    reporter = Reporter()
    reporter.console = Console(file=io.StringIO(), width=500)
    settings = build_settings("default", agent="bc")
    data = replace(settings.data, dataset=str(tmp_path / "log.npz"))
    read_data(replace(settings, data=data), reporter)
    assert "warning: 3 of 5 terminated episodes" in reporter.console.file.getvalue()


def test_rates_of_a_mixture_are_compared():
    from saqrl.datasets.mixture import mixed

    log = assemble(smooth_log(), source="log")
    slow, fast = (replace(log, control_rate=rate) for rate in (10.0, 30.0))
    assert mixed("a + b", [slow, slow], [1, 1]).warnings == ()
    assert "10 and 30 frames per second" in mixed("a + b", [slow, fast], [1, 1]).warnings[0]
