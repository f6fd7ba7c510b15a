"""What others do with torch: every architecture, both exporters, old and new opsets, from end to end."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from cnpass.document import Document
from cnpass.inspection import inspect
from cnpass.mapping import plan
from cnpass.passes import Pipeline
from cnpass.passes.pipeline import Verifying
from cnpass.runtime.session import Session
from cnpass.training.lift import lift
from cnpass.training.writeback import write_back

NAMES = (
    *("mlp", "lenet", "vgg-bn", "resnet", "mobilenet", "unet", "vit"),
    *("encoder", "decoder", "lstm", "gru", "conv1d", "conv3d"),
)
OLDEST = {"encoder": 14, "decoder": 14}
COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


OPSETS = {"torchscript": (9, 13, 17, 20), "dynamo": (18, 22, 25)}


def cases() -> list[object]:
    """The oldest opset of the older exporter and the newest of the newer one; those between are slow."""
    found = []
    for name in NAMES:
        for exporter, opsets in OPSETS.items():
            tried = sorted({max(opset, OLDEST.get(name, 9)) for opset in opsets})
            for opset in tried:
                fast = opset == (tried[0] if exporter == "torchscript" else tried[-1])
                marks = [] if fast else [pytest.mark.slow]
                found.append(
                    pytest.param(name, exporter, opset, marks=marks, id=f"{name}-{exporter}-{opset}")
                )
    return found


def execute(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs in ONNX Runtime, without fusions."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def close(expected: np.ndarray, got: np.ndarray) -> bool:
    scale = max(float(np.abs(expected).max(initial=0)), 1e-2)
    return expected.shape == got.shape and float(np.abs(expected - got).max(initial=0)) <= 1e-5 * scale


def macs_of_a_run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> int:
    """Multiply-accumulates of one sample, from the shapes that all tensors have in a run."""
    traced = onnx.ModelProto()
    traced.CopyFrom(model)
    counted = [node for node in model.graph.node if node.op_type in COUNTED]
    present = {value.name for value in (*model.graph.output, *model.graph.input)}
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    wanted = {name for node in counted for name in (*node.input[:2], *node.output)} - present - shapes.keys()
    traced.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted))
    shapes |= {name: list(array.shape) for name, array in {**execute(traced, feeds), **feeds}.items()}
    total = 0
    for node in counted:
        x, w, y = (shapes[name] for name in (*node.input[:2], node.output[0]))
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        if node.op_type in ("Gemm", "MatMul"):
            total += prod(y) * x[0 if turned else -1]
        else:
            total += prod(x if node.op_type == "ConvTranspose" else y) * prod(w[1:])
    return total // len(next(iter(feeds.values())))


@pytest.mark.parametrize(("name", "exporter", "opset"), cases())
def test_every_export(exported, name, exporter, opset):
    model, feeds = exported(name, exporter, opset)
    source = model.SerializeToString(deterministic=True)
    document = Document.from_proto(model)
    assert document.opset == opset
    expected = execute(model, feeds)

    record = inspect(document)
    assert all(node.reason for node in record.nodes)
    assert record.totals.analog >= 1
    counted = [node.macs for node in record.nodes if node.op_type in COUNTED]
    assert None not in counted
    assert sum(counted) == macs_of_a_run(model, feeds)
    stored = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.dims]
    assert record.totals.params >= sum(prod(t.dims) for t in stored if prod(t.dims) > 1)

    Pipeline.parse("map-crossbar").run(document, [Verifying()])
    outputs = dict(zip(expected, Session(document.to_proto()).run(feeds), strict=True))
    assert all(close(expected[key], outputs[key]) for key in expected)
    Pipeline.parse("lower-analog{mark=false}").run(document, [Verifying()])
    assert document.to_proto().SerializeToString(deterministic=True) == source

    module = lift(document)
    inputs = [torch.from_numpy(feeds[key]) for key in module.input_names]
    got = module(*inputs)
    assert all(close(e, g.detach().numpy()) for e, g in zip(expected.values(), got, strict=True))
    generator = torch.Generator().manual_seed(0)
    torch.stack([(g * torch.rand(g.shape, generator=generator)).sum() for g in got]).sum().backward()
    assert all(weight.grad is not None for weight in module.weights.values())
    assert {node.key for node in plan(document).analog} <= set(module.weights)

    assert write_back(document, module.weights) == []
    assert document.to_proto().SerializeToString(deterministic=True) == source
    new = {key: weight.detach() * 1.01 + 0.001 for key, weight in module.weights.items()}
    write_back(document, new)
    outputs = execute(document.to_proto(), feeds)
    with torch.no_grad():
        wanted = module(*inputs, weights=new)
    assert all(close(w.numpy(), outputs[key]) for key, w in zip(outputs, wanted, strict=True))
