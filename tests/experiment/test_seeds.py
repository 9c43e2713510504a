"""Several seeds in one program, several devices: the same runs as alone on one."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from saqrl.datasets import load_dataset
from saqrl.experiment import memory
from saqrl.experiment import train as training
from saqrl.experiment.progress import Reporter
from saqrl.experiment.run import Run, RunError, read_config, read_result
from tests.experiment.walking import outcome, run, small


def run_seeds(settings, out, seeds, *, resume=False):
    return training.train_seeds(
        settings, out, seeds=seeds, resume=resume, reporter=Reporter(quiet=True)
    )


@pytest.mark.parametrize("agent", ["iql", "bc"])
def test_every_seed_of_a_program_is_the_run_that_it_would_have_been_alone(dataset, tmp_path, agent):
    settings = small(dataset, agent)
    summaries = run_seeds(settings, tmp_path / "together", [3, 4, 5])
    outcomes = []
    for summary, seed in zip(summaries, (3, 4, 5), strict=True):
        run(dataclasses.replace(settings, seed=seed), tmp_path / f"alone{seed}")
        folder = tmp_path / "together" / f"seed{seed}"
        outcomes.append(outcome(folder))
        assert outcomes[-1] == outcome(tmp_path / f"alone{seed}")
        assert read_result(folder) == summary
        assert summary["seed"] == seed
        assert read_config(folder)["seeds"] == [3, 4, 5]
    assert outcomes[0] != outcomes[1]


def test_killed_seeds_go_on_to_the_same_end(dataset, tmp_path, monkeypatch):
    settings = small(dataset)
    run_seeds(settings, tmp_path / "whole", [0, 1])
    appends, append = [], Run.append

    def deadly(self, history, record):
        append(self, history, record)
        appends.append(record)
        if len(appends) == 11:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "append", deadly)
    with pytest.raises(KeyboardInterrupt):
        run_seeds(settings, tmp_path / "killed", [0, 1])
    monkeypatch.setattr(Run, "append", append)
    run_seeds(settings, tmp_path / "killed", [0, 1], resume=True)
    for seed in ("seed0", "seed1"):
        assert outcome(tmp_path / "killed" / seed) == outcome(tmp_path / "whole" / seed)


def test_seeds_whose_folder_exists_are_refused(dataset, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="exists already"):
        run_seeds(small(dataset), tmp_path / "out", [0, 1])


def test_bad_settings_leave_nothing_of_any_seed(dataset, tmp_path):
    settings = small(dataset)
    settings = dataclasses.replace(
        settings, quantizer=dataclasses.replace(settings.quantizer, codes=10_000)
    )
    with pytest.raises(ValueError, match="there are only"):
        run_seeds(settings, tmp_path / "out", [0, 1])
    assert not (tmp_path / "out").exists()


def test_seeds_that_do_not_fit_into_memory_are_refused_with_what_fits(
    dataset, tmp_path, monkeypatch
):
    settings = small(dataset)
    data = load_dataset(settings.dataset)
    three = memory.predicted_bytes(settings, data, copies=3)
    assert three < memory.predicted_bytes(settings, data, copies=4)
    monkeypatch.setattr(memory, "available_bytes", lambda: three)
    with pytest.raises(ValueError, match=r"4 seeds need about .* GiB are free: --seeds 3 fits"):
        run_seeds(settings, tmp_path / "out", [0, 1, 2, 3])
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    with pytest.raises(ValueError, match="--stream-rows"):
        run(settings, tmp_path / "out")


def test_the_prediction_counts_what_lies_on_the_device(dataset):
    """The widest table of a lone seed: the coded transitions, as they are made for training."""
    settings = small(dataset)
    data = load_dataset(settings.dataset)
    columns = 2 * data.observations.shape[1] + 3 + 2 * settings.quantizer.codes
    stored = 4 * len(data) * columns
    assert stored < memory.predicted_bytes(settings, data, copies=1) < stored + 100_000


DEVICES = """
    import dataclasses, sys
    import jax, jax.numpy as jnp, numpy as np
    from saqrl.agents.cql import CQL
    from saqrl.agents import CodedTransitions
    from saqrl.arrays import named_leaves
    from saqrl.experiment import engine

    generator = np.random.default_rng(0)
    def normal(*shape):
        return jnp.asarray(generator.normal(size=shape), jnp.float32)
    prior = jax.nn.log_softmax(normal(2, 64, 5))
    data = CodedTransitions(
        normal(64, 3), jnp.asarray(generator.integers(0, 5, 64), jnp.int32), normal(64),
        normal(64, 3), jnp.full(64, 0.9), prior[0], prior[1], 5,
    )
    agent = CQL(steps=20, batch_size=16, hidden=(8, 8))
    def asked(seed):
        key = jax.random.key(seed)
        return engine.Advance(agent, engine.begin(agent, key, data), data, key, 0, 20)
    assert len(jax.devices()) == int(sys.argv[2])
    answers = engine.Cohort().advance([asked(seed) for seed in range(4)])
    (lone,) = engine.Cohort().advance([asked(0)])
    leaves = {}
    for name, (state, _) in {"lone": lone, **{str(i): a for i, a in enumerate(answers)}}.items():
        leaves |= {f"{name}{leaf}": value for leaf, value in named_leaves(state).items()}
    np.savez(sys.argv[1], **leaves)
"""


def test_several_devices_train_what_one_device_trains(tmp_path):
    """Seeds divided among devices to the last bit; batches divided among them to rounding."""
    script = tmp_path / "devices.py"
    script.write_text(textwrap.dedent(DEVICES))
    found = {}
    for devices in (1, 4):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.getcwd()}
        path = tmp_path / f"{devices}.npz"
        subprocess.run(
            [sys.executable, str(script), str(path), str(devices)], env=environment, check=True
        )
        with np.load(path) as archive:
            found[devices] = {name: archive[name] for name in archive.files}
    assert found[1].keys() == found[4].keys()
    for name, leaf in found[1].items():
        if name.startswith("lone"):
            # Twenty Adam steps amplify the last bits of a sum that is taken in another order.
            np.testing.assert_allclose(found[4][name], leaf, rtol=1e-3, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found[4][name], leaf, err_msg=name)


def test_the_command_resumes_and_tells_every_seed(dataset, tmp_path, capsys):
    from saqrl.commands.train import main

    out = tmp_path / "out"
    run_seeds(small(dataset, "bc"), out, [0, 1])
    main(["--out", str(out), "--resume", "--json"])
    told = capsys.readouterr()
    assert "seed 1:" in told.err
    record = json.loads(told.out.splitlines()[-1])
    assert record["seeds"] == [0, 1]
    assert [summary["seed"] for summary in record["runs"]] == [0, 1]
    with pytest.raises(ValueError, match="begun with 2 seeds, this asks for 3"):
        main(["--out", str(out), "--resume", "--seeds", "3"])
    with pytest.raises(ValueError, match="seeds is 0; at least 1"):
        main(["--dataset", str(dataset), "--out", str(tmp_path / "none"), "--seeds", "0"])
