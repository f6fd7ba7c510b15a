"""Every torch rule on the node cases that come with onnx itself."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx.backend.test.loader import load_model_tests

from cnpass.training.lift import Lifted
from cnpass.training.rules import find_rule
from cnpass.training.rules.dtypes import TORCH_TYPES

WAIVED = {
    "test_batchnorm_epsilon_training_mode": "training mode",
    "test_batchnorm_example_training_mode": "training mode",
    "test_maxpool_with_argmax": "Indices output",
    "test_reduce_max_empty_set": "no element, no maximum",
    "test_reduce_min_empty_set": "no element, no minimum",
    "test_resize_downsample_scales_cubic_align_corners": "the case keeps a fractional length",
    "test_resize_downsample_scales_linear_align_corners": "the case keeps a fractional length",
    "test_resize_downsample_scales_cubic_antialias": "antialias",
    "test_resize_downsample_scales_linear_antialias": "antialias",
    "test_resize_downsample_sizes_cubic_antialias": "antialias",
    "test_resize_downsample_sizes_linear_antialias": "antialias",
    "test_resize_tf_crop_and_resize": "coordinate transformation",
    "test_scatternd_max": "reduction",
    "test_scatternd_min": "reduction",
    "test_scatternd_multiply": "reduction",
    "test_training_dropout": "training mode",
}
"""Start of a case's name and why its rule does not follow it, by design."""

EXACT_TYPES = set(TORCH_TYPES) - {
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.INT4,
    onnx.TensorProto.UINT4,
}
"""Types that torch holds as they are; half types are held in float32."""


def _cases() -> list[object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    chosen = []
    for case in cases:
        model = case.model
        if len(model.graph.node) != 1 or any(o.domain not in ("", "ai.onnx") for o in model.opset_import):
            continue
        opset = model.opset_import[0].version
        node = model.graph.node[0]
        if find_rule(node.domain, node.op_type, opset) is None:
            continue
        types = {
            v.type.tensor_type.elem_type if v.type.HasField("tensor_type") else -1
            for v in (*model.graph.input, *model.graph.output)
        }
        if types <= EXACT_TYPES:
            why = next((reason for name, reason in WAIVED.items() if case.name.startswith(name)), None)
            marks = [pytest.mark.skip(reason=why)] if why else []
            chosen.append(pytest.param(case, id=case.name, marks=marks))
    return chosen


def _array(value: object, info: onnx.ValueInfoProto) -> np.ndarray:
    """Some cases hold arrays of Python floats or whole protos."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.array(value, dtype=onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))


@pytest.mark.parametrize("case", _cases())
def test_rule_matches_the_backend_case(case) -> None:
    module = Lifted(case.model)
    graph = case.model.graph
    for inputs, outputs in case.data_sets:
        with torch.no_grad():
            got = module(*[torch.from_numpy(_array(v, i)) for v, i in zip(inputs, graph.input, strict=False)])
        assert len(got) == len(outputs)
        for tensor, value, info in zip(got, outputs, graph.output, strict=True):
            want = _array(value, info).astype(np.float64)
            assert tuple(tensor.shape) == want.shape
            np.testing.assert_allclose(
                tensor.detach().double().numpy(), want, rtol=max(case.rtol, 1e-4), atol=1e-5
            )
