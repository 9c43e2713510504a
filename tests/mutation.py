"""Run folders, policies and exports as somebody who means harm, or a bad disk, hands them over.

    python -m tests.mutation TARGET FIRST COUNT

changes a sound TARGET (run, policy, npz, onnx, resume) COUNT times, each from its own seed, uses it
as the package does, and prints a line for each case that does not end as it should: with a result,
or with an error of one line. A case has 10 s; all have 2 GB beyond what the process began with;
nothing outside the folder may change.
"""

import contextlib
import faulthandler
import hashlib
import io
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from saqrl import cli
from saqrl.deploy import runtime
from saqrl.policy.storage import load_policy, save_policy
from saqrl.training.presets import settings_from
from saqrl.training.run_folder import (
    RunFolder,
    kept_steps,
    policy_folder,
    read_config,
    read_history,
    read_result,
)
from saqrl.training.summary import summary_text
from saqrl.training.train import saved_settings
from tests.policy.test_policy import make_policy

SECONDS, MEMORY = 10, 2 << 30
RED = "\x1b[31mred"
ODD = [
    None, True, False, 0, 1, -1, -3, 2**31, 2**70, 10**12, 0.5, 1e308, -1e308, float("nan"),
    float("inf"), "", "a", RED, "../victim.jsonl", "/etc/hostname", "x" * 100_000, [], [0], [-3],
    [1] * 1000, {}, {"name": "bc"}, {"a": {"b": {}}}, [[[[[]]]]],
]  # fmt: skip
STATE = {"weights": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.int32(3)}


def make_run(path: Path) -> None:
    run = RunFolder.create(
        path,
        {"settings": settings_from({"dataset": "walk.npz"}).to_json(), "versions": {"jax": "1"}},
    )
    for step in range(3):
        run.append("metrics", {"stage": "agent", "step": step, "loss": 0.5})
        run.append("evaluations", {"stage": "agent", "step": step, "return_mean": 1.0})
        run.save_checkpoint("agent", step, STATE, spent={"seconds": {"agent": 1.0}})
    run.close()
    save_policy(make_policy(), path / "policy")
    shutil.copytree(path / "policy", path / "policies" / "2")
    result = {
        "run": "run", "agent": "cql", "actions": "quantized", "dataset": "walk.npz", "env": None,
        "act": "greedy", "episodes": 5, "seed": 0, "gradient_steps": 10, "wall_seconds": 3.0,
        "seconds": {"agent": 1.0}, "return_mean": 1.0, "return_std": 0.1,
        "held_out_action_error": 0.1, "baseline": {"agent": "bc", "return_mean": 1.0,
        "return_std": 1.0}, "quantizer": {"codes_used": 3, "perplexity": 2.0,
        "error_per_deviation": 0.1, "measured_on": "held-out episodes"},
    }  # fmt: skip
    (path / "result.json").write_text(json.dumps(result))


def use_run(path: Path) -> None:
    """Every reader of a run folder, then the one that writes in it; the first error ends it."""
    errors = []

    def attempt(function):
        try:
            return function()
        except (ValueError, OSError) as error:
            errors.append(error)
            return None

    attempt(lambda: read_config(path))
    attempt(lambda: saved_settings(path))
    if (found := attempt(lambda: read_result(path))) is not None:
        attempt(lambda: summary_text(found))
    for history in ("metrics", "evaluations"):
        for record in attempt(lambda history=history: read_history(path, history)) or ():
            record.get("step")
    for step in (None, *(attempt(lambda: kept_steps(path)) or ())):
        attempt(lambda step=step: use_policy(policy_folder(path, step)))

    def go_on():
        run = RunFolder.open(path, lambda said: None)
        try:
            found = run.load_checkpoint("agent", lambda: jax.tree.map(np.asarray, STATE))
            assert found is None or np.isfinite(found[1]["weights"]).all()
        finally:
            run.close()

    attempt(go_on)
    for error in errors:
        raise error


def use_policy(path: Path) -> None:
    policy = load_policy(path)
    for _ in range(2):
        assert np.isfinite(policy.act(np.zeros(policy.observation_size))).all()


def use_export(path: Path) -> None:
    policy = runtime.load(path)
    for number in range(3):
        decision = policy.act(np.full(policy.metadata["observation_size"], number, np.float32))
        assert np.isfinite(decision.action).all()


def use_resumed(path: Path) -> None:
    """The whole command; what it says may hold nothing that a terminal obeys."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = cli.main(["train", "--out", str(path), "--resume"])
    text = said.getvalue()
    assert "unforeseen" not in text, text
    assert status in (0, 2), text
    assert "\x1b[31m" not in text
    if status:
        raise ValueError(text.splitlines()[-1])


def places(value, path=()):
    """Every place in a record, as the way to it."""
    yield path
    below = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in below if isinstance(value, dict | list) else ():
        yield from places(item, (*path, name))


def changed_record(value, draw: random.Random):
    """One value of a record replaced, removed or added."""
    value = json.loads(json.dumps(value))
    way = draw.choice(list(places(value)))
    if not way:
        return draw.choice(ODD)
    holder = value
    for name in way[:-1]:
        holder = holder[name]
    what = draw.random()
    if what < 0.2:
        del holder[way[-1]]
    elif what < 0.3 and isinstance(holder, dict):
        holder[draw.choice(["../victim.jsonl", "/etc/hostname", RED, "extra"])] = draw.choice(ODD)
    elif what < 0.5 and type(holder[way[-1]]) in (int, float):
        holder[way[-1]] = holder[way[-1]] * draw.choice([-1, 0, 2, 10**6]) + draw.choice([0, 1])
    else:
        holder[way[-1]] = draw.choice(ODD)
    return value


def changed_bytes(content: bytes, draw: random.Random) -> bytes:
    """What a bad disk or a broken transfer does."""
    place = draw.randrange(max(len(content), 1))
    what = draw.randrange(6)
    if what == 0:
        return content[:place]
    if what == 1:
        return content[:place] + draw.randbytes(20) + content[place:]
    if what == 2:
        return content[:place] + bytes(50) + content[place + 50 :]
    if what == 3:
        return content + content[place:]
    flipped = bytearray(content or b"\0")
    for _ in range(1 if what == 4 else 8):
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def changed_text(content: bytes, draw: random.Random) -> bytes:
    """A JSON file, or lines of it, with one record changed."""
    if draw.random() < 0.1:
        return draw.choice([b"[" * 100_000, b'{"a":' * 50_000, b"", b"[]", b"null", b"\xff\xfe{}"])
    lines = content.split(b"\n") if content.count(b"\n{") else [content]
    number = draw.randrange(len(lines))
    with contextlib.suppress(ValueError):
        lines[number] = json.dumps(changed_record(json.loads(lines[number]), draw)).encode()
    return b"\n".join(lines)


def members(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content)) as archive:
        return dict(archive)


def changed_arrays(found: dict[str, np.ndarray], draw: random.Random) -> bytes:
    """An npz with one array changed, as NumPy writes it or as nobody does."""
    name = draw.choice(list(found))
    array = found[name]
    what = draw.randrange(9)
    if what == 0:
        del found[name]
    elif what == 1:
        found[name] = np.array([object()])
    elif what == 2 and array.dtype.kind in "fiu":
        found[name] = array.astype(draw.choice(["f8", "i4", "U9", "c16", "?"]))
    elif what == 3:
        found[name] = np.resize(array, draw.choice([(0,), (1,), (3, 3), (2, 2, 2), ()]))
    elif what < 7 and array.dtype.kind == "f" and array.size:
        found[name] = array.copy()
        found[name].flat[draw.randrange(array.size)] = draw.choice(
            [np.nan, np.inf, -np.inf, 3e38, 0]
        )
    elif what == 7:
        found["a" * 300 + RED] = array
    buffer = io.BytesIO()
    np.savez(buffer, **found)
    content = buffer.getvalue()
    if what == 8:  # headers that promise more than there is
        shape = str(array.shape).encode()
        content = content.replace(shape, b"(%0*d,)" % (max(len(shape) - 3, 1), 9), 1)
        with zipfile.ZipFile(io.BytesIO(buffer.getvalue())) as whole:
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bomb:
                for member in whole.infolist():
                    bomb.writestr(member.filename, whole.read(member))
                bomb.writestr("zeros.npy", bytes(10**8))
        return packed.getvalue() if draw.random() < 0.5 else content
    return content


def changed_checkpoint(content: bytes, draw: random.Random) -> bytes:
    """A checkpoint with a right checksum."""
    found = members(content.partition(b"\n")[2])
    if draw.random() < 0.6:
        text = json.dumps(changed_record(json.loads(str(found["json"])), draw))
        if draw.random() < 0.1:
            text = "[" * 100_000
        buffer = io.BytesIO()
        np.savez(buffer, **found | {"json": np.asarray(text)})
        body = buffer.getvalue()
    else:
        body = changed_arrays(found, draw)
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def changed_npz_export(content: bytes, draw: random.Random) -> bytes:
    found = members(content)
    if draw.random() < 0.4:
        return changed_arrays(found, draw)
    graph = json.loads(str(found["graph"]))
    if draw.random() < 0.6:
        graph["metadata"] = json.dumps(changed_record(json.loads(graph["metadata"]), draw))
    else:
        graph = changed_record(graph, draw)
    buffer = io.BytesIO()
    np.savez(buffer, **found | {"graph": np.asarray(json.dumps(graph))})
    return buffer.getvalue()


def changed_onnx(content: bytes, draw: random.Random) -> bytes:
    """A model with one thing changed and, mostly, the right checksum of it."""
    import onnx

    model = onnx.load_from_string(content)
    del model.metadata_props[1:]
    graph, what = model.graph, draw.randrange(8)
    node = draw.choice(graph.node)
    constant = draw.choice(graph.initializer)
    if what == 0:
        entry = model.metadata_props[0]
        entry.value = json.dumps(changed_record(json.loads(entry.value), draw))
    elif what == 1:
        node.op_type = draw.choice(["Loop", "If", "Scan", "Add", "MatMul", "Tanh", "Expand", "No"])
    elif what == 2:
        node.input[draw.randrange(len(node.input))] = draw.choice(
            ["nothing", "observation", *(c.name for c in graph.initializer)]
        )
    elif what == 3:
        array = onnx.numpy_helper.to_array(constant)
        odd = np.full_like(array, draw.choice([0, 1, -1, 2**40, np.nan]) if array.dtype.kind == "f"
                           else draw.choice([0, 1, -1, 2**40]))  # fmt: skip
        constant.CopyFrom(onnx.numpy_helper.from_array(odd, constant.name))
    elif what == 4:
        constant.external_data.add(key="location", value="../victim.jsonl")
        constant.data_location = onnx.TensorProto.EXTERNAL
    elif what == 5:
        graph.node.remove(node)
    elif what == 6:
        node.attribute.append(
            onnx.helper.make_attribute(
                "axis", draw.choice([-9, 0, 7, 2**40, 0.5, "x", [1, 2], graph])
            )
        )
    else:
        loop = onnx.helper.make_node("Loop", ["", ""], [node.output[0]], body=graph)
        graph.node.insert(0, loop)
    changed = model.SerializeToString()
    return changed if draw.random() < 0.2 else runtime.sealed(changed)


CHANGES = {
    ".json": changed_text,
    ".jsonl": changed_text,
    ".ckpt": changed_checkpoint,
    ".onnx": changed_onnx,
}


def change_entry(path: Path, folder: Path, draw: random.Random) -> None:
    """Something else in place of a file or folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    beside = folder.parent
    other = draw.choice(["victim.jsonl", "victims"])
    what = draw.randrange(7)
    if what == 0:
        os.mkfifo(path)
    elif what == 1:
        path.symlink_to("/dev/zero")
    elif what == 2:
        path.symlink_to(beside / other)
    elif what == 3:
        path.symlink_to(Path("..", other))
    elif what == 4:
        os.link(beside / "victim.jsonl", path)
    elif what == 5:
        path.mkdir()


def change(folder: Path, draw: random.Random) -> None:
    """One to three changes somewhere in the folder, or of the one file that it is."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        if folder.is_file():
            files = [folder]
        else:
            files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
        if not files:
            return
        kind = draw.random()
        if kind < 0.15 and folder.is_dir():
            change_entry(draw.choice(sorted(folder.rglob("*"))), folder, draw)
            continue
        file = draw.choice(files)
        content = file.read_bytes()
        with contextlib.suppress(Exception):  # changed beyond what a second change understands
            if kind < 0.3:
                content = changed_bytes(content, draw)
            elif file.suffix == ".npz":
                exported = folder.is_file()
                content = (
                    changed_npz_export(content, draw)
                    if exported
                    else changed_arrays(members(content), draw)
                )
            elif file.suffix in CHANGES:
                content = CHANGES[file.suffix](content, draw)
        file.unlink()  # a hard link keeps what it had
        file.write_bytes(content)


def make_export(path: Path) -> None:
    from tests.deploy.test_export import make_policy as lively
    from tests.deploy.test_export import write

    write(lively(), path, act="sample")


def make_resumable(path: Path) -> None:
    """A run of the command that was stopped before it could write its result."""
    draw = np.random.default_rng(0)
    names = {"observations": 3, "actions": 2}
    data = {n: draw.normal(size=(200, w)).clip(-1, 1).astype("f4") for n, w in names.items()}
    ends = np.arange(200) % 20 == 19
    np.savez(path.parent / "walk.npz", **data, rewards=np.ones(200, "f4"), timeouts=ends,
             terminals=np.zeros(200, bool))  # fmt: skip
    small = "--agent.hidden 8 --quantizer.hidden 8 --quantizer.codes 4 --steps 20 --log-every 10"
    words = f"--dataset npz:{path.parent / 'walk.npz'} --agent bc --env none {small}"
    assert cli.main(["train", *words.split(), "--quantizer-steps", "20", "--out", str(path)]) == 0
    (path / "result.json").unlink()


TARGETS = {
    "run": (make_run, use_run, "run"),
    "policy": (lambda path: save_policy(make_policy(), path), use_policy, "policy"),
    "npz": (make_export, use_export, "p.npz"),
    "onnx": (make_export, use_export, "p.onnx"),
    "resume": (make_resumable, use_resumed, "run"),
}


def seen(root: Path, but: Path) -> dict[str, object]:
    """Everything below `root` beside `but`."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        if path != but and but not in path.parents:
            state = path.lstat()
            content = path.read_bytes() if path.is_file() else None
            found[str(path)] = state.st_mode, state.st_mtime_ns, content
    return found


def attack(target: str, first: int, count: int) -> dict[str, int]:
    """Prints what went wrong; counts how the cases ended."""
    make, use, name = TARGETS[target]
    counted = {"used": 0, "refused": 0, "wrong": 0}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "victim.jsonl").write_text('{"step": 1}\n' * 50)
        (root / "victims").mkdir()
        (root / "victims" / "kept.json").write_text("{}")
        os.utime(root / "victim.jsonl", ns=(10**18, 10**18))
        sound, folder = root / "sound" / name, root / name
        sound.parent.mkdir()
        make(sound)
        copy = shutil.copytree if sound.is_dir() else shutil.copyfile
        copy(sound, folder)
        use(folder)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, limits[1]))
        for case in range(first, first + count):
            shutil.rmtree(folder, ignore_errors=True)
            folder.unlink(missing_ok=True)
            copy(sound, folder)
            draw = random.Random(f"{target} {case}")
            change(folder, draw)
            before = seen(root, folder)
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            end, wrong = "used", ""
            try:
                use(folder)
            except (ValueError, OSError, ImportError) as error:
                end, text = "refused", cli._message(error)
                if "allow_pickle" in text or not text.isprintable() or len(text) > 1500:
                    wrong = f"says {text[:300]!r}"
            except BaseException as error:
                wrong = f"{type(error).__name__}: {str(error)[:300]}"
            faulthandler.cancel_dump_traceback_later()
            if seen(root, folder) != before:
                wrong += " changed something outside its folder"
            if wrong:
                end = "wrong"
                print(f"{target} {case}: {wrong}", flush=True)
            counted[end] += 1
        resource.setrlimit(resource.RLIMIT_AS, limits)
    return counted


if __name__ == "__main__":
    target, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for each in target.split(","):
        print(each, attack(each, first, count), flush=True)
