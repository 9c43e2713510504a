"""From the words on the command line to transitions."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from saqrl.datasets import FORMATS, DatasetError, load_dataset, reader_of


@pytest.fixture
def path(tmp_path, log):
    np.savez(tmp_path / "log.npz", **log, environment_id=np.array("Own-v0"))
    return tmp_path / "log.npz"


def test_the_room_never_imports_jax():
    code = "import sys, saqrl.datasets, saqrl.datasets.audit.findings, saqrl.datasets.audit.text;"
    modules = "; ".join(f"import saqrl.datasets.formats.{name}" for name in FORMATS)
    code += f"{modules}; sys.exit(bool({{'jax', 'h5py'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_says_what_it_reads(name):
    reader = reader_of(name)
    assert reader.SUMMARY
    assert all(suffix.startswith(".") for suffix in reader.SUFFIXES)


@pytest.mark.parametrize("prefix", ["npz:", ""])
def test_a_file_is_read_by_name_of_format_or_by_itself(path, prefix):
    assert len(load_dataset(f"{prefix}{path}")) == 12


def test_a_path_is_read_as_its_words_are(path):
    assert len(load_dataset(path)) == len(load_dataset(str(path)))


@pytest.mark.parametrize("name", ["log.data", "log", "log:2.npz"])
def test_content_decides_where_the_suffix_does_not(path, name, log):
    other = path.with_name(name)
    path.rename(other)
    assert len(load_dataset(str(other))) == 12
    with h5py.File(other, "w") as file:
        for key, value in log.items():
            file[key] = value
    if ".npz" not in name:
        assert load_dataset(str(other)).provenance["format"] == "d4rl"


def test_a_relative_name_with_a_colon_is_a_file_when_it_exists(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    path.rename("run:one.npz")
    assert len(load_dataset("run:one.npz")) == 12


def test_the_home_folder_is_found(path, monkeypatch):
    monkeypatch.setenv("HOME", str(path.parent))
    assert len(load_dataset("npz:~/log.npz")) == 12


@pytest.mark.parametrize("spec", ["ndz:log.npz", "d4rll:log.npz"])
def test_an_unknown_format_offers_the_nearest(spec):
    with pytest.raises(DatasetError, match=r"unknown dataset format .*did you mean (npz|d4rl)\?"):
        load_dataset(spec)


def test_a_content_that_no_format_knows_lists_the_formats(tmp_path):
    (tmp_path / "log.bin").write_text("1,2,3")
    with pytest.raises(DatasetError, match=r"format not recognised; pass FORMAT:.*d4rl: .*npz: "):
        load_dataset(str(tmp_path / "log.bin"))


@pytest.mark.parametrize("prefix", ["", "npz:"])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("log.csv", r"genfromtxt\('log.csv', delimiter=','"),
        ("log.npy", r"numpy.load\('log.npy'\)"),
        ("log.pkl", "never opens pickled files"),
    ],
)
def test_files_of_bare_numbers_are_refused_with_their_conversion(tmp_path, prefix, name, told):
    (tmp_path / name).write_text("1,2,3")
    with pytest.raises(DatasetError, match=rf"{told}.*savez_compressed.*timeouts"):
        load_dataset(f"{prefix}{tmp_path / name}")


@pytest.mark.parametrize("prefix", ["npz:", "d4rl:", ""])
def test_a_missing_file_is_named_with_its_neighbour(path, prefix):
    missing = path.with_name("lgo.npz")
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset(f"{prefix}{missing}")
    assert str(missing) in str(caught.value)
    assert "did you mean log.npz?" in str(caught.value)


@pytest.mark.parametrize("spec", ["", "npz:"])
def test_a_spec_without_path_is_refused(spec):
    with pytest.raises(DatasetError, match="PATH"):
        load_dataset(spec)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="this folder is not a data set"):
        load_dataset(str(tmp_path))


def test_angles_are_carried(path):
    assert load_dataset(str(path), angles=[2, 0]).angles == (2, 0)


@pytest.mark.parametrize("column", [3, -1])
def test_an_angle_column_that_does_not_exist_is_named(path, column):
    with pytest.raises(
        DatasetError, match=f"angle column {column} does not exist: .* have 3 columns, 0 to 2"
    ):
        load_dataset(str(path), angles=[column])


def test_an_angle_column_is_named_once(path):
    with pytest.raises(DatasetError, match="angle column 1 is given twice"):
        load_dataset(str(path), angles=[1, 1])


def test_the_first_episodes_are_kept(path, log):
    transitions = load_dataset(str(path), episodes=2)
    np.testing.assert_array_equal(transitions.actions, log["actions"][:7])
    assert transitions.provenance["episodes"] == 2


@pytest.mark.parametrize("episodes", [0, -1, 4])
def test_more_episodes_than_there_are_is_refused(path, episodes):
    with pytest.raises(DatasetError, match=f"{episodes} episodes requested .* 3 episodes"):
        load_dataset(str(path), episodes=episodes)


def test_the_environment_can_be_named(path):
    assert load_dataset(str(path)).environment.id == "Own-v0"
    assert load_dataset(str(path), environment="Other-v1").environment.id == "Other-v1"
