"""What is written in another format is read back bit for bit, and nothing is overwritten."""

import json

import numpy as np
import pytest

from saqrl.commands.convert import main
from saqrl.datasets import DatasetError, ReadOptions, load_dataset
from saqrl.datasets.formats.writers import convert, first_difference
from tests.datasets.files import small_log

TARGETS = ("npz", "d4rl", "minari", "robomimic", "lerobot", "mapped")


@pytest.fixture
def small(tmp_path):
    return small_log(tmp_path)


def needs_library(name: str) -> None:
    if name == "lerobot":
        pytest.importorskip("pyarrow")


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("rewards", ["file", "none"])
def test_what_was_written_is_read_bit_for_bit(name, rewards, small, tmp_path):
    needs_library(name)
    log = load_dataset(f"npz:{tmp_path / 'small.npz'}", options=ReadOptions(rewards=rewards))
    log = small if rewards == "file" else log
    convert(log, tmp_path / "out", name)
    again = load_dataset(f"{name}:{tmp_path / 'out'}")
    assert first_difference(log, again) is None
    assert first_difference(log, load_dataset(str(tmp_path / "out"))) is None
    assert again.has_rewards == (rewards == "file")


@pytest.mark.parametrize("name", TARGETS)
def test_names_tasks_successes_and_the_control_rate_survive_a_conversion(name, small, tmp_path):
    from dataclasses import replace

    needs_library(name)
    named = replace(small, control_rate=12.5, observation_keys=())
    named = named.named(actions=["x", "y"], observations=list("abcde"), tasks=["lift", "place"])
    named = named.named(successes=np.arange(named.num_episodes) % 2 == 1)
    convert(named, tmp_path / "out", name)
    again = load_dataset(f"{name}:{tmp_path / 'out'}")
    assert (again.action_names, again.observation_names) == (("x", "y"), tuple("abcde"))
    assert (again.tasks, again.control_rate) == (("lift", "place"), 12.5)
    np.testing.assert_array_equal(again.successes, named.successes)


@pytest.mark.parametrize(
    "field", ["observations", "actions", "rewards", "next_observations", "terminated"]
)
def test_a_difference_of_one_bit_is_found(field, small):
    from dataclasses import replace

    array = getattr(small, field).copy()
    array.view(np.uint8).ravel()[0] ^= 1
    assert first_difference(small, replace(small, **{field: array})) == field


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_overwritten_and_nothing_is_left_behind(name, small, tmp_path):
    needs_library(name)
    out = tmp_path / "here" / "out"
    out.parent.mkdir()
    out.write_text("precious")
    with pytest.raises(DatasetError, match="exists and is not overwritten"):
        convert(small, out, name)
    assert out.read_text() == "precious"
    assert [file.name for file in out.parent.iterdir()] == ["out"]


def test_a_conversion_that_fails_leaves_nothing(small, tmp_path):
    from dataclasses import replace

    following = small.next_observations.copy()
    following[0] += 1
    with pytest.raises(
        DatasetError, match=r"Minari stores .* in 1 row here the next observation is not"
    ):
        convert(replace(small, next_observations=following), tmp_path / "to" / "out", "minari")
    assert list((tmp_path / "to").iterdir()) == []


def test_the_command_reads_back_what_it_wrote(small, tmp_path, capsys):
    out = tmp_path / "out.npz"
    assert main([f"npz:{tmp_path / 'small.npz'}", str(out), "--json"]) == 0
    streams = capsys.readouterr()
    written = json.loads(streams.out)
    assert (written["episodes"], written["steps"], written["format"]) == (3, 16, "npz")
    assert "read back: the same" in streams.err


def test_a_name_that_tells_no_format_is_refused(small, tmp_path):
    with pytest.raises(DatasetError, match="pass --format npz"):
        main([f"npz:{tmp_path / 'small.npz'}", str(tmp_path / "out")])


def test_minari_itself_loads_what_was_written(small, tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    convert(small, tmp_path / "out", "minari")
    dataset = minari.MinariDataset(tmp_path / "out" / "data")
    episodes = list(dataset.iterate_episodes())
    assert [len(episode) for episode in episodes] == [6, 1, 9]
    np.testing.assert_array_equal(episodes[2].observations[:-1], small.observations[7:])
    assert dataset.total_steps == 16
