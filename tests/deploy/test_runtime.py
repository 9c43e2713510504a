"""What plays beside the robot: chunks, limits, and refusals that say why."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saqrl.deploy import runtime
from tests.deploy.test_export import OBSERVATIONS, make_policy, write


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for suffix in ("onnx", "npz"):
        write(make_policy("quantized", "bc"), folder / f"p.{suffix}", act="sample")
    return folder


@pytest.mark.parametrize("suffix", ["onnx", "npz"])
def test_chunks_are_played_and_planned_again_after_the_action_horizon(files, suffix):
    player = runtime.load(files / f"p.{suffix}", seed=3)
    twin = runtime.load(files / f"p.{suffix}", seed=3)
    decisions = [player.act(row) for row in OBSERVATIONS[:4]]
    assert [decision.planned for decision in decisions] == [True, False, True, False]
    assert player.decisions == 2
    first = twin.plan(OBSERVATIONS[:1])
    np.testing.assert_array_equal(decisions[0].action, first.actions[0, 0])
    np.testing.assert_array_equal(decisions[1].action, first.actions[0, 1])
    assert decisions[1].code == first.code[0]
    player.act(OBSERVATIONS[4])
    assert repr(player) == (
        "RobotPolicy(bc, observations (3,), actions (2,), chunk 4, action horizon 2, sample)"
    )
    player.reset()
    assert player.act(OBSERVATIONS[5]).planned


def test_both_engines_play_the_same(files):
    one, two = (runtime.load(files / f"p.{suffix}", seed=1) for suffix in ("onnx", "npz"))
    for row in OBSERVATIONS[:20]:
        a, b = one.act(row), two.act(row)
        np.testing.assert_allclose(a.action, b.action, atol=1e-4)
        assert a.code == b.code
        assert a.distance == pytest.approx(b.distance, abs=1e-3)
        assert a.entropy == pytest.approx(b.entropy, abs=1e-4)
        assert 0 < a.entropy <= np.log(6) + 1e-6


def test_far_observations_score_higher(files):
    policy = runtime.load(files / "p.npz")
    near = policy.plan(OBSERVATIONS).distance
    far = policy.plan(OBSERVATIONS + 50).distance
    assert np.median(near) < 1 < far.min()


def test_actions_at_the_edge_are_counted(files):
    policy = runtime.load(files / "p.npz")
    policy._engine = lambda inputs: {
        "action": np.array([[[-3.0, 0.5], [20.0, 9.0]]], np.float32),
        "distance": np.zeros(1, np.float32),
    }
    first, second = policy.act(OBSERVATIONS[0]), policy.act(OBSERVATIONS[0])
    np.testing.assert_array_equal(first.action, [0, 0.5])
    np.testing.assert_array_equal(second.action, [10, 1])
    assert (first.clipped, second.clipped, policy.clipped) == (1, 2, 3)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.array([0.0, np.nan, 0.0]), "number 1 of the observation is nan"),
        (np.array([0.0, 0.0, np.inf]), "number 2 of the observation is inf"),
        (np.array([0.0, 1e300, 0.0]), "number 1 of the observation is inf"),
        (np.zeros(4), r"observation of 3 numbers, got shape \(4,\)"),
        (np.zeros((1, 3)), r"got shape \(1, 3\)"),
        (np.array(["a", "b", "c"]), "expected numbers"),
        (np.zeros(3, complex), "expected numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_bad_observations_are_refused(files, observation, message):
    policy = runtime.load(files / "p.npz")
    with pytest.raises(ValueError, match=message):
        policy.act(observation)
    assert policy.decisions == 0


@pytest.mark.parametrize("suffix", ["onnx", "npz"])
def test_damaged_files_are_refused(files, suffix, tmp_path):
    content = (files / f"p.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for keep in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:keep])
        with pytest.raises(runtime.PolicyFileError, match="cut"):
            runtime.load(path)


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        runtime.load(tmp_path / "none.onnx")
    np.savez(tmp_path / "data.npz", observations=np.zeros(3))
    with pytest.raises(runtime.PolicyFileError, match="not an npz file written by `saqrl export`"):
        runtime.load(tmp_path / "data.npz")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(runtime.PolicyFileError, match="not an ONNX file"):
        runtime.load(tmp_path / "text.onnx")
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", 1, [1])
    result = onnx.helper.make_tensor_value_info("y", 1, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "foreign", [value], [result])
    model = onnx.helper.make_model(
        graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(runtime.PolicyFileError, match="not an ONNX file written by `saqrl export`"):
        runtime.load(tmp_path / "foreign.onnx")


def test_the_folder_of_the_runtime_stands_alone(files, tmp_path):
    shutil.copytree(Path(runtime.__file__).parent, tmp_path / "player")
    program = (
        "import sys, numpy as np, player\n"
        f"print(player.load({str(files / 'p.npz')!r}).act(np.zeros(3)).action)\n"
        "assert 'saqrl' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=tmp_path)


def test_the_runtime_loads_without_jax_and_without_onnx(files):
    program = (
        "import sys\n"
        "for name in ('jax', 'equinox', 'onnx', 'onnxruntime', 'gymnasium'):\n"
        "    sys.modules[name] = None\n"
        "import numpy as np, saqrl.deploy.runtime as r\n"
        f"p = r.load({str(files / 'p.npz')!r})\n"
        "assert np.isfinite(p.act(np.zeros(3)).action).all()\n"
        "try:\n"
        f"    r.load({str(files / 'p.onnx')!r})\n"
        "except ImportError as error:\n"
        "    assert 'pip install onnxruntime' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('onnxruntime was not needed')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
