"""Each finding is planted once and found; a clean log gives none."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from saqrl.datasets import load_dataset
from saqrl.datasets.assembly import assemble
from saqrl.datasets.audit.findings import audit
from saqrl.datasets.audit.text import bar_chart, number, render
from saqrl.datasets.scaling import ActionRange

REAL_FILES = [
    "d4rl/door-human.hdf5",
    "d4rl/door-expert.hdf5",
    "d4rl/pen-expert.hdf5",
    "d4rl/hammer-expert.hdf5",
    "d4rl/hopper-expert.hdf5",
    "d4rl/hopper-medium.hdf5",
    "d4rl/hopper-mixed.hdf5",
    "d4rl/halfcheetah-expert.hdf5",
    "d4rl/halfcheetah-medium.hdf5",
    "npz/pusht-human.npz",
]


def smooth_log(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Six episodes of different lengths that drift slowly from far-apart beginnings."""
    draw = np.random.default_rng(1)
    lengths = [40, 50, 60, 45, 55, 50]
    episodes = [
        draw.normal(size=5) * 2 + np.cumsum(draw.normal(size=(length, 5)) * 0.05, 0)
        for length in lengths
    ]
    observations = np.concatenate(episodes).astype(np.float32)
    terminals, timeouts = np.zeros((2, len(observations)), bool)
    ends = np.cumsum(lengths) - 1
    terminals[ends[::2]], timeouts[ends[1::2]] = True, True
    following = np.roll(observations, -1, 0)
    following[ends] = observations[ends]
    return {
        "observations": observations,
        "actions": draw.uniform(-0.9, 0.9, (len(observations), 3)).astype(np.float32),
        "rewards": draw.normal(size=len(observations)).astype(np.float32),
        "next_observations": following,
        "terminals": terminals,
        "timeouts": timeouts,
        **changes,
    }


def audited(arrays: dict[str, np.ndarray]):
    return audit(assemble(arrays, source="log"))


def test_a_clean_log_has_no_warning():
    found = audited(smooth_log())
    assert found.warnings == ()
    assert (found.episodes, found.steps) == (6, 300)
    assert (found.length_min, found.length_median, found.length_max) == (40, 50, 60)
    assert (found.terminated_episodes, found.truncated_episodes) == (3, 3)
    assert found.clipped_share == 0


def test_statistics_are_those_of_the_data():
    log = smooth_log()
    found = audited(log)
    returns = np.add.reduceat(log["rewards"].astype(float), [0, 40, 90, 150, 195, 250])
    assert found.return_mean == pytest.approx(returns.mean(), rel=1e-12)
    column = found.observations[2]
    values = log["observations"][:, 2].astype(float)
    assert (column.minimum, column.maximum) == (values.min(), values.max())
    assert column.deviation == pytest.approx(values.std(), rel=1e-12)
    expected = np.histogram(values, len(column.histogram))[0]
    assert sum(column.histogram) == 300
    assert np.abs(np.array(column.histogram) - expected).sum() <= 2  # edges round either way


def test_clipped_actions_are_found_at_both_ends():
    log = smooth_log()
    log["actions"][:90, 1], log["actions"][90:120, 1] = 1, -1
    found = audited(log)
    assert found.actions[1].at_high == pytest.approx(0.3)
    assert found.actions[1].at_low == pytest.approx(0.1)
    assert found.clipped_share == pytest.approx(0.4 / 3)
    assert "dimensions 1 are" in found.warnings[0]


def test_a_range_that_is_a_point_is_constant_not_clipped():
    log = smooth_log()
    log["actions"][:, 0] = 0.5
    transitions = assemble(log, source="log")
    low, high = np.float32([0.5, -1, -1]), np.float32([0.5, 1, 1])
    found = audit(replace(transitions, action_range=ActionRange(low, high)))
    assert found.constant_actions == (0,)
    assert found.clipped_share == 0


def test_a_missing_episode_end_is_found_by_the_jump():
    log = smooth_log()
    log["timeouts"][89] = False
    found = audited({key: array for key, array in log.items() if key != "next_observations"})
    assert found.jumps == (89,)
    assert "jumps as at a reset after 1 row inside an episode (89)" in found.warnings[0]


def test_a_successor_that_leads_elsewhere_is_found():
    log = smooth_log()
    log["next_observations"][10] += 3
    found = audited(log)
    assert found.mismatched_successors == 1
    assert "not the observation of the next row" in found.warnings[0]


def test_repeated_episodes_are_found():
    transitions = assemble(smooth_log(), source="log")
    found = audit(transitions.select_episodes(np.array([0, 1, 0, 2, 1, 0])))
    assert found.duplicated_episodes == ((0, 2, 5), (1, 4))
    assert "3 episodes copied from others (episodes 0, 2, 5 are equal)" in found.warnings[0]


def test_recorded_positions_are_found():
    log = smooth_log()
    log["actions"][:, 2] = np.clip(log["next_observations"][:, 4] / 10, -1, 1)
    log["observations"] = log["observations"] / 10
    log["next_observations"] = log["next_observations"] / 10
    found = audited(log)
    assert found.position_actions == ((2, 4),)
    assert "2 = observation 4" in found.warnings[0]


@pytest.mark.parametrize("offset", [0, np.pi])
def test_a_wrapping_angle_is_suggested_until_it_is_named(offset):
    log = smooth_log()
    turning = np.arange(300) * 0.1 % (2 * np.pi) - offset
    log["observations"][:, 3] = turning
    del log["next_observations"]
    transitions = assemble(log, source="log")
    found = audit(transitions)
    assert found.likely_angles == (3,)
    assert "--angles 3" in found.warnings[0]
    assert audit(replace(transitions, angles=(3,))).warnings == ()


def test_degrees_are_found_among_the_named_angles():
    log = smooth_log()
    log["observations"][:, 1] = log["next_observations"][:, 1] = np.linspace(-170, 170, 300)
    del log["next_observations"]
    found = audit(replace(assemble(log, source="log"), angles=(1,)))
    assert any("if they are degrees" in warning for warning in found.warnings)


def test_a_time_limit_stored_as_termination_is_found():
    log = smooth_log()
    log["terminals"], log["timeouts"] = np.arange(1, 301) % 50 == 0, np.zeros(300, bool)
    del log["next_observations"]
    assert any("looks like a time limit" in warning for warning in audited(log).warnings)


def test_rewards_that_never_change_are_found():
    assert "Every reward is 0" in audited(smooth_log(rewards=np.zeros(300))).warnings[0]


def test_sparse_rewards_are_counted():
    rewards = np.zeros(300)
    rewards[::30] = 1
    found = audited(smooth_log(rewards=rewards))
    assert found.commonest_reward == 0
    assert found.commonest_reward_share == pytest.approx(0.9667, abs=1e-3)


def test_a_log_without_rewards_has_no_returns():
    log = smooth_log()
    del log["rewards"]
    found = audited(log)
    assert found.return_mean is None
    assert found.commonest_reward is None
    assert "none" in shown(found, width=80)


def test_a_glitch_of_a_sensor_is_found():
    log = smooth_log()
    log["observations"] = np.tile(log["observations"], (20, 1))
    log["observations"][7, 0] = 1e6
    for key in ("actions", "rewards", "terminals", "timeouts"):
        log[key] = np.concatenate([log[key]] * 20)
    del log["next_observations"]
    assert any("columns 0 have values over 50" in warning for warning in audited(log).warnings)


def test_a_single_step_can_be_audited_and_shown():
    log = {key: array[:1] for key, array in smooth_log().items()}
    found = audited(log)
    assert (found.episodes, found.steps) == (1, 1)
    assert "1 each" in shown(found, width=80)


def shown(found, *, width: int, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=stream, width=width, legacy_windows=False).print(render(found))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [30, 80, 120, 200])
def test_the_text_fits_the_terminal(width):
    log = smooth_log()
    log["actions"][:200, 1], log["observations"][:, 0] = 1, 5
    lines = shown(audited(log), width=width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert any("constant" in line for line in lines) or width < 39


def test_a_terminal_without_unicode_gets_plain_bars():
    text = shown(audited(smooth_log()), width=80, encoding="ascii")
    assert "actions" in text


def test_bars_reach_full_height_at_the_most_frequent_bin():
    assert bar_chart([0, 1, 8]) == " ▂█"


def test_a_gripper_of_two_values_is_no_range_fault():
    log = smooth_log()
    log["actions"][:, 2] = np.where(np.arange(300) % 40 < 20, -1, 1)
    log["actions"][::150, 2] = 0.3  # on its way
    found = audited(log)
    assert [column.two_valued for column in found.actions] == [False, False, True]
    assert found.clipped_share == 0
    assert found.warnings == ()
    assert "2 values" in shown(found, width=80)
    log["actions"][:, 2] = np.clip(np.linspace(-2, 2, 300), -1, 1)  # clipped for half of the time
    found = audited(log)
    assert not found.actions[2].two_valued
    assert "dimensions 2 are" in found.warnings[0]


@pytest.mark.parametrize(
    ("rewards", "solved"),
    [
        ("sparse", 4),
        ("paid each step", None),
        ("dense", None),
    ],
)
def test_success_is_counted_where_rewards_pay_for_nothing_else(rewards, solved):
    log = smooth_log()
    ends = np.flatnonzero(log["terminals"] | log["timeouts"])
    if rewards != "dense":
        log["rewards"] = np.zeros(300, np.float32)
        log["rewards"][ends[:4]] = 1
    if rewards == "paid each step":
        log["rewards"] = 1 - log["rewards"]
    found = audited(log)
    assert found.successful_episodes == solved
    assert ("success   4 of 6 (67%)" in shown(found, width=80)) == (solved == 4)


def test_no_episode_is_called_truncated_and_times_are_told_where_the_rate_is_known():
    log = replace(assemble(smooth_log(), source="log"), control_rate=10.0)
    text = shown(audit(log), width=100)
    assert "truncated" not in text
    assert "6: 3 terminate, 3 stop at a time limit or the end of the recording" in text
    assert "300 at 10 Hz, 30 s" in text
    assert "median 50 (5 s)" in text


def test_what_the_file_calls_things_is_shown_as_it_is_written():
    names = ["[red]hip", "knee[/]", "a_very_long_name_of_an_ankle_2"]
    log = assemble(
        smooth_log(),
        source="log",
        provenance={"path": "[bold]log"},
        notes=["A note of [link=x]this[/link]."],
    )
    log = log.named(actions=names, cameras=["top"], tasks=["pick \x1b[31m [blue]cup"])
    log.actions[:200, 1] = 1
    found = audit(log)
    text = shown(found, width=100)
    for words in ("[bold]log", "[red]hip", "knee[/]", "a_very_l..n_ankle_2", "[link=x]this[/link]"):
        assert words in text
    assert "pick \\x1b[31m [blue]cup" in text
    assert "top (images are not used)" in text
    assert "dimensions 1 (knee[/])" in found.warnings[0]
    # As many as there are columns, or none.
    assert log.named(actions=["x"]).action_names == log.action_names
    assert assemble(smooth_log(), source="log").named(actions=["x"]).action_names == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-1, "-1.00"),
        (12.34, "12.3"),
        (-12345.6, "-12346"),
        (2.5e-7, "2e-7"),
        (3e8, "3e8"),
    ],
)
def test_numbers_take_at_most_six_characters(value, text):
    assert number(value) == text
    assert len(text) <= 6


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_files_read_and_audit(shared_file, name):
    found = audit(load_dataset(str(shared_file(name))))
    json.dumps(found.to_json(), allow_nan=False)
    assert found.episodes >= 25
    assert found.jumps == ()
    assert found.mismatched_successors == 0
    assert found.duplicated_episodes == ()
    shown(found, width=80)


def test_the_angle_of_push_t_is_found(shared_file):
    assert audit(load_dataset(str(shared_file("npz/pusht-human.npz")))).likely_angles == (4,)


def test_a_removed_end_in_real_demonstrations_is_found(shared_file):
    transitions = load_dataset(str(shared_file("d4rl/door-human.hdf5")))
    starts = np.delete(transitions.episode_starts, 7)
    found = audit(replace(transitions, episode_starts=starts))
    assert found.jumps == (transitions.episode_starts[7] - 1,)


def test_the_coverage_hint_counts_correlated_actions_once():
    from dataclasses import replace

    draw = np.random.default_rng(0)
    arrays = {
        "observations": draw.normal(size=(4000, 2)).astype(np.float32),
        "actions": draw.uniform(-1, 1, (4000, 1)).astype(np.float32),
        "terminals": np.arange(4000) % 500 == 499,
    }
    log = assemble(arrays, source="log")
    found = audit(log)
    # White noise forgets at once, and is no choice: 4000 decisions, whose root is 63.
    assert (found.action_correlation, found.independent_actions) == (1, 4000)
    assert (found.chunk, found.supported_codes) == (1, 64)
    held = np.repeat(log.actions[::16], 16, axis=0)
    slow = audit(replace(log, actions=held))
    assert slow.action_correlation in (12, 16)
    # Held actions are choices that are kept: 500 decisions of 8 steps.
    assert (slow.chunk, slow.supported_codes) == (8, 16)


def test_positions_that_the_robot_follows_are_told_from_recorded_ones():
    draw = np.random.default_rng(1)
    walk = np.cumsum(draw.normal(size=(500, 2)), 0).astype(np.float32)
    arrays = {"observations": walk, "terminals": np.arange(500) == 499}
    following = np.roll(walk, -1, 0)
    target = following + 0.1 * walk.std(0) * draw.normal(size=walk.shape).astype(np.float32)
    found = audit(assemble({**arrays, "actions": target.astype(np.float32)}, source="log"))
    assert found.followed_actions == ((0, 0), (1, 1))
    assert found.position_actions == ()
    assert any("follows the action closely" in warning for warning in found.warnings)


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from saqrl.commands.inspect import main

    draw = np.random.default_rng(2)
    np.savez(
        tmp_path / "log.npz",
        observations=draw.normal(size=(60, 2)),
        actions=draw.uniform(-1, 1, (60, 9)),
        timeouts=np.arange(60) % 20 == 19,
    )
    picture = tmp_path / "log.png"
    assert main([str(tmp_path / "log.npz"), "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"the file name must end in .png"):
        main([str(tmp_path / "log.npz"), "--picture", str(tmp_path / "log.jpeg")])
