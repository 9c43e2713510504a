"""Damaged files of every format: one line each, never a traceback, a hang or a pickle.

Every file is read in a process of its own making, because a library in C can hang or crash.
"""

import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import tempfile
import time
import tracemalloc
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.datasets.files import FORMATS, small_log, write_format
from tests.datasets.test_aloha_files import write as write_aloha
from tests.datasets.test_maniskill_files import write as write_maniskill

READERS = (*FORMATS, "mapped", "maniskill", "aloha")
# Of each reader; the quick share of them is part of every run of the tests.
CASES, QUICK = 1000, 12
SEED = 15
SECONDS, MEMORY = 10, 2 << 30

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
VALUES = [
    None,
    -1,
    "x",
    [],
    {},
    10**12,
    1e308,
    True,
    {"low": "a"},
    "os:Env-v0",
    "\x1b[31m",
    [[]] * 9,
]
NAMES = ["observations", "actions", "terminals", "episode_ends", "episode_id", "saqrl", "a\x1b[2J"]
SHAPES = [
    (),
    (0,),
    (1,),
    (10**12,),
    (10**7, 50),
    (16, 10**6),
    (16, 0),
    (3, 4, 2),
    (2,) * 9,
    (16, 2),
]
TYPES = ["<f4", "<f8", "<i8", "|b1", "<U8", "|O", ">f4", "<c8", "|V3"]
DOCUMENTS = ["", "{", "[]", "null", '{"features": 3}', "{" * 3000, '"' + "x" * 50, "\x00\xff"]


@dataclass
class Mutator:
    """Draws what to spoil; each way knows the structure of what it spoils."""

    draw: random.Random
    raw: bool = False
    """Whether the libraries may no longer open what was spoiled before, to spoil more of it."""

    def spoil(self, path: Path) -> str:
        """Change one thing in the file or folder; says what."""
        files = files_of(path)
        if not files:
            return "nothing is left"
        texts = [file for file in files if file.suffix in (".json", ".jsonl")]
        tables = [file for file in files if file not in texts]
        ways = ["bytes", "field", "field", "names", "header", "replaced", "attribute"]
        ways = ["bytes", "replaced"] if self.raw else ways
        way = self.draw.choice(ways + (["text", "text"] if texts else []))
        self.raw = True
        victim = self.draw.choice(texts if way == "text" and texts else tables or files)
        if way == "bytes":
            victim = self.draw.choice(files)
        try:
            getattr(self, f"_{way}")(victim)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile):
            # The libraries refuse to write it, or no longer open what was spoiled before.
            self._bytes(victim)
        return f"{way} of {victim.name}"

    def _bytes(self, file: Path) -> None:
        way = self.draw.choice(["flip", "truncate", "zeros", "ones", "insert"])
        spoil_bytes(file, way, self.draw.random(), self.draw.randint(1, 64))

    def _field(self, file: Path) -> None:
        replacement = self.draw.choice(sorted(REPLACEMENTS))
        spoil_field(file, self.draw.randrange(10**6), replacement)

    def _text(self, file: Path) -> None:
        """Another document, or a value somewhere inside of the object replaced."""
        if self.draw.random() < 0.3:
            file.write_text(self.draw.choice(DOCUMENTS), errors="replace")
            return
        value = json.loads(file.read_text())
        inside = value
        while isinstance(inside, dict) and inside:
            key = self.draw.choice(sorted(inside))
            if not isinstance(inside[key], dict) or self.draw.random() < 0.3:
                inside[key] = self.draw.choice(VALUES)
                break
            inside = inside[key]
        file.write_text(json.dumps(value))

    def _names(self, file: Path) -> None:
        """A member under another name, twice, or as a link."""
        if file.suffix == ".parquet":
            import pyarrow.parquet as parquet

            table = parquet.ParquetFile(file).read()
            names = list(table.column_names)
            names[self.draw.randrange(len(names))] = self.draw.choice([names[0], *NAMES])
            parquet.write_table(table.rename_columns(names), file)
        elif h5py.is_hdf5(file):
            with h5py.File(file, "a") as opened:
                names = members_of(opened)
                name, other = self.draw.choice(names), self.draw.choice(names)
                item = opened[name]
                new = self.draw.choice([*NAMES, f"{name.rpartition('/')[0]}/more"])
                way = self.draw.choice(["rename", "again", "soft", "external", "ring", "swap"])
                if way != "again":
                    del opened[name]
                opened[name if way in ("soft", "external", "ring", "swap") else new] = {
                    "rename": item,
                    "again": item,
                    "soft": h5py.SoftLink(f"/{other}"),
                    "external": h5py.ExternalLink("/etc/passwd", "/x"),
                    "ring": opened["/"],
                    "swap": opened.get(other, item),
                }[way]
        else:
            members = archived(file)
            name = self.draw.choice(sorted(members))
            content = members[name]
            if self.draw.random() < 0.5:
                del members[name]
            members[f"{self.draw.choice(NAMES)}.npy"] = content
            write_archive(file, members)

    def _header(self, file: Path) -> None:
        """A shape or type that is not that of the numbers behind it."""
        shape = self.draw.choice(SHAPES)
        if file.suffix == ".npy":
            content = file.read_bytes()
            file.write_bytes(npy_header(shape, self.draw.choice(TYPES)) + content[128:])
        elif file.suffix == ".parquet":
            spoil_bytes(file, "flip", 0.8 + 0.2 * self.draw.random(), 2)
        elif h5py.is_hdf5(file):
            with h5py.File(file, "a") as opened:
                names = [n for n in members_of(opened) if isinstance(opened[n], h5py.Dataset)]
                name = self.draw.choice(names)
                del opened[name]
                chunks = tuple(max(1, min(size, 64)) for size in shape) or None
                kind = self.draw.choice(["<f4", "<i8", "S3", h5py.string_dtype(), "?"])
                packed = self.draw.choice([None, "gzip"]) if chunks else None
                opened.create_dataset(name, shape, kind, chunks=chunks, compression=packed)
        else:
            members = archived(file)
            name = self.draw.choice(sorted(members))
            members[name] = npy_header(shape, self.draw.choice(TYPES)) + members[name][128:]
            write_archive(file, members)

    def _attribute(self, file: Path) -> None:
        """What stands beside the numbers: environments, options, records."""
        if not h5py.is_hdf5(file):
            self._names(file)
            return
        with h5py.File(file, "a") as opened:
            owner = opened[self.draw.choice(["/", *members_of(opened)])]
            name = self.draw.choice([*owner.attrs, "success", "env_args"])
            owner.attrs[name] = self.draw.choice(
                ["{", 3.0, np.nan, b"\xff", json.dumps({"env_name": "os:x", "type": 2})]
            )

    def _replaced(self, file: Path) -> None:
        """Something else lies where the file was."""
        content = file.read_bytes()
        file.unlink()
        way = self.draw.choice(["pipe", "device", "folder", "nothing", "foreign"])
        if way == "pipe":
            os.mkfifo(file)
        elif way == "device":
            file.symlink_to(self.draw.choice(["/dev/zero", "/dev/null", "/dev/random"]))
        elif way == "folder":
            file.mkdir()
        elif way == "foreign":
            heads = [b"\x00\x05\x16\x07", b"\xef\xbb\xbf", b"<!DOCTYPE html>", b"\xff\xfe"]
            file.write_bytes(self.draw.choice(heads) + content)


def files_of(path: Path) -> list[Path]:
    """The regular files; what was replaced by a pipe or a device is never opened here either."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in found if file.is_file() and file.suffix != ".md"]


def members_of(opened: h5py.File) -> list[str]:
    names: list[str] = []
    opened.visit(names.append)
    return names


def archived(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_archive(file: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy_header(shape: tuple[int, ...], kind: str) -> bytes:
    header = io.BytesIO()
    described = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


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


def serve(connection, folder) -> None:
    """Read what is asked for; answer with the refusal, an empty text, or a traceback."""
    import traceback
    import warnings

    from saqrl.datasets import load_dataset
    from saqrl.datasets.audit.findings import audit

    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a reader writes nothing
    os.chdir(folder)
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

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.folder), daemon=True)
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
def reading(tmp_path_factory):
    process = Reading(tmp_path_factory.mktemp("victims"))
    (process.folder / "precious").write_text("as it was")
    yield process
    process.stop()


def attacked(name: str, cases: int, reading: Reading, folder: Path) -> tuple[int, float]:
    """Spoil so many copies of a whole file, one or two things each; how many were refused.

    Every answer is one printable line or none, within SECONDS, and nothing outside of the copy
    changes.
    """
    if name == "lerobot":
        pytest.importorskip("pyarrow")
    whole = folder / f"whole-{name}"
    if name == "maniskill":
        write_maniskill(whole, nested=True)
    elif name == "aloha":
        write_aloha(whole)
    else:
        write_format(name, small_log(folder), whole)
    assert reading.read(f"{name}:{whole}") == ""
    before = snapshot(folder, reading.folder)
    refused, slowest = 0, 0.0
    for case in range(cases):
        mutator = Mutator(random.Random(f"{SEED} {name} {case}"))
        with tempfile.TemporaryDirectory() as copies:
            path = Path(copies) / "log"
            (shutil.copytree if whole.is_dir() else shutil.copy)(whole, path)
            done = [mutator.spoil(path) for _ in range(mutator.draw.choice([1, 1, 2]))]
            started = time.perf_counter()
            answer = reading.read(f"{name}:{path}" if mutator.draw.random() < 0.8 else str(path))
            slowest = max(slowest, time.perf_counter() - started)
        told = f"{name}, case {case} ({'; '.join(done)}): {answer}"
        assert not answer.startswith("TRACEBACK"), told
        assert answer.isprintable(), told
        refused += bool(answer)
    assert snapshot(folder, reading.folder) == before
    return refused, slowest


def snapshot(*folders: Path) -> dict[Path, bytes]:
    return {f: f.read_bytes() for folder in folders for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("name", READERS)
def test_a_spoiled_file_gives_one_line(name, reading, tmp_path):
    attacked(name, QUICK, reading, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_thousand_spoiled_files_give_one_line_each(name, reading, tmp_path):
    refused, slowest = attacked(name, CASES, reading, tmp_path)
    print(f"{name}: {refused} of {CASES} refused, the slowest answer after {slowest:.2f} s")
    # Damage to what nobody reads is no error; most is.
    assert refused > CASES / 3


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
