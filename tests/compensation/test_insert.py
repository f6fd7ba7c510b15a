"""Inserted compensation: the identity at first, digital, counted, and mapped around."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from cnpass.compensation.kinds import kind_names
from cnpass.compensation.overhead import overhead, weight_keys
from cnpass.compensation.site import find_sites
from cnpass.document import Document
from cnpass.mapping import plan
from cnpass.passes.base import PassPreconditionError
from cnpass.passes.insert_compensation import InsertCompensation
from cnpass.passes.lower_analog import LowerAnalog
from cnpass.passes.map_crossbar import MapCrossbar
from cnpass.passes.pipeline import Pipeline
from cnpass.runtime import ops
from cnpass.runtime.session import Session
from cnpass.training.lift import lift


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ("Conv", (2, 3, 9, 9), (5, 3, 3, 3), {}),
    "same size": ("Conv", (2, 3, 9, 8), (5, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "strided": ("Conv", (2, 3, 9, 11), (4, 3, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 3]}),
    "pointwise": ("Conv", (2, 3, 6, 6), (4, 3, 1, 1), {}),
    "pointwise strided": ("Conv", (2, 3, 7, 7), (4, 3, 1, 1), {"strides": [2, 2]}),
    "dilated": ("Conv", (2, 3, 12, 12), (4, 3, 3, 3), {"dilations": [2, 3], "pads": [2, 2, 2, 2]}),
    "auto pad": ("Conv", (2, 3, 7, 7), (4, 3, 4, 3), {"auto_pad": "SAME_LOWER"}),
    "auto pad, strided": ("Conv", (2, 3, 7, 7), (4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "wide padding": ("Conv", (2, 3, 6, 6), (4, 3, 1, 1), {"pads": [1, 1, 1, 1]}),
    "depthwise": ("Conv", (2, 4, 8, 8), (4, 1, 3, 3), {"group": 4}),
    "1-D": ("Conv", (2, 3, 20), (4, 3, 5), {"strides": [3]}),
    "3-D": ("Conv", (2, 2, 5, 6, 7), (3, 2, 2, 3, 3), {"pads": [1, 1, 1, 0, 1, 1]}),
    "matrix": ("MatMul", (4, 7), (7, 5), {}),
    "sequence": ("MatMul", (2, 6, 7), (7, 5), {}),
    "gemm": ("Gemm", (4, 7), (5, 7), {"transB": 1, "alpha": 0.5}),
}


UNSUITED = {"probe": ("auto pad, strided", "matrix", "sequence", "gemm"), "bypass": ("depthwise",)}
SUITED = [(kind, case) for kind in kind_names() for case in CASES if case not in UNSUITED.get(kind, ())]


@pytest.mark.parametrize(("kind", "case"), SUITED)
@pytest.mark.parametrize("opset", [11, 18])
def test_an_untrained_compensation_changes_no_output(single, ort, kind: str, case: str, opset: int) -> None:
    op, x_shape, w_shape, attributes = CASES[case]
    model = single(op, x_shape, _random(*w_shape), opset, **attributes)
    document = Document.from_proto(model)
    InsertCompensation(node="site", kind=kind, ratio=0.5)(document)
    compensated = document.to_proto()
    onnx.checker.check_model(compensated, full_check=True)
    x = _random(*x_shape, seed=1)
    np.testing.assert_allclose(ort(compensated, [x])[0], ort(model, [x])[0], rtol=1e-6, atol=4e-6)
    inserted = [n for n in compensated.graph.node if n.metadata_props]
    for node in inserted:
        metadata = {m.key: m.value for m in node.metadata_props}
        assert metadata[ops.META_ROLE] == ops.ROLE_COMPENSATION
        assert (metadata[ops.META_PASS], metadata[ops.META_NAME]) == ("insert-compensation", "site")
    untouched = [n for n in compensated.graph.node if not n.metadata_props]
    assert [n.name for n in untouched] == ["site", ""]
    assert untouched[0].output[0] == "h.analog"
    assert untouched[1] == model.graph.node[1]


@pytest.mark.parametrize(
    ("kind", "case"),
    [pair for pair in SUITED if pair[1] in {"strided", "same size", "wide padding", "sequence", "gemm"}],
)
def test_every_weight_of_a_compensation_gets_a_gradient(single, kind: str, case: str) -> None:
    import torch

    op, x_shape, w_shape, attributes = CASES[case]
    document = Document.from_proto(single(op, x_shape, _random(*w_shape), **attributes))
    InsertCompensation(node="site", kind=kind, ratio=0.5)(document)
    module = lift(document)
    keys = weight_keys(document) & set(module.weights)
    assert keys == set(module.weights) - {"w"}
    x = torch.from_numpy(_random(*x_shape, seed=1))
    with torch.no_grad():  # away from zero, where half of the weights see no gradient
        for key in keys:
            module.weights[key].add_(0.3)
    module(x)[0].square().sum().backward()
    assert all(module.weights[key].grad.abs().max() > 0 for key in keys)


def test_overhead_counts_weights_and_products_on_the_graph(single) -> None:
    document = Document.from_proto(single("Conv", ("n", 3, 8, 8), _random(10, 3, 3, 3), pads=[1, 1, 1, 1]))
    assert overhead(document).params == 0
    InsertCompensation(node="site", ratio=0.2)(document)
    found = overhead(document)
    assert found.params == pytest.approx((2 * 13 + 2 + 10 * 2 + 10) / 270)
    assert found.macs == pytest.approx((2 * 13 + 10 * 2) / (27 * 10))


def test_the_kinds_cost_what_they_say(single) -> None:
    costs = {}
    for kind in kind_names():
        document = Document.from_proto(single("Conv", (1, 6, 16, 16), _random(32, 6, 5, 5)))
        InsertCompensation(node="site", kind=kind, ratio=0.125)(document)
        costs[kind] = overhead(document)
    assert costs["residual"].params == pytest.approx((4 * 38 + 4 + 32 * 4 + 32) / 4800)
    assert costs["paper"].params == pytest.approx((4 * 38 + 4 + 32 * 36 + 32) / 4800)
    assert costs["gain"].macs < 0.01 < costs["residual"].macs < costs["paper"].macs


def test_compensation_stays_digital_when_its_node_is_mapped(single) -> None:
    model = single("Conv", (2, 3, 9, 9), _random(5, 3, 3, 3))
    document = Document.from_proto(model)
    Pipeline.parse("insert-compensation{node=site,ratio=0.4},map-crossbar{sigma=0.4}").run(document)
    analog = [n for n in plan(document).nodes if n.domain == "analog"]
    assert [n.label for n in analog] == ["site"]
    assert sum(n.domain == ops.DOMAIN for n in document.to_proto().graph.node) == 1
    x = _random(2, 3, 9, 9, seed=1)
    session = Session(document.to_proto())
    want = session.run([x])[0]
    assert not np.array_equal(session.run([x], chip=3)[0], want)
    LowerAnalog()(document)
    lowered = document.to_proto()
    assert [n.op_type for n in lowered.graph.node if n.name == "site"] == ["Conv"]


def test_element_types_follow_the_weight(single, ort) -> None:
    model = single("MatMul", (4, 7), _random(7, 5).astype(np.float16))
    document = Document.from_proto(model)
    InsertCompensation(node="site")(document)
    compensated = document.to_proto()
    kinds = {t.data_type for t in compensated.graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT16}
    x = _random(4, 7).astype(np.float16)
    np.testing.assert_array_equal(ort(compensated, [x])[0], ort(model, [x])[0])


def test_the_seed_decides_the_first_weights(single) -> None:
    def weights(seed: int) -> bytes:
        document = Document.from_proto(single("MatMul", (4, 7), _random(7, 5)))
        InsertCompensation(node="site", seed=seed)(document)
        return document.to_proto().SerializeToString(deterministic=True)

    assert weights(1) == weights(1) != weights(2)


def test_a_node_that_cannot_be_compensated_is_refused_with_the_reason(single) -> None:
    document = Document.from_proto(single("MatMul", (4, 7), _random(7, 5)))
    with pytest.raises(PassPreconditionError, match=r"'nowhere' is no analog node; .*: site"):
        InsertCompensation(node="nowhere")(document)
    InsertCompensation(node="site")(document)
    with pytest.raises(PassPreconditionError, match="compensated already"):
        InsertCompensation(node="site")(document)
    mapped = Document.from_proto(single("MatMul", (4, 7), _random(7, 5)))
    MapCrossbar()(mapped)
    with pytest.raises(PassPreconditionError, match="before map-crossbar"):
        InsertCompensation(node="site")(mapped)
    turned = Document.from_proto(single("Gemm", (7, 4), _random(7, 5), transA=1))
    assert find_sites(turned, plan(turned)) == ({}, {"site": "it transposes its input (transA)"})
