"""Several seeds in one program, several devices: the same runs as alone on one."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import textwrap
import time
from typing import NamedTuple

import numpy as np
import pytest

from saqrl.arrays import read_arrays
from saqrl.datasets import load_dataset
from saqrl.training import memory
from saqrl.training import train as training_module
from saqrl.training.engine import Advance, Cohort
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import RunError, RunFolder, read_config, read_result
from tests.walking import outcome, run, small


def run_seeds(settings, out, seeds, *, resume=False):
    return training_module.train_seeds(
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
    appends, append = [], RunFolder.append

    def deadly(self, history, record):
        append(self, history, record)
        appends.append(record)
        if len(appends) == 11:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "append", deadly)
    with pytest.raises(KeyboardInterrupt):
        run_seeds(settings, tmp_path / "killed", [0, 1])
    monkeypatch.setattr(RunFolder, "append", append)
    first = {}
    for seed in ("seed0", "seed1"):
        newest = max((tmp_path / "killed" / seed / "checkpoints").glob("*.ckpt"))
        first[seed] = read_arrays(newest)[1]["spent"]
        assert first[seed]["seconds"]["quantizer"] > 0
    began = time.perf_counter()
    run_seeds(settings, tmp_path / "killed", [0, 1], resume=True)
    second = time.perf_counter() - began
    for seed in ("seed0", "seed1"):
        result = read_result(tmp_path / "killed" / seed)
        earlier = first[seed]["wall_seconds"]
        assert earlier < result["wall_seconds"] < earlier + second + 0.02  # rounded to hundredths
        assert result["seconds"].keys() == {"data", "quantizer", "prior", "agent", "evaluation"}
        assert result["seconds"]["quantizer"] >= first[seed]["seconds"]["quantizer"]
        assert outcome(tmp_path / "killed" / seed) == outcome(tmp_path / "whole" / seed)


def test_seeds_whose_folder_exists_are_refused_unless_nothing_was_begun(dataset, tmp_path):
    out = tmp_path / "out"
    (out / ".seed0.killed.tmp").mkdir(parents=True)
    assert len(run_seeds(small(dataset, "bc"), out, [0])) == 1
    with pytest.raises(RunError, match="exists already"):
        run_seeds(small(dataset), out, [0, 1])


def test_bad_settings_leave_nothing_of_any_seed(dataset, tmp_path):
    settings = small(dataset)
    settings = dataclasses.replace(
        settings, quantizer=dataclasses.replace(settings.quantizer, codes=10_000)
    )
    with pytest.raises(ValueError, match="there are only"):
        run_seeds(settings, tmp_path / "out", [0, 1])
    assert not (tmp_path / "out").exists()


def test_a_failure_in_the_shared_program_leaves_nothing_of_any_seed(dataset, tmp_path, monkeypatch):
    def fail(self, requests):
        raise ValueError("nothing was trained")

    monkeypatch.setattr(Cohort, "advance", fail)
    with pytest.raises(ValueError, match="nothing was trained"):
        run_seeds(small(dataset), tmp_path / "out", [0, 1, 2])
    assert not (tmp_path / "out").exists()


def test_a_full_disk_names_the_folder_of_all_seeds(dataset, tmp_path, monkeypatch):
    def full(self, history, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "append", full)
    with pytest.raises(OSError, match=rf"--out {tmp_path / 'out'} --resume"):
        run_seeds(small(dataset, "bc"), tmp_path / "out", [0, 1])


class Count(NamedTuple):
    """An algorithm by name only; nothing here trains."""

    name: str


def test_those_behind_are_answered_first_so_that_all_come_together(monkeypatch):
    """One seed has learned its codes two steps before the other, which begins its agent later."""
    together = []

    def advance(self, requests):
        together.append([(asked.algorithm.name, asked.state) for asked in requests])
        return [(asked.state, {}) for asked in requests]

    def training(seed, codes, first):
        for name, begins, ends in (("codes", 0, codes), ("agent", first, 4)):
            for step in range(begins, ends):
                yield Advance(Count(name), seed, None, None, step, step + 1)
        return {"seed": seed}

    monkeypatch.setattr(Cohort, "advance", advance)
    runs = [training("a", 1, 0), training("b", 3, 1)]
    results = training_module.drive(runs, Reporter(quiet=True))
    assert [result["seed"] for result in results] == ["a", "b"]
    assert [step for step in together if step] == [
        [("codes", "a"), ("codes", "b")],
        [("agent", "a"), ("codes", "b")],
        [("agent", "a"), ("codes", "b")],
        [("agent", "b")],
        [("agent", "a"), ("agent", "b")],
        [("agent", "a"), ("agent", "b")],
    ]


def test_what_a_quieter_seed_has_to_say_is_told_under_its_name(dataset, tmp_path, capsys):
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
    assert "seed 0: " in told  # it has finished, so that the stages shown are those of seed 1
    assert "going on from the one before it" in told
    assert "agent: 40/40 steps" in told


def test_folders_of_lone_runs_are_not_taken_for_seeds_of_one_program(tmp_path):
    from saqrl.commands.train import main

    for seed in (0, 1):
        RunFolder.create(
            tmp_path / "runs" / f"seed{seed}", {"settings": {}, "versions": {}}
        ).close()
    with pytest.raises(RunError, match="runs is not a run folder"):
        main(["--out", str(tmp_path / "runs"), "--resume"])


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


def test_the_prediction_counts_the_part_that_is_read_ahead(dataset):
    data = load_dataset(str(dataset))
    whole = small(dataset)
    parts = dataclasses.replace(whole, stream_rows=len(data) - 1)
    for copies, share in ((1, 2), (3, 1.5)):
        all_at_once = memory.predicted_bytes(whole, data, copies=copies)
        in_parts = memory.predicted_bytes(parts, data, copies=copies)
        columns = 2 * data.observations.shape[1] + 3 + 2 * whole.quantizer.codes
        table = 4 * columns * copies * (1 if copies == 1 else 2)
        assert in_parts - all_at_once == table * (share * (len(data) - 1) - len(data))


def test_the_prediction_counts_what_lies_on_the_device(dataset):
    """The widest table of a lone seed: the coded transitions, as they are made for training."""
    settings = small(dataset)
    data = load_dataset(settings.dataset)
    columns = 2 * data.observations.shape[1] + 3 + 2 * settings.quantizer.codes
    twice = data.select_episodes(np.tile(np.arange(data.num_episodes), 2))
    one, two = (memory.predicted_bytes(settings, log, copies=1) for log in (data, twice))
    assert two - one == 4 * len(data) * columns
    assert one > two - one  # the networks come on top


DEVICES = """
    import dataclasses, sys
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
