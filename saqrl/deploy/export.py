"""A policy as one file that runs without JAX: ONNX, or npz for NumPy alone.

The graph (`saqrl.deploy.graph`) takes raw observations and gives actions in the environment's
units. A file is kept only if, run back from disk, it decides as the policy does.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from saqrl import __version__
from saqrl.agents import operators
from saqrl.arrays import write_atomically
from saqrl.deploy import runtime
from saqrl.deploy.graph import Graph, UnsupportedOperator
from saqrl.deploy.graph.files import npz_bytes, onnx_bytes
from saqrl.deploy.graph.tracing import draws_of, trace
from saqrl.policy.policy import Act, CodeController, Policy
from saqrl.quantizers.binary import BinaryCodec

FileFormat = Literal["onnx", "npz"]
Part = Literal["policy", "encoder", "decoder"]

AGREEMENT = 1e-5
"""Largest difference to the policy, in units of half an action's range (the networks' units)."""
REFERENCES = 256
"""Observations that stand for the data in the distance of a new one."""
TIE = 1e-4
"""Scores that differ by less, relative to the largest in size, are equal to float32 networks."""
LARGEST_TIED_SHARE = 0.01


class ExportError(ValueError):
    """The policy cannot be exported, or the file does not do what the policy does."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Where the data are, to tell how far from them an observation lies."""

    features: Float32[np.ndarray, "references features"]
    scale: float
    """The distance that 99 % of the data do not exceed."""

    @classmethod
    def fit(cls, features: Float32[np.ndarray, "n features"], *, seed: int = 0) -> "Reference":
        """Spread over the data: each next reference is the row farthest from all before it.

        Source: Gonzalez 1985, "Clustering to minimize the maximum intercluster distance". The
        scale is measured on other rows than those that the references are taken from.
        """
        generator = np.random.default_rng(seed)
        rows = generator.permutation(len(features))[:8192]
        half = max(len(rows) // 2, 1)
        pool, judged = features[rows[:half]], features[rows[half:]]
        if not len(judged):
            judged = pool
        chosen = [0]
        nearest = np.linalg.norm(pool - pool[0], axis=1)
        while len(chosen) < min(REFERENCES, len(pool)) and nearest.max() > 0:
            chosen.append(int(nearest.argmax()))
            nearest = np.minimum(nearest, np.linalg.norm(pool - pool[chosen[-1]], axis=1))
        references = pool[chosen]
        distances = [np.linalg.norm(references - row, axis=1).min() for row in judged]
        scale = float(np.quantile(distances, 0.99))
        return cls(references.astype(np.float32), scale if scale > 0 else 1.0)

    def distance(self, features: Float[Array, " features"]) -> Float[Array, ""]:
        """To the nearest reference, over the scale: above 1 is farther than the data's own."""
        squares = (-2 * self.features) @ features + jnp.square(self.features).sum(-1)
        return jnp.sqrt(jnp.maximum(squares.min() + jnp.square(features).sum(), 0)) / self.scale


@dataclass(frozen=True)
class Verification:
    """How a written file compared with the policy."""

    observations: int
    largest_difference: float
    """In the networks' units, where half an action's range is 1."""
    ties: int
    """Observations on which the two chose different codes of equal score."""


def export(
    policy: Policy,
    path: Path,
    *,
    file_format: FileFormat,
    part: Part,
    act: Act,
    observations: Float32[np.ndarray, "n history*obs"],
    held_out: Float32[np.ndarray, "m history*obs"],
    held_out_actions: Float32[np.ndarray, "m chunk act"],
    provenance: Mapping[str, Any],
) -> Verification:
    """Write `path` and keep it only if it agrees with the policy on the held-out rows.

    `observations` say where the data are (for the distance score); with a history both are
    windows. ExportError where the policy
    has an operator that cannot be exported, has no such part, or the file disagrees.
    """
    graph = graph_of(policy, part=part, act=act, observations=observations)
    metadata = _metadata(policy, graph, part, act, provenance)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.unverified.{file_format}")
    content = onnx_bytes if file_format == "onnx" else npz_bytes
    try:
        write_atomically(aside, content(graph, metadata))
        engine = runtime.load_graph(aside)
        if part == "policy":
            verification = verify_policy(policy, engine, held_out, act=act)
        elif part == "encoder":
            verification = verify_encoder(policy, engine, held_out, held_out_actions)
        else:
            verification = verify_decoder(policy, engine, held_out)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return verification


def graph_of(
    policy: Policy, *, part: Part, act: Act, observations: Float32[np.ndarray, "n obs"]
) -> Graph:
    """The traced graph of a part of the policy; ExportError where it cannot be had."""
    controller, inputs = policy.controller, {"observation": _struct((policy.window_size,))}
    try:
        if part == "policy":
            reference = Reference.fit(policy.observation_scaling(observations))
            names = ["action", "distance"]
            if isinstance(controller, CodeController):
                names += ["entropy"] if act == "mean" else ["code", "entropy"]
            return trace(_decision(policy, reference, act), inputs, names, draws=act == "sample")
        if not isinstance(controller, CodeController):
            raise ExportError("a continuous policy has no quantizer to export: use --part policy")
        if part == "encoder":
            inputs["action"] = _struct(_chunk_shape(policy))
            return trace(_encoder(policy, controller), inputs, ["code"])
        inputs["code"] = _struct((), jnp.int32)
        return trace(_decoder(policy, controller), inputs, ["action"])
    except UnsupportedOperator as error:
        described = policy.description
        name = described["agent"]["name"]
        raise ExportError(
            f"the {part} of {described['kind']} {name} ({act}) cannot be exported: no export "
            f"rule for {error}"
        ) from error


def _struct(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _chunk_shape(policy: Policy) -> tuple[int, int]:
    return policy.chunk, len(policy.action_range.low)


# What the graphs compute, one example at a time. The scalings are NumPy's and JAX's alike, so that
# arrays are `Any` here.
def _decision(policy: Policy, reference: Reference, act: Act) -> Callable[..., Any]:
    """Raw observation (and a key) to the outputs of the graph."""
    controller = policy.controller

    def decide(observation: Any, key: Key[Array, ""] | None = None) -> Any:
        features: Any = policy.observation_scaling(observation)
        distance = reference.distance(features)
        # Greedy choices do not look at their key.
        drawn = jax.random.key(0) if key is None else key
        way: Any = {"act": act, "temperature": policy.act_temperature}
        codes: tuple[Array, ...] = ()
        if isinstance(controller, CodeController):
            codes = (operators.entropy(controller.quantizer.log_prior(features)),)
        if isinstance(controller, CodeController) and act != "mean":
            code = controller.choose(features, drawn, **way)
            unit: Any = controller.quantizer.decode(features, code)
            codes = code, *codes
        else:
            unit = controller.decide(features, drawn, **way)
        action = policy.action_range.from_unit(unit.reshape(_chunk_shape(policy)))
        return action, distance, *codes

    return decide


def _encoder(policy: Policy, controller: CodeController) -> Callable[..., Any]:
    def encode(observation: Any, action: Any) -> Any:
        features: Any = policy.observation_scaling(observation)
        unit: Any = policy.action_range.to_unit(action)
        return controller.quantizer.encode(features, unit.reshape(-1))

    return encode


def _decoder(policy: Policy, controller: CodeController) -> Callable[..., Any]:
    def decode(observation: Any, code: Int[Array, ""]) -> Any:
        features: Any = policy.observation_scaling(observation)
        unit: Any = controller.quantizer.decode(features, code)
        return policy.action_range.from_unit(unit.reshape(_chunk_shape(policy)))

    return decode


def verify_policy(
    policy: Policy,
    engine: runtime.Engine,
    observations: Float32[np.ndarray, "n obs"],
    *,
    act: Act,
) -> Verification:
    """Compare the file's actions with Policy.plan's; ExportError where they differ.

    Two float32 programs may pick different codes where the best scores are equal to within TIE.
    Such rows are counted, must be few, and the action must be the one that the policy itself
    decodes from the code that the file chose. So with means where both values of a dimension that
    has two are equally probable: either value is right.
    """
    keys = jax.random.split(jax.random.key(0), len(observations))
    expected = policy.plan(observations, keys, act=act)
    controller = policy.controller
    features = jnp.asarray(policy.observation_scaling(observations))
    noise = {}
    if act == "sample":
        decide = partial(controller.decide, act=act, temperature=policy.act_temperature)
        drawn = jax.jit(jax.vmap(partial(draws_of, decide)))(features, keys)
        names = [draw["name"] for draw in engine.metadata["draws"]]
        noise = dict(zip(names, map(np.asarray, drawn), strict=True))
    found = engine({"observation": observations, **noise})
    ties = 0
    if isinstance(controller, CodeController) and act == "mean":
        values = jax.jit(jax.vmap(partial(_equal_values, policy)))(features)
        for value in map(policy.action_range.from_unit, map(np.asarray, values)):
            near = np.abs(found["action"] - value) <= AGREEMENT * policy.action_range.half_width
            ties += int((near & (expected != value)).any((1, 2)).sum())
            expected = np.where(near, value, expected)
    elif isinstance(controller, CodeController):
        scored = partial(controller.scores, temperature=policy.act_temperature)
        scores = np.asarray(jax.jit(jax.vmap(scored))(features))
        other = _tied(scores + noise.get("noise", 0), found["code"])
        ties = int(other.sum())
        if ties:
            expected[other] = _decoded(policy, observations[other], found["code"][other])
    difference = _largest_difference(policy, found["action"], expected)
    return Verification(len(observations), difference, ties)


def _tied(
    scores: Float[np.ndarray, "n codes"], codes: Int[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Where `codes` are not the first best scored; ExportError where those are no ties, or many."""
    best = scores.max(1)
    allowed = np.where(scores > operators.DISALLOWED / 2, scores, 0)
    size = np.maximum(np.abs(allowed).max(1), 1)
    short = (best - scores[np.arange(len(scores)), codes]) / size
    if (worst := short.max()) > TIE:
        raise ExportError(
            "the exported graph chooses other codes than the policy (scores up to "
            f"{worst:.2g} below the best); nothing was written: please report this"
        )
    other = codes != scores.argmax(1)
    if (ties := int(other.sum())) > max(1, LARGEST_TIED_SHARE * len(scores)):
        raise ExportError(
            f"the exported graph chooses other codes on {ties} of {len(scores)} "
            "observations, all with equal scores: the agent does not distinguish these "
            "codes; nothing was written: train it longer"
        )
    return other


def _equal_values(policy: Policy, features: Any) -> tuple[Any, Any]:
    """Both values (chunk, act) of a dimension with two, where equally probable; elsewhere NaN."""
    controller: Any = policy.controller
    quantizer, shape = controller.quantizer, _chunk_shape(policy)
    if not isinstance(quantizer.codec, BinaryCodec):
        return jnp.full(shape, jnp.nan), jnp.full(shape, jnp.nan)
    binary = quantizer.codec.binary
    probabilities = jax.nn.softmax(controller.scores(features, temperature=policy.act_temperature))
    even = jnp.abs(probabilities @ binary.widen(quantizer.decode_all(features))) < TIE
    low, high = (
        jnp.where(binary.two_valued & even, value, jnp.nan).reshape(shape)
        for value in (binary.low, binary.high)
    )
    return low, high


def verify_decoder(
    policy: Policy, engine: runtime.Engine, observations: Float32[np.ndarray, "n obs"]
) -> Verification:
    """Compare the file's actions with the quantizer's for codes drawn evenly."""
    codes = np.random.default_rng(0).integers(0, policy.quantizer.num_codes, len(observations))
    found = engine({"observation": observations, "code": codes})["action"]
    difference = _largest_difference(policy, found, _decoded(policy, observations, codes))
    return Verification(len(observations), difference, ties=0)


def verify_encoder(
    policy: Policy,
    engine: runtime.Engine,
    observations: Float32[np.ndarray, "n obs"],
    actions: Float32[np.ndarray, "n chunk act"],
) -> Verification:
    """Compare the file's codes with the quantizer's.

    Where they differ, both codes must stand for the action equally well (a tie).
    """
    quantizer = policy.quantizer
    expected = quantizer.encode(
        observations, actions.reshape(len(actions), *quantizer.action_shape)
    )
    found = engine({"observation": observations, "action": actions})["code"]
    ties = int(np.count_nonzero(found != expected))
    if ties > max(1, LARGEST_TIED_SHARE * len(found)):
        raise ExportError(
            f"the exported encoder gives other codes on {ties} of {len(found)} actions; "
            "nothing was written"
        )
    return Verification(len(found), 0.0, ties)


def _decoded(
    policy: Policy, observations: Float32[np.ndarray, "n obs"], codes: Int[np.ndarray, " n"]
) -> Float32[np.ndarray, "n chunk act"]:
    actions = policy.quantizer.decode(observations, codes)
    return actions.reshape(len(codes), *_chunk_shape(policy))


def _largest_difference(
    policy: Policy,
    found: Float32[np.ndarray, "n chunk act"],
    expected: Float32[np.ndarray, "n chunk act"],
) -> float:
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise ExportError(
            f"the exported graph gives actions of shape {found.shape}, or not finite; expected "
            f"{expected.shape}; nothing was written"
        )
    differences = np.abs(found.astype(np.float64) - expected) / policy.action_range.half_width
    largest = float(differences.max())
    if largest > AGREEMENT:
        raise ExportError(
            f"the exported graph differs from the policy by {largest:.2g} of half an action's "
            f"range (at most {AGREEMENT:g} is allowed); nothing was written"
        )
    return largest


def _metadata(
    policy: Policy, graph: Graph, part: Part, act: Act, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "format": runtime.FORMAT,
        "part": part,
        "saqrl": __version__,
        "jax": jax.__version__,
        "kind": policy.description.get("kind"),
        "agent": policy.description.get("agent"),
        "quantizer": policy.description.get("quantizer"),
        "members": policy.members,
        "act": act,
        "act_temperature": policy.act_temperature,
        "env": policy.environment and policy.environment.id,
        "observation_size": policy.observation_size,
        "history": policy.history,
        "angles": list(policy.observation_scaling.angles),
        "action_size": len(policy.action_range.low),
        "action_low": policy.action_range.low.tolist(),
        "action_high": policy.action_range.high.tolist(),
        "chunk": policy.chunk,
        "action_horizon": policy.action_horizon,
        "inputs": {name: asdict(tensor) for name, tensor in graph.inputs.items()},
        "outputs": {name: asdict(tensor) for name, tensor in graph.outputs.items()},
        "draws": [
            {"name": name, "shape": list(tensor.shape), "distribution": tensor.distribution}
            for name, tensor in graph.inputs.items()
            if tensor.distribution is not None
        ],
        **provenance,
    }
