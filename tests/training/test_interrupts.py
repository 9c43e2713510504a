"""Real signals into real processes: answered in words, ended within seconds, resumed exactly."""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from saqrl.training import interrupts
from saqrl.training import train as training
from saqrl.training.interrupts import ENDS_WITH_INPUT, EXIT_INTERRUPTED
from saqrl.training.presets import settings_from
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import RunFolder
from tests import processes, walking

pytestmark = processes.NEEDS_PROC

FLAGS = {
    "recipe": "plain",
    "env": "none",
    "agent": "bc",
    "agent.hidden": 16,
    "agent.batch_size": 16,
    "steps": 2000,
    "quantizer.hidden": 16,
    "quantizer.batch_size": 16,
    "quantizer.codes": 8,
    "quantizer_steps": 1000,
    "log_every": 10,
}
LINES = 3000 // 10
STOPPING = "saqrl: stopping (press Ctrl-C again to stop at once)"
ADVICE = "saqrl train --out here --resume"

# Work that looks at nothing, looks all the time, or ends with what started it.
WORK = f"""
import sys, time
from saqrl.training import interrupts
interrupts.PATIENCE = float(sys.argv[1])
with interrupts.answered(), interrupts.resumed_by({ADVICE!r}):
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if sys.argv[2] == "looks":
            interrupts.stop_if_asked()
"""


def work(patience: float, how: str, **more) -> subprocess.Popen[str]:
    """A process of WORK that is at it."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(patience), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | more,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def said_until_the_end(process: subprocess.Popen[str]) -> list[str]:
    return [line for line in process.communicate(timeout=processes.limit())[1].splitlines() if line]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_work_that_looks_stops_by_itself_and_knows_how_it_goes_on(number):
    process = work(600, "looks")
    process.send_signal(number)
    said = said_until_the_end(process)
    assert said[0] == STOPPING
    assert said[-1].endswith(f"Interrupted: {ADVICE}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_work_that_looks_at_nothing_is_ended_when_patience_ends(number):
    process = work(0.1, "works")
    process.send_signal(number)
    told = f"saqrl: interrupted; to resume: {ADVICE}"
    assert said_until_the_end(process) == [STOPPING, told]
    assert process.returncode == EXIT_INTERRUPTED


def test_a_second_signal_ends_at_once():
    process = work(600, "works")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline().strip() == STOPPING
    process.send_signal(signal.SIGTERM)
    assert said_until_the_end(process) == [f"saqrl: interrupted; to resume: {ADVICE}"]
    assert process.returncode == EXIT_INTERRUPTED


def test_a_process_that_is_to_end_with_its_input_does_and_no_other():
    process = work(600, "works", **{ENDS_WITH_INPUT: "1"})
    said_until_the_end(process)  # closes the input first
    assert process.returncode == EXIT_INTERRUPTED
    other = work(600, "works")
    assert other.stdin is not None
    other.stdin.close()
    assert not processes.ended_within(other, 0.2)
    other.stdin = None
    other.kill()
    other.communicate()


def test_of_two_ways_to_go_on_the_outer_one_is_told(monkeypatch):
    """A cell of a comparison goes on with the comparison."""
    asked = threading.Event()
    monkeypatch.setattr(interrupts, "_asked", asked)
    asked.set()
    outer, inner = interrupts.resumed_by("the same command"), interrupts.resumed_by(ADVICE)
    with outer, inner, pytest.raises(interrupts.Interrupted, match=r"^the same command$"):
        interrupts.stop_if_asked()


def stopped(settings, out: Path, monkeypatch, owner: type, name: str, blow: int) -> None:
    """The run as far as it comes where somebody asks for its end during a call of a method."""
    asked, real, calls = threading.Event(), getattr(owner, name), itertools.count(1)

    def method(self, *given):
        if next(calls) == blow:
            asked.set()
        return real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(interrupts, "_asked", asked)
        patch.setattr(owner, name, method)
        with pytest.raises(interrupts.Interrupted, match=r"saqrl train --out .*run --resume"):
            walking.run(settings, out)


@pytest.mark.parametrize(
    ("owner", "name", "blows"),
    [(RunFolder, "append", range(1, 9)), (walking.Point, "step", (1, 30, 70))],
    ids=["training", "evaluation"],
)
def test_a_run_stops_between_any_two_lines_and_in_an_evaluation_and_is_resumed_to_the_same_end(
    dataset, tmp_path, monkeypatch, owner, name, blows
):
    settings = walking.small(dataset, "bc")
    walking.run(settings, tmp_path / "whole")
    for blow in blows:
        out = tmp_path / str(blow) / "run"
        stopped(settings, out, monkeypatch, owner, name, blow)
        walking.run(settings, out, resume=True)
        assert walking.outcome(out) == walking.outcome(tmp_path / "whole"), blow


def words() -> list[str]:
    return [
        "train",
        *(word for name, value in FLAGS.items() for word in (f"--{name}".replace("_", "-"), value)),
    ]


def outcome(out: Path) -> dict[str, bytes]:
    names = ("metrics.jsonl", "policy/weights.npz")
    return {name: (out / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory) -> dict[str, bytes]:
    """What the run comes to that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    settings = settings_from({"dataset": str(dataset), **FLAGS})
    training.train(settings, out, reporter=Reporter(quiet=True))
    return outcome(out)


def strike(dataset: Path, place: Path, number: signal.Signals, moment: int) -> None:
    """A run struck once its metrics have so many lines; below 0: so many 20ths of a second in."""
    place.mkdir(exist_ok=True)
    out = place / "run"
    said = [str(word) for word in words()]
    process = processes.start(*said, "--dataset", str(dataset), "--out", "run", cwd=place)
    metrics = out / "metrics.jsonl"
    processes.wait_until(process, lambda: processes.answers(process.pid))
    if moment < 0:
        processes.ended_within(process, -moment / 20)
    else:
        processes.wait_until(
            process, lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > moment
        )
    struck = time.perf_counter()
    process.send_signal(number)
    told = [line for line in process.communicate(timeout=processes.HANGS)[1].splitlines() if line]
    took = time.perf_counter() - struck
    if not (out / "result.json").exists():  # it was done before it could stop
        assert process.returncode == EXIT_INTERRUPTED, told
        assert STOPPING in told
        advice = "; to resume: saqrl train --out run --resume" if out.exists() else ""
        assert told[-1] == f"saqrl: interrupted{advice}"
        assert took < processes.limit()
    settings = settings_from({"dataset": str(dataset), **FLAGS})
    training.train(settings, out, resume=out.exists(), reporter=Reporter(quiet=True))


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGTERM, -1), (signal.SIGINT, 3), (signal.SIGTERM, LINES - 70)],
    ids=["first-second", "quantizer", "agent"],
)
def test_a_struck_run_is_resumed_to_the_same_end(dataset, whole, tmp_path, number, moment):
    strike(dataset, tmp_path, number, moment)
    assert outcome(tmp_path / "run") == whole


@pytest.mark.slow
def test_runs_struck_at_random_are_resumed_to_the_same_end(dataset, whole, tmp_path):
    generator = random.Random(0)
    for attempt in range(25):
        number = generator.choice([signal.SIGINT, signal.SIGTERM])
        moment = generator.randrange(-60, LINES)
        strike(dataset, tmp_path / str(attempt), number, moment)
        assert outcome(tmp_path / str(attempt) / "run") == whole, (attempt, number, moment)
