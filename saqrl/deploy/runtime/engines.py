"""Run exported graphs: onnxruntime for .onnx, NumPy for .npz."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .checks import (
    METADATA_KEY,
    PolicyFileError,
    check_constant,
    check_onnx,
    read_metadata,
    unknown_operator,
)
from .operators import OPERATORS


class Engine(Protocol):
    """Runs a graph: arrays by name in, arrays by name out."""

    metadata: Mapping[str, Any]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...


class OnnxEngine:
    """A graph in onnxruntime, on one core. Not for several threads at once."""

    def __init__(self, path: Path, content: bytes):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                f"{path} needs onnxruntime: pip install onnxruntime, or export with "
                "--format npz, which needs NumPy only"
            ) from error
        check_onnx(path, content)
        options = onnxruntime.SessionOptions()
        # More threads cost more to wake than they save on networks of this size.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
            described = self._session.get_modelmeta().custom_metadata_map[METADATA_KEY]
            # One observation goes through buffers that stay where they are: less is made anew.
            self._given = {value.name: _single(value) for value in self._session.get_inputs()}
            self._found = {value.name: _single(value) for value in self._session.get_outputs()}
        except Exception as error:  # onnxruntime's own exceptions have no common base class
            raise PolicyFileError(
                f"{path} is not a readable ONNX file (damaged, or another format); export it again"
            ) from error
        self.metadata = read_metadata(path, described)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._binding = self._session.io_binding()
        for arrays, bind in (
            (self._given, self._binding.bind_input),
            (self._found, self._binding.bind_output),
        ):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not self._is_single(inputs):
            values = self._session.run(None, dict(inputs))
            return dict(zip(self._outputs, values, strict=True))
        for name, array in self._given.items():
            array[...] = inputs[name]
        self._session.run_with_iobinding(self._binding)
        return {name: array.copy() for name, array in self._found.items()}

    def _is_single(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Whether the inputs are those of one observation, exactly as the graph takes them."""
        if inputs.keys() != self._given.keys():
            return False
        pairs = ((inputs[name], array) for name, array in self._given.items())
        return all(one.shape == two.shape and one.dtype == two.dtype for one, two in pairs)


_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


def _single(value: Any) -> np.ndarray:
    """Room for an input or output of onnxruntime with a batch of one."""
    return np.zeros([1, *value.shape[1:]], _TYPES[value.type])


class NumpyEngine:
    """The same graph from an npz file, run operator by operator in NumPy."""

    def __init__(self, path: Path, content: bytes):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if sum(member.file_size for member in archive.infolist()) > len(content):
                    raise ValueError("its header promises more data than it holds")
            with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
                arrays = dict(loaded)
            described = json.loads(str(arrays.pop("graph")))
            self.metadata = read_metadata(path, described["metadata"])
            self._outputs: list[str] = list(described["outputs"])
            self._steps = [_compiled(path, node) for node in described["nodes"]]
        except PolicyFileError:
            raise
        except Exception as error:  # whatever a damaged or foreign archive makes NumPy raise
            raise PolicyFileError(
                f"{path} is not an npz file written by `saqrl export`, or is damaged "
                f"({type(error).__name__})"
            ) from error
        for name, array in arrays.items():
            check_constant(path, name, array)
        self._constants = arrays

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = {**self._constants, **inputs}
        # As in ONNX, a logarithm of 0 is -inf and nobody is told.
        with np.errstate(all="ignore"):
            for function, names, output in self._steps:
                values[output] = function(*[values[name] for name in names])
        return {name: values[name] for name in self._outputs}


def _compiled(
    path: Path, node: Mapping[str, Any]
) -> tuple[Callable[..., np.ndarray], Sequence[str], str]:
    op, attributes = node["op"], node["attributes"]
    if op not in OPERATORS:
        raise PolicyFileError(unknown_operator(path, op))
    function = partial(OPERATORS[op], **attributes) if attributes else OPERATORS[op]
    return function, node["inputs"], node["output"]
