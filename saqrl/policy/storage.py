"""A policy on disk: policy.json says what it is, weights.npz holds its arrays. No pickle."""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from saqrl import agents, baselines, nn, quantizers
from saqrl.agents.bc import BC
from saqrl.arrays import LARGEST_FILE, named_leaves, read_npz, rebuild_tree, write_atomically
from saqrl.datasets import EnvironmentSpec
from saqrl.datasets.scaling import ActionRange, ObservationScaling
from saqrl.policy.policy import Act, CodeController, ContinuousController, Controller, Policy
from saqrl.records import (
    NULL,
    NUMBER,
    OBJECT,
    TEXT,
    among,
    listed,
    read_record,
    read_regular,
    require,
    shown,
    whole,
)
from saqrl.registry import LARGEST_ENSEMBLE

# 1 had `execute` in place of `action_horizon`.
FORMAT = 2
RECORD = {
    "observation_size": whole(1, 1 << 20),
    "angles": listed(whole()),
    "history": whole(1, 1 << 16),
    "chunk": whole(1, 1 << 16),
    "action_horizon": whole(1, 1 << 16),
    "default_act": among(*get_args(Act)),
    "act_temperature": NUMBER | NULL,
    "environment": OBJECT | NULL,
    "controller": OBJECT,
}
CONTROLLER = {
    "kind": among("quantized", "continuous"),
    "agent": OBJECT,
    "quantizer": OBJECT | NULL,
    "prior": OBJECT | NULL,
    "features": whole(1, 1 << 21),
    "chunk_action_size": whole(1, 1 << 20),
    "members": whole(1, LARGEST_ENSEMBLE) | NULL,
}
ENVIRONMENT = {"id": TEXT, "options": OBJECT}


class PolicyError(ValueError):
    """The folder holds no policy that can be loaded; the message says what is wrong."""


def save_policy(policy: Policy, folder: Path) -> None:
    """Write policy.json and weights.npz into `folder`, each atomically."""
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
        "history": policy.history,
        "chunk": policy.chunk,
        "action_horizon": policy.action_horizon,
        "default_act": policy.default_act,
        "act_temperature": policy.act_temperature,
        "environment": policy.environment and asdict(policy.environment),
        "controller": dict(policy.description),
    }
    weights = io.BytesIO()
    np.savez(weights, **arrays)  # type: ignore[arg-type]
    write_atomically(folder / "weights.npz", weights.getvalue())
    write_atomically(folder / "policy.json", json.dumps(described, indent=2).encode())


def load_policy(path: Path | str) -> Policy:
    """The policy of a run: `path` is the run's folder, or a folder that `save_policy` wrote.

    Raises PolicyError if a file is missing, damaged, or of another format version.
    """
    folder = Path(path)
    if not (folder / "policy.json").is_file() and (folder / "config.json").is_file():
        folder = folder / "policy"
    if not (folder / "policy.json").is_file():
        raise PolicyError(f"{folder} holds no policy (no policy.json): has its run finished?")
    try:
        return _loaded(folder)
    except PolicyError:
        raise
    except ValueError as error:
        raise PolicyError(f"{folder} holds no policy that can be loaded: {error}") from error
    except Exception as error:  # wrong sizes can make JAX raise anything
        words = " ".join(str(error).split())[:300]
        raise PolicyError(
            f"{folder} holds no policy that can be loaded ({type(error).__name__}: {words})"
        ) from error


def _loaded(folder: Path) -> Policy:
    file = folder / "policy.json"
    described = read_record(file, {"format": whole()})
    if described["format"] != FORMAT:
        raise PolicyError(
            f"{folder}: policy format {described['format']}, this version reads {FORMAT}; "
            "load it with the saqrl version that wrote it"
        )
    described = {"history": 1, **described}  # older files have no history
    require(described, RECORD, where=file.name)
    require(described["controller"], CONTROLLER, where=f"{file.name}, controller")
    environment, angles = described["environment"], described["angles"]
    if environment is not None:
        require(environment, ENVIRONMENT, where=f"{file.name}, environment")
    size, chunk, history = (described[n] for n in ("observation_size", "chunk", "history"))
    if described["action_horizon"] > chunk:
        raise ValueError(f"{file.name}: action_horizon is more than chunk ({chunk})")
    if len({*angles}) != len(angles) or any(column >= size for column in angles):
        raise ValueError(
            f"{file}: angles is {shown(angles)}; expected columns of {size}, once each"
        )
    weights = folder / "weights.npz"
    content = read_regular(weights, at_most=LARGEST_FILE)
    try:
        arrays = read_npz(content)
    except ValueError as error:
        raise ValueError(f"{weights.name}: {error}") from error
    features, flat = (
        described["controller"]["features"],
        described["controller"]["chunk_action_size"],
    )
    act = flat // chunk
    width = size + len(angles)
    if features != history * width or act * chunk != flat:
        raise ValueError(
            f"{file.name}: sizes of features, observations, chunk and actions disagree"
        )
    scaling = {"observation_mean": (width,), "observation_inverse_scale": (width,)}
    bounds = {"action_low": (act,), "action_high": (act,)}
    for name, shape in {**scaling, "observation_limit": (), **bounds}.items():
        _require_numbers(arrays, name, shape)
    limit = float(arrays["observation_limit"])
    if not limit > 0 or (arrays["action_low"] > arrays["action_high"]).any():
        raise ValueError(
            f"{weights}: observation_limit must be above 0, and no action_low above its action_high"
        )
    prefix = "controller"
    leaves = {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}
    for name, leaf in leaves.items():
        if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
            raise ValueError(f"{weights.name}: weights {name} are not finite")
    skeleton = jax.eval_shape(lambda: controller_skeleton(described["controller"]))
    return Policy(
        controller=rebuild_tree(skeleton, leaves),
        observation_scaling=ObservationScaling(
            tuple(angles),
            arrays["observation_mean"],
            arrays["observation_inverse_scale"],
            limit,
            history,
        ),
        action_range=ActionRange(arrays["action_low"], arrays["action_high"]),
        observation_size=size,
        chunk=chunk,
        action_horizon=described["action_horizon"],
        default_act=described["default_act"],
        act_temperature=_act_temperature(described),
        environment=environment and EnvironmentSpec(**environment),
        description=described["controller"],
    )


def _act_temperature(described: Mapping[str, Any]) -> float:
    """The policy's; in older files it is a field of the agent, retired since."""
    if (temperature := described.get("act_temperature")) is not None:
        return float(temperature)
    controller = described["controller"]
    earlier = (
        agents.AGENTS.earlier(controller["agent"]) if controller["kind"] == "quantized" else {}
    )
    return float(earlier.get("act_temperature", 1.0))


def _require_numbers(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> None:
    """ValueError for another shape, not floats, or (if it has an axis) not finite floats."""
    if name not in arrays:
        raise ValueError(f"array {name} is missing")
    array = arrays[name]
    if array.shape != shape or array.dtype.kind != "f":
        raise ValueError(
            f"array {name} has shape {array.shape} and type {array.dtype}; expected {shape} floats"
        )
    if shape and not np.isfinite(array).all():
        raise ValueError(f"array {name} is not finite")


def controller_skeleton(described: Mapping[str, Any]) -> Controller:
    """A controller of the described shapes; its values have no meaning."""
    members = described.get("members") or 1
    features = jnp.zeros((1, described["features"]))
    actions = jnp.zeros((1, described["chunk_action_size"]))
    scalar = jnp.zeros(1)
    key = jax.random.key(0)
    if described["kind"] == "continuous":
        baseline = baselines.BASELINES.rebuild(described["agent"])
        data = baselines.ContinuousTransitions(features, actions, scalar, features, scalar, actions)
        actor = baseline.actor(baseline.init(key, data))
        return ContinuousController(baselines.together([actor] * members))
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
        actions=actions,
    )
    network: nn.MLP = prior.prior(prior.init(key, coded))
    # In an ensemble of BC the members' networks are the prior.
    own = members > 1 and isinstance(agent, BC)
    behaviour = nn.Ensemble((network,) * members) if own else network
    actor = agents.together([agent.actor(agent.init(key, coded))] * members)
    return CodeController(quantizers.ActionQuantizer(codec, behaviour), actor)
