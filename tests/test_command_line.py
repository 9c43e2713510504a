"""The installed command as a user runs it, in its own process."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from saqrl.cli import COMMANDS, keep_compiled_programs, main
from saqrl.training.flags import known_flags
from saqrl.training.presets import settings_from

SMALL = [
    *("--quantizer.codes", "8", "--quantizer.hidden", "16", "--quantizer.batch-size", "16"),
    *("--agent.hidden", "16", "--agent.batch-size", "16", "--quantizer-steps", "30"),
    *("--steps", "40", "--log-every", "10"),
]


def saqrl(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "saqrl.cli", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a small data set of Push-T's shape, walk.npz, and one without rewards."""
    folder = tmp_path_factory.mktemp("place")
    generator = np.random.default_rng(0)
    rows = 60
    ends = np.zeros(rows, bool)
    ends[9::10] = True
    np.savez(
        folder / "walk.npz",
        observations=generator.normal(size=(rows, 5)).astype(np.float32),
        actions=generator.uniform(-1, 1, (rows, 2)).astype(np.float32),
        rewards=generator.uniform(0, 1, rows).astype(np.float32),
        next_observations=generator.normal(size=(rows, 5)).astype(np.float32),
        terminals=np.zeros(rows, bool),
        timeouts=ends,
    )
    with np.load(folder / "walk.npz") as arrays:
        unpaid = {name: arrays[name] for name in arrays if name != "rewards"}
    np.savez(folder / "unpaid.npz", **unpaid)
    return folder


def test_compiled_programs_are_kept_for_the_next_process(place, tmp_path):
    """In the cache folder of the user, or where JAX is told."""
    kept = {name: os.environ[name] for name in ("PATH", "XLA_FLAGS", "JAX_PLATFORMS")}
    environment = {"XDG_CACHE_HOME": str(tmp_path)} | kept
    words = ["train", "--dataset", "walk.npz", "--agent", "bc", *SMALL, "--out", "kept"]
    done = subprocess.run(
        [sys.executable, "-m", "saqrl.cli", *words], cwd=place, env=environment, check=False
    )
    assert done.returncode == 0
    assert list((tmp_path / "saqrl").glob("*-cache"))


def test_an_account_without_a_home_keeps_no_compiled_programs(monkeypatch):
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    keep_compiled_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.fixture(scope="module")
def finished(place) -> tuple[Path, dict]:
    """A run without an environment, and what train said of it."""
    done = saqrl("train", "--dataset", "walk.npz", "--agent", "cql", *SMALL, "--out", "done",
                 "--prior.steps", "20", "--json", cwd=place)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return place / "done", json.loads(done.stdout.splitlines()[-1])


def test_train_says_what_scripts_read(finished):
    path, result = finished
    for name in ("run", "agent", "dataset", "env", "act", "episodes", "return_mean", "return_std",
                 "success_rate", "normalized_score", "max_reward_mean", "gradient_steps",
                 "wall_seconds"):  # fmt: skip
        assert name in result
    assert result["agent"] == "cql"
    assert result["env"] is None
    assert result["return_mean"] is None
    assert result["gradient_steps"] == 30 + 20 + 40
    assert path.is_dir()


def test_a_run_that_exists_is_refused_with_the_two_ways_out(finished, place):
    again = saqrl("train", "--dataset", "walk.npz", *SMALL, "--out", "done", cwd=place)
    assert again.returncode == 2
    assert re.fullmatch(r"saqrl: error: done exists already: .*--resume.*--out\n", again.stderr)


def test_resume_refuses_other_settings_and_names_the_field(finished, place):
    other = saqrl("train", "--out", "done", "--resume", "--seed", "7", cwd=place)
    assert other.returncode == 2
    assert "seed is 0 in the run and 7 here" in other.stderr


def test_evaluate_without_an_environment_asks_for_one(finished, place):
    done = saqrl("evaluate", "done", cwd=place)
    assert done.returncode == 2
    assert "--env" in done.stderr
    assert "Traceback" not in done.stderr


BAD = [
    (("trian",), "did you mean 'train'"),
    (("train", "--dataset", "absent.npz"), "absent.npz"),
    (("train", "--dataset", "walk.npz", "--agent", "cqk"), "did you mean 'cql'"),
    (("train", "--dataset", "walk.npz", "--preset", "papr"), "did you mean 'paper'"),
    (("train", "--dataset", "d5rl:walk.npz"), "d4rl"),
    (("train", "--dataset", "walk.npz", *SMALL, "--env", "gym_pusht/PushT-v9"), "PushT-v0"),
    (("train", "--dataset", "walk.npz", "--quantizer.codes", "100"), "only 60 transitions"),
    (("train", "--dataset", "walk.npz", "--chunk", "2", "--execute", "3"), "action-horizon 3"),
    (("train", "--dataset", "unpaid.npz", "--agent", "iql"), "no rewards, and iql needs them"),
    (
        ("train", "--dataset", "unpaid.npz", "--actions", "continuous", "--agent", "rebrac"),
        "--dataset.rewards success-at-end",
    ),
    (("train", "--dataset", "walk.npz", "--agent", "rebrac"), "add --actions continuous"),
    (("train", "--env", "Hopper-v4"), "no scripted"),
    (("train", "--dataset", "walk.npz", "--steps", "0"), "steps is 0"),
    (("train", "--dataset", "walk.npz", "--steps", "many"), "steps is 'many'; expected an integer"),
    (("train", "--dataset", "walk.npz", "--cunk", "8"), "--cunk; did you mean '--chunk'"),
    (("train", "--dataset", "walk.npz", "--agent.alpah", "8"), "unknown flag 'agent.alpah'"),
    (("train", "--dataset", "walk.npz", "--steps"), "--steps: expected one argument"),
    (("train", "--dataset"), "--dataset: no SPEC after it"),
    (("train", "--dataset", "walk.npz", "--loggers", "csw"), "loggers is 'csw'"),
    (("evaluate", "done", "--episods", "3"), "--episods; did you mean '--episodes'"),
    (("inspect", "walk.npz", "--dataset.fracton", "1"), "did you mean '--dataset.fraction'"),
    (("evaluate",), "RUN"),
    (("evaluate", "nowhere"), "not a run folder"),
    (("inspect", "absent.hdf5"), "absent.hdf5"),
    (("collect", "--env", "Hopper-v4", "--out", "a.npz"), "no scripted oracle"),
]


@pytest.mark.parametrize(("words", "answer"), BAD, ids=lambda value: " ".join(value)[:40])
def test_bad_input_is_one_line_and_status_2(words, answer, place, monkeypatch, capsys):
    """In this process: what a process of its own adds is the import of JAX, once a case."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    before = sorted(path.name for path in place.rglob("*"))
    assert main(words) == 2
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("saqrl: error:")]
    assert len(errors) == 1
    assert answer in errors[0]
    assert "Traceback" not in said
    assert sorted(path.name for path in place.rglob("*")) == before


def test_a_process_ends_with_the_status_that_the_command_gives(place):
    done = saqrl("train", "--dataset", "absent.npz", cwd=place)
    assert done.returncode == 2
    assert re.fullmatch(r"saqrl: error: .*absent\.npz.*\n", done.stderr)


def test_convert_coded_writes_the_codes_of_a_run(finished, place):
    words = ("convert", "walk.npz", "coded.npz", "--coded", "done", "--json")
    done = saqrl(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    with np.load(place / "coded.npz") as arrays, np.load(place / "walk.npz") as walk:
        assert arrays["actions"].shape == (60, 1)
        assert set(arrays["actions"].ravel()) <= set(range(8))
        np.testing.assert_array_equal(arrays["observations"], walk["observations"])
        np.testing.assert_array_equal(arrays["timeouts"], walk["timeouts"])
        np.testing.assert_allclose(arrays["rewards"][:, 0], walk["rewards"])
    assert saqrl(*words, cwd=place).returncode == 2


def test_inspect_prints_text_and_json(place):
    done = saqrl("inspect", "walk.npz", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["episodes"], found["steps"]) == (6, 60)
    assert "6" in done.stderr


HELP = """
import contextlib, io, json, sys
from saqrl.cli import COMMANDS, main

found = {}
for name in ["", *COMMANDS]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        status = main([*([name] if name else []), "--help"])
    found[name] = status, text.getvalue(), sorted({"jax", "equinox", "optax"} & set(sys.modules))
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def helps(place) -> dict[str, tuple[int, str, list[str]]]:
    """(status, text, heavy modules that are imported by then) of the help of every command."""
    done = subprocess.run(
        [sys.executable, "-c", HELP],
        capture_output=True,
        text=True,
        check=True,
        cwd=place,
        env=os.environ | {"COLUMNS": "80"},
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_help_of_every_command_needs_no_jax(helps, command):
    status, text, heavy = helps[command]
    assert status == 0
    assert text.startswith(f"usage: saqrl {command or 'COMMAND'}")
    assert not heavy


def test_help_is_quick(place):
    before = os.times()
    assert saqrl("--help", cwd=place).returncode == 0
    after = os.times()
    spent = after.children_user - before.children_user
    spent += after.children_system - before.children_system
    # 0.5 s is the promise. Processor time: a busy machine takes longer, but not more of it.
    assert 0 < spent < 1.0


def test_the_help_of_train_fits_on_a_page(helps):
    """Lines as a terminal of 80 columns shows them."""
    lines = helps["train"][1].splitlines()
    assert sum(max(1, -(-len(line) // 80)) for line in lines) <= 70


@pytest.fixture
def here(monkeypatch):
    """Commands in this process leave its environment as it is."""
    monkeypatch.setattr("saqrl.cli.keep_compiled_programs", lambda: None)


@pytest.mark.usefixtures("here")
def test_help_of_a_command_is_asked_for_in_either_way(capsys):
    assert main(["train", "--help"]) == 0
    asked = capsys.readouterr().out
    assert main(["help", "train"]) == 0
    assert capsys.readouterr().out == asked
    assert main(["help"]) == main(["--help"]) == 0
    first, second = capsys.readouterr().out.split("usage: ")[1:]
    assert first == second
    assert main(["help", "trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_help_all_lists_the_flags_of_what_is_named(capsys):
    words = ["--help-all", "--agent", "cql", "--quantizer", "fsq", "--agent.alpha", "2.5"]
    assert main(["train", *words]) == 0
    text = capsys.readouterr().out
    settings = settings_from({"agent": "cql", "quantizer": "fsq", "agent.alpha": 2.5})
    for flag in (name for name in known_flags(settings) if "." in name):
        assert re.search(rf"--({spelt(flag)}|{spelt(flag, 'no-')})\b", text), flag
    assert re.search(r"--agent\.alpha X(?:(?!--).)*\(2\.5\)", text, re.DOTALL)
    assert "--quantizer.code-size" not in text


def spelt(flag: str, before: str = "") -> str:
    """A dotted flag as it is typed; a switch that is on is turned off by `no-`."""
    owner, _, name = flag.replace("_", "-").partition(".")
    return re.escape(f"{owner}.{before}{name}")


def test_a_killed_process_resumes_to_the_same_end(place):
    words = ["train", "--dataset", "walk.npz", "--agent", "bc", *SMALL, "--steps", "1500"]
    whole = saqrl(*words, "--out", "whole", cwd=place)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "saqrl.cli", *words, "--out", "killed"],
        cwd=place,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    metrics = place / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") > 10:
            break
    process.kill()
    process.wait()
    resumed = saqrl("train", "--out", "killed", "--resume", cwd=place)
    assert resumed.returncode == 0, resumed.stderr
    for name in ("metrics.jsonl", "policy/weights.npz"):
        assert (place / "killed" / name).read_bytes() == (place / "whole" / name).read_bytes()
