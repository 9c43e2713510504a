"""What the recipe chooses from a log, and that flags come before it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from saqrl.agents.bc import BC
from saqrl.agents.iql import IQL
from saqrl.datasets import Transitions
from saqrl.datasets.assembly import assemble
from saqrl.registry import AGENTS
from saqrl.run import fit
from saqrl.training.data import arranged, fingerprint
from saqrl.training.flags import changed
from saqrl.training.presets import settings_from
from saqrl.training.recipe import Stages, applies, recommended, stages_of
from saqrl.training.run_folder import read_config

KEPT, DRAWN = 1.0, 0.0


def log_of(kept: float, *, episodes: int = 40, steps: int = 50, **rewards) -> Transitions:
    """Episodes through the same states; of the actions' deviations so much is kept for good."""
    draw = np.random.default_rng(0)
    time = np.arange(steps) / steps
    path = np.stack([np.cos(3 * time), np.sin(3 * time), time], 1)
    observations, actions = [], []
    for _ in range(episodes):
        seen = path + draw.normal(0, 0.002, path.shape)
        side = draw.choice([-0.3, 0.3])
        other = draw.normal(0, 0.3, (steps, 2))
        observations.append(seen)
        actions.append(0.3 * seen[:, :2] + kept * side + (1 - kept) * other)
    ends = np.zeros(episodes * steps, bool)
    ends[steps - 1 :: steps] = True
    columns = {
        "observations": np.concatenate(observations).astype(np.float32),
        "actions": np.concatenate(actions).astype(np.float32),
        "timeouts": ends,
    }
    return assemble(columns | rewards, source="made here")


def said(**flags):
    return {"dataset": "log.npz", **flags}


def test_choices_that_are_kept_ask_for_chunks_that_are_sampled():
    settings, _, choices = recommended(log_of(KEPT), said())
    assert settings.features.chunk == settings.evaluation.action_horizon == 8
    assert settings.evaluation.act == "sample"
    assert {choice.flag for choice in choices} >= {"agent", "chunk", "quantizer.codes", "act"}
    assert all(choice.reason for choice in choices)


def test_noise_asks_for_single_steps_and_regression():
    settings, _, _ = recommended(log_of(DRAWN), said())
    assert settings.features.chunk == 1
    assert not settings.quantized


def test_ensembles_even_out_few_steps_of_codes_and_very_few_of_regression():
    def members(kept, episodes):
        return recommended(log_of(kept, episodes=episodes), said())[0].members

    assert (members(KEPT, 60), members(DRAWN, 60), members(DRAWN, 30)) == (3, 1, 3)
    assert recommended(log_of(DRAWN, episodes=60), said())[0].agent.steps == 5_000


@pytest.mark.parametrize(
    "flags", [{"quantizer": "kmeans"}, {"quantizer.codes": 9}, {"quantizer_steps": 5}]
)
def test_regression_is_not_chosen_where_something_is_said_of_codes(flags):
    settings, _, _ = recommended(log_of(DRAWN), said(**flags))
    assert settings.quantized


def test_an_agent_that_knows_codes_alone_keeps_them(monkeypatch):
    monkeypatch.setitem(AGENTS._entries, "mine", BC)
    settings, _, _ = recommended(log_of(DRAWN), said(agent="mine"))
    assert settings.quantized


def test_a_field_that_only_the_agent_on_codes_has_keeps_the_codes():
    log = log_of(DRAWN)
    rewarded = Transitions(**{**vars(log), "has_rewards": True})
    own = said(agent="iql", **{"agent.temperature": 2.0})
    settings, _, _ = recommended(rewarded, own)
    assert (settings.quantized, settings.agent.temperature) == (True, 2.0)
    shared, _, _ = recommended(rewarded, said(agent="iql", **{"agent.expectile": 0.8}))
    assert (shared.quantized, shared.agent.expectile) == (False, 0.8)


def rewards_of(log: Transitions, per_step) -> Transitions:
    rewards = np.repeat(np.asarray(per_step, np.float32), log.episode_lengths)
    return Transitions(**{**vars(log), "rewards": rewards, "has_rewards": True})


def test_mixed_returns_ask_for_values_where_there_are_steps_enough():
    log = log_of(KEPT, episodes=60)
    mixed = rewards_of(log, np.linspace(0, 1, 60))
    alike = rewards_of(log, np.linspace(0.9, 1, 60))
    assert recommended(alike, said())[0].agent_name == "bc"
    few = recommended(mixed, said())
    assert few[0].agent_name == "bc"
    assert "too few to learn values from" in str(few[2][0])
    rows = np.tile(np.arange(len(log)), 20)
    large = mixed.select_rows(rows, np.arange(60 * 20) * (len(log) // 60))
    assert recommended(large, said())[0].agent_name == "iql"
    chunks, single = (recommended(large, said(chunk=chunk))[0].agent for chunk in (5, 1))
    assert (chunks.expectile, chunks.temperature, chunks.q_of) == (0.7, 0.3, "actions")
    assert single.q_of == "codes"
    assert (single.expectile, single.temperature) == (IQL().expectile, IQL().temperature)
    noise = recommended(large, said(actions="continuous"))[0]
    assert (noise.agent_name, noise.quantized) == ("iql", False)


def improving(log: Transitions) -> Transitions:
    """Rewards of many values; the last quarter of the episodes is good."""
    number = np.arange(log.num_episodes)
    good = number >= 0.75 * log.num_episodes
    return rewards_of(log, np.where(good, 1.0, 0.1) + 0.001 * (number % 37))


def test_of_mixed_returns_the_best_episodes_are_cloned_where_they_are_enough():
    log = improving(log_of(DRAWN, episodes=2_800))
    settings, kept, choices = recommended(log, said())
    assert (settings.agent_name, settings.quantized, settings.data.best) == ("bc", False, 0.25)
    assert kept.num_episodes == 700
    assert kept.rewards.min() >= 1
    assert "700 of 2,800 episodes are as good as the best; their 34,300 steps" in str(choices[0])
    fewer = improving(log_of(DRAWN, episodes=1_200))
    assert recommended(fewer, said())[0].agent_name == "iql"


def test_the_best_are_cloned_though_costs_near_nothing_differ_most():
    log = log_of(DRAWN, episodes=9_000)
    costs = rewards_of(log, np.linspace(-20, 0, 9_000))
    settings, _, _ = recommended(costs, said())
    assert settings.agent_name == "bc"
    assert settings.data.best < 0.2


@pytest.mark.parametrize(
    "flags",
    [
        {"agent": "iql"},
        {"data_best": 1.0},
        {"dataset.min_return": -1.0},
    ],
)
def test_episodes_are_not_chosen_where_values_or_others_are_asked_for(flags):
    log = improving(log_of(DRAWN, episodes=2_800))
    settings, kept, choices = recommended(log, said(**flags))
    assert settings.agent_name == "iql"
    assert kept is log or kept.num_episodes == 2_800
    assert not any(choice.flag == "data_best" for choice in choices)


def test_luck_is_no_reason_to_choose_an_episode():
    log = improving(log_of(DRAWN, episodes=2_800))
    shuffled = log.select_episodes(np.random.default_rng(0).permutation(2_800))
    settings, _, _ = recommended(shuffled, said())
    assert (settings.agent_name, settings.data.best) == ("iql", 1.0)


def test_an_easy_start_is_no_reason_to_choose_an_episode():
    log = improving(log_of(DRAWN, episodes=2_800))
    observations = log.observations.copy()
    good = log.rewards[log.episode_starts] >= 1
    observations[log.episode_starts[good]] += 5
    settings, _, _ = recommended(replace(log, observations=observations), said())
    assert (settings.agent_name, settings.data.best) == ("iql", 1.0)


def staged(log: Transitions, reached: float) -> Transitions:
    """Costs of -2 and -1 by turns; a share of the episodes ends with 0."""
    rewards = np.where(np.arange(len(log)) % 7, -2.0, -1.0).astype(np.float32)
    solved = np.arange(log.num_episodes) < reached * log.num_episodes
    rewards[log.episode_ends[solved] - 1] = 0.0
    return Transitions(**{**vars(log), "rewards": rewards, "has_rewards": True})


def test_a_task_that_few_episodes_solve_asks_for_values_that_reach_far():
    log = log_of(KEPT, episodes=1_100)
    few, most = (recommended(staged(log, share), said()) for share in (0.1, 0.9))
    assert (few[0].agent_name, most[0].agent_name) == ("iql", "bc")
    assert "10 % of 1,100 episodes reach the highest reward" in str(few[2][0])
    assert (few[0].agent.expectile, few[0].agent.discount) == (0.9, 0.995)
    single = recommended(staged(log, 0.1), said(chunk=1))[0].agent
    assert (single.expectile, single.discount) == (IQL().expectile, IQL().discount)


def test_a_reward_for_success_alone_is_not_scaled_up():
    log = log_of(KEPT, episodes=1_100)
    rewards = np.zeros(len(log), np.float32)
    rewards[log.episode_ends[::2] - 1] = 1.0
    paid = Transitions(**{**vars(log), "rewards": rewards, "has_rewards": True})
    settings, _, choices = recommended(paid, said())
    assert (settings.agent_name, settings.agent.temperature) == ("iql", 0.1)
    assert settings.features.reward_scale == "none"
    assert any("only 1.0 % of the steps have a reward" in str(choice) for choice in choices)
    everywhere = Transitions(**{**vars(paid), "rewards": rewards - 1})  # a cost of each step
    settings, _, _ = recommended(everywhere, said(agent="iql"))
    assert (settings.agent.temperature, settings.features.reward_scale) == (0.3, "unit")
    hundred = Transitions(**{**vars(paid), "rewards": 100 * rewards})
    assert recommended(hundred, said())[0].agent.temperature == pytest.approx(10.0)
    crashes = Transitions(**{**vars(paid), "rewards": -rewards})
    assert recommended(crashes, said(agent="iql"))[0].features.reward_scale == "unit"
    for flag, value in (("reward_scale", "unit"), ("agent.temperature", 0.3)):
        settings, _, _ = recommended(paid, said(**{flag: value}))
        assert (settings.agent.temperature, settings.features.reward_scale) == (0.3, "unit")


def test_wins_and_losses_are_no_parts_of_a_task():
    log = log_of(KEPT, episodes=60)
    rewards = np.zeros(len(log), np.float32)
    rewards[log.episode_ends - 1] = np.resize([-1.0, 1.0], 60)
    assert stages_of(replace(log, rewards=rewards, has_rewards=True)) == Stages()
    costs = replace(log, rewards=np.minimum(rewards, 0), has_rewards=True)
    assert stages_of(costs) == Stages(2, 0.0, 1.0, pytest.approx(0.5 / 49, rel=0.01))


@pytest.mark.parametrize(
    "flags", [{"chunk": 3}, {"act": "greedy"}, {"quantizer.codes": 5}, {"agent": "bc"}]
)
def test_a_flag_is_never_changed(flags):
    settings, _, choices = recommended(log_of(KEPT), said(**flags))
    assert changed(settings, flags if "agent" not in flags else {}) == settings
    assert not {choice.flag for choice in choices} & flags.keys()


def test_what_is_said_decides_what_follows_from_it():
    log = log_of(KEPT)
    own, _, _ = recommended(log, said())
    single, _, choices = recommended(log, said(chunk=1))
    assert single.quantizer.codes > own.quantizer.codes  # more decisions, shorter ones
    assert any(choice.flag == "quantizer.codes" for choice in choices)


def test_neither_name_nor_environment_of_the_data_changes_a_choice():
    log = log_of(KEPT)
    first, _, _ = recommended(log, said())
    other, _, _ = recommended(log, {"dataset": "pusht.npz", "env": "gym_pusht/PushT-v0"})
    assert other.to_json() | {"data": None} == first.to_json() | {"data": None}


def test_an_angle_that_wraps_is_found():
    log = log_of(KEPT)
    turning = np.mod(np.arange(len(log)) * 0.3, 2 * np.pi).astype(np.float32)
    observations = np.concatenate([log.observations, turning[:, None]], 1)
    wrapped = Transitions(
        **{**vars(log), "observations": observations, "next_observations": observations}
    )
    settings, seen, choices = recommended(wrapped, said())
    assert settings.data.angles == seen.angles == (3,)
    assert "angles 3: it jumps by a full turn" in str(choices[0])


def test_actions_that_never_differ_are_said_to_leave_it_open():
    log = log_of(KEPT)
    still = Transitions(**{**vars(log), "actions": np.zeros_like(log.actions)})
    _, _, choices = recommended(still, said())
    (chunk,) = (choice for choice in choices if choice.flag == "chunk")
    assert (chunk.value, "actions are equal" in chunk.reason) == (1, True)


def test_three_episodes_are_said_to_be_too_few_to_tell():
    _, _, choices = recommended(log_of(KEPT, episodes=2), said())
    (chunk,) = (choice for choice in choices if choice.flag == "chunk")
    assert chunk.value == 1
    assert "too few" in chunk.reason


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"dataset": "a.npz"}, True),
        ({"dataset": "a.npz", "recipe": "plain"}, False),
        ({"dataset": "a.npz", "preset": "default"}, False),
        ({"dataset": "a.npz", "preset": "default", "recipe": "auto"}, True),
        ({}, False),
    ],
)
def test_the_recipe_is_the_default_where_no_preset_is_named(flags, wanted):
    assert applies(flags) == wanted


def test_another_word_than_auto_and_plain_is_refused():
    with pytest.raises(ValueError, match=r"recipe is 'best'; 'auto' .* or 'plain'"):
        applies({"recipe": "best"})


FEW = {"steps": 3, "quantizer_steps": 3, "quiet": True, "agent.hidden": (4,)}


def test_a_run_records_its_choices_and_can_be_gone_on_with(tmp_path):
    log = log_of(KEPT)
    out = tmp_path / "run"
    run = fit(log, out=out, **FEW)
    recorded = read_config(out)["recipe"]
    settings, _, choices = recommended(log, {"dataset": "arrays in memory"})
    assert [choice["flag"] for choice in recorded] == [choice.flag for choice in choices]
    assert recorded[0].keys() == {"flag", "value", "reason"}
    assert run.settings.features.chunk == settings.features.chunk == 8
    before = (out / "result.json").read_bytes()
    (out / "result.json").unlink()
    assert fit(log, out=out, resume=True, **FEW).result["act"] == json.loads(before)["act"]
    with pytest.raises(ValueError, match=r"--resume: features\.chunk is 8 in the run and 2 here"):
        fit(log, out=out, resume=True, chunk=2, **FEW)


def test_codes_that_were_asked_for_in_python_are_kept(tmp_path):
    run = fit(log_of(DRAWN), out=tmp_path / "run", actions="quantized", **FEW)
    assert run.settings.quantized


def test_arrays_are_selected_from_as_files_are(tmp_path):
    log = rewards_of(log_of(DRAWN), np.arange(40))
    run = fit(log, out=tmp_path / "run", **FEW, **{"dataset.min_return": 49.0 * 10})
    assert read_config(run.path)["data"]["episodes"] == 30
    best = fit(log, out=tmp_path / "best", data_best=0.25, **FEW)
    assert read_config(best.path)["data"]["episodes"] == 10
    (best.path / "result.json").unlink()
    assert fit(log, out=best.path, resume=True).settings == best.settings
    with pytest.raises(ValueError, match=r"the format of arrays does not use dataset\.keys"):
        fit(log, out=tmp_path / "none", **FEW, **{"dataset.keys": ("a",)})


def test_a_log_that_was_selected_is_not_selected_from_again(tmp_path):
    log = rewards_of(log_of(DRAWN), np.arange(40))
    settings = settings_from({"dataset": "arrays in memory", "data_best": 0.25})
    chosen = arranged(log, settings)
    assert chosen.num_episodes == 10
    assert arranged(chosen, settings, fingerprint(chosen)).num_episodes == 10
    assert arranged(log, settings, fingerprint(chosen)).num_episodes == 10
    assert arranged(chosen, settings).num_episodes == 2


def test_a_plain_run_has_the_fixed_defaults(tmp_path):
    run = fit(log_of(KEPT), out=tmp_path / "run", recipe="plain", **FEW)
    assert read_config(run.path)["recipe"] == []
    plain = settings_from({"dataset": "arrays in memory", "recipe": "plain"})
    assert run.settings.features == plain.features
    assert run.settings.evaluation == plain.evaluation
