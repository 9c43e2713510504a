"""Files from anywhere: no memory beyond a budget, no device, no escape code, and the true cause."""

import io
import json
import os
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from saqrl.datasets import DatasetError, ReadOptions, load_dataset
from saqrl.datasets.budget import free_bytes
from saqrl.datasets.errors import printable
from tests.datasets.files import small_log, write_format

MEGABYTE = 10**6


@pytest.fixture
def written(tmp_path):
    """A whole file of a format."""

    def write(name):
        if name == "lerobot":
            pytest.importorskip("pyarrow")
        path = tmp_path / "log"
        write_format(name, small_log(tmp_path), path)
        return path

    return write


def refused(spec, message, *, most=40 * MEGABYTE, **options):
    """One line, before memory is taken."""
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match=message) as error:
            load_dataset(spec, options=ReadOptions(**options))
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
    text = str(error.value)
    assert text.isprintable()
    return text


def zeros_npz(path, rows):
    """A compressed archive that really holds its rows: they are all zero."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, width in (("observations", 8), ("actions", 1), ("timeouts", 1)):
            header = io.BytesIO()
            shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
            np.lib.format.write_array_header_1_0(header, shape)
            with archive.open(f"{name}.npy", "w") as member:
                member.write(header.getvalue())
                for _ in range(rows // 10_000):
                    member.write(bytes(4 * width * 10_000))


def test_numbers_that_no_file_of_this_size_means_are_refused(tmp_path):
    zeros_npz(tmp_path / "log.npz", 10_000_000)
    assert (tmp_path / "log.npz").stat().st_size < MEGABYTE
    text = refused(str(tmp_path / "log.npz"), r"up to observations claim 0\.298 GiB")
    assert "--dataset.max-gib 0.6" in text
    refused(str(tmp_path / "log.npz"), r"max-gib allows 0\.1", max_gib=0.1)


def test_a_person_may_allow_more(tmp_path):
    # As many equal values as no recording holds, yet few enough to read in a test.
    from saqrl.datasets import budget as module

    zeros_npz(tmp_path / "log.npz", 100_000)
    floor, module.FLOOR = module.FLOOR, 1000
    try:
        refused(str(tmp_path / "log.npz"), "damaged or malicious")
        log = load_dataset(str(tmp_path / "log.npz"), options=ReadOptions(max_gib=1))
    finally:
        module.FLOOR = floor
    assert len(log) == 99_999


def test_what_the_free_memory_does_not_hold_is_refused(tmp_path, monkeypatch):
    from saqrl.datasets import budget as module

    assert free_bytes() is None or free_bytes() > MEGABYTE
    zeros_npz(tmp_path / "log.npz", 20_000)
    monkeypatch.setattr(module, "free_bytes", lambda: MEGABYTE)
    refused(str(tmp_path / "log.npz"), r"reading them needs .* are free; read less")


def test_memory_that_runs_out_is_one_line(tmp_path, monkeypatch):
    from saqrl.datasets.formats import npz

    def run_out(*arguments, **keywords):
        raise MemoryError

    zeros_npz(tmp_path / "log.npz", 10_000)
    monkeypatch.setattr(npz.np.lib.format, "read_array", run_out)
    refused(str(tmp_path / "log.npz"), "does not fit into memory")


@pytest.mark.parametrize("name", ["minari", "robomimic"])
def test_episodes_that_are_one_array_under_many_names_are_refused(name, written):
    path = written(name)
    main = path / "data" / "main_data.hdf5" if path.is_dir() else path
    with h5py.File(main, "a") as file:
        group = file["data"] if name == "robomimic" else file
        prefix = "demo_" if name == "robomimic" else "episode_"
        for number in range(3, 400):
            group[f"{prefix}{number}"] = group[f"{prefix}0"]
    if name == "minari":
        record = json.loads((path / "data" / "metadata.json").read_text())
        record["total_episodes"] = 400
        (path / "data" / "metadata.json").write_text(json.dumps(record))
    refused(f"{name}:{path}", r"are the same stored array \(a hard link\)")


def test_a_chunk_larger_than_its_array_counts_whole(tmp_path):
    path = tmp_path / "log.h5"
    with h5py.File(path, "w") as file:
        file["actions"], file["timeouts"] = np.zeros((4, 1)), np.ones(4)
        file.create_dataset(
            "observations", (4, 2), "f4", maxshape=(None, 2), chunks=(100_000_000, 2)
        )
    refused(f"d4rl:{path}", "observations claim 0.745 GiB")


def test_equal_values_of_parquet_are_refused_before_they_are_read(written):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = written("lerobot")
    file = path / "data" / "chunk-000" / "file-000.parquet"
    table = parquet.ParquetFile(file).read()
    rows = 200_000
    columns = {
        name: pa.array([table.column(name)[0].as_py()]).take(pa.array(np.zeros(rows, np.int64)))
        for name in table.column_names
        if name not in ("observation.state", "index")
    }
    # Each index differs, so the rows are plausible; the state is one long list, stored once.
    state = pa.array([[0.0] * 250], pa.list_(pa.float32(), 250))
    columns["observation.state"] = state.take(pa.array(np.zeros(rows, np.int64)))
    columns["index"] = pa.array(np.arange(rows))
    parquet.write_table(pa.table(columns), file, compression="zstd")
    refused(f"lerobot:{path}", r"claim .* GiB|cannot hold")


def test_a_column_twice_is_named(written):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = written("lerobot")
    file = path / "data" / "chunk-000" / "file-000.parquet"
    table = parquet.ParquetFile(file).read()
    parquet.write_table(table.append_column("action", pa.array(np.zeros(len(table)))), file)
    refused(f"lerobot:{path}", "has the column action twice")


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("npz", ""),
        ("d4rl", ""),
        ("robomimic", ""),
        ("minari", "data/metadata.json"),
        ("lerobot", "meta/info.json"),
        ("lerobot", "data/chunk-000/file-000.parquet"),
        ("mapped", "meta.json"),
        ("mapped", "actions.npy"),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_never_opened(name, inside, kind, written):
    path = written(name)
    victim = path / inside if inside else path
    victim.unlink()
    if kind == "pipe":
        os.mkfifo(victim)
    else:
        victim.symlink_to("/dev/zero")
    with pytest.raises((DatasetError, FileNotFoundError)):
        load_dataset(f"{name}:{path}")
    with pytest.raises((DatasetError, FileNotFoundError)):
        load_dataset(str(path))


def test_endless_text_is_not_read(written):
    path = written("minari")
    with (path / "data" / "metadata.json").open("r+b") as stream:
        stream.truncate(1 << 36)
    refused(f"minari:{path}", "too many for the description of a data set")


def test_escape_codes_do_not_reach_the_terminal(tmp_path):
    evil = "obs\x1b]0;owned\x07\x1b[2J\u202e\n"
    np.savez(tmp_path / "log.npz", **{evil: np.zeros(3), "action": np.zeros((3, 1))})
    text = refused(f"npz:{tmp_path / 'log.npz'}", "missing observations")
    assert r"\x1b]0;owned\x07\x1b[2J\u202e" in text
    assert printable("é ü 動作 ok") == "é ü 動作 ok"


def test_escape_codes_in_notes_do_not_either(written):
    path = written("minari")
    metadata = path / "data" / "metadata.json"
    record = json.loads(metadata.read_text())
    del record["saqrl"]
    record["env_spec"] = json.dumps({"id": "Own-v0", "kwargs": {"a\x1b[31m": 1}})
    metadata.write_text(json.dumps(record))
    notes = load_dataset(f"minari:{path}").notes
    assert all(note.isprintable() for note in notes)
    assert any(r"a\x1b[31m" in note for note in notes)


def test_numpy_s_advice_to_trust_a_file_is_not_passed_on(tmp_path):
    header = b"\x93NUMPY\x01\x00" + (30_000).to_bytes(2, "little") + b" " * 30_000
    with zipfile.ZipFile(tmp_path / "log.npz", "w") as archive:
        for name in ("observations", "actions", "timeouts"):
            archive.writestr(f"{name}.npy", header)
    text = refused(str(tmp_path / "log.npz"), "header is not that of a numeric NumPy array")
    assert "allow_pickle" not in text


@pytest.mark.parametrize(("code", "name"), [(32001, "Blosc"), (32004, "LZ4"), (32015, "Zstandard")])
def test_a_missing_filter_is_named(tmp_path, code, name):
    if h5py.h5z.filter_avail(code):
        pytest.skip("this filter is installed")
    path = tmp_path / "log.hdf5"
    with h5py.File(path, "w") as file:
        file["actions"], file["timeouts"] = np.zeros((8, 1)), np.ones(8)
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((8, 2))
        made.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (5,))
        space, kind = h5py.h5s.create_simple((8, 2)), h5py.h5t.IEEE_F32LE
        data = h5py.h5d.create(file.id, b"observations", kind, space, made)
        data.write_direct_chunk((0, 0), bytes(40), 0)
    text = refused(str(path), rf"filter {code} \({name}\), which is not installed: pip install")
    assert "damaged" not in text


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"\x00\x05\x16\x07" + bytes(60), r"AppleDouble.*use the file without \._"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "run `git lfs pull`"),
        (b"<!DOCTYPE html><html>", "a web page: download the file itself"),
    ],
)
@pytest.mark.parametrize("name", ["log.npz", "log.hdf5"])
def test_what_lies_in_place_of_a_file_is_told(tmp_path, name, head, message):
    (tmp_path / name).write_bytes(head)
    assert "damaged" not in refused(str(tmp_path / name), message)


def test_the_companions_of_macos_are_no_data(written):
    path = written("lerobot")
    (path / "data" / "chunk-000" / "._file-000.parquet").write_bytes(b"\x00\x05\x16\x07" + bytes(9))
    assert len(load_dataset(f"lerobot:{path}")) == 16


@pytest.mark.parametrize(
    ("name", "inside"), [("minari", "data/metadata.json"), ("lerobot", "meta/info.json")]
)
def test_a_byte_order_mark_is_read_over(name, inside, written):
    path = written(name)
    text = (path / inside).read_bytes()
    (path / inside).write_bytes(b"\xef\xbb\xbf" + text)
    assert len(load_dataset(f"{name}:{path}")) == 16
    (path / inside).write_bytes(text.decode().encode("utf-16"))
    refused(f"{name}:{path}", "is not UTF-8 text; save it as UTF-8")


def test_a_deleted_episode_is_named(written, tmp_path):
    path = written("minari")
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1"]
    text = refused(f"minari:{path}", r"episode_1 is missing\); if you deleted episodes, correct")
    assert "damaged" not in text


def test_a_file_that_may_not_be_read_is_no_damage(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (tmp_path / "log.hdf5").write_bytes(b"x")
    (tmp_path / "log.hdf5").chmod(0)
    with pytest.raises(PermissionError):
        load_dataset(str(tmp_path / "log.hdf5"))


def test_what_a_link_names_is_read_where_it_is_a_file(written, tmp_path):
    # Caches of hubs hold data sets as links.
    path = written("lerobot")
    file = path / "data" / "chunk-000" / "file-000.parquet"
    shutil.move(file, tmp_path / "blob")
    file.symlink_to(tmp_path / "blob")
    assert len(load_dataset(f"lerobot:{path}")) == 16
    assert Path("/dev/zero").exists()
