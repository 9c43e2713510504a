"""Mapped columns: the numbers that are in memory elsewhere, and one line for what is broken."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saqrl.commands.convert import main
from saqrl.datasets import DatasetError, load_dataset
from saqrl.datasets.audit.findings import audit
from saqrl.datasets.formats.mapped import COLUMNS, Successors, write_each
from saqrl.datasets.formats.writers import convert, first_difference
from saqrl.datasets.scaling import ActionRange, ObservationScaling
from saqrl.datasets.statistics import blocks
from tests.datasets.files import small_log


@pytest.fixture
def small(tmp_path):
    return small_log(tmp_path)


@pytest.fixture
def folder(small, tmp_path):
    convert(small, tmp_path / "mapped", "mapped")
    return tmp_path / "mapped"


def test_mapped_columns_are_those_of_the_npz_bit_for_bit(small, folder):
    mapped = load_dataset(str(folder))
    assert first_difference(small, mapped) is None
    assert isinstance(mapped.observations, np.memmap)
    assert not mapped.observations.flags.writeable
    episodes = np.array([2, 0])
    assert first_difference(small.select_episodes(episodes), mapped.select_episodes(episodes)) is (
        None
    )
    assert replace(audit(mapped), source="", format="", notes=(), action_range_origin="") == (
        replace(audit(small), source="", format="", notes=(), action_range_origin="")
    )


def test_what_is_mapped_converts_to_other_formats(small, folder, tmp_path):
    mapped = load_dataset(str(folder))
    for name in ("npz", "robomimic", "minari"):
        convert(mapped, tmp_path / name, name)
        assert first_difference(small, load_dataset(f"{name}:{tmp_path / name}")) is None


def test_next_observations_are_stored_once_and_wherever_they_differ(small, tmp_path):
    following = small.next_observations.copy()
    following[3] += 1
    convert(replace(small, next_observations=following), tmp_path / "out", "mapped")
    listed = np.load(tmp_path / "out" / "successor_rows.npy")
    np.testing.assert_array_equal(listed, [3, *(small.episode_ends - 1)])
    again = load_dataset(str(tmp_path / "out"))
    np.testing.assert_array_equal(again.next_observations, following)


@pytest.mark.parametrize(
    "chosen",
    [
        *(slice(None), slice(2, 9), slice(1, None, 4), slice(None, None, -3), slice(5, 5)),
        *(7, -1, np.array([3, 15, 3]), np.array([-2, 0]), np.arange(16) % 3 == 0),
        *((slice(1, 8), slice(0, 2)), (np.array([5, 6]), 1), (4, 2)),
    ],
    ids=str,
)
def test_next_observations_are_indexed_as_an_array_is(chosen, small, folder):
    successors = load_dataset(str(folder)).next_observations
    assert isinstance(successors, Successors)
    table = small.next_observations
    np.testing.assert_array_equal(successors[chosen], table[chosen])
    assert successors[chosen].shape == table[chosen].shape
    assert (successors.shape, successors.dtype, len(successors)) == (
        (table.shape, table.dtype, len(table))
    )


def test_next_observations_end_where_an_array_does(small, folder):
    successors, table = load_dataset(str(folder)).next_observations, small.next_observations
    for beyond in (len(table), -len(table) - 1, np.array([0, len(table)])):
        with pytest.raises(IndexError, match=f"of {len(table)} next observations"):
            successors[beyond]
    np.testing.assert_array_equal(list(successors), table)


def test_logs_are_stored_one_after_another_as_a_mixture_has_them(small, tmp_path):
    other = small.select_episodes(np.array([2, 1]))
    other = replace(other, action_range=ActionRange(small.action_range.low * 2, np.full(2, 1.5)))
    other = replace(other, actions=np.clip(other.actions, None, 1.5).astype(np.float32))
    for name, log in (("a", small), ("b", other)):
        convert(log, tmp_path / f"{name}.npz", "npz")
    spec = f"{tmp_path / 'a.npz'} + {tmp_path / 'b.npz'}"
    assert main([spec, str(tmp_path / "both"), "--format", "mapped"]) == 0
    assert first_difference(load_dataset(spec), load_dataset(str(tmp_path / "both"))) is None


def test_logs_that_do_not_fit_together_are_refused(small, tmp_path):
    def refused(text, *logs):
        with pytest.raises(DatasetError, match=text):
            write_each(tmp_path / f"out{len(list(tmp_path.iterdir()))}", logs)

    refused("no log to write")
    refused("parts 1 and 2 must both", small, replace(small, has_rewards=False))
    refused("different observation keys", small, replace(small, observation_keys=(("a", 5),)))
    refused("5 columns in part 1 and 2", small, replace(small, observations=small.actions))


def test_a_block_of_a_mapped_table_leaves_memory_unchanged_in_value(folder):
    table = load_dataset(str(folder)).observations
    joined = np.concatenate([block.copy() for block in blocks(table, rows=5)])
    np.testing.assert_array_equal(joined, table)


def test_scaling_in_blocks_is_scaling_at_once():
    draw = np.random.default_rng(0)
    table = (draw.normal(size=(150_000, 3)) * [1, 1e-3, 50] + [1, 0, 1e3]).astype(np.float32)
    table[:, 1] = 0.25
    fitted = ObservationScaling.fit(table, angles=(2,), deviation=0.3)
    expanded = np.stack([table[:, 0], table[:, 1], np.cos(table[:, 2]), np.sin(table[:, 2])], 1)
    spread = expanded.std(0, dtype=np.float64)
    np.testing.assert_allclose(fitted.mean, expanded.mean(0, dtype=np.float64), rtol=1e-6)
    expected = np.where(spread > 1e-6, 0.3 / np.maximum(spread, 1e-9), 0)
    np.testing.assert_allclose(fitted.inverse_scale, expected, rtol=1e-6)


def rewritten(change):
    def damage(file):
        np.save(file, change(np.load(file)))

    return damage


def with_header(shape):
    """The header says another shape than the bytes behind it have."""

    def damage(file):
        body = np.load(file)
        with file.open("wb") as stream:
            described = {"descr": body.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, described)
            stream.write(body.tobytes())

    return damage


def put(value, *place):
    def change(array):
        array[place] = value
        return array

    return rewritten(change)


def recorded(**changes):
    def damage(file):
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | changes))

    return damage


def in_extras(**changes):
    def damage(file):
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | {"saqrl": record["saqrl"] | changes}))

    return damage


def text(content):
    return lambda file: file.write_bytes(content)


DAMAGES = [
    *((f"{name}.npy", lambda file: file.unlink(), f"{name}.npy is missing") for name in COLUMNS),
    *((f"{name}.npy", lambda f: f.write_bytes(f.read_bytes()[:-3]), "mapped|holds")
      for name in COLUMNS),
    ("observations.npy", lambda f: f.write_bytes(f.read_bytes()[:20]), "cannot be mapped"),
    ("observations.npy", lambda f: f.write_bytes(f.read_bytes() + b"more"), "its header says"),
    ("observations.npy", text(b""), "cannot be mapped"),
    ("observations.npy", text(b"\x93NUMPY\x01\x00\xff\xffnonsense"), "cannot be mapped"),
    ("observations.npy", text(b"PK\x03\x04 no archive"), "cannot be mapped"),
    ("observations.npy", with_header((10**12, 5)), "cannot be mapped"),
    ("observations.npy", with_header((-16, 5)), "cannot be mapped|header says|dimensions"),
    ("observations.npy", with_header((80,)), "dimensions"),
    ("observations.npy", with_header((40, 2)), "columns|rows"),
    ("observations.npy", with_header((0, 5)), "its header says|cannot be mapped"),
    ("observations.npy", rewritten(lambda a: a.astype(np.float64)), "holds float64, not float32"),
    ("observations.npy", rewritten(lambda a: a.astype(">f4")), "not float32"),
    ("observations.npy", rewritten(lambda a: a[:-1]), "observations.npy has 15"),
    ("observations.npy", rewritten(np.asfortranarray), "C order"),
    ("observations.npy", rewritten(lambda a: a[:, :0]), "columns|mapped"),
    ("observations.npy", put(np.nan, 8, 3), "observations.npy row 8, column 3 is nan"),
    ("actions.npy", put(np.inf, 15, 0), "actions.npy row 15, column 0 is inf"),
    ("actions.npy", put(7.5, 2, 1), "actions.npy row 2, column 1 is 7.5, outside"),
    ("rewards.npy", put(-np.inf, 4), "rewards.npy row 4 is -inf"),
    ("rewards.npy", lambda f: np.save(f, np.array([None] * 16), allow_pickle=True), "mapped"),
    ("successors.npy", put(np.nan, 0, 0), "successors.npy row 0, column 0 is nan"),
    ("terminated.npy", rewritten(lambda a: a.view(np.uint8)), "holds uint8, not bool"),
    ("terminated.npy", put(True, slice(None)), None),
    ("terminated.npy", lambda f: f.write_bytes(f.read_bytes()[:-1] + b"\x07"), "not 0 or 1"),
    ("episode_starts.npy", put(-4, 0), "does not begin with row 0"),
    ("episode_starts.npy", put(-4, 1), "ascending rows"),
    ("episode_starts.npy", put(2**62, 2), "ascending rows"),
    ("episode_starts.npy", put(5, 2), "ascending rows"),
    ("episode_starts.npy", put(3, 1), "no next observation of row 2"),
    ("episode_starts.npy", rewritten(lambda a: a[:0]), "mapped|begin"),
    ("successor_rows.npy", put(-1, 0), "ascending rows"),
    ("successor_rows.npy", put(4, 0), "no next observation of row 5"),
    ("successor_rows.npy", rewritten(lambda a: a[:2]), "has 3 rows and"),
    ("meta.json", text(b"{"), "not JSON"),
    ("meta.json", text(b"[]"), "not a JSON object"),
    ("meta.json", text(b"\xff\xfe\x00"), "not UTF-8 text"),
    ("meta.json", text(b"{" * 3000), "not JSON"),
    ("meta.json", lambda file: file.unlink(), "not a folder written by saqrl convert"),
    ("meta.json", recorded(format="other"), "does not say format"),
    ("meta.json", recorded(version=2), "format has version 2"),
    ("meta.json", recorded(saqrl=None), "no object saqrl"),
    ("meta.json", in_extras(action_low=[0]), "action_low"),
    ("meta.json", in_extras(action_high=[1, float("nan")]), "action_high"),
    ("meta.json", in_extras(action_high="high"), "action_high"),
    ("meta.json", in_extras(environment=3), "environment"),
    ("meta.json", in_extras(observation_keys=[["a", 3]]), "observation_keys"),
    ("meta.json", in_extras(successes=[1, 0]), "successes"),
    ("meta.json", in_extras(successes=[True]), None),  # of other episodes: not used
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "damage", "told"), DAMAGES, ids=[f"{i}-{d[0]}" for i, d in enumerate(DAMAGES)]
)
def test_a_damaged_folder_is_told_in_one_line(name, damage, told, folder):
    damage(folder / name)
    if told is None:  # odd, and no damage
        load_dataset(f"mapped:{folder}")
        return
    with pytest.raises((DatasetError, FileNotFoundError), match=told) as caught:
        load_dataset(f"mapped:{folder}")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@given(
    name=st.sampled_from([*(f"{name}.npy" for name in COLUMNS), "meta.json"]),
    way=st.sampled_from(["flip", "truncate", "zeros", "insert"]),
    place=st.floats(0, 1, exclude_max=True),
    count=st.integers(1, 64),
)
@settings(max_examples=200)
def test_whatever_bytes_are_damaged_it_is_read_or_told_in_one_line(name, way, place, count):
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "mapped"
        shutil.copytree(_sound(), folder)
        content = bytearray((folder / name).read_bytes())
        at = int(place * len(content))
        if way == "truncate":
            del content[at:]
        elif way == "insert":
            content[at:at] = bytes(range(count))
        else:
            stretch = content[at : at + count]
            content[at : at + count] = bytes(b ^ 0x5A if way == "flip" else 0 for b in stretch)
        (folder / name).write_bytes(content)
        told = ""
        try:
            log = load_dataset(f"mapped:{folder}")
        except DatasetError as error:
            told = str(error)
        assert "\n" not in told
        if not told:
            assert np.isfinite(log.next_observations[:]).all()
            assert np.isfinite(log.actions).all()


_SOUND: list[Path] = []


def _sound() -> Path:
    """A folder that is whole, written once."""
    if not _SOUND:
        made = Path(tempfile.mkdtemp())
        convert(small_log(made), made / "mapped", "mapped")
        _SOUND.append(made / "mapped")
    return _SOUND[0]
