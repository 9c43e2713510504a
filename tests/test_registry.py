"""One's own agents, quantizers, formats and environments: by a call, or by an installed package."""

import dataclasses
import shutil
import sys
from types import SimpleNamespace

import equinox as eqx
import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import saqrl
from saqrl.cli import main
from saqrl.datasets import load_dataset
from saqrl.datasets.formats import npz
from saqrl.environments.make import make_environment
from saqrl.policy.storage import load_policy
from saqrl.quantizers.kmeans import KMeans
from saqrl.registry import AGENTS, FORMATS, KINDS
from saqrl.training.presets import settings_from
from saqrl.training.settings import Settings
from saqrl.training.train import saved_settings
from tests.walking import Point, run


@dataclasses.dataclass(frozen=True)
class Frequent:
    """Plays the code that the data has most often."""

    steps: int = 20
    batch_size: int = 16
    hidden: tuple[int, ...] = ()
    precision: str = "float32"
    discount: float = 0.9
    weight: float = 1.0
    """of one occurrence"""

    default_act = "greedy"

    def init(self, key, example):
        return {"counts": jnp.zeros(example.num_codes)}

    def update(self, state, batch, key):
        counts = state["counts"].at[batch.codes].add(self.weight)
        return {"counts": counts}, {"largest": counts.max()}

    def actor(self, state):
        return Counts(state["counts"])


class Counts(eqx.Module):
    counts: Float[Array, " codes"]

    def logits(self, observation, log_prior):
        return self.counts


@dataclasses.dataclass(frozen=True)
class Coarse(KMeans):
    """k-means under another name."""


ENVIRONMENT = "saqrl-tests/Own-v0"
READER = SimpleNamespace(
    SUMMARY="npz under another name",
    SUFFIXES=(".walk",),
    OPTIONS=(),
    recognises=lambda path: False,
    read=npz.read,
)
OWN = {
    "agent": ("frequent", Frequent),
    "quantizer": ("coarse", Coarse),
    "format": ("walk", READER),
    "environment": (ENVIRONMENT, Point),
}


@pytest.fixture(autouse=True)
def _registries(registries):
    yield
    gymnasium.registry.pop(ENVIRONMENT, None)


@pytest.fixture
def own():
    for kind, (name, implementation) in OWN.items():
        saqrl.register(kind, name, implementation)


def settings_of(log, **flags) -> Settings:
    return settings_from(
        {
            "dataset": f"walk:{log}",
            "env": ENVIRONMENT,
            "agent": "frequent",
            "agent.weight": "2",
            "quantizer": "coarse",
            "quantizer.codes": 8,
            "quantizer_steps": 20,
            "steps": 20,
            "prior.hidden": 16,
            "prior.steps": 10,
            "eval_episodes": 2,
            **flags,
        }
    )


@pytest.mark.usefixtures("own")
def test_what_is_registered_trains_acts_and_is_found_again_by_its_name(dataset, tmp_path):
    log = shutil.copy(dataset, tmp_path / "log.walk")
    with pytest.raises(ValueError, match=r"with agent frequent and quantizer Coarse"):
        settings_of(log, **{"quantizer.code_size": 4})
    settings = settings_of(log)
    summary = run(settings, tmp_path / "run")
    assert summary["agent"] == "frequent"
    assert summary["env"] == ENVIRONMENT
    assert summary["return_mean"] is not None
    saved = saved_settings(tmp_path / "run")
    assert saved == settings
    assert isinstance(saved.agent, Frequent)
    assert saved.agent.weight == 2.0
    policy = load_policy(tmp_path / "run" / "policy")
    one, other = (policy.player(act="greedy").act(np.full(2, x)) for x in (-0.9, 0.9))
    np.testing.assert_array_equal(one, other)  # k-means' codes are the same in every state


def test_a_run_of_what_is_not_registered_here_says_what_to_do(dataset, tmp_path, monkeypatch):
    with monkeypatch.context() as there:
        for registry in KINDS.values():
            there.setattr(registry, "_entries", dict(registry._entries))
        for kind, (name, implementation) in OWN.items():
            saqrl.register(kind, name, implementation)
        run(settings_of(shutil.copy(dataset, tmp_path / "log.walk")), tmp_path / "run")
    remedy = (
        r"unknown (agent|quantizer) '(frequent|coarse)'.*install it.*call saqrl\.register first"
    )
    with pytest.raises(ValueError, match=remedy):
        saved_settings(tmp_path / "run")
    with pytest.raises(ValueError, match=remedy):
        load_policy(tmp_path / "run" / "policy")


@pytest.mark.usefixtures("own")
def test_a_format_of_ones_own_is_known_by_name_and_by_suffix(dataset, tmp_path):
    path = shutil.copy(dataset, tmp_path / "log.walk")
    for spec in (f"walk:{path}", str(path)):
        assert len(load_dataset(spec)) == len(load_dataset(str(dataset)))


@pytest.mark.usefixtures("own")
def test_an_environment_of_ones_own_is_made_by_its_id():
    environment = make_environment(ENVIRONMENT)
    assert environment.observation_space.shape == (2,)
    environment.close()


@pytest.mark.usefixtures("own")
def test_flags_and_help_of_what_is_registered_follow_by_themselves(capsys, monkeypatch):
    monkeypatch.setattr("saqrl.cli.keep_compiled_programs", lambda: None)
    assert main(["train", "--help-all", "--agent", "frequent"]) == 0
    text = capsys.readouterr().out
    assert "brac, frequent;" in " ".join(text.split())
    assert "--agent.weight X" in text
    assert "of one occurrence (1.0)" in text


def lacking(**without):
    """`Frequent` without what is named."""
    members = {k: v for k, v in vars(Frequent).items() if k in ("init", "update", "actor")}
    members["default_act"] = "greedy"
    values = {"steps": 1, "batch_size": 1, "precision": "float32", "discount": 0.9}
    for name in without.get("names", ()):
        members.pop(name, None)
        values.pop(name, None)
    fields = [(name, type(value), value) for name, value in values.items()]
    fields = [*without.get("fields", ()), *fields]
    frozen = without.get("frozen", True)
    return dataclasses.make_dataclass("Mine", fields, namespace=members, frozen=frozen)


UNFIT = [
    ("agent", lacking(names=["update"]), "Mine does not fit as agent 'mine': no update"),
    ("agent", lacking(names=["update", "discount"]), "no update, no field discount"),
    ("agent", lacking(frozen=False), r"no @dataclass\(frozen=True\)"),
    ("agent", lacking(fields=[("alpha", float)]), "no default for alpha"),
    ("agent", object, r"no @dataclass\(frozen=True\)"),
    ("quantizer", Frequent, "Frequent does not fit as quantizer 'mine': no codec, no field codes"),
    ("format", SimpleNamespace(SUMMARY="", SUFFIXES=()), "no OPTIONS, no recognises, no read"),
    ("environment", ["no", "maker"], "it is not callable"),
    ("agnt", Frequent, "unknown kind 'agnt'; did you mean 'agent'"),
]


@pytest.mark.parametrize(("kind", "implementation", "message"), UNFIT)
def test_what_lacks_something_is_refused_and_the_lack_named(kind, implementation, message):
    with pytest.raises(ValueError, match=message) as refused:
        saqrl.register(kind, "mine", implementation)
    assert "\n" not in str(refused.value)
    assert all("mine" not in registry for registry in KINDS.values())


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="there is a agent 'cql' already: choose another name"):
        saqrl.register("agent", "cql", Frequent)
    saqrl.register("agent", "mine", Frequent)
    saqrl.register("agent", "mine", Frequent)  # a module that is imported again
    with pytest.raises(ValueError, match="'mine' already"):
        saqrl.register("agent", "mine", lacking())
    assert AGENTS.load("mine") is Frequent


ENTRY_POINTS = """
[saqrl.agents]
installed = saqrl_tests_sound:Frequent
unfit = saqrl_tests_sound:Unfit
broken = saqrl_tests_broken:Agent
absent = saqrl_tests_nowhere:Agent
cql = saqrl_tests_sound:Frequent

[saqrl.formats]
broken-format = saqrl_tests_broken:reader
"""
SOUND = """
from tests.test_registry import Frequent as _Frequent

class Frequent(_Frequent):
    pass

class Unfit:
    pass
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A distribution with a sound module and a broken one, as pip leaves it."""
    folder = tmp_path / "site"
    information = folder / "saqrl_tests-1.2.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: saqrl-tests\nVersion: 1.2")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "saqrl_tests_sound.py").write_text(SOUND)
    (folder / "saqrl_tests_broken.py").write_text("raise RuntimeError('no such GPU\\nat all')")
    monkeypatch.syspath_prepend(folder)
    yield
    sys.modules.pop("saqrl_tests_sound", None)


@pytest.mark.usefixtures("package")
def test_an_installed_package_is_known_by_its_entry_points():
    assert {"installed", "broken", "cql"} <= set(AGENTS)
    assert list(AGENTS).count("cql") == 1
    assert "saqrl_tests_sound" not in sys.modules  # until it is asked for
    found = AGENTS.load("installed")
    assert found.__module__ == "saqrl_tests_sound"
    assert AGENTS.name_of(found()) == "installed"
    assert AGENTS.load("cql").__module__ == "saqrl.agents.cql"  # nobody takes a name of ours


@pytest.mark.usefixtures("package")
def test_a_broken_package_is_named_and_disturbs_no_other(dataset, capsys, monkeypatch):
    for name, cause in (
        ("broken", "saqrl_tests_broken:Agent .RuntimeError: no such GPU"),
        ("absent", "saqrl_tests_nowhere:Agent .ModuleNotFoundError: No module named"),
    ):
        said = f"agent '{name}' of saqrl-tests 1.2 cannot be imported from {cause}"
        with pytest.raises(ImportError, match=said):
            AGENTS.load(name)
    with pytest.raises(ValueError, match="Unfit does not fit as agent 'unfit'"):
        AGENTS.load("unfit")
    assert AGENTS.load("installed").__name__ == "Frequent"
    assert "broken-format" in FORMATS
    assert len(load_dataset(str(dataset))) > 0
    monkeypatch.setattr("saqrl.cli.keep_compiled_programs", lambda: None)
    assert main(["train", "--help"]) == 0
    assert "broken" in capsys.readouterr().out
    assert main(["train", "--dataset", str(dataset), "--agent", "broken"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("saqrl: error: agent 'broken' of saqrl-tests 1.2 cannot be imported")
