"""Fine-tuning over a robot: a client plays, and may do anything."""

import json
import re
import runpy
import threading
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from saqrl.cli import main
from saqrl.policy.storage import load_policy
from saqrl.run import Run
from saqrl.training.online.address import Address
from saqrl.training.online.finetune import finetune
from saqrl.training.online.settings import OnlineSettings
from saqrl.training.progress import Reporter
from tests.walking import ENVIRONMENT, full_disk, run, small

msgpack = pytest.importorskip("msgpack", reason="the extra serve is not installed")
sync = pytest.importorskip("websockets.sync.client", reason="the extra serve is not installed")
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402

from saqrl.deploy.server import RequestError  # noqa: E402
from saqrl.training.online import robot as robots  # noqa: E402

CLIENT = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "robot_client.py"))
FREE = Address("127.0.0.1", 0)
LITTLE = {"steps": 80, "warm_up": 20, "eval_every": 40, "eval_episodes": 2}


@pytest.fixture(scope="module")
def parent(dataset, tmp_path_factory):
    """A finished run whose data name no environment."""
    made = tmp_path_factory.mktemp("parents") / "run"
    run(small(dataset, env="none"), made)
    return made


@pytest.fixture(scope="module")
def near_parent(dataset, tmp_path_factory):
    """The same with codes that come near its data, so that others lie far."""
    made = tmp_path_factory.mktemp("parents") / "near"
    run(small(dataset, env="none", **{"quantizer_steps": 600, "quantizer.hidden": 32}), made)
    return made


class Told(Reporter):
    """Keeps what is said, and knows the port when it is."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines, self.up, self.port = [], threading.Event(), 0

    def say(self, message):
        self.lines.append(message)
        if found := re.search(r"ws://127.0.0.1:(\d+)", message):
            self.port = int(found[1])
            self.up.set()


@contextmanager
def served(parent, out, *, address=FREE, resume=False, **asked):
    """A fine-tuning in a thread, up to where a robot can connect; ends when it has finished."""
    told, ended = Told(), {}
    settings = OnlineSettings(**LITTLE | asked)

    def work():
        try:
            ended["result"] = finetune(
                parent, settings, out, robot=address, resume=resume, reporter=told
            )
        except BaseException as error:
            ended["error"] = error
        finally:
            told.up.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert told.up.wait(60)
    told.ended = ended
    try:
        yield told
    finally:
        thread.join(120)
        assert not thread.is_alive()


def play(told):
    with gymnasium.make(ENVIRONMENT) as robot:
        robot.reset(seed=0)  # the resets that follow draw from it
        return CLIENT["main"](f"ws://127.0.0.1:{told.port}", robot, say=lambda words: None)


@contextmanager
def connected(told):
    with sync.connect(f"ws://127.0.0.1:{told.port}", compression=None) as client:
        client.recv()
        yield client


def records(out, name):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def test_a_robot_plays_what_a_simulator_would(parent, tmp_path, capsys):
    out = tmp_path / "out"
    with served(parent, out) as told:
        episodes = play(told)
    result = told.ended["result"]
    tuned, scored = result["finetune"], records(out, "evaluations")
    assert result["env"] == "robot"
    assert 80 <= tuned["environment_steps"] < 80 + 20
    assert tuned["updates"] == tuned["environment_steps"] - 20
    assert [r["episodes"] for r in scored] == [2] * len(scored)
    assert scored[0]["step"] == 0
    assert len(scored) >= 3
    assert all(r["success_rate"] is not None for r in scored)
    assert episodes == tuned["episodes"] + 2 * len(scored)
    old, new = (load_policy(path).controller for path in (parent, out))
    assert not np.array_equal(
        *(np.concatenate([np.ravel(x) for x in _leaves(one)]) for one in (old, new))
    )
    assert main(["ls", str(tmp_path)]) == 0
    assert main(["report", str(tmp_path)]) == 0
    assert "success" in capsys.readouterr().out


def _leaves(tree):
    import jax

    return [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]


def test_a_robot_that_leaves_in_an_episode_costs_that_episode(parent, tmp_path):
    with served(parent, tmp_path / "out") as told:
        for steps in (0, 1, 3):
            with connected(told) as client:
                CLIENT["ask"](client, observation=[0.9, 0.9])
                for _ in range(steps):
                    CLIENT["ask"](client, observation=[0.9, 0.9], reward=-1000.0)
        play(told)
    dropped = [line for line in told.lines if "dropped" in line]
    assert len(dropped) == 3
    assert told.ended["result"]["finetune"]["environment_steps"] >= 80
    kept = records(tmp_path / "out", "metrics") + records(tmp_path / "out", "evaluations")
    assert all(record.get("return_mean", 0) >= 0 for record in kept)


def test_a_reset_inside_an_episode_drops_it(parent, tmp_path):
    with served(parent, tmp_path / "out") as told:
        with connected(told) as client:
            CLIENT["ask"](client, observation=[0.9, 0.9])
            CLIENT["ask"](client, observation=[0.9, 0.9], reset=True)
            answer = CLIENT["ask"](client, observation=[0.9, 0.9], reward=1.0, truncated=True)
            assert answer["ended"] is True
            assert answer["evaluation"] is True
        play(told)
    assert len([line for line in told.lines if "dropped" in line]) == 1
    first = records(tmp_path / "out", "evaluations")[0]
    assert first["episodes"] == 2


def test_bad_requests_are_refused_and_the_episode_goes_on(parent, tmp_path):
    with served(parent, tmp_path / "out") as told:
        with connected(told) as client:
            CLIENT["ask"](client, observation=[0.9, 0.9])
            with pytest.raises(RuntimeError, match="reward of the last action is nan"):
                CLIENT["ask"](client, observation=[0.9, 0.9], reward=float("nan"))
            with pytest.raises(RuntimeError, match="3 numbers; expected 2"):
                CLIENT["ask"](client, observation=[0.9, 0.9, 0.1], reward=1.0)
            answer = CLIENT["ask"](client, observation=[0.9, 0.9], reward=1.0, truncated=True)
            assert answer["ended"] is True
        play(told)
    assert not [line for line in told.lines if "dropped" in line]


@pytest.mark.parametrize(
    ("request_", "steps", "words"),
    [
        ({"observation": [np.nan, 0.0]}, None, "number 0 of the observation is nan"),
        ({"observation": [0.0, 0.0], "reward": 1.0}, None, "must hold only an observation"),
        ({"observation": [0.0, 0.0], "truncated": True}, None, "must hold only"),
        ({"observation": [0.0, 0.0]}, 3, "expected a finite number"),
        ({"observation": [0.0, 0.0], "reward": np.inf}, 3, "reward of the last action is inf"),
        ({"observation": [0.0, 0.0], "reward": "1"}, 3, "expected a finite number"),
        ({"observation": [0.0, 0.0], "reward": True}, 3, "expected a finite number"),
        ({"observation": [0.0, 0.0], "reward": 1.0, "terminated": 1}, 3, "not true or false"),
        ({"reward": 1.0}, 3, "no observation"),
        (
            {"observation": [0.0, 0.0], "reward": 0.0},
            robots.LONGEST - 1,
            "did not end within 20,000 steps",
        ),
    ],
)
def test_what_tells_no_step_is_refused_in_words(request_, steps, words):
    with pytest.raises(RequestError, match=words):
        robots.read_step(msgpack.packb(request_), 2, steps)


def test_the_last_step_of_the_longest_episode_may_end_it():
    told = {"observation": [0.0, 0.0], "reward": 0.0, "truncated": True}
    assert robots.read_step(msgpack.packb(told), 2, robots.LONGEST - 1).truncated


def test_one_robot_at_a_time(parent, tmp_path):
    with served(parent, tmp_path / "out") as told:
        with connected(told), pytest.raises(InvalidStatus), connected(told):
            pass
        play(told)


def test_without_the_token_nobody_plays(parent, tmp_path):
    address = Address("127.0.0.1", 0, token="secret")
    assert "secret" not in repr(address)
    with served(parent, tmp_path / "out", address=address) as told:
        url = f"ws://127.0.0.1:{told.port}"
        with pytest.raises(InvalidStatus), connected(told):
            pass
        with sync.connect(url, additional_headers={"Authorization": "Api-Key secret"}) as client:
            client.recv()
            with gymnasium.make(ENVIRONMENT) as robot:
                while not CLIENT["play"](client, robot)["finished"]:
                    pass
    assert "secret" not in (tmp_path / "out" / "config.json").read_text()


def test_a_full_disk_tells_the_robot_nothing_was_learned(parent, tmp_path, monkeypatch):
    with (
        full_disk(monkeypatch, stage="online", after=2),
        served(parent, tmp_path / "out") as told,
        pytest.raises(ConnectionClosed),
    ):
        play(told)
    assert re.search("then resume: saqrl finetune .* --serve .* --resume", str(told.ended["error"]))
    with served(parent, tmp_path / "out", resume=True) as told:
        play(told)
    assert told.ended["result"]["finetune"]["environment_steps"] >= 80


@pytest.mark.parametrize("codebook", ["decoder", "grow"])
def test_codes_go_on_learning_between_a_robots_episodes(
    near_parent, tmp_path, monkeypatch, codebook
):
    asked = {"codebook": codebook, "noise": 0.5, "recode_every": 20, "refine_every": 1}
    asked["refine_rate"] = 0.01  # so that codes change within 80 steps
    out = tmp_path / "out"
    with (
        full_disk(monkeypatch, stage="online", after=4),
        served(near_parent, out, **asked) as told,
        pytest.raises(ConnectionClosed),
    ):
        play(told)
    assert "--resume" in str(told.ended["error"])
    before = records(out, "metrics")
    with served(near_parent, out, resume=True) as told:
        play(told)
    tuned, played = told.ended["result"]["finetune"], records(out, "metrics")
    assert tuned["codebook"] == codebook
    assert tuned["environment_steps"] >= 80
    assert len(played) > len(before) > 0
    codes = tuned["codes"]
    assert max(codes["recoded_offline"]) > 0
    if codebook == "grow":
        assert codes["added"] > 0
        with np.load(out / "policy" / "weights.npz") as weights:
            (live,) = (weights[name] for name in weights.files if name.endswith("codec.live"))
        assert live.sum() == codes["live"] == 8 + codes["added"] - codes["retired"]


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_killed_one_goes_on_with_every_episode_it_learned_from(parent, tmp_path, monkeypatch):
    out, last = tmp_path / "out", robots.RobotArena.play
    count = 0

    def deadly(self, *arguments, **words):
        nonlocal count
        count += 1
        if count == 4:
            raise Killed
        return last(self, *arguments, **words)

    with monkeypatch.context() as patch:
        patch.setattr(robots.RobotArena, "play", deadly)
        with served(parent, out) as told, pytest.raises(ConnectionClosed):
            play(told)
    assert isinstance(told.ended["error"], Killed)
    before = (out / "metrics.jsonl").read_text()
    assert records(out, "metrics")[-1]["episodes"] == 2
    settings = OnlineSettings(**LITTLE)
    with pytest.raises(
        ValueError, match="was started on a robot, and --serve is for a robot: add --serve"
    ):
        finetune(parent, settings, out, resume=True, reporter=Reporter(quiet=True))
    with served(parent, out, resume=True) as told:
        play(told)
    assert told.ended["result"]["finetune"]["environment_steps"] >= 80
    assert (out / "metrics.jsonl").read_text().startswith(before)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--serve", "8000"], "expected HOST:PORT"),
        (["--serve", "127.0.0.1:99999"], "expected HOST:PORT"),
        (["--serve", "0.0.0.0:0"], "--token-file"),
        (["--serve", "192.0.2.1:0"], "--token-file"),
        (["--serve", "127.0.0.1:0", "--env", "Pendulum-v1"], "remove one of them"),
    ],
)
def test_bad_flags_are_one_line_and_leave_nothing(
    parent, tmp_path, capsys, monkeypatch, words, answer
):
    monkeypatch.delenv("SAQRL_TOKEN", raising=False)
    assert main(["finetune", str(parent), "--out", str(tmp_path / "out"), *words]) == 2
    errors = [s for s in capsys.readouterr().err.splitlines() if s.startswith("saqrl: error")]
    assert len(errors) == 1
    assert answer in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_taken_port_is_one_line(parent, tmp_path):
    with served(parent, tmp_path / "one") as told:
        with pytest.raises(ValueError, match="cannot listen on"):
            finetune(
                parent,
                OnlineSettings(),
                tmp_path / "two",
                robot=Address("127.0.0.1", told.port),
                reporter=Reporter(quiet=True),
            )
        assert not (tmp_path / "two").exists()
        play(told)


def test_from_python_and_the_page(parent, tmp_path, monkeypatch):
    told = Told()
    monkeypatch.setattr("saqrl.run.Reporter", lambda quiet: told)
    made = []
    thread = threading.Thread(
        target=lambda: made.append(
            Run(parent).finetune(out=tmp_path / "out", serve="127.0.0.1:0", **LITTLE)
        )
    )
    thread.start()
    assert told.up.wait(60)
    play(told)
    thread.join(120)
    assert made[0].result["finetune"]["environment_steps"] >= 80
    page = (tmp_path / "out" / "index.html").read_text()
    assert "saqrl export" in page
    assert "saqrl evaluate" not in page  # there is nothing to play in
    assert "saqrl export" in made[0].report()
