"""Every named preset can be built, and says what it is to be held against."""

import json

import pytest

from saqrl.agents import AGENTS
from saqrl.baselines import BASELINES
from saqrl.commands import presets as command
from saqrl.training.presets import PRESETS, build_settings

KINDS = [("quantized", name) for name in AGENTS] + [("continuous", name) for name in BASELINES]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_for_every_agent(name):
    for actions, agent in KINDS:
        settings = build_settings(name, agent=agent, quantizer="vqvae", actions=actions)
        assert settings.agent_name == agent
        own = (PRESETS[name].acts if actions == "quantized" else {}).get(agent)
        assert settings.evaluation.act == (own or settings.agent.default_act)


def test_the_papers_cql_acts_greedily_and_ours_samples():
    acts = {
        name: build_settings(name, agent="cql", quantizer="vqvae").evaluation.act
        for name in ("paper", "paper-hopper-expert", "default", "pusht")
    }
    assert acts == {
        "paper": "greedy",
        "paper-hopper-expert": "greedy",
        "default": "sample",
        "pusht": "sample",
    }


def test_the_papers_cloning_is_what_its_script_says():
    settings = build_settings("paper", agent="bc")
    agent = settings.agent
    assert (agent.steps, agent.hidden, agent.weight_decay) == (1_000_000, (256, 256), 1e-3)
    assert settings.evaluation.act == "greedy"
    iql = build_settings("paper", agent="iql")
    assert (iql.agent.critics, iql.agent.weight_decay) == (1, 1e-3)
    assert (iql.prior.steps, iql.prior.weight_decay) == (2_000_000, 0.0)
    assert iql.evaluation.act == "sample"


def test_the_papers_iql_has_a_smaller_prior_than_its_other_agents():
    priors = {
        agent: build_settings("paper", agent=agent, quantizer="vqvae").prior
        for agent in ("bc", "cql", "iql")
    }
    assert {agent: prior.hidden for agent, prior in priors.items()} == {
        "bc": (512, 512),
        "cql": (512, 512),
        "iql": (256, 256),
    }
    assert priors["iql"].weight_decay == 0  # given explicitly: not AdamW's own default


@pytest.mark.parametrize("name", [n for n, preset in PRESETS.items() if preset.expected])
def test_published_rows_name_data_protocol_and_source(name):
    preset = PRESETS[name]
    assert preset.data
    assert preset.protocol
    assert "arXiv" in preset.source or "repository" in preset.source


def test_listing_shows_every_preset_and_its_json(capsys):
    assert command.main(["--json"]) == 0
    shown = capsys.readouterr()
    listed = json.loads(shown.out.splitlines()[-1])
    assert list(listed) == list(PRESETS)
    assert listed["pusht-chunk8"]["settings"]["chunk"] == 8
    for name, preset in PRESETS.items():
        assert f"{name}: {preset.summary}" in shown.err
