"""The defaults that every published number rests on: who changes one has to measure again."""

import dataclasses

import pytest

from saqrl.agents import AGENTS
from saqrl.baselines import BASELINES
from saqrl.quantizers import QUANTIZERS

TRAINING = {
    "steps": 20_000,
    "batch_size": 256,
    "hidden": (256, 256),
    "layer_norm": False,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "weight_decay": 0.0,
    "precision": "float32",
}
CLONES = TRAINING | {"weight_decay": 1e-4, "discount": 0.99}
CRITICS = TRAINING | {
    "layer_norm": True,
    "learning_rate": 3e-4,
    "schedule": "constant",
    "critics": 2,
    "discount": 0.99,
    "chunk_discount": None,
    "target_rate": 0.005,
}
OF_CODES = CRITICS | {"bins": 0, "value_range": (-15.0, 15.0), "deviations": None}
CODES = TRAINING | {"codes": 64, "patience": 0}
BOOKS = CODES | {
    "code_size": 16,
    "commitment": 4.0,
    "decay": 0.99,
    "revive_below": 0.3,
    "revive_until": 0.6,
}
VQVAE = BOOKS | {"encodings": "bounded", "first_codes": "kmeans", "codebook": "average"}
VQVAE |= {"spare": 0}

DEFAULTS = {
    AGENTS: {
        "bc": CLONES | {"steps": 10_000},
        "cql": OF_CODES
        | {"alpha": 5.0, "threshold": 0.01, "target_period": 1, "temperature": 0.5}
        | {"support": 0.0, "mass": 1.0},
        "iql": OF_CODES
        | {"expectile": 0.9, "temperature": 1.0, "prior_floor": -8.0}
        | {"extraction": "reweighted", "support": 1.0, "prior_temperature": None}
        | {"q_of": "codes"},
        "brac": OF_CODES
        | {"alpha": 1.0, "prior_floor": -8.0, "temperature": 1.0, "closed_form": False},
    },
    BASELINES: {
        "bc": CLONES,
        "gaussian": CLONES | {"reach": 1.1},
        "gmm": CLONES | {"components": 5},
        "cql": CRITICS | {"alpha": 5.0, "samples": 10},
        "iql": CRITICS | {"expectile": 0.7, "beta": 3.0},
        "brac": CRITICS | {"alpha": 1.0, "samples": 4, "behaviour_share": 0.25, "reach": 1.1},
        "rebrac": CRITICS
        | {
            "hidden": (256, 256, 256),
            "learning_rate": 1e-3,
            "actor_penalty": 0.01,
            "critic_penalty": 0.01,
            "target_noise": 0.2,
            "noise_clip": 0.5,
            "policy_period": 2,
        },
        "fql": CRITICS
        | {"alpha": 10.0, "normalize_q": False, "target_q": "mean", "flow_steps": 10},
    },
    QUANTIZERS: {
        "vqvae": VQVAE | {"state_scale": 1.0},
        "vqvae-unconditioned": VQVAE | {"state_scale": 0.0},
        "residual": BOOKS,
        "fsq": CODES | {"latents": 3},
        "kmeans": CODES | {"steps": 2_000, "iterations": 30},
        "bins": CODES | {"steps": 2_000},
        "candidates": CODES | {"temperature": 0.01},
    },
}
SAMPLING = {(AGENTS, name) for name in ("bc", "cql", "iql", "brac")} | {
    (BASELINES, name) for name in ("gmm", "fql")
}


@pytest.mark.parametrize(
    ("registry", "name"), [(registry, name) for registry in DEFAULTS for name in DEFAULTS[registry]]
)
def test_defaults_are_those_of_the_measurements(registry, name):
    algorithm = registry.load(name)()
    assert dataclasses.asdict(algorithm) == DEFAULTS[registry][name]
    if registry is not QUANTIZERS:
        sampled = (registry, name) in SAMPLING
        assert algorithm.default_act == ("sample" if sampled else "greedy")
