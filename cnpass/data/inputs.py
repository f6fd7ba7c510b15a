"""What a model says of its inputs and outputs, and random inputs made from it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import onnx

from cnpass.data.dataset import Array, Dataset, Split
from cnpass.errors import DataError, ModelError
from cnpass.runtime.ops import META_CHIP_INPUT, META_FIRST_SAMPLE_INPUT

RANDOM_SAMPLES = {"train": 1024, "val": 256, "test": 256}
RANDOM_BYTES = 1 << 34
"""Random inputs that would take more are not made."""
RANDOM_NOTE = (
    "no data given, so random inputs: figures say how far outputs move, not how accurate the model is"
)


@dataclass(frozen=True)
class InputSpec:
    """A model input that needs data: not one that an initializer gives a default.

    Attributes:
        shape: sizes, batch first, None where not fixed; None as a whole where the model gives no shape. Of a
            scalar, which holds for a whole run, it is empty; its data are one number per sample.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...] | None

    @property
    def sample(self) -> tuple[int | None, ...] | None:
        """Shape of one sample: that of the input without its batch dimension."""
        return None if self.shape is None else self.shape[1:]


def input_specs(proto: onnx.ModelProto) -> list[InputSpec]:
    """The inputs that need data, in the model's order.

    Raises:
        ModelError: there is none, or one is no tensor of numbers of a known type, or has its samples along
            another axis than the first.
    """
    _check_axes(proto)
    specs = [_spec(value) for value in data_inputs(proto)]
    if not specs:
        raise ModelError("the model has no inputs, so there is nothing to feed data to")
    return specs


def data_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph inputs that need data: not those with a default, nor those that select chip and sample."""
    given = {tensor.name for tensor in proto.graph.initializer}
    given |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    given |= selectors(proto)
    return [value for value in proto.graph.input if value.name not in given]


def selectors(proto: onnx.ModelProto) -> set[str]:
    """Names of the graph inputs that select chip and sample."""
    return {p.value for p in proto.metadata_props if p.key in {META_CHIP_INPUT, META_FIRST_SAMPLE_INPUT}}


def _check_axes(proto: onnx.ModelProto) -> None:
    """Refuse inputs with the first output's first axis on a later axis, as RNNs over time have it."""
    outputs = [[dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in proto.graph.output]
    symbol = outputs[0][0] if outputs and outputs[0] else ""
    for value in data_inputs(proto):
        first, *later = value.type.tensor_type.shape.dim or [None]
        axis = next((i for i, dim in enumerate(later, 1) if symbol and dim.dim_param == symbol), None)
        if first is None or axis is None or first.dim_param == symbol:
            continue
        other = first.dim_value > 1 or (first.dim_param and not any(first.dim_param in o for o in outputs))
        if other:
            raise ModelError(
                f"input '{value.name}' has its samples along axis {axis} ('{symbol}', the first axis of"
                f" output '{proto.graph.output[0].name}'), not its first; let a Transpose follow the input"
            )


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    if not value.type.HasField("tensor_type") or value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
        raise ModelError(f"input '{value.name}' is no tensor of numbers; such models are not supported")
    tensor = value.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError:
        raise ModelError(f"input '{value.name}' has the unknown type {tensor.elem_type}") from None
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(_size(dim) for dim in tensor.shape.dim)
    return InputSpec(value.name, dtype, shape)


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else None


def class_count(proto: onnx.ModelProto) -> int | None:
    """Number of classes, where the first output is declared as ``[batch, classes, 1...]``; else None."""
    if not proto.graph.output:
        return None
    tensor = proto.graph.output[0].type.tensor_type
    sizes = [_size(dim) for dim in tensor.shape.dim] if tensor.HasField("shape") else []
    if len(sizes) < 2 or any(size != 1 for size in sizes[2:]):
        return None
    return sizes[1]


def random_dataset(specs: list[InputSpec], seed: int = 0) -> Dataset:
    """Random samples without labels: standard normal numbers, or zeros and ones for integer inputs.

    Raises:
        DataError: the shape of a sample is not fixed, or so large that nobody can mean it.
    """
    generator = np.random.default_rng(seed)
    train, val, test = (
        Split({spec.name: _draw(spec, count, generator) for spec in specs})
        for count in RANDOM_SAMPLES.values()
    )
    return Dataset(train, val, test, name=f"random inputs (seed {seed})", notes=(RANDOM_NOTE,), random=True)


def _draw(spec: InputSpec, count: int, generator: np.random.Generator) -> Array:
    sizes = [size for size in spec.sample or (None,) if size is not None]
    if spec.sample is None or len(sizes) != len(spec.sample):
        raise DataError(
            f"input '{spec.name}' has no fixed shape, so random inputs cannot be made; give --data"
        )
    if count * prod(sizes) * spec.dtype.itemsize > RANDOM_BYTES:
        raise DataError(f"random inputs of shape {sizes} for input '{spec.name}' would take too much memory")
    drawn: npt.NDArray[np.generic]
    if np.issubdtype(spec.dtype, np.integer) or spec.dtype == np.bool_:
        drawn = generator.integers(0, 2, (count, *sizes))
    else:
        drawn = generator.standard_normal((count, *sizes))
    return drawn.astype(spec.dtype)
