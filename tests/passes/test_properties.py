"""Random small networks through every pass."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from cnpass.compensation.site import find_sites
from cnpass.document import Document
from cnpass.inspection import inspect
from cnpass.mapping import plan
from cnpass.passes import Pipeline
from cnpass.passes.pipeline import Verifying
from cnpass.placement.sharing import insert_all
from cnpass.placement.space import Choice
from cnpass.runtime.session import Session

FEATURES = 4
LEAST = 0.1
"""Outputs smaller than that are what is left of values of about one, and carry their rounding."""


@st.composite
def networks(draw):
    """Nodes and weights of a chain of layers on [n, 4], with shared weights and skips between."""
    nodes, weights = [], {}
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    tensors = ["x"]

    def stored(shape, dtype=np.float32) -> str:
        same = [name for name, value in weights.items() if value.shape == shape and value.dtype == dtype]
        if same and draw(st.booleans()):
            return draw(st.sampled_from(same))
        name = f"w{len(weights)}"
        weights[name] = (rng.standard_normal(shape) / 2).astype(dtype)
        return name

    def add(op: str, inputs: list[str], **attributes) -> str:
        name = f"t{len(nodes)}"
        node_name = draw(st.sampled_from(["", f"node {len(nodes)}"]))
        nodes.append(helper.make_node(op, inputs, [name], node_name, **attributes))
        return name

    def layer(x: str) -> str:
        kind = draw(st.sampled_from(["matmul", "gemm", "left", "conv", "norm", "relu", "skip", "hidden"]))
        square = (FEATURES, FEATURES)
        if kind == "matmul":
            return add("MatMul", [x, stored(square)])
        if kind == "gemm":
            attributes = {
                "alpha": draw(st.sampled_from([1.0, 0.5])),
                "beta": draw(st.sampled_from([1.0, -1.0, 0.0])),
                "transB": draw(st.integers(0, 1)),
            }
            bias = [stored((FEATURES,))] if draw(st.booleans()) else []
            return add("Gemm", [x, stored(square), *bias], **attributes)
        if kind == "left":
            turned = add("Transpose", [x], perm=[1, 0])
            return add("Transpose", [add("MatMul", [stored(square), turned])], perm=[1, 0])
        if kind == "conv":
            weights["axis"], weights["axes"] = np.int64([2]), np.int64([2])
            lifted = add("Unsqueeze", [x, "axis"])
            return add("Squeeze", [add("Conv", [lifted, stored((FEATURES, FEATURES, 1))]), "axes"])
        if kind == "norm":
            weights["var"] = np.linspace(0.5, 2, FEATURES, dtype=np.float32)
            return add("BatchNormalization", [x, *(stored((FEATURES,)) for _ in range(3)), "var"])
        if kind == "hidden":
            half = stored((FEATURES * FEATURES,), np.float16)
            weights["square"] = np.int64(square)
            cast = add("Cast", [half], to=1)
            return add("MatMul", [x, add("Transpose", [add("Reshape", [cast, "square"])])])
        if kind == "skip":
            return add("Add", [x, draw(st.sampled_from(tensors))])
        return add("Relu", [x])

    for _ in range(draw(st.integers(1, 6))):
        tensors.append(layer(tensors[-1]))
    nodes.append(helper.make_node("MatMul", [tensors[-1], stored((FEATURES, FEATURES))], ["y"], "last"))
    return nodes, weights


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks())
def test_mapping_keeps_outputs_and_lowering_brings_back_the_source(build, map_and_lower, network):
    map_and_lower(build(*network))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks(), st.booleans())
def test_folding_keeps_outputs(build, transform, network, mapped):
    folding = "fold-batch-norm,map-crossbar" if mapped else "fold-batch-norm"
    transform(build(*network), folding, tolerance=2e-5, least=LEAST)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks())
def test_same_input_same_bytes(build, network):
    model = build(*network)
    written = set()
    for _ in range(2):
        document = Document.from_proto(model)
        Pipeline.parse("fold-batch-norm,map-crossbar{seed=3}").run(document, [Verifying()])
        written.add(document.to_proto().SerializeToString(deterministic=True))
    assert len(written) == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks(), st.booleans())
def test_what_goes_around_crossbars_keeps_outputs(build, transform, network, mapped):
    centring = "centre-inputs{samples=9},map-crossbar" if mapped else "centre-inputs{samples=9}"
    document = transform(build(*network), centring, tolerance=2e-5, least=LEAST)
    if mapped:
        return
    sites, _ = find_sites(document, plan(document))
    before, x = document.to_proto(), np.random.default_rng(5).standard_normal((3, FEATURES))
    choices = [Choice(label, "bypass", 0.5) for label, site in sites.items() if site.ungrouped]
    bypassed, _ = insert_all(document, choices, seed=1)
    outputs = [Session(model).run([x.astype(np.float32)])[0] for model in (before, bypassed.to_proto())]
    assert np.abs(outputs[0] - outputs[1]).max() <= 2e-5 * (1 + np.abs(outputs[0]).max())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks(), st.integers(1, 40), st.integers(1, 10), st.integers(0, 6))
def test_copies_cost_no_more_than_the_extra_tiles(build, transform, network, rows, cols, extra):
    model = build(*network)
    tile = {"tile_rows": rows, "tile_cols": cols}
    options = f"{{tile-rows={rows},tile-cols={cols},extra-tiles={extra}}}"
    document = transform(model, f"map-crossbar,replicate-weights{options}")
    before, after = inspect(Document.from_proto(model), **tile), inspect(document, **tile)
    assert before.totals.tiles <= after.totals.tiles <= before.totals.tiles + extra
    assert after.totals.cells_used >= before.totals.cells_used
    if extra == 0:
        assert after.totals.adc_conversions == before.totals.adc_conversions
    counts = [(node.weight, node.copies) for node in after.nodes if node.domain == "analog"]
    assert len(set(counts)) == len({weight for weight, _ in counts})
    Pipeline.parse("lower-analog{mark=false}").run(document, [Verifying()])
    assert document.to_proto().SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )
