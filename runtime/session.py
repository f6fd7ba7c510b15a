"""Sessions: one model in ONNX Runtime, with the chip as an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cnpass.errors import CnpassError, DataError, MissingDependencyError, ModelError, UsageError
from cnpass.runtime.library import get_library_path, has_library
from cnpass.runtime.ops import (
    DOMAIN,
    IDEAL_CHIP,
    MAX_CHIP,
    META_CHIP_INPUT,
    META_FIRST_SAMPLE_INPUT,
    only_chip,
)

_SILENT = 4  # ORT's severity "fatal": failures come back as exceptions, which we report in one line


class Session:
    """A model ready to run, mapped to analog chips or not.

    The native library is used where it is there; otherwise the function bodies that the file carries.
    `run` may be called from several threads at once.

    Args:
        model: path of the model (external data are found beside it), its bytes, or a ModelProto that
            holds its data.
        threads: threads that work on one node; 0 leaves the number to ONNX Runtime.

    Attributes:
        inputs: names of the inputs to give, without those that select chip and sample.
        outputs: names of the outputs.

    Raises:
        ModelError: ONNX Runtime refuses the model.
        MissingDependencyError: the model's analog nodes have no function bodies, and there is no library.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(self, model: str | Path | bytes | onnx.ModelProto, *, threads: int = 1) -> None:
        import onnxruntime as ort

        if threads < 0:
            raise UsageError(f"threads is {threads}; it must not be negative")
        self._name = str(model) if isinstance(model, str | Path) else "the model"
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _SILENT
        if has_library():
            _register(options)
        try:
            self._session = ort.InferenceSession(_source(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ORT raises many types, RuntimeError among them
            raise self._load_error(model, error) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._chip_input = metadata.get(META_CHIP_INPUT)
        self._first_sample_input = metadata.get(META_FIRST_SAMPLE_INPUT)
        own = only_chip(metadata) if self._chip_input else None
        self._own_chip = IDEAL_CHIP if own is None else own
        selectors = {self._chip_input, self._first_sample_input}
        self._types = {i.name: _dtype(i.type) for i in self._session.get_inputs() if i.name not in selectors}
        self._structures = {i.name for i in self._session.get_inputs() if not i.type.startswith("tensor(")}
        self._scalars = {i.name for i in self._session.get_inputs() if i.shape == []}
        self.inputs = tuple(self._types)
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    def run(
        self,
        inputs: np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray],
        *,
        chip: int | None = None,
        first_sample: int = 0,
    ) -> list[np.ndarray]:
        """All outputs, in order.

        Args:
            inputs: one array for a model with one input; several in order, or by name. Numbers are
                converted to the model's type where that is of the same kind (float64 to float32); an array
                of one element does for a scalar. Sequences, maps and optional values go as they are.
            chip: number of the chip, or -1 for nominal weights; None for the chip that the model is for
                (``cnpass calibrate``), or nominal weights if it is for all.
            first_sample: index in the whole set of the batch's first sample.

        Returns:
            One array per output.

        Raises:
            UsageError: `chip` is out of range, or the model has no analog nodes to which it would apply.
            DataError: the inputs do not fit the model.
            ModelError: a node failed, which the text names, or an input has a type that NumPy has not.
        """
        import onnxruntime as ort

        feeds = self._feeds(inputs)
        if chip is None:
            chip = self._own_chip
        if not hasattr(chip, "__index__") or not IDEAL_CHIP <= chip <= MAX_CHIP:
            raise UsageError(f"chip is {chip}; it must be a whole number from {IDEAL_CHIP} to {MAX_CHIP}")
        if self._chip_input is not None:
            feeds[self._chip_input] = np.array(chip, np.int64)
        elif chip != IDEAL_CHIP:
            raise UsageError(
                f"{self._name} has no analog nodes, so chip {chip} is the same as any; map it first"
            )
        if self._first_sample_input is not None:
            feeds[self._first_sample_input] = np.array(first_sample, np.int64)
        options = ort.RunOptions()
        options.log_severity_level = _SILENT
        try:
            outputs: list[np.ndarray] = self._session.run(None, feeds, options)
        except Exception as error:  # ORT raises many types, RuntimeError among them
            raise self._run_error(error) from error
        return outputs

    def _feeds(
        self, inputs: np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        if isinstance(inputs, np.ndarray):
            inputs = [inputs]
        if not isinstance(inputs, Mapping):
            if len(inputs) != len(self.inputs):
                raise DataError(f"{self._name} takes {len(self.inputs)} input(s), {len(inputs)} are given")
            inputs = dict(zip(self.inputs, inputs, strict=True))
        if set(inputs) != set(self.inputs):
            raise DataError(f"{self._name} takes inputs {sorted(self.inputs)}, given are {sorted(inputs)}")
        feeds = {}
        for name, value in inputs.items():
            if name in self._structures:
                feeds[name] = value
                continue
            array, dtype = np.asarray(value), self._types[name]
            if dtype is not None and dtype.kind == "V":
                raise ModelError(
                    f"input {name!r} of {self._name} is {dtype}, of which ONNX Runtime takes no arrays;"
                    " let the model take float32 and cast it"
                )
            if dtype is not None and not np.can_cast(array.dtype, dtype, casting="same_kind"):
                raise DataError(f"input {name!r} of {self._name} is {dtype}, the data are {array.dtype}")
            if name in self._scalars and array.size == 1:
                array = array.reshape(())
            feeds[name] = array if dtype is None else array.astype(dtype, copy=False)
        return feeds

    def _load_error(self, model: str | Path | bytes | onnx.ModelProto, error: Exception) -> CnpassError:
        text = _line(error)
        if isinstance(model, str | Path) and not Path(model).is_file():
            return ModelError(f"{model} is not a file")
        if not has_library() and DOMAIN in text:
            return MissingDependencyError(
                f"{self._name} holds analog nodes without function bodies and needs cnpass's native library; "
                "reinstall cnpass where a C++ compiler is found, or map the model with portable=always"
            )
        return ModelError(f"ONNX Runtime refuses {self._name}: {text}")

    def _run_error(self, error: Exception) -> CnpassError:
        text = _line(error)
        if "while running" in text:
            return ModelError(f"{self._name} failed: {text}")
        return DataError(f"the data do not fit {self._name}: {text}")


def _source(model: str | Path | bytes | onnx.ModelProto) -> str | bytes:
    if isinstance(model, onnx.ModelProto):
        content: bytes = model.SerializeToString()
        return content
    return model if isinstance(model, bytes) else str(model)


def _register(options: Any) -> None:
    path = get_library_path()
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # ORT raises many types, RuntimeError among them
        raise MissingDependencyError(f"ONNX Runtime cannot use {path.name}: {_line(error)}") from error


def _dtype(name: str) -> np.dtype[Any] | None:
    """NumPy type of an ORT type such as `tensor(float)`; None where NumPy has none, or it is no tensor."""
    element = name.removeprefix("tensor(").removesuffix(")")
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(element.upper()))
    except ValueError:
        return None


def _line(error: Exception) -> str:
    """The error's text on one line, without ORT's error code and source positions."""
    text = " ".join(str(error).split())
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
