"""Numbers that are none stop a run where they come up, and never reach a policy."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from saqrl import arrays
from saqrl.cli import main
from saqrl.training import train as training
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import RunError, read_history
from saqrl.training.settings import Settings
from saqrl.training.stages import Diverged, Divergence, all_finite
from tests.walking import run, small, words

SOUND = {"weights": jnp.ones(3), "steps": jnp.int32(4)}


def test_a_training_that_diverges_stops_with_stage_step_and_causes_and_keeps_its_checkpoint(
    dataset, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("saqrl.cli.keep_compiled_programs", lambda: None)
    out = tmp_path / "run"
    asked = words(dataset, "bc", env="none", **{"agent.learning_rate": 1e30})
    assert main(["train", *asked, "--out", str(out)]) == 2
    (said,) = (
        line for line in capsys.readouterr().err.splitlines() if line.startswith("saqrl: error:")
    )
    assert said.startswith("saqrl: error: agent diverged at step 10: ")
    assert "--agent.learning-rate" in said
    (kept,) = (out / "checkpoints").iterdir()
    assert kept.name.endswith("-quantizer.ckpt")
    assert all(np.isfinite(leaf).all() for leaf in arrays.read_arrays(kept)[0].values())
    assert {record["stage"] for record in read_history(out, "metrics")} == {"quantizer"}
    assert not (out / "policy").exists()
    assert not (out / "result.json").exists()


def test_what_diverges_before_anything_is_kept_leaves_no_folder(dataset, tmp_path):
    settings = small(dataset, "bc", env="none", **{"quantizer.learning_rate": 1e30})
    with pytest.raises(Diverged, match="quantizer diverged at step 10"):
        run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_holds_nan_is_refused(dataset, tmp_path):
    settings, out = small(dataset, "bc", env="none"), tmp_path / "run"
    run(settings, out)
    (out / "result.json").unlink()
    newest = max((out / "checkpoints").glob("*-agent.ckpt"))
    leaves, header = arrays.read_arrays(newest)
    name = next(name for name, leaf in leaves.items() if leaf.ndim == 2)
    leaves[name] = np.full_like(leaves[name], np.nan)
    arrays.write_arrays(newest, leaves, header)
    with pytest.raises(
        RunError, match=r"agent\.ckpt does not fit this run: array .* is not finite: delete it"
    ):
        training.train(settings, out, resume=True, reporter=Reporter(quiet=True))


@pytest.mark.parametrize(
    ("state", "metrics", "message"),
    [
        (SOUND, {"squared_error": math.nan}, "critic diverged at step 5: squared_error is nan"),
        (SOUND, {"data_q": math.inf}, "data_q is inf"),
        ({**SOUND, "weights": jnp.asarray([1, jnp.inf])}, {}, "its weights are not finite"),
        ({**SOUND, "weights": jnp.asarray([1, jnp.nan])}, {"q": 0.0}, "weights are not finite"),
    ],
)
def test_a_loss_or_weight_that_is_no_number_is_named(state, metrics, message):
    with pytest.raises(Diverged, match=message):
        Divergence("critic", Reporter(quiet=True)).after(5, state, metrics)


def test_integers_and_an_empty_state_are_finite():
    assert all_finite({})
    assert all_finite({"steps": jnp.int32(3)})
    assert all_finite(SOUND)


def test_an_explosion_without_nan_is_said_once(capsys):
    watch = Divergence("agent", Reporter())
    for step, error in enumerate((3.0, 0.5, 9_000.0)):
        watch.after(step, SOUND, {"bellman_error": error, "data_q": 1e9})
    assert capsys.readouterr().err == ""
    for step in (4, 5):
        watch.after(step, SOUND, {"bellman_error": 2e4})
    said = capsys.readouterr().err
    assert said.count("warning: bellman_error of agent is 2e+04 at step 4, 0.5 before") == 1
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"agent.learning_rate": 0.0}, r"agent\.learning-rate is 0\.0; it must be above 0"),
        (
            {"quantizer.learning_rate": -1.0},
            r"quantizer\.learning-rate is -1\.0; it must be above 0",
        ),
        ({"agent.learning_rate": "inf"}, "agent.learning-rate is 'inf'; expected a finite number"),
        ({"prior.learning_rate": "nan"}, "prior.learning-rate is 'nan'; expected a finite number"),
        (
            {"agent.hidden": (16, 0)},
            r"agent\.hidden is \(16, 0\); it must be at least 1 in every layer",
        ),
        ({"agent.discount": 2.0}, r"agent\.discount is 2\.0; it must be from 0 to 1"),
        ({"agent.weight_decay": -0.1}, r"agent\.weight-decay is -0\.1; it must be 0 or more"),
        ({"prior.batch_size": 0}, r"prior\.batch-size is 0; it must be at least 1"),
        ({"seed": 2**70}, f"seed is {2**70}; it must be 0 to {2**31 - 1}"),
        ({"seed": -1}, "seed is -1; it must be 0 to"),
        ({"feature_deviation": "nan"}, "feature-deviation is 'nan'; expected a finite number"),
    ],
)
def test_fields_of_algorithms_that_make_no_sense_are_refused(dataset, flags, message):
    with pytest.raises(ValueError, match=message):
        small(dataset, **flags)


def test_a_record_with_infinity_is_refused_as_its_flag_is(dataset):
    """JSON as Python writes it can hold Infinity, which no flag lets through."""
    record = json.loads(json.dumps(small(dataset).to_json()))
    record["agent"]["learning_rate"] = math.inf
    with pytest.raises(ValueError, match="learning-rate is inf"):
        Settings.from_json(record)
