"""Writes an `nn.Sequential` as ONNX: one node per module, one initializer per parameter.

The same weights give the same bytes. Built by hand and not with `torch.onnx.export`, whose names, metadata
and node order change with its version.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

OPSET = 18  # the first whose BitwiseXor lets an analog op be expressed as a function body
IR_VERSION = 10  # the first with metadata on nodes


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _conv(name: str, module: nn.Conv2d, x: str, y: str) -> onnx.NodeProto:
    if isinstance(module.padding, str):
        raise TypeError(f"{name}: give the padding as numbers")
    return helper.make_node(
        "Conv",
        [x, f"{name}.weight", f"{name}.bias"],
        [y],
        name,
        kernel_shape=_pair(module.kernel_size),
        strides=_pair(module.stride),
        pads=_pair(module.padding) * 2,
        dilations=_pair(module.dilation),
        group=module.groups,
    )


def _linear(name: str, _: nn.Linear, x: str, y: str) -> onnx.NodeProto:
    return helper.make_node("Gemm", [x, f"{name}.weight", f"{name}.bias"], [y], name, transB=1)


def _max_pool(name: str, module: nn.MaxPool2d, x: str, y: str) -> onnx.NodeProto:
    return helper.make_node(
        "MaxPool", [x], [y], name, kernel_shape=_pair(module.kernel_size), strides=_pair(module.stride)
    )


def _relu(name: str, _: nn.ReLU, x: str, y: str) -> onnx.NodeProto:
    return helper.make_node("Relu", [x], [y], name)


def _flatten(name: str, _: nn.Flatten, x: str, y: str) -> onnx.NodeProto:
    return helper.make_node("Flatten", [x], [y], name)


_WRITERS: dict[type[nn.Module], Callable[..., onnx.NodeProto]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    nn.ReLU: _relu,
    nn.Flatten: _flatten,
}


def to_onnx(network: nn.Sequential, name: str, input_shape: tuple[int, ...], doc: str) -> onnx.ModelProto:
    """Convert a chain of modules.

    Args:
        network: Its module names become node names; its parameter names become initializer names.
        name: Name of the graph.
        input_shape: Shape of one image, without the batch axis, which stays free under the name "batch".
        doc: The model's doc_string.

    Returns:
        A checked model with input "input" float32 [batch, *input_shape] and output "logits" [batch, classes].

    Raises:
        TypeError: A module of a type this exporter does not know.
    """
    nodes = []
    value = "input"
    modules = list(network.named_children())
    for module_name, module in modules:
        output = "logits" if module_name == modules[-1][0] else f"{module_name}.out"
        writer = _WRITERS.get(type(module))
        if writer is None:
            raise TypeError(f"{module_name}: {type(module).__name__} has no ONNX writer here")
        nodes.append(writer(module_name, module, value, output))
        value = output
    classes = len(modules[-1][1].bias)
    parameters = {key: p.detach().numpy() for key, p in network.named_parameters()}
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *input_shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(array, key) for key, array in parameters.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="models/export.py",
        doc_string=doc,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write the model in one step, so that an interrupted run leaves the former file."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(model.SerializeToString(deterministic=True))
    partial.replace(path)
