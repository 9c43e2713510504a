"""The exported file decides as the policy does, or there is no file."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl import nn
from saqrl.baselines import BASELINES
from saqrl.deploy import export as exporting
from saqrl.deploy import runtime
from saqrl.deploy.export import ExportError, Reference, export, graph_of
from saqrl.deploy.graph import UnsupportedOperator
from saqrl.deploy.graph.files import npz_bytes, onnx_bytes
from saqrl.deploy.graph.tracing import draws_of, trace
from saqrl.policy.storage import controller_skeleton
from saqrl.quantizers import QUANTIZERS, ActionBatch
from saqrl.quantizers.binary import BinaryDimensions
from tests.policy.test_policy import ACT, CHUNK, OBSERVATION, described, enlivened
from tests.policy.test_policy import make_lively_policy as make_policy

pytest.importorskip("onnxruntime")
generator = np.random.default_rng(0)
OBSERVATIONS = generator.normal(size=(64, OBSERVATION)).astype(np.float32)
ACTIONS = generator.uniform(-1, 1, (64, CHUNK, ACT)).astype(np.float32)


def write(policy, path, **changes):
    asked = {
        "file_format": path.suffix[1:],
        "part": "policy",
        "act": "greedy",
        "observations": OBSERVATIONS,
        "held_out": OBSERVATIONS,
        "held_out_actions": ACTIONS,
        "provenance": {"dataset": "walk.npz"},
    }
    return export(policy, path, **asked | changes)


@pytest.mark.parametrize(
    ("kind", "name", "act"),
    [
        ("quantized", "bc", "sample"),
        ("quantized", "cql", "greedy"),
        ("quantized", "iql", "mean"),
        pytest.param("quantized", "iql", "sample", marks=pytest.mark.slow),
        pytest.param("quantized", "brac", "greedy", marks=pytest.mark.slow),
        pytest.param("continuous", "bc", "greedy", marks=pytest.mark.slow),
        *(pytest.param("continuous", name, "sample", marks=pytest.mark.slow) for name in BASELINES),
    ],
)
def test_both_formats_agree_with_the_policy(kind, name, act, tmp_path):
    policy = make_policy(kind, name)
    for suffix in ("onnx", "npz"):
        path = tmp_path / f"policy.{suffix}"
        verification = write(policy, path, act=act)
        assert verification.largest_difference <= 1e-5
        assert verification.observations == 64
        engine = runtime.load_graph(path)
        noise = runtime.load(path).draw(64)
        assert np.ptp(engine({"observation": OBSERVATIONS, **noise})["action"], 0).max() > 0.1
        metadata = engine.metadata
        assert metadata["dataset"] == "walk.npz"
        assert metadata["act"] == act
        assert metadata["agent"]["name"] == name
        assert metadata["draws"] == (
            [{"name": "noise", "shape": [6], "distribution": "gumbel"}]
            if (kind, act) == ("quantized", "sample")
            else metadata["draws"]
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.npz", "policy.onnx"]


@pytest.mark.parametrize(
    "agent",
    [
        {"name": "iql", "bins": 8, "extraction": "supported", "deviations": 0.5},
        {"name": "iql", "q_of": "actions", "prior_temperature": 0.5},
        {"name": "cql", "mass": 0.7, "support": 0.5},
        {"name": "brac", "closed_form": True},
    ],
)
def test_the_levers_of_values_can_be_written_too(agent, tmp_path):
    description = described("quantized", agent["name"])
    description["agent"] |= agent
    policy = make_policy("quantized", agent["name"])
    controller = jax.jit(lambda: controller_skeleton(description))()
    policy = dataclasses.replace(policy, controller=enlivened(controller), description=description)
    for suffix in ("onnx", "npz"):
        verification = write(policy, tmp_path / f"policy.{suffix}")
        assert verification.largest_difference <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BASELINES))
@pytest.mark.parametrize("act", ["greedy", "sample"])
def test_every_continuous_actor_can_be_written_as_a_graph(name, act):
    graph = graph_of(
        make_policy("continuous", name), part="policy", act=act, observations=OBSERVATIONS
    )
    onnx_bytes(graph, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", list(QUANTIZERS))
def test_every_codec_can_be_written_as_a_graph(name):
    quantizer = QUANTIZERS.load(name)()
    small = {"hidden": (8,), "codes": 8, "steps": 1}
    known = {field.name for field in dataclasses.fields(quantizer)}
    quantizer = dataclasses.replace(quantizer, **{k: v for k, v in small.items() if k in known})
    data = ActionBatch(jnp.asarray(OBSERVATIONS), jnp.asarray(ACTIONS[:, 0]))
    codec = quantizer.codec(jax.jit(quantizer.init)(jax.random.key(0), data))
    features = jax.ShapeDtypeStruct((OBSERVATION,), jnp.float32)
    action = jax.ShapeDtypeStruct((ACT,), jnp.float32)
    code = jax.ShapeDtypeStruct((), jnp.int32)
    onnx_bytes(trace(codec.encode, {"features": features, "action": action}, ["code"]), {})
    onnx_bytes(trace(codec.decode, {"features": features, "code": code}, ["action"]), {})


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_halves_of_a_quantizer_alone(part, tmp_path):
    policy = make_policy("quantized", "bc")
    answers = []
    for suffix in ("onnx", "npz"):
        path = tmp_path / f"{part}.{suffix}"
        write(policy, path, part=part)
        inputs = {"observation": OBSERVATIONS}
        inputs |= {"action": ACTIONS} if part == "encoder" else {"code": np.arange(64) % 6}
        answers.append(next(iter(runtime.load_graph(path)(inputs).values())))
        with pytest.raises(runtime.PolicyFileError, match=f"the {part} of a quantizer"):
            runtime.load(path)
    np.testing.assert_allclose(*answers, atol=1e-5)


@pytest.mark.parametrize("suffix", ["onnx", "npz"])
def test_an_encoder_that_keeps_a_gripper_agrees_too(suffix, tmp_path):
    policy = make_policy("quantized", "bc")
    gripper = np.arange(CHUNK * ACT) % ACT == ACT - 1
    half = jnp.full(CHUNK * ACT, 0.5)
    binary = BinaryDimensions(-half, half, jnp.asarray(gripper))
    controller = eqx.tree_at(lambda c: c.quantizer.codec.binary, policy.controller, binary)
    policy = dataclasses.replace(policy, controller=controller)
    actions = ACTIONS.copy()
    actions[..., -1] = np.where(actions[..., -1] > 0, 0.5, -0.5)
    path = tmp_path / f"encoder.{suffix}"
    checked = write(policy, path, part="encoder", held_out_actions=actions)
    assert checked.observations == len(OBSERVATIONS)
    codec, scaling = policy.controller.quantizer.codec, policy.observation_scaling
    unit = policy.action_range.to_unit(actions).reshape(len(actions), -1)
    codes = runtime.load_graph(path)({"observation": OBSERVATIONS, "action": actions})["code"]
    own = jax.vmap(codec.encode)(scaling(OBSERVATIONS), unit)
    np.testing.assert_array_equal(codes, own)
    free = eqx.tree_at(lambda c: c.binary.only, codec, jnp.zeros(CHUNK * ACT, bool))
    assert (jax.vmap(free.encode)(scaling(OBSERVATIONS), unit) != own).any()


@pytest.mark.parametrize("act", ["sample", "mean"])
def test_a_temperature_is_exported_too(act, tmp_path):
    policy = make_policy("quantized", "iql").acting(act, 0.3)
    write(policy, tmp_path / "policy.npz", act=act)
    loaded = runtime.load(tmp_path / "policy.npz")
    assert loaded.metadata["act_temperature"] == 0.3
    plan = loaded.plan(OBSERVATIONS)
    assert (plan.code is None) == (act == "mean")
    assert plan.entropy is not None
    other = write(policy.acting(temperature=1.0), tmp_path / "other.npz", act=act)
    assert other.observations == 64
    with pytest.raises(ExportError, match=r"differs from the policy|other codes"):
        exporting.verify_policy(
            policy, runtime.load_graph(tmp_path / "other.npz"), OBSERVATIONS, act=act
        )


def test_a_gripper_may_take_either_of_two_equally_probable_values(tmp_path):
    policy = make_policy("quantized", "bc")
    gripper = np.arange(CHUNK * ACT) % ACT == ACT - 1
    half = jnp.full(CHUNK * ACT, 0.5)
    binary = BinaryDimensions(-half, half, jnp.asarray(gripper))
    # Two codes as good as each other, and no other one.
    prior = policy.controller.quantizer.prior
    prior = eqx.tree_at(lambda net: net.weights[-1], prior, jnp.zeros_like(prior.weights[-1]))
    biases = jnp.where(jnp.arange(6) < 2, 0.0, -1e9)
    prior = eqx.tree_at(lambda net: net.biases[-1], prior, biases)
    controller = eqx.tree_at(
        lambda c: (c.quantizer.codec.binary, c.quantizer.prior), policy.controller, (binary, prior)
    )
    policy = dataclasses.replace(policy, controller=controller)
    keys = jax.random.split(jax.random.key(0), len(OBSERVATIONS))
    planned = policy.plan(OBSERVATIONS, keys, act="mean")
    codes = [policy.quantizer.decode(OBSERVATIONS, np.full(64, code)) for code in (0, 1)]
    split = codes[0][..., -1] != codes[1][..., -1]
    assert split.any()

    def engine(inputs):
        found = planned.copy()
        # The policy takes the lower one.
        found[..., -1] = np.where(split, np.maximum(*codes)[..., -1], planned[..., -1])
        return {"action": found}

    verified = exporting.verify_policy(policy, engine, OBSERVATIONS, act="mean")
    assert verified.ties > 0
    with pytest.raises(ExportError, match="differs"):
        exporting.verify_policy(
            policy,
            lambda inputs: {"action": planned + 0.1 * split[..., None]},
            OBSERVATIONS,
            act="mean",
        )


def test_a_file_that_disagrees_is_not_left_behind(tmp_path, monkeypatch):
    policy = make_policy("continuous", "bc")
    original = exporting.graph_of

    def slightly_wrong(*arguments, **words):
        graph = original(*arguments, **words)
        name = next(name for name, array in graph.constants.items() if array.shape == (8, 8))
        graph.constants[name] = graph.constants[name] + np.float32(0.01)
        return graph

    monkeypatch.setattr(exporting, "graph_of", slightly_wrong)
    for suffix in ("onnx", "npz"):
        with pytest.raises(ExportError, match="differs from the policy by"):
            write(policy, tmp_path / f"policy.{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_chooses_other_codes_is_refused(tmp_path):
    policy = make_policy("quantized", "cql")
    write(policy, tmp_path / "policy.npz")
    engine = runtime.load_graph(tmp_path / "policy.npz")

    def other(inputs):
        found = engine(inputs)
        return found | {"code": (found["code"] + 1) % 6}

    with pytest.raises(ExportError, match="other codes"):
        exporting.verify_policy(policy, other, OBSERVATIONS, act="greedy")


def test_a_continuous_policy_has_no_quantizer_to_export(tmp_path):
    with pytest.raises(ExportError, match="no quantizer"):
        write(make_policy("continuous", "bc"), tmp_path / "e.npz", part="encoder")


def test_an_operator_without_a_rule_is_named():
    struct = {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(UnsupportedOperator, match="sort"):
        trace(jnp.sort, struct, ["y"])
    with pytest.raises(UnsupportedOperator, match="random key"):
        trace(lambda x, key: x + jax.random.randint(key, (), 0, 3), struct, ["y"], draws=True)


def test_draws_are_found_in_order_and_give_back_what_was_drawn():
    def function(x, key):
        first, second = jax.random.split(key)
        return x + jax.random.normal(first, (3,)) * jax.random.uniform(second, (3,))

    x, key = jnp.arange(3.0), jax.random.key(4)
    graph = trace(function, {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}, ["y"], draws=True)
    kinds = [tensor.distribution for tensor in graph.inputs.values()]
    assert kinds == [None, "normal", "uniform"]
    normal, uniform = draws_of(function, x, key)
    np.testing.assert_allclose(x + normal * uniform, function(x, key), rtol=1e-6)


# Each operator as JAX has it, on a batch, through both engines.
OPERATORS = {
    "lookup in a row": lambda x, i: x.reshape(2, 2)[i],
    "lookup in constants": lambda x, i: jnp.arange(12.0).reshape(2, 3, 2)[i] + x[:2],
    "fixed columns": lambda x, i: x[np.array([3, 0])] * i,
    "integers": lambda x, i: jnp.array([(i + 5) // 2, (i + 5) % 3]) * (x[0] > 0),
    "digits of integers": lambda x, i: (i + 5) // jnp.array([4, 2, 1]) % 2 + jax.lax.rem(-i, 2),
    "least of three": lambda x, i: jnp.stack([x + 1, 2 * x, -x]).min(0),
    "mixture": lambda x, i: jax.nn.softmax(x) @ jnp.outer(x, x),
    "products": lambda x, i: jnp.eye(4)[:2] @ jnp.outer(x, x[:3]) @ jnp.ones((3, 2)),
    "functions": lambda x, i: jax.nn.softplus(x) + jnp.tanh(x) + jax.nn.gelu(x) + jnp.round(3 * x),
    "shapes": lambda x, i: jnp.stack([x, 1 - x, jnp.zeros(4)], 1).T[:, ::2].reshape(-1),
    "order": lambda x, i: jnp.where(x != x.max(), x.argmin(), jnp.clip(x, -0.5, 0.5)),
    "powers": lambda x, i: x**3 + jnp.log1p(x**2) + jnp.expm1(x) + jnp.sign(x) * jnp.prod(x),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_mean_what_they_mean_in_jax(name, tmp_path):
    function = OPERATORS[name]
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    i = np.array([0, 1, 1, 0, 1])
    structs = {
        "x": jax.ShapeDtypeStruct((4,), jnp.float32),
        "i": jax.ShapeDtypeStruct((), jnp.int32),
    }
    graph = trace(function, structs, ["y"])
    expected = jax.vmap(function)(x, jnp.asarray(i, jnp.int32))
    metadata = {"format": runtime.FORMAT}
    (tmp_path / "g.onnx").write_bytes(onnx_bytes(graph, metadata))
    (tmp_path / "g.npz").write_bytes(npz_bytes(graph, metadata))
    for suffix in ("onnx", "npz"):
        engine = runtime.load_graph(tmp_path / f"g.{suffix}")
        given = {k: v for k, v in {"x": x, "i": i}.items() if k in graph.inputs}
        np.testing.assert_allclose(engine(given)["y"], expected, rtol=2e-5, atol=2e-6)


def test_a_layer_normalisation_becomes_one_operator(tmp_path):
    network = nn.MLP(jax.random.key(0), 3, (8, 8), 2, layer_norm=True)
    network = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.arange(leaf.shape[-1]), network)
    graph = trace(network, {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}, ["y"])
    operators = [node.op for node in graph.nodes]
    layer = ["MatMul", "Add", "LayerNormalization", "Relu"]
    assert operators == [*layer, *layer, "MatMul", "Add"]
    for suffix, content in (("onnx", onnx_bytes), ("npz", npz_bytes)):
        (tmp_path / f"g.{suffix}").write_bytes(content(graph, {"format": runtime.FORMAT}))
        found = runtime.load_graph(tmp_path / f"g.{suffix}")({"x": OBSERVATIONS})["y"]
        np.testing.assert_allclose(found, network(OBSERVATIONS), atol=1e-5)


def test_references_spread_over_the_data_and_the_scale_is_its_99th_percentile():
    data = np.random.default_rng(2).normal(size=(4000, 3)).astype(np.float32)
    reference = Reference.fit(data)
    assert reference.features.shape == (256, 3)
    fresh = np.random.default_rng(3).normal(size=(2000, 3)).astype(np.float32)
    distance = np.asarray(jax.vmap(reference.distance)(jnp.asarray(fresh)))
    brute = np.linalg.norm(fresh[:, None] - reference.features[None], axis=-1).min(1)
    np.testing.assert_allclose(distance, brute / reference.scale, atol=1e-3)
    assert 0.97 < (distance <= 1).mean() < 1
    assert reference.distance(jnp.full(3, 8.0)) > 5


def test_the_metadata_of_an_onnx_file_is_json_that_anyone_can_read(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    write(make_policy(), tmp_path / "p.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "p.onnx")
    described = json.loads(session.get_modelmeta().custom_metadata_map["saqrl"])
    assert (described["chunk"], described["action_horizon"]) == (CHUNK, 2)
    assert [i.name for i in session.get_inputs()] == ["observation"]
    outputs = [output.name for output in session.get_outputs()]
    assert outputs == ["action", "distance", "code", "entropy"]
