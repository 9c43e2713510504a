"""The examples run as they stand and do what they say; the plug-in package has its own tests."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def main_of(name: str):
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_own_arrays_codes_pass_the_pillar_and_the_mean_does_not(tmp_path):
    passed = main_of("own_arrays.py")(tmp_path)
    assert passed["codes"] >= 15
    assert passed["one action"] <= 5
    assert (tmp_path / "quantized" / "index.html").is_file()


def test_lerobot_recordings_become_a_control_loop_that_reaches_and_that_holds(tmp_path):
    pytest.importorskip("pyarrow", reason="the extra lerobot is not installed")
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    example = runpy.run_path(str(EXAMPLES / "lerobot_to_robot.py"))
    outcomes = example["main"](tmp_path)
    assert outcomes.count("reached") >= 7
    policy = example["runtime"].load(tmp_path / "policy.onnx")
    arm = example["Arm"](seed=0)
    arm.target = np.array([40.0, 0.0])
    assert example["control"](policy, arm, steps=5, real_time=False).startswith("held: the obs")
    arm.target = np.array([np.nan, 0.0])
    assert "is nan" in example["control"](policy, arm, steps=5, real_time=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # another library's
def test_dqn_of_stable_baselines_learns_on_codes(tmp_path):
    pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")
    found = main_of("codes_with_sb3.py")(tmp_path)
    assert found["DQN on codes"] > found["codes at random"] + 300


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_notebook_runs_and_is_committed_as_executed_without_heavy_output(monkeypatch, capsys):
    matplotlib = pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    path = EXAMPLES / "codes.ipynb"
    assert path.stat().st_size < 40_000
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"]
    matplotlib.use("agg")
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    names: dict[str, object] = {"__name__": "notebook"}
    for number, cell in enumerate(cells, 1):
        exec(compile("".join(cell["source"]), f"codes.ipynb, cell {number}", "exec"), names)
    assert np.abs(names["best"][:, 1]).max() > 3 * np.abs(names["mean"][:, 1]).max()
    assert int(capsys.readouterr().out.splitlines()[-1].split()[0]) >= 15
