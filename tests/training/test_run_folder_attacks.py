"""What somebody else made reaches nothing beside it, and is used or refused in one line."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saqrl import arrays
from saqrl.deploy import runtime
from saqrl.policy.storage import PolicyError, load_policy
from saqrl.training.run_folder import RunError, RunFolder, read_config, read_history, read_result
from saqrl.training.train import saved_settings
from tests import mutation

pytest.importorskip("onnxruntime")
ROOT = Path(mutation.__file__).parent.parent


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    mutation.make_run(folder / "run")
    return folder / "run"


@pytest.fixture
def run(sound, tmp_path):
    """A sound run folder, beside a file that is not its own."""
    (tmp_path / "victim.jsonl").write_text('{"step": 1}\n' * 50)
    return Path(shutil.copytree(sound, tmp_path / "run"))


@pytest.fixture
def policy(sound, tmp_path):
    """The folder of a sound policy."""
    return Path(shutil.copytree(sound / "policy", tmp_path / "policy"))


def refused(run: Path, message: str) -> None:
    """Going on with the run is refused, and nothing in it or beside it changes."""
    before = mutation.seen(run.parent, Path())
    with pytest.raises(RunError, match=message) as caught:
        RunFolder.open(run, lambda said: None)
    assert "\n" not in str(caught.value)
    after = mutation.seen(run.parent, Path())
    lock = str(run / ".lock")
    assert {**after, lock: 0} == {**before, lock: 0}


def change_header(run: Path, **changes) -> Path:
    """The newest checkpoint with another header and a right checksum."""
    newest = max((run / "checkpoints").iterdir())
    leaves, header = arrays.read_arrays(newest)
    arrays.write_arrays(newest, leaves, {k: v for k, v in (header | changes).items() if v != "no"})
    return newest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": {"../victim": 5}}, "metrics is missing"),
        ({"sizes": {"metrics": 0, "evaluations": 0, "../victim": 5}}, "'../victim', which is no"),
        ({"sizes": {"metrics": 0, "evaluations": 0, "/victim": 5}}, "'/victim', which is no"),
        ({"sizes": {"metrics": -1, "evaluations": 0}}, "sizes is .*-1"),
        ({"sizes": "no"}, "sizes is missing"),
        ({"settings": "no"}, "settings is missing"),
        ({"stage": 5}, "stage is 5; expected text"),
        ({"step": 0.5}, r"step is 0\.5"),
        ({"spent": {"seconds": {"agent": "long"}}}, "seconds is .*long"),
    ],
)
def test_a_checkpoint_of_anybodys_header_cuts_nothing(run, changes, message):
    newest = change_header(run, **changes)
    refused(run, rf"{newest}.*{message}.*; delete it, then --resume uses")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b'{"format": 2}', b"\xff"])
def test_a_checkpoint_of_anybodys_bytes_is_refused(run, content):
    newest = max((run / "checkpoints").iterdir())
    np.savez(run.parent / "own.npz", json=np.frombuffer(content, "S1"))
    body = (run.parent / "own.npz").read_bytes()
    newest.write_bytes(mutation.hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    refused(run, f"{newest}")


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(run, odd):
    newest = max((run / "checkpoints").iterdir())
    leaves, header = arrays.read_arrays(newest)
    leaves["['weights']"][0, 0] = odd
    arrays.write_arrays(newest, leaves, header)
    opened = RunFolder.open(run, lambda said: None)
    with pytest.raises(RunError, match=r"array \['weights'\] is not finite"):
        opened.load_checkpoint("agent", lambda: mutation.STATE)
    opened.close()


ENTRIES = ("metrics.jsonl", "evaluations.jsonl", "config.json", "result.json", ".lock",
           "checkpoints", "checkpoints/000003-agent.ckpt", "checkpoints/000009-agent.ckpt",
           "policy", "policy/policy.json", "policy/weights.npz", "policies", "policies/2",
           "policies/5", "policies/2/weights.npz", "csv", "tensorboard", "demonstrations.npz",
           "offline.json")  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", ["link", "absolute link", "dangling link", "pipe"])
def test_nothing_is_written_through_a_link_or_into_a_pipe(run, entry, kind):
    place = run / entry
    beside = run.parent / "moved"
    if place.exists() and "dangling" not in kind:
        place.rename(beside)
    else:
        beside.write_text("")
        if place.exists():
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "absolute link":
        place.symlink_to(beside)
    else:
        target = "nowhere" if "dangling" in kind else beside.name
        place.symlink_to(os.path.relpath(run.parent / target, place.parent))
    if entry == "config.json" and kind in ("pipe", "dangling link"):
        refused(run, "has no config|not a regular file|is a symbolic link")
    else:
        refused(run, f"{place} is (a symbolic link|not a regular file)")


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl", ".lock"])
def test_a_file_with_a_second_name_elsewhere_is_not_cut(run, name):
    (run / name).unlink()
    os.link(run.parent / "victim.jsonl", run / name)
    refused(run, "a hard link to another file")


def test_policies_are_not_read_through_links(run):
    for step, place in ((None, "policy"), (2, "policies/2")):
        (run / place).rename(run / "moved")
        (run / place).symlink_to(run / "moved")
        with pytest.raises(RunError, match=f"{place} is a symbolic link"):
            mutation.policy_folder(run, step)
        (run / place).unlink()
        (run / "moved").rename(run / place)
    file = run / "policy" / "weights.npz"
    file.rename(run / "moved.npz")
    file.symlink_to(run / "moved.npz")
    with pytest.raises(
        PolicyError, match=r"weights\.npz is a symbolic link, which is not followed"
    ):
        load_policy(run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected a JSON object"),
        ("{}", "settings is missing"),
        ('{"settings": []}', r"settings is \[\]; expected an object"),
        ('{"settings": {}}', "versions is missing"),
        ('{"settings": {}, "versions": {"jax": 5}}', "versions is .*values are text"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "not readable JSON"),
    ],
)
def test_a_config_that_is_none_is_one_line(run, text, message):
    (run / "config.json").write_text(text)
    for use in (read_config, saved_settings, lambda path: RunFolder.open(path, print)):
        with pytest.raises(RunError, match=rf"config\.json.*{message}"):
            use(run)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("agent", "hidden"), [0], "at least 1 in every layer"),
        (("agent", "hidden"), [-3, 8], "at least 1 in every layer"),
        (("agent", "hidden"), "wide", "hidden is 'wide'; expected tuple"),
        (("agent", "steps"), 1.5, "steps is 1.5; expected int"),
        (("agent", "name"), None, "expected an object with a name"),
        (("quantizer",), 5, "quantizer is 5"),
        (("seed",), 2**70, "seed is 1180591620717411303424"),
        (("seed",), 2**40, "seed is 1099511627776; it must be 0 to"),
        (("actions",), [], "actions is"),
        (("features",), [], "features is"),
        (("features", "chunk"), "4", "chunk is '4'; expected int"),
        (("data", "reading", "keys"), "all", "keys is 'all'"),
    ],
)
def test_settings_that_make_no_sense_are_named(run, place, value, message):
    config = json.loads((run / "config.json").read_text())
    holder = config["settings"]
    for name in place[:-1]:
        holder = holder[name]
    holder[place[-1]] = value
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        saved_settings(run)


def test_results_and_histories_are_checked_where_they_are_read(run):
    result = json.loads((run / "result.json").read_text())
    for name in ("agent", "seconds", "episodes"):
        (run / "result.json").write_text(json.dumps({k: v for k, v in result.items() if k != name}))
        with pytest.raises(RunError, match=rf"result\.json: {name} is missing"):
            read_result(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("[]\n")
    with pytest.raises(RunError, match=r"line 4 is \[\]; expected a JSON object"):
        read_history(run, "metrics")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("action_horizon", 0, "action_horizon is 0"),
        ("action_horizon", 5, "action_horizon is more than chunk"),
        ("observation_size", 2**70, "observation_size is"),
        ("angles", [7], "expected columns of 3, once each"),
        ("angles", [1, 1], "expected columns of 3, once each"),
        (
            "default_act",
            "\x1b[31m",
            r"default_act is '\\x1b\[31m'; expected greedy or sample or mean",
        ),
        ("environment", {"id": 5, "options": {}}, "id is 5; expected text"),
        ("controller", [], r"controller is \[\]; expected an object"),
    ],
)
def test_a_policys_record_is_checked(policy, name, value, message):
    described = json.loads((policy / "policy.json").read_text()) | {name: value}
    (policy / "policy.json").write_text(json.dumps(described))
    with pytest.raises(PolicyError, match=message):
        load_policy(policy)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("action_low", [np.nan, 0], "array action_low is not finite"),
        ("action_low", [20, 0], "no action_low above its action_high"),
        ("action_high", [1, 2, 3], r"expected \(2,\) floats"),
        ("observation_mean", [0, 0, np.inf, 0], "observation_mean is not finite"),
        ("observation_limit", np.nan, "observation_limit must be above 0"),
        ("controller", np.nan, "weights .* are not finite"),
        ("controller", np.inf, "weights .* are not finite"),
    ],
)
def test_a_policys_numbers_are_checked(policy, name, value, message):
    with np.load(policy / "weights.npz") as archive:
        stored = dict(archive)
    if name == "controller":
        name = next(n for n in stored if n.startswith(name) and stored[n].dtype.kind == "f")
        value = np.full_like(stored[name], value)
    stored[name] = np.asarray(value, np.float32)
    np.savez(policy / "weights.npz", **stored)
    with pytest.raises(PolicyError, match=message):
        load_policy(policy)


def test_numpys_advice_to_allow_pickle_is_not_passed_on(policy):
    np.savez(policy / "weights.npz", action_low=np.array([object()]))
    with pytest.raises(PolicyError, match="Python objects, which are never read"):
        load_policy(policy)
    (policy / "weights.npz").write_bytes(b"nothing")
    with pytest.raises(PolicyError, match="not a zip file"):
        load_policy(policy)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A sound export in both formats."""
    folder = tmp_path_factory.mktemp("exports")
    for suffix in ("onnx", "npz"):
        mutation.make_export(folder / f"p.{suffix}")
    return folder


class TestExports:
    def metadata_changed(self, files, suffix, path, **changes):
        content = (files / f"p.{suffix}").read_bytes()
        if suffix == "onnx":
            onnx = pytest.importorskip("onnx")
            model = onnx.load_from_string(content)
            del model.metadata_props[1:]
            entry = model.metadata_props[0]
            entry.value = json.dumps(json.loads(entry.value) | changes)
            path.write_bytes(runtime.sealed(model.SerializeToString()))
            return
        stored = mutation.members(content)
        graph = json.loads(str(stored["graph"]))
        graph["metadata"] = json.dumps(json.loads(graph["metadata"]) | changes)
        np.savez(path, **stored | {"graph": np.asarray(json.dumps(graph))})

    @pytest.mark.parametrize("suffix", ["onnx", "npz"])
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"action_low": None}, "action_low in its metadata is None; expected 2 finite numbers"),
            ({"action_low": [float("nan"), 0]}, "expected 2 finite numbers"),
            ({"action_low": [20, 0]}, "bounds that are not below"),
            ({"part": None}, "part in its metadata is None"),
            ({"action_horizon": 0}, "action_horizon in its metadata is 0"),
            ({"action_horizon": 9}, "expected at most the chunk"),
            ({"chunk": 5}, r"action has shape \(1, 4, 2\)"),
            ({"draws": [{"name": "noise"}]}, "a list of draws"),
            ({"draws": []}, "cannot be run"),
            ({"observation_size": 0}, "observation_size in its metadata is 0"),
            ({"agent": "\x1b[31m"}, "agent in its metadata is"),
        ],
    )
    def test_metadata_are_checked(self, files, suffix, changes, message, tmp_path):
        self.metadata_changed(files, suffix, tmp_path / f"p.{suffix}", **changes)
        with pytest.raises(runtime.PolicyFileError, match=message) as caught:
            runtime.load(tmp_path / f"p.{suffix}")
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize("suffix", ["onnx", "npz"])
    def test_every_single_flipped_bit_is_found_or_changes_nothing(self, files, suffix, tmp_path):
        content = (files / f"p.{suffix}").read_bytes()
        sound = runtime.load(files / f"p.{suffix}", seed=1).act(np.ones(3))
        path, draw, found = tmp_path / f"p.{suffix}", mutation.random.Random(0), 0
        for _ in range(300):
            flipped = bytearray(content)
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
            path.write_bytes(flipped)
            try:
                decision = runtime.load(path, seed=1).act(np.ones(3))
            except runtime.PolicyFileError:
                found += 1
            else:
                np.testing.assert_array_equal(decision.action, sound.action)
        assert found == 300 if suffix == "onnx" else found > 250

    def test_only_what_export_writes_reaches_onnxruntime(self, files, tmp_path):
        onnx = pytest.importorskip("onnx")
        sound = (files / "p.onnx").read_bytes()

        def loop(model):
            body = onnx.helper.make_graph([], "body", [], [])
            model.graph.node.insert(0, onnx.helper.make_node("Loop", ["", ""], ["x"], body=body))

        def function(model):
            model.functions.add(name="Add", domain="own")

        def other_domain(model):
            model.graph.node[0].domain = "own"

        def beside(model):
            constant = model.graph.initializer[0]
            constant.external_data.add(key="location", value="/etc/hostname")
            constant.data_location = onnx.TensorProto.EXTERNAL

        def not_finite(model):
            for constant in model.graph.initializer:
                array = onnx.numpy_helper.to_array(constant)
                if array.dtype == np.float32 and array.ndim == 2:
                    odd = np.full_like(array, np.nan)
                    constant.CopyFrom(onnx.numpy_helper.from_array(odd, constant.name))

        for change, message in (
            (loop, "operator .*Loop"),
            (function, "does not write"),
            (other_domain, "does not write"),
            (beside, "does not write"),
            (not_finite, "is not finite"),
        ):
            model = onnx.load_from_string(sound)
            del model.metadata_props[1:]
            change(model)
            (tmp_path / "p.onnx").write_bytes(runtime.sealed(model.SerializeToString()))
            with pytest.raises(runtime.PolicyFileError, match=message):
                runtime.load(tmp_path / "p.onnx")

    def test_a_file_that_onnx_reads_and_writes_again_is_the_same(self, files):
        onnx = pytest.importorskip("onnx")
        content = (files / "p.onnx").read_bytes()
        assert onnx.load_from_string(content).SerializeToString() == content

    def test_an_action_that_is_not_finite_is_not_played(self, files):
        policy = runtime.load(files / "p.npz")
        for odd in (np.nan, np.inf, -np.inf):
            policy._engine = lambda inputs, odd=odd: {
                "action": np.array([[[0.0, odd], [1, 1]]], np.float32),
                "distance": np.zeros(1, np.float32),
            }
            with pytest.raises(
                ValueError, match="an action that is not finite: no action is returned"
            ):
                policy.act(np.zeros(3))
        policy._engine = lambda inputs: {
            "action": np.full((1, 2, 2), 1e10, np.float32),
            "distance": np.full(1, np.nan, np.float32),
        }
        assert policy.act(np.zeros(3)).distance == np.inf


def attacked(target: str, count: int, *, seconds: int) -> dict[str, int]:
    """In a process of its own, which the attacks may harm."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.mutation", target, "0", str(count)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    lines = process.stdout.splitlines()
    assert process.returncode == 0, process.stdout + process.stderr[-2000:]
    ended = [re.fullmatch(r"\w+ (\{.*\})", line) for line in lines]
    wrong = [line for line, end in zip(lines, ended, strict=True) if end is None]
    assert not wrong, "\n".join(wrong)
    return {line.split()[0]: json.loads(end[1].replace("'", '"')) for line, end in
            zip(lines, ended, strict=True)}  # fmt: skip


def test_a_few_attacks_of_every_kind_are_used_or_refused_in_one_line():
    found = attacked("run,policy,npz,onnx", 12, seconds=300)
    assert set(found) == {"run", "policy", "npz", "onnx"}
    for counts in found.values():
        assert counts["used"] + counts["refused"] == 12
        assert counts["refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "count"),
    [("run", 600), ("policy", 600), ("npz", 1000), ("onnx", 1000), ("resume", 100)],
)
def test_hundreds_of_attacks_are_used_or_refused_in_one_line(target, count):
    counts = attacked(target, count, seconds=3600)[target]
    assert counts["used"] + counts["refused"] == count
    print(target, counts, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
