"""The quantization laboratory: its numbers, its advice, its page, its replays, the early stop."""

import dataclasses
import json

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl.commands import quantize as command
from saqrl.datasets import EnvironmentSpec, Transitions, load_dataset
from saqrl.datasets.audit.findings import codes_for
from saqrl.datasets.scaling import ActionRange
from saqrl.nn import MLP
from saqrl.policy.storage import load_policy
from saqrl.quantizers import QUANTIZERS, ActionQuantizer
from saqrl.quantizers.binary import find_binary
from saqrl.quantizers.kmeans import KMeansCodec
from saqrl.studies.codebooks import replay as replays
from saqrl.studies.codebooks import starts
from saqrl.studies.codebooks import study as laboratory
from saqrl.studies.codebooks.advice import _notes, overlooked, suggest_codes
from saqrl.studies.codebooks.material import gather
from saqrl.studies.codebooks.noise import NoiseEstimate, estimate_noise, least_distortion
from saqrl.training import stages
from saqrl.training import train as training
from saqrl.training.codebook_health import (
    codebook_notes,
    dying_note,
    has_plateaued,
    reconstruction_error,
)
from saqrl.training.presets import build_settings, settings_from
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import RunFolder, read_history
from saqrl.training.settings import Settings


def walk(episodes: int = 4, steps: int = 15, seed: int = 0) -> Transitions:
    """A point in the plane that goes home, with actions in [-2, 2]."""
    draw = np.random.default_rng(seed)
    places = draw.uniform(-1, 1, (episodes, steps, 2)).astype(np.float32)
    actions = np.clip(-2 * places + draw.normal(0, 0.1, places.shape), -2, 2).astype(np.float32)
    rows = episodes * steps
    return Transitions(
        observations=places.reshape(rows, 2),
        actions=actions.reshape(rows, 2),
        rewards=draw.uniform(size=rows).astype(np.float32),
        next_observations=np.roll(places, -1, 1).reshape(rows, 2),
        terminated=np.zeros(rows, bool),
        episode_starts=np.arange(0, rows, steps),
        action_range=ActionRange(np.full(2, -2, np.float32), np.full(2, 2, np.float32)),
    )


def fixed_quantizer(centres: np.ndarray, features: int = 2) -> ActionQuantizer:
    """K-means centres that were chosen by hand, with an untrained prior."""
    free = find_binary(jnp.asarray([[-1.0, -1], [0, 0], [1, 1]]))
    codec = KMeansCodec(free, jnp.asarray(centres, jnp.float32))
    return ActionQuantizer(codec, MLP(jax.random.key(0), features, (), len(centres)))


def test_the_numbers_are_those_of_a_plain_loop():
    material = gather(walk(), held_out=0.25)
    assert material.held_out
    assert material.shown_transitions.num_episodes == 1
    centres = np.random.default_rng(1).uniform(-1, 1, (6, 2))
    quantizer = fixed_quantizer(centres)
    numbers, codes, decoded = laboratory.measure(material, quantizer)
    errors, nats, hits = [], 0.0, 0
    actions = material.shown_transitions.actions.astype(np.float64)
    weights = np.asarray(quantizer.prior.weights[0], np.float64)
    for row, action in enumerate(actions):
        code = np.square(centres - action / 2).sum(-1).argmin()
        assert codes[row] == code
        np.testing.assert_allclose(decoded[row], centres[code], atol=1e-6)
        errors.append(2 * centres[code] - action)
        logits = material.shown.features[row] @ weights
        nats += np.log(np.exp(logits).sum()) - logits[code]
        hits += logits.argmax() == code
    errors = np.asarray(errors)
    deviation = actions.std(0)
    of_steps = np.sqrt(np.square(errors).sum(-1) / np.square(deviation).sum())
    error = numbers["error"]
    close = {"rtol": 1e-4}
    np.testing.assert_allclose(error["rms"], np.sqrt(np.square(errors).mean(0)), **close)
    np.testing.assert_allclose(error["mean"], np.abs(errors).mean(0), **close)
    np.testing.assert_allclose(error["p95"], np.percentile(np.abs(errors), 95, axis=0), **close)
    np.testing.assert_allclose(error["worst"], np.abs(errors).max(0), **close)
    relative = np.sqrt(np.square(errors).mean(0)) / deviation
    np.testing.assert_allclose(error["rms_per_deviation"], relative, **close)
    found = numbers["error_per_deviation"]
    np.testing.assert_allclose(found, np.sqrt(np.square(of_steps).mean()), **close)
    np.testing.assert_allclose(numbers["error_per_deviation_worst"], of_steps.max(), **close)
    np.testing.assert_allclose(numbers["prior_cross_entropy"], nats / len(actions), **close)
    assert numbers["prior_accuracy"] == pytest.approx(hits / len(actions))
    assert numbers["codes_used"] == len(set(codes.tolist()))


def test_one_episode_is_measured_on_itself_and_that_is_said():
    material = gather(walk(episodes=1))
    assert not material.held_out
    assert "one episode cannot be split" in material.measured_on


def test_the_quantizer_measured_is_the_one_that_train_trains(tmp_path, capsys):
    """Same split, inputs, fields and seed: the same codes, so the same error to the last digits."""
    save(tmp_path / "walk.npz", walk(episodes=12))
    words = ["--preset", "pusht", "--angles", "1", "--held-out", "0.25", "--hidden", "8"]
    words += ["--quantizer.state-scale", "0.5", "--quantizer.code-size", "3"]
    words += ["--feature-deviation", "0.7", "--seed", "3", "--steps", "30"]
    words += ["--codes", "8", "--prior-steps", "5", "--replay", "0", "--json"]
    assert command.main([str(tmp_path / "walk.npz"), *words]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    settings = settings_from(
        {
            "preset": "pusht",
            "dataset": str(tmp_path / "walk.npz"),
            "env": None,
            "angles": (1,),
            "held_out": 0.25,
            "feature_deviation": 0.7,
            "seed": 3,
            "agent": "bc",
            "agent.hidden": 4,
            "steps": 5,
            "quantizer": "vqvae",
            "quantizer.state_scale": 0.5,
            "quantizer.code_size": 3,
            "quantizer.hidden": 8,
            "quantizer.codes": 8,
            "quantizer_steps": 30,
        }
    )
    trained = training.train(
        settings, tmp_path / "run", resume=False, reporter=Reporter(quiet=True)
    )
    # Float32 over blocks of other sizes.
    expected = pytest.approx(trained["quantizer"]["error_per_deviation"], rel=1e-4)
    assert summary["results"][0]["error_per_deviation"] == expected
    assert (summary["preset"], summary["measured_on"]) == ("pusht", "3 held-out episodes")


def test_the_files_own_held_out_episodes_are_measured_on():
    data = dataclasses.replace(walk(episodes=6), held_out=walk(episodes=2, seed=1))
    material = gather(data)
    assert len(material.training.actions) == len(data)
    np.testing.assert_array_equal(material.shown.actions * 2, data.held_out.actions)
    assert material.measured_on == "2 held-out episodes of the file's own split"


def test_a_preset_is_where_quantizer_and_inputs_start():
    material = gather(walk(), preset="pusht-chunk8", feature_deviation=None, angles=())
    assert material.settings.features.chunk == 8
    # Scaled on the training rows alone, as a training run does.
    np.testing.assert_allclose(material.training.features.std(0), 0.3, rtol=1e-4)
    assert laboratory.make_quantizer("vqvae", preset="door-expert").state_scale == 0.3
    free = laboratory.make_quantizer("vqvae", preset="paper", code_size=8, latents=2)
    assert (free.encodings, free.code_size) == ("free", 8)
    assert laboratory.make_quantizer("vqvae").state_scale == 1


def test_the_noise_of_the_actions_is_found():
    draw = np.random.default_rng(0)
    states = draw.uniform(-1, 1, (3000, 2))
    explained = np.stack([np.sin(2 * states[:, 0]), states[:, 1] ** 2, states.sum(-1)], 1)
    noise = np.array([0.05, 0.2, 0.0])
    actions = explained + draw.normal(size=explained.shape) * noise
    found = estimate_noise(states, actions, np.repeat(np.arange(30), 100))
    assert found is not None
    # The intercept's own spread over 2,000 pairs is a few per cent of the variance.
    np.testing.assert_allclose(np.sqrt(found.variance), noise, rtol=0.15, atol=0.02)
    assert found.distance < 0.1
    assert estimate_noise(states[:5], actions[:5], np.zeros(5, int)) is None


def test_least_distortion_is_water_filling():
    variances = np.array([1.0, 0.5, 0.01, 0.0])
    for codes in (1, 2, 16, 4096):
        kept = least_distortion(variances, codes)
        positive = variances > 0
        rate = 0.5 * np.log(variances[positive] / kept[positive]).sum()
        np.testing.assert_allclose(rate, np.log(codes), atol=1e-9)
        water = kept[kept < variances - 1e-12]
        np.testing.assert_allclose(water, water[:1].repeat(len(water)) if len(water) else water)
        assert (kept <= variances + 1e-12).all()
    # One dimension, variance 1, K codes: K^-2.
    np.testing.assert_allclose(least_distortion(np.ones(1), 8), [1 / 64])


def test_the_floor_counts_dimensions_in_the_units_of_the_environment():
    """Noise of variance 1 each, but one dimension is ten times as wide: four codes go to it."""
    wide = ActionRange(np.float32([-10, -1]), np.float32([10, 1]))
    material = gather(dataclasses.replace(walk(), action_range=wide))
    shown = dataclasses.replace(material.shown, actions=np.array([[-1, -1], [1, 1]], np.float32))
    material = dataclasses.replace(material, shown=shown, noise=NoiseEstimate(np.ones(2), 0.1))
    found = laboratory._noise_numbers(material, 4, squared=14.5)
    # sum of log(variance / D) / 2 = log 4 with all of it on the first: D = 100 / 16; the other 1.
    assert found["noise_floor_per_deviation"] == pytest.approx(np.sqrt(7.25 / 101))
    assert found["noise_share"] == pytest.approx(0.5)


def circling(episodes: int = 10, steps: int = 60) -> dict[str, np.ndarray]:
    """An npz of actions on an ellipse that is a thousand times as long as it is wide."""
    draw = np.random.default_rng(0)
    angles = (draw.uniform(0, 6, (episodes, 1)) + 0.1 * np.arange(steps)).ravel()
    return {
        "observations": np.stack([np.sin(angles), np.cos(angles)], 1).astype(np.float32),
        "actions": np.stack([np.sin(angles), 1e-3 * np.cos(angles)], 1).astype(np.float32),
        "rewards": np.zeros(len(angles), np.float32),
        "terminals": np.zeros(len(angles), bool),
        "timeouts": np.arange(1, len(angles) + 1) % steps == 0,
    }


def compared(path, capsys, *words: str) -> tuple[dict, str]:
    """(the JSON, what was said) of a small comparison without replay."""
    little = ["--prior-steps", "2", "--replay", "0", "--json", *words]
    assert command.main([str(path), *little]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out.splitlines()[-1]), captured.err


def test_a_dimension_that_the_codes_drop_is_named_and_the_remedy_brings_it_back(tmp_path, capsys):
    arrays = circling()
    np.savez(tmp_path / "log.npz", **arrays)
    words = ["--quantizer", "kmeans", "vqvae", "--codes", "64", "--steps", "400"]
    summary, said = compared(tmp_path / "log.npz", capsys, *words, "--hidden", "32")
    for result in summary["results"]:
        assert result["error_per_deviation"] < 0.05
        assert result["error"]["rms_per_deviation"][1] > 0.5
    (note,) = [note for note in summary["notes"] if "hardly reproduce" in note]
    assert said.count("hardly reproduce") == 1
    assert "kmeans, vqvae hardly reproduce some action dimensions (1)" in note
    assert "action_low and action_high" in note
    assert "(1: about -0.001 to 0.001)" in note

    ends = {"action_low": arrays["actions"].min(0), "action_high": arrays["actions"].max(0)}
    np.savez(tmp_path / "remedied.npz", **arrays, **ends)
    summary, said = compared(tmp_path / "remedied.npz", capsys, *words, "--hidden", "32")
    assert "hardly reproduce" not in said
    for result in summary["results"]:
        one, other = result["error"]["rms_per_deviation"]
        assert max(one, other) < 0.5
        # Both fill their range in the same shape; before, their errors were 20 times apart. What
        # is left is where the centres of so few rows came to lie.
        assert max(one, other) < 2 * min(one, other)


def test_a_noisy_dimension_that_fills_its_range_is_not_sent_to_its_extremes():
    draw = np.random.default_rng(0)
    actions = draw.uniform(-1, 1, (40, 2)).astype(np.float32) * np.float32([100, 1])
    data = dataclasses.replace(
        walk(episodes=4, steps=10),
        actions=actions,
        action_range=ActionRange(np.float32([-100, -1]), np.float32([100, 1])),
    )
    found = {"quantizer": "bins", "codes": 2, "error_per_deviation": 0.01}
    errors = {"error": {"rms_per_deviation": [0.01, 0.9]}}
    (note,) = _notes(gather(data), [found | errors])
    assert "(1)" in note
    assert "they fill their range" in note


@pytest.mark.parametrize(
    ("own", "expected"),
    [([0.02, 0.6], [1]), ([0.02, 0.4], []), ([0.02, None, 0.02, 0.6], [1]), ([0.25, 0.7], [])],
)
def test_a_dimension_is_dropped_above_half_its_deviation_and_thrice_the_whole_error(own, expected):
    whole = 0.25 if own[0] == 0.25 else 0.02
    found = {"error_per_deviation": whole, "error": {"rms_per_deviation": own}}
    assert overlooked(found, 2) == expected


def test_more_codes_than_distinct_actions_are_not_tried(tmp_path, capsys):
    arrays = circling()
    choices = np.float32([[0, 1], [1, 0], [0.5, 0.5], [-1, -0.3]])
    arrays["actions"] = choices[np.random.default_rng(0).integers(0, 4, 600)]
    np.savez(tmp_path / "four.npz", **arrays)
    words = ["--quantizer", "kmeans", "vqvae", "--codes", "2", "16", "64", "--steps", "50"]
    summary, said = compared(tmp_path / "four.npz", capsys, *words)
    assert [r["codes"] for r in summary["results"]] == [2, 4, 2, 4]
    assert {s["codes"] for s in summary["suggestions"].values()} <= {2, 4}
    assert not summary["left_out"]
    (note,) = summary["notes"]
    assert "only 4 distinct actions" in note
    assert "16, 64 codes were requested" in note
    assert "--quantizer.codes 4" in note
    assert f"note: {note}\n" in said
    material = gather(load_dataset(str(tmp_path / "four.npz")))
    five = laboratory.make_quantizer("kmeans", codes=5)
    with pytest.raises(
        ValueError, match=r"5 codes but only 4 distinct actions among the \d+ trans"
    ):
        laboratory.examine(material, five, prior_steps=1, reporter=Reporter(quiet=True))


def test_actions_that_never_change_need_one_code_and_that_is_said(tmp_path, capsys):
    arrays = circling()
    arrays["actions"] = np.full((600, 2), 0.3, np.float32)
    np.savez(tmp_path / "still.npz", **arrays)
    words = ["--quantizer", "kmeans", "--codes", "16", "32", "--steps", "5"]
    summary, said = compared(tmp_path / "still.npz", capsys, *words)
    assert summary["suggestions"]["kmeans"]["codes"] == 2
    assert "note: the actions never change: one code is enough" in said
    assert "use fewer codes" not in said


def test_suggesting_more_codes_than_inspect_supports_is_said():
    found = {"quantizer": "vqvae", "codes": 64, "error_per_deviation": 0.1}
    errors = {"error": {"rms_per_deviation": [0.1, 0.1]}}
    material = gather(walk(episodes=10, steps=60))
    (note,) = _notes(material, [found | errors])
    assert f"vqvae 64 are more than the {material.supported} codes" in note
    assert material.supported == codes_for(len(material.training.actions))


def record(codes: int, error: float, used: int | None = None) -> dict[str, object]:
    return {
        "codes": codes,
        "num_codes": codes,
        "error_per_deviation": error,
        "codes_used": codes if used is None else used,
    }


@pytest.mark.parametrize(
    ("records", "codes", "reason"),
    [
        ([record(16, 0.4), record(32, 0.2), record(64, 0.19)], 32, "5 % per doubling"),
        ([record(16, 0.4), record(64, 0.35)], 16, "less than the 10 %"),
        ([record(16, 0.4), record(32, 0.2), record(64, 0.1)], 64, "try larger"),
        ([record(16, 0.4), record(32, 0.2), record(64, 0.1, 20)], 32, "only 20 are in use"),
        ([record(16, 0.0), record(32, 0.0)], 16, "exactly"),
        ([record(16, 0.4)], 16, "only size"),
        ([record(8, 0.3), record(16, 0.0)], 16, "exactly"),
    ],
)
def test_the_suggested_size_has_its_reason(records, codes, reason):
    count, words = suggest_codes(records[::-1])
    assert count == codes
    assert reason in words


def test_codes_for_every_action_are_enough_and_must_find_them():
    few = [record(2, 0.5), record(4, 0.0005)]
    assert suggest_codes(few, most=4) == (
        4,
        "there are no more distinct actions than that",
    )
    _, words = suggest_codes([record(2, 0.5), record(4, 0.3)], most=4)
    assert "miss them by 0.300" in words


def test_dead_codes_are_said():
    assert codebook_notes(np.arange(16), 16) == []
    (note,) = codebook_notes(np.arange(10), 16)
    assert note.startswith("6 of the 16 codes are not used by any action")


def test_dying_codes_are_said_once_it_can_be_known():
    def note(used, step):
        return dying_note({"codes_used": used}, step, steps=1_000, codes=16)

    assert note(2, 99) is None
    assert note(8, 100) is None
    assert note(7, 1_000).startswith("7 of 16 codes are in use after 1,000 steps")
    assert dying_note({}, 500, steps=1_000, codes=16) is None


def test_a_plateau_is_no_improvement_by_a_hundredth_for_so_many_steps():
    falling = [(step, 0.9**step) for step in range(1, 50)]
    assert not has_plateaued(falling, patience=3)
    flat = [(10, 1.0), (20, 0.5), (30, 0.4999), (40, 0.4998)]
    assert not has_plateaued(flat[:3], patience=20)
    assert has_plateaued(flat, patience=20)
    assert has_plateaued([*flat, (50, 0.1)], patience=20)


def save(path, data: Transitions) -> None:
    ends = np.zeros(len(data), bool)
    ends[data.episode_ends - 1] = True
    np.savez(
        path,
        observations=data.observations,
        actions=data.actions,
        rewards=data.rewards,
        terminals=np.zeros(len(data), bool),
        timeouts=ends,
    )


def test_a_run_stops_at_the_plateau_and_resumes_to_the_same_end(tmp_path, monkeypatch):
    save(tmp_path / "walk.npz", walk(episodes=12))
    settings = settings_from(
        {
            "dataset": str(tmp_path / "walk.npz"),
            "agent": "bc",
            "agent.hidden": 4,
            "agent.batch_size": 8,
            "steps": 10,
            "quantizer": "bins",
            "quantizer.codes": 4,
            "quantizer.patience": 40,
            "quantizer.batch_size": 64,
            "quantizer_steps": 10_000,
            "log_every": 10,
        }
    )
    quiet = Reporter(quiet=True)
    summary = training.train(settings, tmp_path / "whole", resume=False, reporter=quiet)
    records = [r for r in read_history(tmp_path / "whole", "metrics") if r["stage"] == "quantizer"]
    assert records[-1]["step"] < 500
    assert summary["gradient_steps"] == records[-1]["step"] + 10
    assert all("held_out_reconstruction" in r for r in records)

    class Killed(Exception):
        pass

    append = RunFolder.append

    def deadly(self, history, line):
        append(self, history, line)
        if line["stage"] == "quantizer" and line["step"] == 30:
            raise Killed

    monkeypatch.setattr(stages, "CHECKPOINT_PERIOD", 0.0)
    monkeypatch.setattr(RunFolder, "append", deadly)
    with pytest.raises(Killed):
        training.train(settings, tmp_path / "killed", resume=False, reporter=quiet)
    monkeypatch.setattr(RunFolder, "append", append)
    training.train(settings, tmp_path / "killed", resume=True, reporter=quiet)
    texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert texts[0] == texts[1]
    training.train(settings, tmp_path / "killed", resume=True, reporter=quiet)
    assert (tmp_path / "killed" / "metrics.jsonl").read_text() == texts[0]


def test_the_held_out_error_is_that_of_a_plain_loop():
    material = gather(walk(), held_out=0.25)
    centres = np.random.default_rng(1).uniform(-1, 1, (6, 2))
    actions = material.shown.actions.astype(np.float64)
    expected = np.mean([np.square(centres - action).sum(-1).min() for action in actions])
    found = reconstruction_error(fixed_quantizer(centres).codec, material.shown)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


class Slide(gymnasium.Env):
    """A point on a line; it moves by the action, and its place is the reward."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0.0
        return self._get_obs(), {}

    def _get_obs(self):
        return np.array([self.place], np.float32)

    def step(self, action):
        self.place += float(action[0])
        return self._get_obs(), self.place, False, False, {}


@pytest.fixture
def slide(monkeypatch):
    gymnasium.register("saqrl-tests/Slide-v0", entry_point=Slide)

    def place(env, observation):
        env.place = float(observation[0])

    monkeypatch.setattr(starts, "STARTS", {r"saqrl-tests/Slide-v0": place})
    yield "saqrl-tests/Slide-v0"
    del gymnasium.registry["saqrl-tests/Slide-v0"]


def slid(environment: str) -> Transitions:
    """Two recorded episodes of the slide: from 1 by 0.3 a step, from -1 by 1.7."""
    starts, moves, steps = (1.0, -1.0), (0.3, 1.7), 4
    places = np.concatenate([s + m * np.arange(steps) for s, m in zip(starts, moves, strict=True)])
    actions = np.repeat(moves, steps)[:, None].astype(np.float32)
    following = (places[:, None] + actions).astype(np.float32)
    return Transitions(
        observations=places[:, None].astype(np.float32),
        actions=actions,
        rewards=following[:, 0],
        next_observations=following,
        terminated=np.zeros(2 * steps, bool),
        episode_starts=np.array([0, steps]),
        action_range=ActionRange(np.full(1, -2, np.float32), np.full(1, 2, np.float32)),
        environment=EnvironmentSpec(environment),
    )


def test_a_replay_plays_the_decoded_codes_from_the_recorded_start(slide):
    data = slid(slide)
    material = gather(data, held_out=0.5)
    codec = KMeansCodec(find_binary(jnp.asarray([[-1.0], [0], [1]])), jnp.asarray([[0.25], [0.75]]))
    quantizer = ActionQuantizer(codec, MLP(jax.random.key(0), 1, (), 2))
    found = replays.replay(
        data,
        quantizer,
        material.scaling,
        episodes=2,
        error=np.zeros(1, np.float32),
        reporter=Reporter(quiet=True),
    )
    # 0.3 is played as 0.5 and 1.7 as 1.5 (half-width 2): 1 + 0.5 i and -1 + 1.5 i, i = 1..4.
    expected = np.mean(
        [sum(1 + 0.5 * i for i in range(1, 5)), sum(-1 + 1.5 * i for i in range(1, 5))]
    )
    assert found["codes"]["return_mean"] == pytest.approx(expected)
    recorded = found["recorded"]["return_mean"]
    for again in ("actions", "noise"):
        assert found[again]["return_mean"] == pytest.approx(recorded, rel=1e-6)
    assert replays.repeats_recording(found)


def test_a_start_that_cannot_be_restored_is_refused(slide, monkeypatch):
    monkeypatch.setattr(starts, "STARTS", {slide: lambda env, observation: None})
    material = gather(slid(slide), held_out=0.5)
    codec = KMeansCodec(find_binary(jnp.asarray([[-1.0], [0], [1]])), jnp.zeros((2, 1)))
    quantizer = ActionQuantizer(codec, MLP(jax.random.key(0), 1, (), 2))
    arguments = {"episodes": 2, "error": np.zeros(1), "reporter": Reporter(quiet=True)}
    with pytest.raises(replays.NoReplay, match="observation 0 comes out at 0, recorded is 1"):
        replays.replay(slid(slide), quantizer, material.scaling, **arguments)

    def half(env, observation):  # of the two, only the start at -1
        env.place = min(float(observation[0]), 0.0)

    monkeypatch.setattr(starts, "STARTS", {slide: half})
    assert replays.replay(slid(slide), quantizer, material.scaling, **arguments)["episodes"] == 1
    monkeypatch.setattr(starts, "STARTS", {})
    with pytest.raises(replays.NoReplay, match="do not determine the simulator's state"):
        replays.replay(slid(slide), quantizer, material.scaling, **arguments)


def test_the_command_leaves_a_page_that_needs_no_other_file(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    save(tmp_path / "walk.npz", walk(episodes=5))
    save(tmp_path / "stroll.npz", walk(episodes=3))
    words = ["--quantizer", "kmeans", "bins", "--codes", "4", "500", "--steps", "5"]
    words += ["--prior-steps", "5", "--out", str(tmp_path / "page"), "--json"]
    words += ["--beside", str(tmp_path / "stroll.npz")]
    assert command.main([str(tmp_path / "walk.npz"), *words]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    (other,) = summary["beside"]
    best = min(summary["results"], key=lambda r: r["error_per_deviation"])
    assert (other["quantizer"], other["codes"]) == (best["quantizer"], best["codes"])
    assert other["measured_on"] == "1 held-out episodes"
    assert [(r["quantizer"], r["num_codes"]) for r in summary["results"]] == [
        ("kmeans", 4),
        ("bins", 4),
    ]
    assert [left["codes"] for left in summary["left_out"]] == [500, 500]
    assert "only 56 transitions" in summary["left_out"][0]["reason"]
    assert "give --env" in summary["replay"]["bins"]["reason"]
    page = (tmp_path / "page" / "index.html").read_text()
    pictures = sorted((tmp_path / "page").glob("*.png"))
    assert len(pictures) == 5
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page
    text = (tmp_path / "page" / "README.md").read_text()
    assert "For comparison, " in text
    assert all(f"({picture.name})" in text for picture in pictures)
    assert json.loads((tmp_path / "page" / "quantize.json").read_text()) == summary
    with pytest.raises(ValueError, match="exists already"):
        command.main([str(tmp_path / "walk.npz"), "--out", str(tmp_path / "page")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--codes", "1"], "each must be at least 2"),
        (["--held-out", "0"], "held-out is 0"),
        (["--steps", "0"], "steps is 0"),
        (["--quantizer", "kmean"], "did you mean 'kmeans'"),
        (["--preset", "push"], "did you mean 'pusht'"),
        (["--feature-deviation", "0"], "feature-deviation is 0"),
        (["--patience", "-1"], "patience is -1"),
        (["--quantizer.latents", "2"], "latents: vqvae has no such field, but fsq has"),
        (["--quantizer", "bins", "--codes", "3"], "bins: 2 bins in each of 2 action dimensions"),
    ],
)
def test_what_cannot_be_asked_is_said(tmp_path, words, message):
    save(tmp_path / "walk.npz", walk())
    with pytest.raises(ValueError, match=message):
        command.main([str(tmp_path / "walk.npz"), *words])


@pytest.mark.parametrize("preset", ["default", "paper", "cube"])
@pytest.mark.parametrize("name", list(QUANTIZERS))
def test_every_preset_takes_every_quantizer(preset, name):
    settings = build_settings(preset, agent="cql", quantizer=name)
    assert QUANTIZERS.name_of(settings.quantizer) == name
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_resuming_keeps_the_saved_quantizer_and_refuses_another():
    saved = build_settings("default", agent="cql", quantizer="fsq")
    assert settings_from({}, base=saved) == saved
    assert settings_from({"quantizer": "fsq"}, base=saved) == saved
    with pytest.raises(ValueError, match="quantizer is 'fsq' in the run and 'vqvae' here"):
        settings_from({"quantizer": "vqvae"}, base=saved)


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["bc", "cql", "iql", "brac"])
@pytest.mark.parametrize("name", list(QUANTIZERS))
def test_every_quantizer_serves_every_agent(tmp_path, name, agent):
    save(tmp_path / "walk.npz", walk(episodes=12))
    little = {"hidden": 8, "batch_size": 8}
    owners = ("agent", "quantizer", "prior")
    settings = settings_from(
        {
            "dataset": str(tmp_path / "walk.npz"),
            "agent": agent,
            "steps": 5,
            "quantizer": name,
            "quantizer.codes": 10,
            "quantizer_steps": 5,
            "prior.steps": 5,
            **{f"{owner}.{field}": value for owner in owners for field, value in little.items()},
        }
    )
    quiet = Reporter(quiet=True)
    training.train(settings, tmp_path / "run", resume=False, reporter=quiet)
    policy = load_policy(tmp_path / "run" / "policy")
    assert policy.controller.quantizer.num_codes <= 10
    action = policy.player().act(np.zeros(2, np.float32))
    assert (np.abs(action) <= 2).all()
