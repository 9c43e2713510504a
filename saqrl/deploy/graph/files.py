"""A graph as the content of a file: npz for NumPy alone, or ONNX."""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import numpy as np

from saqrl import __version__
from saqrl.deploy.graph import Graph
from saqrl.deploy.runtime import METADATA_KEY, sealed
from saqrl.installation import install

OPSET = 18
IR_VERSION = 9  # of opset 19's time: read by every onnxruntime since 1.14


def npz_bytes(graph: Graph, metadata: Mapping[str, Any]) -> bytes:
    """The graph's constants as arrays, its operators as JSON."""
    described = {
        "metadata": json.dumps(metadata),
        "outputs": list(graph.outputs),
        "nodes": [asdict(node) for node in graph.nodes],
    }
    buffer = io.BytesIO()
    np.savez(buffer, graph=np.asarray(json.dumps(described)), **graph.constants)  # type: ignore[arg-type]
    return buffer.getvalue()


def onnx_bytes(graph: Graph, metadata: Mapping[str, Any]) -> bytes:
    """The graph as a checked ONNX model with a batch of any size.

    ImportError with the remedy where onnx is missing.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise ImportError(
            f"exporting to ONNX needs onnx and onnxruntime: {install('export')}"
        ) from error
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}

    def declared(tensors: Mapping[str, Any]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, types[t.dtype], ["batch", *t.shape])
            for name, t in tensors.items()
        ]

    nodes = [
        helper.make_node(
            node.op,
            list(node.inputs),
            [node.output],
            **cast(Any, dict(node.attributes)),
        )
        for node in graph.nodes
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    body = helper.make_graph(
        nodes, "saqrl", declared(graph.inputs), declared(graph.outputs), constants
    )
    model = helper.make_model(
        body,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="saqrl",
        producer_version=__version__,
    )
    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    checker.check_model(model, full_check=True)
    return sealed(model.SerializeToString())
