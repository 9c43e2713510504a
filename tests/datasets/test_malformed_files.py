"""Damaged files of every format: one line each, never a traceback, a hang or a pickle.

Every file is read in a process of its own making, because a library in C can hang or crash.
"""

import io
import json
import multiprocessing
import pickle
import shutil
import tempfile
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.datasets.files import FORMATS, small_log, write_format

CASES_PER_FORMAT = 170
SECONDS = 60

# What a field is replaced by: wrong types, ranks, lengths and values.
REPLACEMENTS = {
    "empty": lambda a: a[:0],
    "shorter": lambda a: a[: len(a) // 2],
    "longer": lambda a: np.concatenate([a, a]),
    "scalar": lambda a: np.float32(1),
    "images": lambda a: np.zeros((len(a), 4, 4, 3), np.uint8),
    "nan": lambda a: np.where(np.arange(a.size).reshape(a.shape) == a.size // 2, np.nan, a),
    "infinite": lambda a: np.full(a.shape, np.inf),
    "huge": lambda a: np.full(a.shape, 1e300),
    "negative": lambda a: -np.ones(a.shape),
    "text": lambda a: np.full(a.shape, b"text", dtype="S4"),
    "complex": lambda a: a.astype(np.complex64),
    "columns": lambda a: np.zeros((len(a), 0), np.float32),
    "wider": lambda a: np.ones((len(a), 7), np.float32),
    "integers": lambda a: np.full(a.shape, 2**62, np.int64),
    "missing": lambda a: None,
}
DOCUMENTS = ["", "{", "[]", "null", '{"features": 3}', "{" * 3000, '"' + "x" * 50, "\x00\xff"]

byte_damage = st.tuples(
    st.just("bytes"),
    st.integers(0, 10**6),
    st.sampled_from(["flip", "truncate", "zeros", "ones", "insert"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 64),
)
field_damage = st.tuples(
    st.just("field"), st.integers(0, 10**6), st.sampled_from(sorted(REPLACEMENTS))
)
text_damage = st.tuples(
    st.just("text"), st.integers(0, 10**6), st.sampled_from(DOCUMENTS), st.integers(0, 10**6)
)
damage = st.one_of(byte_damage, field_damage, field_damage, text_damage)


def files_of(path: Path) -> list[Path]:
    found = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    return [file for file in found if file.suffix != ".md"]


def spoil(path: Path, kind: str, choice: int, *how) -> None:
    files = files_of(path)
    texts = [file for file in files if file.suffix in (".json", ".jsonl")]
    if kind == "text" and texts:
        spoil_text(texts[choice % len(texts)], *how)
    elif kind == "field":
        tables = [f for f in files if f not in texts]
        spoil_field(tables[choice % len(tables)], choice, *how)
    else:
        spoil_bytes(files[choice % len(files)], *(how if kind == "bytes" else ("flip", 0.5, 8)))


def spoil_bytes(file: Path, way: str, place: float, count: int) -> None:
    content = bytearray(file.read_bytes())
    at = int(place * len(content))
    if way == "flip":
        content[at : at + count] = bytes(255 - byte for byte in content[at : at + count])
    elif way == "truncate":
        del content[at:]
    elif way == "insert":
        content[at:at] = b"\xa5" * count
    else:
        content[at : at + count] = (b"\0" if way == "zeros" else b"\xff") * count
    file.write_bytes(content)


def spoil_text(file: Path, document: str, choice: int) -> None:
    """Another document, or one value of the object replaced."""
    try:
        value = json.loads(file.read_text())
    except ValueError:
        value = None
    if not isinstance(value, dict) or choice % 3 == 0:
        file.write_text(document, errors="replace")
        return
    key = sorted(value)[choice % len(value)]
    others = [None, -1, "x", [], {}, 10**12, {"low": "a"}, "missing"]
    chosen = others[choice // 7 % len(others)]
    if chosen == "missing":
        del value[key]
    else:
        value[key] = chosen
    file.write_text(json.dumps(value))


def spoil_field(file: Path, choice: int, replacement: str) -> None:
    change = REPLACEMENTS[replacement]
    if h5py.is_hdf5(file):
        with h5py.File(file, "a") as opened:
            names: list[str] = []
            opened.visititems(
                lambda name, item: (
                    names.append(name) if isinstance(item, h5py.Dataset) and item.shape else None
                )
            )
            name = names[choice // 5 % len(names)]
            new = change(opened[name][()])
            del opened[name]
            if new is not None:
                opened[name] = new
    elif file.suffix == ".parquet":
        spoil_parquet(file, choice, change)
    else:
        with np.load(file) as archive:
            members = {name: archive[name] for name in archive.files}
        arrays = [name for name in members if members[name].ndim]
        name = arrays[choice // 5 % len(arrays)]
        new = change(members.pop(name))
        if new is not None:
            members[name] = new
        buffer = io.BytesIO()
        np.savez(buffer, **members)
        file.write_bytes(buffer.getvalue())


def spoil_parquet(file: Path, choice: int, change) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = parquet.ParquetFile(file).read()
    place = choice // 5 % table.num_columns
    name, column = table.column_names[place], table.column(place).to_pylist()
    try:
        new = change(np.asarray(column))
        table = table.drop_columns([name])
        if new is not None and new.ndim:
            rows = new.tolist()[: table.num_rows]
            rows += [None] * (table.num_rows - len(rows))
            table = table.append_column(name, pa.array(rows))
    except (ValueError, TypeError, pa.ArrowException):  # nonsense that Arrow itself refuses
        table = table.slice(1)
    parquet.write_table(table, file)


def serve(connection) -> None:
    """Read what is asked for; answer with the refusal, an empty text, or a traceback."""
    import traceback
    import warnings

    from saqrl.datasets import load_dataset
    from saqrl.datasets.audit.findings import audit

    warnings.simplefilter("error")
    while True:
        spec = connection.recv()
        try:
            audit(load_dataset(spec))
            connection.send("")
        except (ValueError, OSError, ImportError) as error:
            plain = type(error).__module__ in ("builtins", "saqrl.datasets.errors")
            if isinstance(error, FileNotFoundError) or type(error).__name__ == "DatasetError":
                connection.send(str(error))
            else:
                connection.send(f"TRACEBACK {plain} {traceback.format_exc()}")
        except BaseException:
            connection.send(f"TRACEBACK {traceback.format_exc()}")


class Reading:
    """A process that reads files and may die of it."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()

    def read(self, spec: str) -> str:
        self.connection.send(spec)
        try:
            if self.connection.poll(SECONDS):
                return self.connection.recv()
        except EOFError:
            self.stop()
            code = self.process.exitcode
            self._start()
            return f"TRACEBACK crashed with status {code}"
        self.stop()
        self._start()
        return f"TRACEBACK no answer in {SECONDS} seconds"


@pytest.fixture(scope="module")
def reading():
    process = Reading()
    yield process
    process.stop()


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_gives_one_line(name, reading, tmp_path):
    if name == "lerobot":
        pytest.importorskip("pyarrow")
    log = small_log(tmp_path)
    whole = tmp_path / f"whole-{name}"
    write_format(name, log, whole)
    assert reading.read(f"{name}:{whole}") == ""
    refused = 0

    @settings(
        max_examples=CASES_PER_FORMAT,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(st.lists(damage, min_size=1, max_size=2))
    def check(damages):
        nonlocal refused
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            path = Path(folder) / "log"
            (shutil.copytree if whole.is_dir() else shutil.copy)(whole, path)
            for number, one in enumerate(damages):
                if number and one[0] == "field":  # the libraries no longer open it to spoil more
                    continue
                spoil(path, *one)
            answer = reading.read(f"{name}:{path}")
        assert not answer.startswith("TRACEBACK"), answer
        assert "\n" not in answer
        refused += bool(answer)

    check()
    # Damage to what nobody reads is no error; most is.
    assert refused > CASES_PER_FORMAT / 3


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("pickle-was-executed"),))


@pytest.mark.parametrize("name", ["npz", "ogbench"])
def test_a_pickle_is_never_executed(name, tmp_path, monkeypatch):
    from saqrl.datasets import DatasetError, load_dataset

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "log.npz"
    write_format(name, small_log(tmp_path), path)
    with np.load(path) as archive:
        members = {key: archive[key] for key in archive.files}
    members["actions"] = np.array([Bomb()] * len(members["actions"]), object)
    np.savez(path, **members)
    with pytest.raises(DatasetError, match="pickled arrays are never opened"):
        load_dataset(f"{name}:{path}")
    assert not (tmp_path / "pickle-was-executed").exists()
    pickle.loads(pickle.dumps(Bomb()))  # the bomb itself works
    assert (tmp_path / "pickle-was-executed").exists()


# Rows that no memory holds, in files of a few kilobytes.
HUGE = 10**12


def swell_npz(path) -> None:
    """The header of actions announces more rows than follow."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (HUGE, 2)}
    np.lib.format.write_array_header_1_0(header, shape)
    members["actions.npy"] = header.getvalue() + b"\0" * 80
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def swell_hdf5(path, rows=HUGE) -> None:
    """Every array has more rows, of which one chunk at most is stored."""
    main = path / "data" / "main_data.hdf5" if path.is_dir() else path
    with h5py.File(main, "a") as file:
        names: list[str] = []
        file.visititems(
            lambda name, item: (
                names.append(name) if isinstance(item, h5py.Dataset) and item.shape else None
            )
        )
        for name in names:
            old = file[name][()]
            del file[name]
            chunks = (1024, *old.shape[1:])
            new = file.create_dataset(name, (rows, *old.shape[1:]), old.dtype, chunks=chunks)
            new[: len(old)] = old


def swell_parquet(path) -> None:
    """One value over and over, which parquet stores once."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    file = path / "data" / "chunk-000" / "file-000.parquet"
    row = parquet.ParquetFile(file).read().slice(0, 1)
    repeated = pa.concat_tables([row] * 100_000).combine_chunks()
    parquet.write_table(repeated, file, compression="zstd")


@pytest.mark.parametrize(
    ("name", "swell"),
    [
        ("npz", swell_npz),
        ("ogbench", swell_npz),
        ("d4rl", swell_hdf5),
        ("minari", swell_hdf5),
        ("robomimic", swell_hdf5),
        # A hundred such episodes would fill the memory too.
        ("minari", partial(swell_hdf5, rows=10**6)),
        ("robomimic", partial(swell_hdf5, rows=10**6)),
        ("lerobot", swell_parquet),
    ],
)
def test_more_rows_than_a_file_can_hold_are_refused_before_they_are_read(name, swell, tmp_path):
    from saqrl.datasets import DatasetError, load_dataset

    if name == "lerobot":
        pytest.importorskip("pyarrow")
    path = tmp_path / "log"
    write_format(name, small_log(tmp_path), path)
    swell(path)
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match=r"promises .*cannot hold"):
            load_dataset(f"{name}:{path}")
        assert tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()
