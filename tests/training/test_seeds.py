"""Several seeds of one command, several devices: the same runs as alone on one."""

import errno
import json
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from saqrl.arrays import read_arrays
from saqrl.datasets import load_dataset
from saqrl.training import engine, memory
from saqrl.training import train as training_module
from saqrl.training.features import Features
from saqrl.training.flags import changed
from saqrl.training.preparation import Prepared
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import HISTORIES, RunError, RunFolder, read_config, read_result
from tests.walking import outcome, run, small


def run_seeds(settings, out, seeds, *, resume=False):
    return training_module.train_seeds(
        settings, out, seeds=seeds, resume=resume, reporter=Reporter(quiet=True)
    )


@pytest.mark.parametrize("agent", ["iql", "bc"])
def test_every_seed_of_a_command_is_the_run_that_it_would_have_been_alone(dataset, tmp_path, agent):
    settings = small(dataset, agent)
    summaries = run_seeds(settings, tmp_path / "together", [3, 4, 5])
    outcomes = []
    for summary, seed in zip(summaries, (3, 4, 5), strict=True):
        run(changed(settings, {"seed": seed}), tmp_path / f"alone{seed}")
        folder = tmp_path / "together" / f"seed{seed}"
        outcomes.append(outcome(folder))
        assert outcomes[-1] == outcome(tmp_path / f"alone{seed}")
        assert read_result(folder) == summary
        assert summary["seed"] == seed
        assert read_config(folder)["seeds"] == [3, 4, 5]
    assert outcomes[0] != outcomes[1]


def rows_trained_on(settings, seeds) -> list[int]:
    data = load_dataset(settings.data.dataset)
    return [Features(data, changed(settings, {"seed": seed})).count for seed in seeds]


def test_seeds_share_compiled_programs_though_they_hold_out_other_rows(dataset, tmp_path):
    settings = small(dataset, **{"agent.batch_size": 13})  # programs that no other test has made
    assert len(set(rows_trained_on(settings, range(4)))) > 1
    before = engine._advance._cache_size()
    run_seeds(settings, tmp_path / "first", [0])
    first = engine._advance._cache_size()
    assert first > before
    run_seeds(settings, tmp_path / "others", [1, 2, 3])
    assert engine._advance._cache_size() == first


def test_data_are_read_once_for_all_seeds(dataset, tmp_path, monkeypatch):
    read, load = [], training_module.load_data

    def counted(settings, **where):
        read.append(settings.seed)
        return load(settings, **where)

    monkeypatch.setattr(training_module, "load_data", counted)
    run_seeds(small(dataset, "bc"), tmp_path / "out", [5, 6, 7])
    assert len(read) == 1


@pytest.mark.parametrize("agent", ["iql", "bc"])
def test_rows_that_stand_in_for_missing_ones_change_nothing(dataset, tmp_path, monkeypatch, agent):
    settings = small(dataset, agent)
    (count,) = rows_trained_on(settings, [0])
    assert count < len(load_dataset(str(dataset)))
    run(settings, tmp_path / "padded")
    monkeypatch.setattr(Prepared, "padded", lambda self, rows: self)
    run(settings, tmp_path / "plain")
    assert outcome(tmp_path / "padded") == outcome(tmp_path / "plain")


def test_killed_seeds_go_on_to_the_same_end(dataset, tmp_path, monkeypatch):
    """The first has ended, the second is killed at its prior, the third has not begun."""
    settings, seeds = small(dataset), [0, 1, 2]
    run_seeds(settings, tmp_path / "whole", seeds)
    lines = {name: (tmp_path / "whole" / "seed0" / f"{name}.jsonl") for name in HISTORIES}
    of_one = sum(path.read_text().count("\n") for path in lines.values())
    appends, append = [], RunFolder.append

    def deadly(self, history, record):
        append(self, history, record)
        appends.append(record)
        if len(appends) == of_one + 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "append", deadly)
    with pytest.raises(KeyboardInterrupt):
        run_seeds(settings, tmp_path / "killed", seeds)
    monkeypatch.setattr(RunFolder, "append", append)
    assert appends[-1]["stage"] == "prior"
    finished = read_result(tmp_path / "killed" / "seed0")
    newest = max((tmp_path / "killed" / "seed1" / "checkpoints").glob("*.ckpt"))
    first = read_arrays(newest)[1]["spent"]
    assert "quantizer" in first["seconds"]  # rounded, it may have taken 0.00 s
    assert first["wall_seconds"] > 0
    assert not (tmp_path / "killed" / "seed2").exists()
    began = time.perf_counter()
    summaries = run_seeds(settings, tmp_path / "killed", seeds, resume=True)
    second = time.perf_counter() - began
    assert summaries[0] == finished
    result, earlier = summaries[1], first["wall_seconds"]
    assert earlier < result["wall_seconds"] < earlier + second + 0.02  # rounded to hundredths
    assert result["seconds"].keys() >= {"quantizer", "prior", "agent", "evaluation"}
    assert result["seconds"]["quantizer"] >= first["seconds"]["quantizer"]
    for summary, seed in zip(summaries, ("seed0", "seed1", "seed2"), strict=True):
        assert read_result(tmp_path / "killed" / seed) == summary
        assert outcome(tmp_path / "killed" / seed) == outcome(tmp_path / "whole" / seed)


def test_seeds_whose_folder_exists_are_refused_unless_nothing_was_begun(dataset, tmp_path):
    out = tmp_path / "out"
    (out / ".seed0.killed.tmp").mkdir(parents=True)
    assert len(run_seeds(small(dataset, "bc"), out, [0])) == 1
    with pytest.raises(RunError, match="exists already"):
        run_seeds(small(dataset), out, [0, 1])


def test_bad_settings_leave_nothing_of_any_seed(dataset, tmp_path):
    with pytest.raises(ValueError, match="there are only"):
        run_seeds(small(dataset, **{"quantizer.codes": 10_000}), tmp_path / "out", [0, 1])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("whole_seeds", [0, 1])
def test_a_failure_in_training_leaves_nothing_of_the_seed_that_it_hits(
    dataset, tmp_path, monkeypatch, whole_seeds
):
    out, settings = tmp_path / "out", small(dataset, "bc")
    run_seeds(settings, out, range(whole_seeds))

    def fail(*arguments):
        raise ValueError("nothing was trained")

    monkeypatch.setattr(engine, "begin", fail)
    with pytest.raises(ValueError, match="nothing was trained"):
        run_seeds(settings, out, [0, 1, 2], resume=whole_seeds > 0)
    assert out.exists() == (whole_seeds > 0)
    assert [path.name for path in out.glob("*")] == [f"seed{n}" for n in range(whole_seeds)]


def test_a_full_disk_names_the_folder_of_all_seeds(dataset, tmp_path, monkeypatch):
    def full(self, history, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "append", full)
    with pytest.raises(OSError, match=rf"--out {tmp_path / 'out'} --resume"):
        run_seeds(small(dataset, "bc"), tmp_path / "out", [0, 1])


def test_what_a_seed_has_to_say_stands_under_its_name(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    run_seeds(small(dataset, "bc"), out, [0, 1])
    capsys.readouterr()
    (out / "seed1" / "result.json").unlink()
    newest = max((out / "seed1" / "checkpoints").glob("*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:-9])
    training_module.train_seeds(
        small(dataset, "bc"), out, seeds=[0, 1], resume=True, reporter=Reporter()
    )
    told = capsys.readouterr().err
    said = [
        "seed 0 (1 of 2)",
        "seed0 has finished already",
        "seed 1 (2 of 2)",
        "resuming from the previous checkpoint",
        "agent: 40/40 steps",
    ]
    places = [told.index(words) for words in said]
    assert places == sorted(places)


def test_folders_of_lone_runs_are_not_taken_for_seeds_of_one_command(tmp_path):
    from saqrl.commands.train import main

    for seed in (0, 1):
        RunFolder.create(
            tmp_path / "runs" / f"seed{seed}", {"settings": {}, "versions": {}}
        ).close()
    with pytest.raises(RunError, match="runs is not a run folder"):
        main(["--out", str(tmp_path / "runs"), "--resume"])


def test_a_training_that_does_not_fit_into_memory_is_refused_with_what_helps(
    dataset, tmp_path, monkeypatch
):
    settings = small(dataset)
    needed = memory.predicted_bytes(settings, load_dataset(str(dataset)))
    monkeypatch.setattr(memory, "available_bytes", lambda: needed - 1)
    with pytest.raises(ValueError, match=r"GiB are free: .*--stream-rows.*--data-episodes"):
        run(settings, tmp_path / "out")
    with pytest.raises(ValueError, match="--stream-rows"):
        run_seeds(settings, tmp_path / "out", [0, 1])
    assert not (tmp_path / "out").exists()
    for enough in (needed, None):  # None: nobody knows what there is
        monkeypatch.setattr(memory, "available_bytes", lambda enough=enough: enough)
        memory.require_memory(settings, load_dataset(str(dataset)))


def test_the_prediction_counts_the_part_that_is_read_ahead(dataset):
    data, whole = load_dataset(str(dataset)), small(dataset)
    parts = changed(whole, {"stream_rows": len(data) - 1})
    more = memory.predicted_bytes(parts, data) - memory.predicted_bytes(whole, data)
    columns = 2 * data.observations.shape[1] + 3 + 2 * whole.quantizer.codes
    assert more == 4 * columns * (2 * (len(data) - 1) - len(data))


def test_the_prediction_counts_what_lies_on_the_device(dataset):
    """The widest table: the coded transitions, as they are made for training."""
    settings = small(dataset)
    data = load_dataset(settings.data.dataset)
    columns = 2 * data.observations.shape[1] + 3 + 2 * settings.quantizer.codes
    twice = data.select_episodes(np.tile(np.arange(data.num_episodes), 2))
    one, two = (memory.predicted_bytes(settings, log) for log in (data, twice))
    assert two - one == 4 * len(data) * columns
    assert one > two - one  # the networks come on top


DEVICES = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from saqrl.agents.cql import CQL
    from saqrl.agents import CodedTransitions
    from saqrl.arrays import named_leaves
    from saqrl.training import engine

    generator = np.random.default_rng(0)
    def normal(*shape):
        return jnp.asarray(generator.normal(size=shape), jnp.float32)
    prior = jax.nn.log_softmax(normal(2, 64, 5))
    data = CodedTransitions(
        normal(64, 3), jnp.asarray(generator.integers(0, 5, 64), jnp.int32), normal(64),
        normal(64, 3), jnp.full(64, 0.9), prior[0], prior[1], 5,
    )
    agent = CQL(steps=20, batch_size=16, hidden=(8, 8))
    assert len(jax.devices()) == int(sys.argv[2])
    for interval in engine.intervals(agent, data, jax.random.key(0), pauses=[7]):
        state = interval.state
    np.savez(sys.argv[1], **named_leaves(state), **interval.metrics)
"""


def test_several_devices_train_what_one_device_trains(tmp_path):
    """Batches divided among them equal one device's to rounding."""
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
        # Twenty Adam steps amplify the last bits of a sum that is taken in another order.
        np.testing.assert_allclose(found[4][name], leaf, rtol=1e-3, atol=1e-5, err_msg=name)


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
    with pytest.raises(ValueError, match="started with 2 seeds, not 3"):
        main(["--out", str(out), "--resume", "--seeds", "3"])
    with pytest.raises(ValueError, match="seeds is 0; it must be at least 1"):
        main(["--dataset", str(dataset), "--out", str(tmp_path / "none"), "--seeds", "0"])
