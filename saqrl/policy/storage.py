"""A policy on disk: policy.json says what it is, weights.npz holds its arrays. No pickle."""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saqrl import agents, baselines, nn, quantizers
from saqrl.arrays import named_leaves, rebuild_tree, write_atomically
from saqrl.datasets import EnvironmentSpec
from saqrl.datasets.scaling import ActionRange, ObservationScaling
from saqrl.policy.policy import CodeController, ContinuousController, Controller, Policy

# 1 had `execute` in place of `action_horizon`.
FORMAT = 2


class PolicyError(ValueError):
    """A folder that holds no policy that can be loaded; the text says what is wrong."""


def save_policy(policy: Policy, folder: Path) -> None:
    """Write policy.json and weights.npz into `folder`; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    scaling = policy.observation_scaling
    arrays = {
        "observation_mean": scaling.mean,
        "observation_inverse_scale": scaling.inverse_scale,
        "observation_limit": np.asarray(scaling.limit),
        "action_low": policy.action_range.low,
        "action_high": policy.action_range.high,
    } | {f"controller{name}": leaf for name, leaf in named_leaves(policy.controller).items()}
    described = {
        "format": FORMAT,
        "observation_size": policy.observation_size,
        "angles": list(scaling.angles),
        "chunk": policy.chunk,
        "action_horizon": policy.action_horizon,
        "default_act": policy.default_act,
        "environment": policy.environment and asdict(policy.environment),
        "controller": dict(policy.description),
    }
    weights = io.BytesIO()
    np.savez(weights, **arrays)  # type: ignore[arg-type]
    write_atomically(folder / "weights.npz", weights.getvalue())
    write_atomically(folder / "policy.json", json.dumps(described, indent=2).encode())


def load_policy(path: Path | str) -> Policy:
    """The policy of a run: `path` is the run's folder, or a folder that `save_policy` wrote.

    Raises PolicyError where a file is missing, damaged, or from another format.
    """
    folder = Path(path)
    if not (folder / "policy.json").is_file() and (folder / "config.json").is_file():
        folder = folder / "policy"
    if not (folder / "policy.json").is_file():
        raise PolicyError(f"{folder} holds no policy (no policy.json): has its run finished?")
    try:
        described = json.loads((folder / "policy.json").read_text())
        if described["format"] != FORMAT:
            raise PolicyError(
                f"{folder}: policy format {described['format']}, this version reads {FORMAT}; "
                "load it with the saqrl that wrote it"
            )
        # From memory: NumPy leaves a damaged file open.
        content = io.BytesIO((folder / "weights.npz").read_bytes())
        with np.load(content, allow_pickle=False) as archive:
            arrays = dict(archive)
        prefix = "controller"
        leaves = {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}
        environment = described["environment"]
        skeleton = jax.eval_shape(lambda: controller_skeleton(described["controller"]))
        return Policy(
            controller=rebuild_tree(skeleton, leaves),
            observation_scaling=ObservationScaling(
                tuple(described["angles"]),
                arrays["observation_mean"],
                arrays["observation_inverse_scale"],
                float(arrays["observation_limit"]),
            ),
            action_range=ActionRange(arrays["action_low"], arrays["action_high"]),
            observation_size=described["observation_size"],
            chunk=described["chunk"],
            action_horizon=described["action_horizon"],
            default_act=described["default_act"],
            environment=environment and EnvironmentSpec(**environment),
            description=described["controller"],
        )
    except PolicyError:
        raise
    except Exception as error:  # whatever a damaged file makes NumPy, zipfile or JSON raise
        raise PolicyError(f"{folder}: damaged policy ({type(error).__name__}: {error})") from error


def controller_skeleton(described: Mapping[str, Any]) -> Controller:
    """A controller of the described shape with meaningless values; called for its shapes only."""
    features = jnp.zeros((1, described["features"]))
    actions = jnp.zeros((1, described["chunk_action_size"]))
    scalar = jnp.zeros(1)
    key = jax.random.key(0)
    if described["kind"] == "continuous":
        baseline = baselines.BASELINES.rebuild(described["agent"])
        data = baselines.ContinuousTransitions(features, actions, scalar, features, scalar, actions)
        return ContinuousController(baseline.actor(baseline.init(key, data)))
    quantizer = quantizers.QUANTIZERS.rebuild(described["quantizer"])
    codec = quantizer.codec(quantizer.init(key, quantizers.ActionBatch(features, actions)))
    prior = agents.AGENTS.rebuild(described["prior"])
    agent = agents.AGENTS.rebuild(described["agent"])
    codes = codec.num_codes
    log_prior = jnp.zeros((1, codes))
    coded = agents.CodedTransitions(
        features,
        jnp.zeros(1, jnp.int32),
        scalar,
        features,
        scalar,
        log_prior,
        log_prior,
        codes,
    )
    network: nn.MLP = prior.prior(prior.init(key, coded))
    actor = agent.actor(agent.init(key, coded))
    return CodeController(quantizers.ActionQuantizer(codec, network), actor)
