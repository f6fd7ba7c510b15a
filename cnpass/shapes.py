"""Tensor shapes of one inference, for counting; weights are never read for it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, shape_inference
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError

from cnpass import shape_arithmetic
from cnpass.constants import Stored, constant_values, tensor_proto
from cnpass.data.inputs import data_inputs
from cnpass.document import OVERRIDABLE_IR, Document
from cnpass.errors import ModelError
from cnpass.nodes import subgraphs
from cnpass.order import in_order
from cnpass.runtime import ops

_SMALL = 1024
"""Elements up to which an integer initializer may be a shape, whose values inference needs."""

_FOLDED_NODES = 200_000
"""Bound on the work: inference is repeated at most this many times nodes."""

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Shapes:
    """Shapes by tensor name, for inputs whose open first dimension is 1.

    Attributes:
        known: shapes; a None in one stands for a dimension that is not known.
        batch: samples of one inference: what the first dimension of every input and output is; the
            scalars that select a chip or count samples are no such inputs.
    """

    known: dict[str, Shape]
    batch: int

    def rank(self, name: str) -> int | None:
        """Number of dimensions, or None."""
        shape = self.known.get(name)
        return None if shape is None else len(shape)

    def size(self, name: str) -> int | None:
        """Elements per sample, rounded up, or None; the batch may lie on any axis, or among heads, say."""
        shape = self.known.get(name)
        if shape is None or None in shape:
            return None
        return ceil(prod(dim for dim in shape if dim is not None) / self.batch)


def infer(document: Document, samples: Mapping[str, Sequence[int]] | None = None) -> Shapes:
    """Infer shapes with ONNX's own inference, taking an open leading dimension of an input as 1.

    ONNX does not follow the shape arithmetic that exporters leave in models (Shape, Gather, Concat, Reshape),
    so what of it became known is folded, and inference goes on from there. Operators that ONNX does not
    know stop it; what lies behind them then comes from the model's value infos.

    Args:
        document: The model.
        samples: Shape of one sample by input name, which fills in other open dimensions; what comes of it
            holds for such samples alone.
    """
    model = _skeleton(document)
    _fill_in(model, samples or {})
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value <= 0 and not dims[0].dim_param:
            dims[0].dim_value = 1
    ends = [*data_inputs(model), *model.graph.output]
    known: dict[str, Shape] = {}
    for _ in range(2 + _FOLDED_NODES // max(1, len(model.graph.node))):
        try:
            model = shape_inference.infer_shapes(model, data_prop=True)
        except (InferenceError, ValidationError, RuntimeError, ValueError):
            known = _known(model) | known
            break
        known |= _known(model)
        if not shape_arithmetic.fold(model, known, document.opset):
            break
    return Shapes(known, _batch(ends, known))


def _known(model: ModelProto) -> dict[str, Shape]:
    graph = model.graph
    described = [*graph.value_info, *graph.input, *graph.output]
    known = {value.name: _dims(value) for value in described if _has_shape(value)}
    return known | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def _fill_in(model: ModelProto, samples: Mapping[str, Sequence[int]]) -> None:
    """Give open dimensions the sizes that samples say, and those that count samples 1, by their names.

    A name that an input has both leading and elsewhere counts no samples.
    """
    leading, elsewhere, sizes = set(), set(), {}
    for value in model.graph.input:
        dims, sample = value.type.tensor_type.shape.dim, samples.get(value.name, ())
        leading |= {dim.dim_param for dim in dims[:1]}
        elsewhere |= {dim.dim_param for dim in dims[1:]}
        if len(sample) == len(dims) - 1:
            for dim, size in zip(dims[1:], sample, strict=True):
                if dim.dim_param:
                    sizes[str(dim.dim_param)] = int(size)
                elif dim.dim_value <= 0:
                    dim.dim_value = int(size)
    sizes = {str(name): 1 for name in leading - elsewhere - {""}} | sizes
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]


def _has_shape(value: ValueInfoProto) -> bool:
    return bool(value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"))


def _dims(value: ValueInfoProto) -> Shape:
    return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim)


def _batch(values: list[ValueInfoProto], known: dict[str, Shape]) -> int:
    """The fixed leading dimension that all inputs and outputs have, else 1; inference fills in open ones."""
    shapes = (_dims(value) if _has_shape(value) else () for value in values)
    leading = {
        dims[0] or known.get(value.name, dims)[0] if dims else None
        for value, dims in zip(values, shapes, strict=True)
    }
    only = leading.pop() if len(leading) == 1 else None
    return only or 1


def _skeleton(document: Document) -> ModelProto:
    """The model with analog nodes as their plain forms and without the bytes of its weights."""
    model = document.to_proto(export=_stub)
    # Below it, inference takes initializers for missing that are no graph inputs, which many are not.
    model.ir_version = max(model.ir_version, OVERRIDABLE_IR)
    _make_plain(model.graph)
    for entry in model.opset_import:
        entry.domain = _default(entry.domain)
    return model


def _make_plain(graph: GraphProto) -> None:
    """Replace analog nodes, put nodes in order, and name ONNX's own domain in one way; in bodies, too."""
    nodes = in_order([plain for node in graph.node for plain in _plain(node)])
    graph.ClearField("node")
    graph.node.extend(nodes)
    for node in graph.node:
        node.domain = _default(node.domain)
        for body in subgraphs(node):
            _make_plain(body)


def _default(domain: str) -> str:
    """A domain; ONNX's own, which may be spelled out and which its inference knows as "" only, as ""."""
    return "" if domain == "ai.onnx" else domain


def _stub(constant: gs.Constant) -> Stored:
    """An initializer of the same type and shape; with its values only where they may be a shape."""
    if np.dtype(constant.dtype).kind == "i" and prod(constant.shape) <= _SMALL:
        with contextlib.suppress(ModelError):  # missing external data: go on without the values
            return tensor_proto(constant.name, constant_values(constant))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(constant.dtype))
    return TensorProto(name=constant.name, data_type=kind, dims=constant.shape)


def _plain(node: NodeProto) -> list[NodeProto]:
    """A node, or the standard operators that compute shapes like an analog node."""
    if node.domain != ops.DOMAIN:
        return [node]
    inputs, made = list(node.input), []
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if ops.WEIGHT_PERM in attributes:
        inputs[1] = f"{node.output[0]}.weight"
        perm = list(attributes[ops.WEIGHT_PERM].ints)
        made.append(helper.make_node("Transpose", [node.input[1]], [inputs[1]], perm=perm))
    convolution = node.op_type == ops.ANALOG_CONV
    plain = helper.make_node(
        "Conv" if convolution else "MatMul", inputs[: 3 if convolution else 2], list(node.output)
    )
    plain.attribute.extend(attributes[name] for name in ops.CONV_ATTRIBUTES if name in attributes)
    return [*made, plain]
