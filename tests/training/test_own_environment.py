"""Any environment, or none: imported only where a person names it, made as asked, always ended."""

import json
import sys
from importlib import util
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from saqrl.cli import main
from saqrl.datasets import EnvironmentSpec, load_dataset
from saqrl.environments import make
from saqrl.environments.make import make_environment
from saqrl.policy.storage import load_policy
from saqrl.training.evaluation import check_environment
from saqrl.training.run_folder import read_result
from tests.walking import Point, words

MODULE, ID = "saqrl_tests_mine", "SaqrlMine-v0"
MINE = f"{MODULE}:{ID}"
# An environment of somebody else: it never ends, and calls success by another name.
SOURCE = """
import gymnasium
import numpy as np

MADE = []


class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, size=1.0, render_mode=None):
        MADE.append(size)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, False, False, {"is_success": self.steps == 3}


gymnasium.register("SaqrlMine-v0", entry_point=Mine)
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder on PYTHONPATH that holds the module; the command stands there."""
    monkeypatch.setattr("saqrl.cli.keep_compiled_programs", lambda: None)
    monkeypatch.setattr(make, "EPISODE_STEPS", 15)
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget()


def forget() -> None:
    """As in a process that has not imported it."""
    sys.modules.pop(MODULE, None)
    gymnasium.registry.pop(ID, None)


def train(dataset: Path, *more: str, **flags) -> int:
    asked = {"env": MINE, "eval_episodes": 2, "eval_every": "none", **flags}
    return main(["train", *words(dataset, "bc", **asked), "--out", "run", *more])


def error(capsys) -> str:
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "saqrl: error:" in line)
    return said


@pytest.fixture
def trained(place, dataset) -> Path:
    """A run in an environment of a module, in a process that has not imported it."""
    assert train(dataset, env_kwargs='{"size": 2.5}') == 0
    assert set(sys.modules[MODULE].MADE) == {2.5}
    forget()
    return place / "run"


def test_a_module_registers_its_environment_which_is_made_as_asked_cut_and_scored(trained):
    result = read_result(trained)
    assert result["env"] == MINE
    assert result["success_rate"] == 1.0
    assert result["length_mean"] == result["return_mean"] == 15


@pytest.mark.parametrize(
    "arguments",
    [("evaluate", "run", "--episodes", "1"), ("train", "--out", "run", "--resume")],
    ids=lambda arguments: arguments[0],
)
def test_what_is_on_disk_imports_no_module_and_the_flag_does(trained, capsys, arguments):
    unfinished = arguments[0] == "train"
    if unfinished:
        (trained / "result.json").unlink()
    assert main(list(arguments)) == 2
    assert f"a module is imported only if you name it: add --env {MINE}" in error(capsys)
    assert load_policy(trained / "policy").environment.id == MINE
    assert MODULE not in sys.modules
    if not unfinished:  # its options are said again too: the file may be somebody else's
        assert main([*arguments, "--env", MINE]) == 2
        assert "the option 'size', which a policy file may not set" in error(capsys)
        arguments = (*arguments, "--env-kwargs", '{"size": 2.5}')
    assert main([*arguments, "--env", MINE]) == 0
    assert MODULE in sys.modules
    assert not unfinished or read_result(trained)["success_rate"] == 1.0


def test_a_data_file_imports_no_module(place, dataset, capsys):
    with np.load(dataset) as archive:
        np.savez("names.npz", environment_id=MINE, **archive)
    asked = words(Path("names.npz"), "bc")
    del asked[asked.index("--env") : asked.index("--env") + 2]
    assert main(["train", *asked, "--out", "run"]) == 0
    assert MODULE not in sys.modules
    assert f"The file names the environment {MINE}. A data file may not import a module" in (
        capsys.readouterr().err
    )
    assert read_result(Path("run"))["env"] is None


def test_no_environment_is_wanted_where_the_data_name_one(place, dataset):
    with np.load(dataset) as archive:
        np.savez("names.npz", environment_id="Nowhere-v0", **archive)
    assert train(Path("names.npz"), env="none") == 0
    result = read_result(Path("run"))
    assert (result["env"], result["episodes"], result["return_mean"]) == (None, 0, None)
    assert result["held_out_action_error"] > 0
    assert load_policy(Path("run/policy")).environment is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "env-kwargs is '{'; expected a JSON object"),
        ("[1]", "env-kwargs is '[1]'; expected a JSON object such as"),
        ('{"sise": 2}', f"{ID} cannot be made with "),
        ('{"size": 1, "max_episode_steps": "many"}', f"{ID} cannot be made with "),
    ],
)
def test_arguments_that_the_environment_does_not_take_are_one_line(
    place, dataset, capsys, given, message
):
    assert train(dataset, env_kwargs=given) == 2
    said = error(capsys)
    assert message in said
    assert "env-kwargs" in said
    assert not Path("run").exists()


def test_a_module_that_is_not_there_is_one_line(place, dataset, capsys):
    assert train(dataset, env="saqrl_tests_absent:Mine-v0") == 2
    assert "the module saqrl_tests_absent cannot be imported" in error(capsys)
    assert not Path("run").exists()


def test_an_environment_that_never_ends_is_cut_after_a_thousand_steps(place, monkeypatch):
    monkeypatch.undo()
    sys.path.insert(0, str(place))
    try:
        environment = make_environment(MINE)
        environment.reset(seed=0)
        ends = [environment.step(np.zeros(2, np.float32))[3] for _ in range(1000)]
        assert ends == [False] * 999 + [True]
        assert make_environment(MINE, options={"max_episode_steps": 7}).spec.max_episode_steps == 7
    finally:
        sys.path.remove(str(place))


def test_success_by_either_name_counts(place):
    environment = make_environment(MINE)
    environment.reset(seed=0)
    told = [environment.step(np.zeros(2, np.float32))[4]["success"] for _ in range(4)]
    assert told == [False, False, True, False]


def bounded(low: float, high: float) -> str:
    """An environment that takes actions within these."""

    class Bounded(Point):
        action_space = gymnasium.spaces.Box(low, high, (2,), np.float32)

    gymnasium.register("SaqrlBounded-v0", entry_point=Bounded)
    return "SaqrlBounded-v0"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-1, 1, None),
        (-np.inf, np.inf, None),
        (-0.1, 0.1, "warning: {share} % of the data's actions are outside the action space"),
        (-255, -2, "warning: 100 % of the data's actions are outside the action space"),
    ],
)
def test_actions_that_the_environment_does_not_take_are_warned_of(dataset, low, high, said):
    log = load_dataset(str(dataset))
    try:
        warnings = check_environment(EnvironmentSpec(bounded(low, high)), log)
    finally:
        del gymnasium.registry["SaqrlBounded-v0"]
    if said is None:
        assert warnings == []
        return
    share = 100 * (np.abs(log.actions) > 0.1).any(-1).mean()
    assert warnings[0].startswith(said.format(share=f"{share:.0f}"))
    assert f"in the data and from {low} to {high}" in warnings[0]


@pytest.mark.parametrize("named", [True, False])
def test_a_missing_simulator_is_a_warning_and_the_run_ends_with_its_report(
    place, dataset, capsys, monkeypatch, named
):
    """Named by the flag, or by the data."""
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "mujoco" else find(name))
    with np.load(dataset) as archive:
        np.savez("names.npz", environment_id="Hopper-v4", **archive)
    asked = words(Path("names.npz"), "bc", env="Hopper-v4")
    if not named:
        del asked[asked.index("--env") : asked.index("--env") + 2]
    assert main(["train", *asked, "--out", "run", "--json"]) == 0
    said = capsys.readouterr()
    warnings = [line for line in said.err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert "is not evaluated in an environment" in warnings[0]
    assert 'pip install -e ".[mujoco]" in your clone of saqrl' in warnings[0]
    result = json.loads(said.out.splitlines()[-1])
    assert result["env"] is None
    assert result["held_out_action_error"] > 0
    assert load_policy(Path("run/policy")).environment.id == "Hopper-v4"


def test_an_id_of_the_data_that_nothing_here_registers_is_a_warning_too(place, dataset, capsys):
    with np.load(dataset) as archive:
        np.savez("names.npz", environment_id="TheirRobot-v3", **archive)
    asked = words(Path("names.npz"), "bc")
    del asked[asked.index("--env") : asked.index("--env") + 2]
    assert main(["train", *asked, "--out", "run"]) == 0
    assert (
        "only on held-out episodes: unknown environment 'TheirRobot-v3'" in capsys.readouterr().err
    )
    assert train(dataset, env="TheirRobot-v3") == 2  # it may be misspelt
    assert len(error(capsys)) < 2000


def test_a_policys_file_sets_only_what_a_data_file_may(dataset, tmp_path, capsys):
    """What a person set with --env-kwargs is said again: the file may be somebody else's."""
    gymnasium.register("SaqrlPlain-v0", entry_point=lambda size=1.0: Point())
    try:
        kwargs = '{"size": 2.0}'
        asked = {"eval_episodes": 1, "eval_every": "none", "env": "SaqrlPlain-v0"}
        out = str(tmp_path / "run")
        assert (
            main(["train", *words(dataset, "bc", **asked), "--env-kwargs", kwargs, "--out", out])
            == 0
        )
        capsys.readouterr()
        assert main(["evaluate", out, "--episodes", "1"]) == 2
        assert "the option 'size', which a policy file may not set" in error(capsys)
        assert main(["evaluate", out, "--episodes", "1", "--env-kwargs", kwargs]) == 0
    finally:
        gymnasium.registry.pop("SaqrlPlain-v0", None)
