"""Killed at any moment, with a full disk too: a resumed run ends as if nothing had happened."""

import errno
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np
import pytest

from saqrl import arrays
from saqrl.cli import _message
from saqrl.training import stages
from saqrl.training import train as training
from saqrl.training.presets import settings_from
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import RunError, RunFolder, read_history
from saqrl.training.settings import Settings

ENVIRONMENT = "saqrl-tests/Drift-v0"
ROWS = 60


class Drift(gymnasium.Env):
    """Five steps of a point that drifts."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.left = self.np_random.uniform(-1, 1, 3).astype(np.float32), 5
        return self.place.copy(), {}

    def step(self, action):
        self.place, self.left = self.place + 0.1 * np.float32(action), self.left - 1
        return self.place.copy(), float(-np.abs(self.place).sum()), False, self.left == 0, {}


@pytest.fixture(scope="module", autouse=True)
def _environment():
    gymnasium.register(ENVIRONMENT, entry_point=Drift)
    yield
    del gymnasium.registry[ENVIRONMENT]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Random steps of Pendulum's shape."""
    path = tmp_path_factory.mktemp("data") / "steps.npz"
    generator = np.random.default_rng(0)
    np.savez(
        path,
        observations=generator.normal(size=(ROWS, 3)).astype(np.float32),
        actions=generator.uniform(-2, 2, (ROWS, 1)).astype(np.float32),
        rewards=generator.uniform(0, 1, ROWS).astype(np.float32),
        next_observations=generator.normal(size=(ROWS, 3)).astype(np.float32),
        terminals=np.zeros(ROWS, bool),
        timeouts=np.arange(ROWS) % 10 == 9,
    )
    return path


def small(dataset: Path) -> Settings:
    return settings_from(
        {
            "dataset": str(dataset),
            "env": ENVIRONMENT,
            "agent": "cql",
            "agent.hidden": 8,
            "agent.batch_size": 8,
            "steps": 4,
            "quantizer.hidden": 8,
            "quantizer.batch_size": 8,
            "quantizer.codes": 4,
            "quantizer.code_size": 2,
            "quantizer_steps": 4,
            "prior.hidden": 8,
            "prior.batch_size": 8,
            "prior.steps": 2,
            "eval_episodes": 2,
            "eval_every": 2,
            "keep_every": 2,
            "log_every": 2,
        }
    )


def run(settings: Settings, out: Path, *, resume: bool = False, loggers=()):
    # As the command does it: what does not exist yet is begun.
    resume = resume and out.exists()
    reporter = Reporter(quiet=True)
    return training.train(settings, out, resume=resume, reporter=reporter, loggers=loggers)


def outcome(out: Path) -> dict[str, object]:
    """Everything of a finished run that must not depend on interruptions."""
    stages: dict[str, Path] = {}
    for path in sorted((out / "checkpoints").glob("*.ckpt")):
        stages[path.stem.partition("-")[2]] = path
    found: dict[str, object] = {}
    for stage, path in stages.items():
        leaves, header = arrays.read_arrays(path)
        found[stage] = header["step"], {name: leaf.tobytes() for name, leaf in leaves.items()}
    folders = ["policy", *sorted(f"policies/{path.name}" for path in out.glob("policies/*"))]
    assert len(folders) == 2
    policies = [f"{folder}/{file}" for folder in folders for file in FILES]
    for name in ("metrics.jsonl", "evaluations.jsonl", *policies):
        found[name] = (out / name).read_bytes()
    result = json.loads((out / "result.json").read_text())
    found["result"] = {
        k: v for k, v in result.items() if k not in ("run", "seconds", "wall_seconds")
    }
    leftovers = [path.name for path in out.rglob("*") if path.name.startswith(".")]
    found["leftovers"] = sorted(leftovers)
    return found


# Of a policy.
FILES = ("weights.npz", "policy.json")


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


# What is killed closes no file; the collector closes it in this process and complains.
IGNORE_OPEN_FILES = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
HOW = [pytest.param("killed", marks=IGNORE_OPEN_FILES), "full"]


class Disk:
    """Counts what is done to files of one folder, and ends the process or its space there.

    "killed": the operation `fatal` does not happen (of a write, half happens) and neither does
    anything after it. "full": it fails for want of space, and so does whatever needs space later.
    """

    NEED_SPACE = ("write", "fsync", "mkdir", "create")

    def __init__(self, monkeypatch, folder: Path, *, fatal: int = -1, how: str = "killed"):
        self.count, self.fatal, self.how, self.over = 0, fatal, how, False
        self._folder, self._mine = str(folder), set()
        for name in ("open", "write", "fsync", "replace", "rename", "unlink", "truncate", "mkdir"):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, real):
        def watched(subject, *rest, **named):
            place = str(os.fspath(subject)) if not isinstance(subject, int) else ""
            if not (place.startswith(self._folder) or subject in self._mine):
                return real(subject, *rest, **named)
            kind = "create" if name == "open" and rest[0] & os.O_CREAT else name
            if kind != "open":
                self._strike(kind, lambda: real(subject, rest[0][: len(rest[0]) // 2]))
            made = real(subject, *rest, **named)
            if name == "open":
                self._mine.add(made)
            return made

        return watched

    def _strike(self, kind: str, half_write) -> None:
        now = self.count == self.fatal
        self.count += 1
        if self.how == "killed" and (now or self.over):
            if kind == "write" and not self.over:
                half_write()
            self.over = True
            raise Killed
        if self.how == "full" and (now or self.over) and kind in self.NEED_SPACE:
            if kind == "write":
                half_write()
            self.over = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """(settings, outcome of an uninterrupted run, how often it touches the disk)."""
    settings, folder = small(dataset), tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "CHECKPOINT_PERIOD", 0.0)
        disk = Disk(patch, folder)
        run(settings, folder / "run")
    return settings, outcome(folder / "run"), disk.count


def test_a_run_touches_the_disk_often_enough_to_be_worth_killing(whole):
    assert whole[2] > 60
    assert whole[1]["leftovers"] == [".lock"]


def interrupt(settings, out, *, fatal, how):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "CHECKPOINT_PERIOD", 0.0)
        disk = Disk(patch, out.parent, fatal=fatal, how=how)
        try:
            run(settings, out, resume=True)
        except (Killed, OSError, RunError) as error:
            # Not the error itself: its frames would keep the dead run's lock.
            return "killed" if isinstance(error, Killed) else _message(error)
        assert not disk.over or how == "full"
    return None


def check(whole, folder, *, fatal, how):
    settings, expected, _ = whole
    folder.mkdir()
    message = interrupt(settings, folder / "run", fatal=fatal, how=how)
    if how == "killed":
        assert message == "killed"
    elif message is not None:
        assert "\n" not in message
        assert "space" in message, (fatal, message)
        assert str(folder / "run") in message, (fatal, message)
    run(settings, folder / "run", resume=True)
    assert outcome(folder / "run") == expected, (fatal, how)
    assert [path.name for path in folder.iterdir()] == ["run"], (fatal, how)


@pytest.mark.parametrize("how", HOW)
def test_a_run_struck_at_any_of_some_operations_ends_like_a_whole_one(whole, tmp_path, how):
    # Every operation is struck in the slow set; a stride that is prime to what one checkpoint
    # does strikes each kind of operation here.
    for fatal in range(0, whole[2], 13):
        check(whole, tmp_path / f"{fatal}", fatal=fatal, how=how)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_a_run_struck_at_every_operation_ends_like_a_whole_one(whole, tmp_path, how):
    for fatal in range(whole[2]):
        check(whole, tmp_path / f"{fatal}", fatal=fatal, how=how)


@pytest.mark.slow
@IGNORE_OPEN_FILES
def test_a_run_struck_again_and_again_ends_like_a_whole_one(whole, tmp_path):
    generator = random.Random(0)
    for attempt in range(20):
        out = tmp_path / f"{attempt}" / "run"
        out.parent.mkdir()
        for _ in range(6):
            how = generator.choice(["killed", "full"])
            interrupt(whole[0], out, fatal=generator.randrange(whole[2]), how=how)
        run(whole[0], out, resume=True)
        assert outcome(out) == whole[1], attempt


class TestRunFolder:
    """What one may find on disk, without any training."""

    config: ClassVar = {"settings": {"agent": {"alpha": 5.0}, "seed": 0}, "versions": {}}

    def make(self, path: Path, lines: int = 3) -> RunFolder:
        run = RunFolder.create(path, self.config)
        for step in range(lines):
            run.append("metrics", {"stage": "agent", "step": step})
            run.save_checkpoint("agent", step, {"weights": np.full(2, step, np.float32)})
        return run

    def steps(self, path: Path) -> list[int]:
        return [record["step"] for record in read_history(path, "metrics")]

    def open(self, path: Path) -> tuple[list[str], int]:
        """(what is said, the step to go on from)."""
        said: list[str] = []
        run = RunFolder.open(path, said.append)
        found = run.load_checkpoint("agent", lambda: {"weights": np.zeros(2, np.float32)})
        run.close()
        return said, -1 if found is None else found[0]

    def checkpoints(self, path: Path) -> list[Path]:
        return sorted((path / "checkpoints").glob("*.ckpt"))

    def test_a_half_written_last_line_is_not_read_and_is_cut(self, tmp_path):
        self.make(tmp_path / "run").close()
        with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "agent", "st')
        assert self.steps(tmp_path / "run") == [0, 1, 2]
        assert self.open(tmp_path / "run") == ([], 2)
        assert (tmp_path / "run" / "metrics.jsonl").read_text().endswith('"step": 2}\n')

    def test_a_damaged_line_in_the_middle_is_named(self, tmp_path):
        self.make(tmp_path / "run").close()
        (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n{"step\n{"step": 3}\n')
        with pytest.raises(RunError, match=r"metrics\.jsonl, line 2: not readable JSON"):
            self.steps(tmp_path / "run")

    def test_a_damaged_checkpoint_is_passed_over_and_said(self, tmp_path):
        self.make(tmp_path / "run").close()
        newest = self.checkpoints(tmp_path / "run")[-1]
        newest.write_bytes(newest.read_bytes()[:-10])
        (said,), step = self.open(tmp_path / "run")
        assert "its checksum does not match" in said
        assert "resuming from the previous checkpoint" in said
        assert (step, self.steps(tmp_path / "run")) == (1, [0, 1])

    def test_a_run_whose_checkpoints_are_all_damaged_begins_again(self, tmp_path):
        self.make(tmp_path / "run").close()
        for path in self.checkpoints(tmp_path / "run"):
            path.write_bytes(b"")
        said, step = self.open(tmp_path / "run")
        assert (len(said), step, self.steps(tmp_path / "run")) == (1, -1, [])
        assert self.checkpoints(tmp_path / "run") == []

    def test_a_damaged_checkpoint_that_nobody_needs_is_removed_in_silence(self, tmp_path):
        self.make(tmp_path / "run").close()
        self.checkpoints(tmp_path / "run")[0].write_bytes(b"")
        assert self.open(tmp_path / "run") == ([], 2)
        assert len(self.checkpoints(tmp_path / "run")) == 1

    def test_lost_lines_lead_back_to_the_checkpoint_before_them(self, tmp_path):
        self.make(tmp_path / "run").close()
        history = tmp_path / "run" / "metrics.jsonl"
        history.write_bytes(history.read_bytes()[:-1])
        (said,), step = self.open(tmp_path / "run")
        assert "are missing" in said
        assert (step, self.steps(tmp_path / "run")) == (1, [0, 1])

    def test_what_killed_processes_wrote_aside_is_removed(self, tmp_path):
        self.make(tmp_path / "run").close()
        names = (".result.json.71.tmp", "checkpoints/.000004-agent.ckpt.71.tmp",
                 "policy/.weights.npz.71.tmp", "policies/2/.policy.json.71.tmp",
                 ".demonstrations.npz.71.partial")  # fmt: skip
        (tmp_path / "run" / "policy").mkdir()
        (tmp_path / "run" / "policies" / "2").mkdir(parents=True)
        for name in names:
            (tmp_path / "run" / name).write_bytes(b"half")
        self.open(tmp_path / "run")
        assert not any((tmp_path / "run" / name).exists() for name in names)

    def test_the_lock_of_a_dead_process_holds_nobody_up(self, tmp_path):
        self.make(tmp_path / "run").close()
        (tmp_path / "run" / ".lock").write_text("process 71 on elsewhere\n")
        assert self.open(tmp_path / "run") == ([], 2)

    def test_who_holds_a_run_is_said(self, tmp_path):
        run = self.make(tmp_path / "run")
        with pytest.raises(RunError, match=rf"another process \(process {os.getpid()} on "):
            self.open(tmp_path / "run")
        run.close()

    def test_a_checkpoint_of_other_settings_is_refused_and_the_field_named(self, tmp_path):
        self.make(tmp_path / "run").close()
        other = {**self.config, "settings": {"agent": {"alpha": 1.0}, "seed": 0}}
        (tmp_path / "run" / "config.json").write_text(json.dumps(other))
        with pytest.raises(RunError, match=r"agent\.alpha is 5\.0 in it and 1\.0 in config\.json"):
            self.open(tmp_path / "run")

    def test_a_checkpoint_of_another_version_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(arrays, "FORMAT", 9)
        self.make(tmp_path / "run").close()
        monkeypatch.undo()
        with pytest.raises(ValueError, match=r"\.ckpt: format 9, this version reads"):
            self.open(tmp_path / "run")

    def test_a_folder_that_lost_its_config_says_what_to_do(self, tmp_path):
        self.make(tmp_path / "run").close()
        (tmp_path / "run" / "config.json").unlink()
        with pytest.raises(RunError, match=r"no config\.json any more: restore it, or delete"):
            self.open(tmp_path / "run")

    def test_a_folder_without_write_permission_is_one_line(self, tmp_path, monkeypatch):
        self.make(tmp_path / "run").close()
        refusal = PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        real = os.open

        def refuse(path, flags, *rest, **named):
            if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(tmp_path)):
                raise refusal
            return real(path, flags, *rest, **named)

        monkeypatch.setattr(os, "open", refuse)  # tests may run as root, who may do anything
        with pytest.raises(RunError, match=r"cannot write in the run folder .*: Permission denied"):
            self.open(tmp_path / "run")
        with pytest.raises(RunError, match=r"cannot make the run folder .*: Permission denied"):
            RunFolder.create(tmp_path / "new" / "run", self.config)
        assert not (tmp_path / "new").exists()

    def test_what_a_run_has_done_is_never_discarded(self, tmp_path):
        run = self.make(tmp_path / "run")
        run.discard()
        run.close()
        assert self.steps(tmp_path / "run") == [0, 1, 2]
        empty = self.make(tmp_path / "deep" / "run", lines=0)
        empty.discard()
        assert not (tmp_path / "deep").exists()

    def test_types_that_numpy_does_not_know_survive(self, tmp_path):
        leaves = {"a": np.ones(3, arrays.jnp.bfloat16), "b": np.zeros((), np.int32)}
        arrays.write_arrays(tmp_path / "file", leaves, {})
        read = arrays.read_arrays(tmp_path / "file")[0]
        assert {k: v.dtype for k, v in read.items()} == {k: v.dtype for k, v in leaves.items()}
        assert (read["a"] == leaves["a"]).all()


def test_a_finished_run_is_left_as_it_is(whole, tmp_path):
    settings, expected, _ = whole
    first = run(settings, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert run(settings, tmp_path / "run", resume=True) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    assert outcome(tmp_path / "run").keys() == expected.keys()


def test_a_late_failure_does_not_cost_the_run(whole, tmp_path, monkeypatch):
    def fail(*rest, **named):
        raise ValueError("the simulator broke")

    monkeypatch.setattr(training, "save_policy", fail)
    with pytest.raises(ValueError, match="the simulator broke"):
        run(whole[0], tmp_path / "run")
    monkeypatch.undo()
    run(whole[0], tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == whole[1]


def test_other_versions_are_said_on_resume(whole, tmp_path, capsys):
    run(whole[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["versions"]["jax"] = "0.0.1"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    training.train(whole[0], tmp_path / "run", resume=True, reporter=Reporter())
    assert "started with jax 0.0.1" in capsys.readouterr().err


FLAGS = shlex.split(
    "--env Pendulum-v1 --agent cql --quantizer.codes 8 --quantizer.hidden 32 --agent.hidden 32 "
    "--prior.hidden 32 --prior.steps 300 --quantizer-steps 600 --steps 1200 --log-every 20 "
    "--eval-every 400 --keep-every 600 --eval-episodes 2 --loggers csv"
)
KILLS = 50
# Checkpoints as often as there are intervals: a kill then hits their writing too.
PROGRAM = (
    "import sys; from saqrl.training import stages; stages.CHECKPOINT_PERIOD = 0.0; "
    "from saqrl.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.mark.slow
def test_sigkill_at_50_random_times_changes_nothing(dataset, tmp_path):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(out: Path) -> subprocess.Popen[bytes]:
        words = ["train", "--dataset", str(dataset), *FLAGS, "--out", str(out), "--resume"]
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def finish(out: Path) -> dict[str, object]:
        process = start(out)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()
        tables = {path.name: path.read_bytes() for path in (out / "csv").iterdir()}
        return outcome(out) | tables

    expected = finish(tmp_path / "whole")  # fills the compilation cache
    began = time.monotonic()
    assert finish(tmp_path / "again") == expected
    # Uniform over a run's life: its start, its reading and compiling, and all of its stages.
    life = time.monotonic() - began
    generator, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        out, runs = tmp_path / f"killed{runs}", runs + 1
        ended = False
        while kills < KILLS and not ended:
            process = start(out)
            time.sleep(life * generator.random())
            ended = process.poll() is not None
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += not ended
        assert finish(out) == expected, f"after {kills} kills"
