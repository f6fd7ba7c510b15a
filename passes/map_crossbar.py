"""`map-crossbar`: matrix products and convolutions with constant weights become analog ops."""

from __future__ import annotations

import base64
import itertools
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from cnpass.collector import paused_collection
from cnpass.document import Document
from cnpass.functions import inline_products
from cnpass.mapping import NodePlan, Product, plan, weight_perm
from cnpass.nodes import Node, key, label, node_metadata, node_proto, scope
from cnpass.options import LARGEST_TILE
from cnpass.passes import analog, periphery, scan
from cnpass.passes.base import (
    PASS_CONFIG,
    PassError,
    PassPostconditionError,
    PassPreconditionError,
    PassResult,
)
from cnpass.passes.conversion import convert
from cnpass.passes.device import DevicePass
from cnpass.runtime import ops
from cnpass.runtime.devices import SCALE_FLOOR, in_ops
from cnpass.runtime.periphery import MAX_BITS, PERIPHERY
from cnpass.shapes import Shapes
from cnpass.weights import resolve

_KEPT = ("stream", ops.COPIES, ops.EXTRA_COPIES, ops.WEIGHT_PERM, *PERIPHERY)
"""Attributes that a new device model leaves as they are."""

_AS_IT_IS = "0 for none (default: as it is; none on new nodes)"

_STRING_TYPES = 6
"""From this opset on, Cast names its type by number."""


@dataclass(frozen=True, config=PASS_CONFIG)
class MapCrossbar(DevicePass):
    """Put Conv, Gemm and MatMul with constant weights on simulated analog crossbars.

    Every such node becomes AnalogConv or AnalogMatMul, with digital nodes around it for what the op has not:
    Casts for types other than float32, Transposes, Gemm's alpha, beta and C. Weights stay where and as they
    are stored; a Transpose between weight and node moves into `weight_perm`, and the Transpose node, which
    then may have no reader, stays in the file. Nodes in bodies of If, Loop and Scan are mapped where they
    stand; local functions that hold products with weights of the model are inlined first. A weight gets the
    copies that it had before `lower-analog`. On a model that is mapped already, the pass sets device and seed
    anew, the periphery where its options say so, and maps what is left. Converters and read noise need
    ranges, which depend on data: `calibrate-ranges` finds them.
    """

    name: ClassVar[str] = "map-crossbar"

    seed: int = Field(
        default=0, ge=-(2**63), le=2**64 - 1, description="seed of all chips, 64 bits, signed or not"
    )
    tile_rows: int | None = Field(
        default=None, ge=0, le=LARGEST_TILE, description=f"rows of a crossbar tile, {_AS_IT_IS}"
    )
    tile_cols: int | None = Field(
        default=None, ge=0, le=LARGEST_TILE, description=f"columns of a crossbar tile, {_AS_IT_IS}"
    )
    dac_bits: int | None = Field(
        default=None, ge=0, le=MAX_BITS, description=f"bits of the converters of inputs, {_AS_IT_IS}"
    )
    adc_bits: int | None = Field(
        default=None, ge=0, le=MAX_BITS, description=f"bits of the converter behind every tile, {_AS_IT_IS}"
    )
    read_noise: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description=f"deviation of the noise of one reading over the ADC's range, {_AS_IT_IS}",
    )
    portable: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="function bodies for runtimes without the native library: where the opset allows,"
        " always (older opsets are converted, and the result is checked), or never",
    )

    @field_validator("dac_bits", "adc_bits")
    @classmethod
    def _converts(cls, bits: int | None) -> int | None:
        if bits == 1:
            raise ValueError(f"a converter has 2 to {MAX_BITS} bits, 0 is none")
        return bits

    @paused_collection()
    def apply(self, document: Document) -> PassResult:
        """See `Pass.apply`."""
        if not in_ops(self.device.name):
            raise PassPreconditionError(
                self.name,
                f"no analog node can name device {self.device.name!r} of another package; put its nodes in "
                "front of nodes with device programmed (cnpass.runtime.program_node)",
            )
        inlined = inline_products(document)
        found = plan(document)
        if not found.analog:
            raise PassPreconditionError(self.name, f"no node can run on a crossbar: {found.why_none()}")
        notes = [f"{inlined} local functions are inlined"] if inlined else []
        modified = inlined > 0
        if self.portable == "always" and analog.why_no_bodies(document):
            notes.append(convert(document, self.name))
            found = plan(document)
            modified = True
        before = _state(document)
        self._retarget(document)
        waiting = {id(n.node): n for n in found.analog if n.node is not None and n.node.domain != ops.DOMAIN}
        writer = _Writer(document, self, found.shapes)
        for nodes in list(document.node_lists()):
            entries = [(node, waiting.get(id(node))) for node in nodes]
            nodes[:] = [new for node, entry in entries for new in writer.rewrite(node, entry)]
        scan.declare(document, found.shapes)
        _level(document)
        self._check_columns(document)
        document.opsets[ops.DOMAIN] = ops.VERSION
        document.metadata[ops.META_VERSION] = "1"
        options = {name: getattr(self, name) for name in PERIPHERY if hasattr(self, name)}
        notes.extend(periphery.write(document, {k: v for k, v in options.items() if v is not None}))
        if self.portable == "never":
            analog.drop_bodies(document)
        else:
            reason = analog.try_bodies(document)
            if reason and self.portable == "always":
                raise PassError(self.name, f"function bodies cannot be written: {reason}")
            if reason:
                notes.append(f"no function bodies ({reason}): running the file needs the native library")
        if waiting:
            notes.insert(0, f"{len(waiting)} nodes are analog now")
        return PassResult(modified or bool(waiting) or _state(document) != before, tuple(notes))

    def ensures(self, document: Document) -> None:
        """Every analog node names its device and reads the chip."""
        for node in analog.analog_nodes(document):
            if not node.attrs.get("device") or not analog.chip(node).name:
                raise PassPostconditionError(self.name, f"node {label(node)!r} has no device or no chip")

    def device_attributes(self) -> dict[str, Any]:
        """The attributes of an analog node that say what its devices are."""
        seed = self.seed - 2**64 if self.seed >= 2**63 else self.seed
        parameters = {name: float(value) for name, value in self.device.attributes().items()}
        return {"device": self.device.name, **parameters, "seed": seed}

    def _retarget(self, document: Document) -> None:
        """Set device and seed of nodes that are analog already; weights programmed elsewhere stay so."""
        for node in analog.analog_nodes(document):
            if node.attrs.get("device") != ops.PROGRAMMED:
                old = dict(node.attrs)
                first = {name: value for name, value in old.items() if name in ops.CONV_ATTRIBUTES}
                last = {name: old[name] for name in _KEPT if name in old}
                node.attrs.clear()
                node.attrs.update({**first, **self.device_attributes(), **last})

    def _check_columns(self, document: Document) -> None:
        """Refuse columns with a full scale of their own on a weight whose uses have different columns."""
        if getattr(self.device, SCALE_FLOOR, 1.0) == 1:
            return
        axes: dict[int, int] = {}
        for node in analog.analog_nodes(document):
            if node.attrs.get("device") == ops.PROGRAMMED:  # has no stream; its device is another node's
                continue
            axis = ops.column_axis(node.op, node.attrs.get(ops.WEIGHT_PERM))
            if axes.setdefault(node.attrs.get("stream", 0), axis) != axis:
                raise PassError(
                    self.name,
                    f"node {label(node)!r} uses a weight across that another node uses along, so the weight "
                    "has no columns of its own; set scale_floor=1",
                )


class _Writer:
    """Writes the nodes that take the place of one source node after the other."""

    def __init__(self, document: Document, step: MapCrossbar, shapes: Shapes) -> None:
        self.document = document
        self.step = step
        self.shapes = shapes
        self.device = step.device_attributes()
        self.chip = _chip(document)
        self.casts: dict[tuple[int, str], gs.Tensor] = {}
        self.names = {node.name for node in document.all_nodes()}
        self.nodes: list[gs.Node] = []

    def rewrite(self, node: gs.Node, entry: NodePlan | None) -> list[gs.Node]:
        """The nodes for one source node, which is taken off its tensors; without an entry the node itself."""
        if entry is None:
            return [node]
        product = entry.product
        assert product is not None  # noqa: S101 (the planner gives one to every node that is not analog yet)
        self.nodes, self.source, self.entry = [], node, entry
        proto, inputs, output = node_proto(node), list(node.inputs), node.outputs[0]
        analog.detach(node)
        self.single = product.weight.dtype == np.float32
        x = self.to_single(inputs[1 - product.operand])
        w = self.weight(product)
        if node.op == "Conv":
            kernel = product.weight.shape[2:]
            bias = self.to_single(inputs[2]) if len(inputs) > 2 and inputs[2].name else gs.Variable.empty()
            attributes = ops.explicit_conv_attributes(node.attrs, kernel)
            y = self.analog(proto, ops.ANALOG_CONV, [x, w, bias, self.chip], attributes, product)
        else:
            y = self.matrix(proto, inputs, x, w, product)
        if not self.single:
            y = self.digital("Cast", [y], "cast", to=self.type(product.weight.dtype))
        # Whatever came last writes the tensor that the source node wrote.
        self.nodes[-1].outputs.clear()
        self.nodes[-1].outputs.append(output)
        return self.nodes

    def matrix(
        self, proto: Any, inputs: list[gs.Tensor], x: gs.Tensor, w: gs.Tensor, product: Product
    ) -> gs.Tensor:
        """Gemm or MatMul: Transpose, AnalogMatMul, Transpose, Mul by alpha, Add of beta C, where needed."""
        gemm = proto.op_type == "Gemm"
        attributes = self.source.attrs
        rank = 2 if gemm else self.shapes.rank(key(inputs[1 - product.operand]))
        left = product.operand == 0
        # The op takes [..., K]: a right operand [K, N] goes in, and comes out, the other way round.
        if left:
            turn = not attributes.get("transB", 0) if gemm else rank != 1
        else:
            turn = bool(gemm and attributes.get("transA", 0))
        if turn:
            x = self.digital("Transpose", [x], "turned", perm=_swapped(rank or 2))
        y = self.analog(proto, ops.ANALOG_MATMUL, [x, w, self.chip], {}, product)
        if left and rank != 1:
            y = self.digital("Transpose", [y], "product", perm=_swapped(rank or 2))
        if gemm:
            alpha, beta = (float(attributes.get(name, 1.0)) for name in ("alpha", "beta"))
            if alpha != 1:
                y = self.digital("Mul", [y, self.scalar(alpha, "alpha")], "scaled")
            if len(inputs) > 2 and inputs[2].name:
                c = self.to_single(inputs[2])
                if beta != 1:
                    c = self.digital("Mul", [c, self.scalar(beta, "beta")], "bias")
                y = self.digital("Add", [y, c], "sum")
        return y

    def analog(
        self, proto: Any, op: str, inputs: list[gs.Tensor], attributes: dict[str, Any], product: Product
    ) -> gs.Tensor:
        """The analog node itself."""
        attributes = {**attributes, **self.device, "stream": self.entry.stream}
        if product.perm is not None:
            attributes[ops.WEIGHT_PERM] = list(product.perm)
        attributes |= product.copies.attributes()
        node = Node(op, self.source.name, attributes, inputs, [self.variable("analog")], ops.DOMAIN)
        node.scope = scope(self.source)
        node_metadata(node).update(node_metadata(self.source))
        node_metadata(node).pop(ops.META_COPIES, None)  # the attribute says it
        analog.mark(node, self.step.name, self.entry.label, self.source.op, ops.ROLE_ANALOG)
        stored = base64.b64encode(proto.SerializeToString(deterministic=True)).decode()
        node_metadata(node)[ops.META_SOURCE] = stored
        self.nodes.append(node)
        return node.outputs[0]

    def weight(self, product: Product) -> gs.Tensor:
        """The stored weight, in float32; one Cast serves all nodes of a graph or body that share it."""
        stored = product.weight.stored
        if self.single:
            return stored
        place = id(stored), scope(self.source)
        if place not in self.casts:
            cast = gs.Variable(self.document.fresh(f"{stored.name}.float32"))
            node = Node("Cast", "", {"to": self.type(np.float32)}, [stored], [cast])
            self.nodes.append(analog.mark(node, self.step.name, product.weight.key, "Cast", ops.ROLE_DIGITAL))
            self.casts[place] = cast
        return self.casts[place]

    def to_single(self, tensor: gs.Tensor) -> gs.Tensor:
        return tensor if self.single else self.digital("Cast", [tensor], "float32", to=self.type(np.float32))

    def scalar(self, value: float, suffix: str) -> gs.Tensor:
        constant = gs.Constant("", np.array(value, np.float32))
        return self.digital("Constant", [], suffix, value=constant)

    def digital(self, op: str, inputs: list[gs.Tensor], suffix: str, **attributes: Any) -> gs.Tensor:
        """A standard operator beside the analog node."""
        node = Node(op, self.name(suffix), attributes, inputs, [self.variable(suffix)])
        self.nodes.append(
            analog.mark(node, self.step.name, self.entry.label, self.source.op, ops.ROLE_DIGITAL)
        )
        return node.outputs[0]

    def name(self, suffix: str) -> str:
        """A node name that is not taken, for ONNX Runtime wants them different; nameless nodes stay so."""
        if not self.source.name:
            return ""
        name = f"{self.source.name}.{suffix}"
        numbered = (f"{name}_{count}" for count in itertools.count(1))
        name = next(free for free in itertools.chain([name], numbered) if free not in self.names)
        self.names.add(name)
        return name

    def variable(self, suffix: str) -> gs.Variable:
        return gs.Variable(self.document.fresh(f"{self.entry.label}.{suffix}"))

    def type(self, dtype: Any) -> int | str:
        """Cast's attribute `to`."""
        from onnx.helper import np_dtype_to_tensor_dtype

        number = np_dtype_to_tensor_dtype(np.dtype(dtype))
        return number if self.document.opset >= _STRING_TYPES else TensorProto.DataType.Name(number)


def _state(document: Document) -> Any:
    """What this pass can change in a model that is mapped already."""
    attributes = [dict(node.attrs) for node in analog.analog_nodes(document)]
    return attributes, [function.SerializeToString(deterministic=True) for function in document.functions]


def _swapped(rank: int) -> list[int]:
    """The permutation that swaps the last two axes."""
    return [*range(rank - 2), rank - 1, rank - 2]


def _chip(document: Document) -> gs.Tensor:
    """The tensor that selects the chip; made if the model has none."""
    for node in analog.analog_nodes(document):
        return analog.chip(node)
    return analog.selector(document, ops.META_CHIP_INPUT, ops.CHIP_INPUT)


def _level(document: Document) -> None:
    """Give all nodes of an op type what any has of `weight_perm` and copies, so that all share a body."""
    for op in (ops.ANALOG_CONV, ops.ANALOG_MATMUL):
        nodes = [node for node in analog.analog_nodes(document) if node.op == op]
        for name, absent in ((ops.COPIES, 1), (ops.EXTRA_COPIES, [0, 0])):
            if any(name in node.attrs for node in nodes):
                for node in nodes:
                    node.attrs.setdefault(name, absent)
        if any(ops.WEIGHT_PERM in node.attrs for node in nodes):
            for node in nodes:
                node.attrs.setdefault(ops.WEIGHT_PERM, list(weight_perm(node, resolve(node.inputs[1]))))
