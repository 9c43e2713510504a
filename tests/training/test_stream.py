"""Data in parts: every row as it is in memory, every part at any time, runs exact over a kill."""

import dataclasses
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saqrl.datasets import Transitions
from saqrl.datasets.formats.writers import convert
from saqrl.datasets.scaling import ActionRange
from saqrl.datasets.split import thinned
from saqrl.training import preparation, stages, stream
from saqrl.training.flags import changed
from saqrl.training.preparation import Prepared, choose, fit_scaling, part_rows, prepare, split
from saqrl.training.presets import build_settings
from saqrl.training.run_folder import RunFolder
from saqrl.training.settings import Settings
from saqrl.training.stream import Parts, PartStream
from tests.walking import run
from tests.walking import small as walking


def walks(lengths, *, angles=(), seed=0) -> Transitions:
    """Episodes of the given lengths; every third one terminates."""
    draw, steps = np.random.default_rng(seed), sum(lengths)
    ends = np.cumsum(lengths)
    terminated = np.zeros(steps, bool)
    terminated[ends[::3] - 1] = True
    observations = draw.normal(size=(steps, 3)).astype(np.float32)
    following = np.roll(observations, -1, 0)
    following[ends - 1] = draw.normal(size=(len(ends), 3))
    return Transitions(
        observations=observations,
        actions=draw.uniform(-2, 2, (steps, 2)).astype(np.float32),
        rewards=draw.normal(size=steps).astype(np.float32),
        next_observations=following,
        terminated=terminated,
        episode_starts=np.append(0, ends[:-1]).astype(np.int64),
        action_range=ActionRange(np.full(2, -2, np.float32), np.full(2, 2, np.float32)),
        angles=angles,
    )


def asked(**flags) -> Settings:
    return changed(build_settings("default", agent="iql"), flags)


def parts_of(log: Transitions, wanted: Settings, *, rows: int) -> Parts:
    return Parts(log, wanted, fit_scaling(log, wanted), 0.3, rows=rows)


def in_blocks_of(rows: int, monkeypatch) -> None:
    monkeypatch.setattr(stream, "BLOCK_ROWS", rows)
    monkeypatch.setattr(stream, "LEAST_BLOCKS", 1)


def rows_of(parts: Parts, number: int) -> np.ndarray:
    """The training rows of a part, in its order."""
    places = parts.first_rows(number)[:, None] + np.arange(parts.block)
    return (places % parts.total).ravel()


@given(
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=24),
    chunk=st.integers(1, 5),
    history=st.integers(1, 4),
    rows=st.integers(1, 90),
    block=st.integers(1, 12),
    least=st.sampled_from([1, 2, 128]),
    number=st.integers(0, 40),
    angles=st.sampled_from([(), (1,)]),
    seed=st.integers(0, 3),
)
@settings(max_examples=100)
def test_the_rows_of_a_part_are_those_in_memory_bit_for_bit(
    lengths, chunk, history, rows, block, least, number, angles, seed
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK_ROWS", block)
        patch.setattr(stream, "LEAST_BLOCKS", least)
        log = walks(lengths, angles=angles)
        wanted = asked(chunk=chunk, history=history, action_horizon=1, seed=seed)
        parts = parts_of(log, wanted, rows=rows)
        kept = log.select_episodes(choose(log, wanted)[0])
        whole = prepare(kept, wanted, fit_scaling(log, wanted), 0.3)
        part, chosen = parts.prepared(number), rows_of(parts, number)
        assert len(chosen) == parts.rows <= max(rows, 1)
        for field in dataclasses.fields(Prepared):
            expected = getattr(whole, field.name)[chosen]
            assert getattr(part, field.name).tobytes() == expected.tobytes(), field.name
            assert getattr(part, field.name).dtype == expected.dtype


def test_a_chunk_at_the_edge_of_a_block_goes_on_in_its_episode_and_no_further(monkeypatch):
    in_blocks_of(4, monkeypatch)
    log, wanted, horizon = walks([7, 9, 2]), asked(chunk=3, action_horizon=1), 3
    parts = parts_of(log, wanted, rows=4)
    ends = log.episode_ends
    for number in range(12):
        part = parts.prepared(number)
        for place, row in enumerate(rows_of(parts, number)):
            last = ends[np.searchsorted(ends, row, side="right")] - 1
            taken = [min(row + offset, last) for offset in range(horizon)]
            after = min(row + horizon, last)
            then = [min(after + offset, last) for offset in range(horizon)]
            np.testing.assert_allclose(part.actions[place], log.actions[taken].ravel() / 2)
            np.testing.assert_allclose(part.next_actions[place], log.actions[then].ravel() / 2)
            np.testing.assert_array_equal(
                part.next_features[place], parts.scaling(log.next_observations[taken[-1]])
            )
            steps = [t for t in range(row, row + horizon) if t <= last]
            gamma = wanted.agent.discount
            gain = sum(gamma ** (t - row) * float(log.rewards[t]) for t in steps)
            np.testing.assert_allclose(part.rewards[place], 0.3 * gain, rtol=1e-5, atol=1e-6)
            left = gamma ** len(steps) * (not log.terminated[steps[-1]])
            np.testing.assert_allclose(part.discounts[place], left, rtol=1e-6)


def test_small_parts_are_made_of_short_blocks():
    log = walks([100] * 30)
    sizes = [(p.block, p.blocks) for r in (5, 130, 1300) for p in [parts_of(log, asked(), rows=r)]]
    assert sizes == [(1, 5), (1, 130), (10, 130)]


def test_a_pass_deals_out_every_row_once_and_the_next_one_otherwise(monkeypatch):
    in_blocks_of(5, monkeypatch)
    parts = parts_of(walks([11] * 30), asked(held_out=0.0), rows=33)
    assert (parts.total, parts.rows) == (330, 30)
    first = np.concatenate([rows_of(parts, number) for number in range(11)])
    second = np.concatenate([rows_of(parts, number) for number in range(11, 22)])
    assert set(first) == set(second) == set(range(330))
    assert (first != second).any()
    other = parts_of(walks([11] * 30), asked(held_out=0.0, seed=1), rows=33)
    assert (rows_of(parts, 0) != rows_of(other, 0)).any()


def test_every_row_is_as_likely_as_any_other(monkeypatch):
    """Also where neither blocks nor parts divide the rows; 2,000 parts, five deviations."""
    in_blocks_of(4, monkeypatch)
    parts = parts_of(walks([5, 8, 10]), asked(), rows=8)
    counts = np.zeros(23)
    for number in range(4000):
        np.add.at(counts, rows_of(parts, number), 1)
    share = 8 / 23
    assert np.abs(counts / 4000 - share).max() < 5 * np.sqrt(share * (1 - share) / 2000)


def test_a_part_is_made_ahead_once_and_never_past_the_end():
    made = []
    ahead = PartStream(3, 3, lambda number: made.append(number) or number)
    assert [ahead.part(n) for n in (0, 0, 1, 1, 2, 2)] == [0, 0, 1, 1, 2, 2]
    assert made == [0, 1, 2]
    assert PartStream(3, 3, str).part(7) == "7"


def test_a_closed_stream_has_let_go_of_its_thread_and_its_parts():
    ahead = PartStream(1, 9, lambda number: np.zeros(number))
    held = weakref.ref(ahead.part(5))
    (reader,) = ahead._reader._threads
    ahead.close()
    assert not reader.is_alive()
    assert held() is None


def test_a_failure_while_reading_ahead_is_raised_where_its_part_is_asked_for():
    begun = threading.Event()

    def make(number: int) -> int:
        if number == 1:
            begun.set()
            raise OSError("the disk is gone")
        return number

    broken = PartStream(1, 5, make)
    assert broken.part(0) == 0
    assert begun.wait(10)
    with pytest.raises(OSError, match="the disk is gone"):
        broken.part(1)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    rows=st.integers(1, 400),
)
def test_a_sample_of_episodes_keeps_to_its_rows(lengths, rows):
    log = walks(lengths)
    some = thinned(log, np.arange(len(lengths)), rows=rows)
    assert len(some) <= rows
    assert (len(some) == len(log)) == (rows >= len(log))
    for start, end in zip(some.episode_starts, some.episode_ends, strict=True):
        place = np.flatnonzero((log.observations == some.observations[start]).all(1))[0]
        assert place in log.episode_starts
        assert some.actions[start:end].tobytes() == log.actions[place:][: end - start].tobytes()


def test_of_streamed_data_both_sides_of_the_split_are_sampled(monkeypatch):
    monkeypatch.setattr(preparation, "SAMPLE_ROWS", 25)
    log, wanted = walks([10] * 50), asked(stream_rows=100)
    assert part_rows(log, wanted) == 100
    assert part_rows(log, asked()) is part_rows(log, asked(stream_rows=500)) is None
    kept, left = split(log, wanted)
    assert left is not None
    assert len(kept) == len(left) == 20
    training_episodes, held_out = choose(log, wanted)
    assert (len(training_episodes), len(held_out)) == (45, 5)
    for some, episodes in ((kept, training_episodes), (left, held_out)):
        rows = np.concatenate([np.arange(10 * e, 10 * e + 10) for e in episodes])
        assert all((log.actions[rows] == action).all(1).any() for action in some.actions)


def test_a_part_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="stream-rows is 0; it must be at least 1"):
        asked(stream_rows=0)


def small(spec: str, **flags) -> Settings:
    little = {"steps": 20, "quantizer_steps": 10, "prior.steps": 10, "log_every": 5}
    return walking(spec, **{"env": None, **little, **flags})


def outcome(out) -> dict[str, bytes]:
    with np.load(out / "policy" / "weights.npz") as archive:
        weights = {name: archive[name].tobytes() for name in archive.files}
    return weights | {"metrics": (out / "metrics.jsonl").read_bytes()}


@pytest.fixture
def data(tmp_path):
    """The same log as npz and as mapped columns."""
    log = walks([9] * 40)
    for name in ("npz", "mapped"):
        convert(log, tmp_path / f"data.{name}", name)
    return {name: f"{name}:{tmp_path / f'data.{name}'}" for name in ("npz", "mapped")}


@pytest.mark.parametrize("rows", [50, pytest.param(None, marks=pytest.mark.slow)])
def test_mapped_data_train_as_the_same_data_from_elsewhere(rows, data, tmp_path):
    for name, spec in data.items():
        run(small(spec, stream_rows=rows, chunk=2), tmp_path / name)
    assert outcome(tmp_path / "npz") == outcome(tmp_path / "mapped")


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


@pytest.mark.parametrize(
    ("kind", "blows"),
    [("quantized", (3, 6)), pytest.param("continuous", (3,), marks=pytest.mark.slow)],
)
def test_a_killed_and_resumed_streamed_run_equals_an_uninterrupted_one(
    data, tmp_path, monkeypatch, kind, blows
):
    """Parts of 50 rows change every 3 steps: within intervals of 5, and where runs are cut."""
    monkeypatch.setattr(stages, "CHECKPOINT_PERIOD", 0.0)
    wanted = small(data["mapped"], stream_rows=50, actions=kind, chunk=2, history=3)
    run(wanted, tmp_path / "whole")
    append = RunFolder.append
    for blow in blows:
        appends = []

        def deadly(self, history, record, *, seen=appends, blow=blow):
            append(self, history, record)
            seen.append(record)
            if len(seen) == blow:
                raise Killed

        monkeypatch.setattr(RunFolder, "append", deadly)
        with pytest.raises(Killed):
            run(wanted, tmp_path / f"killed{blow}")
        monkeypatch.setattr(RunFolder, "append", append)
        run(wanted, tmp_path / f"killed{blow}", resume=True)
        assert outcome(tmp_path / f"killed{blow}") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_codec_of_more_codes_than_a_part_has_rows_still_trains(data, tmp_path):
    summary = run(small(data["mapped"], stream_rows=5), tmp_path / "run")
    assert summary["quantizer"]["measured_on"] == "held-out episodes"
