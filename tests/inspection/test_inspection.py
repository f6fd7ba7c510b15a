"""Hardware figures against counts by hand and by another way."""

from __future__ import annotations

import json
from math import prod

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cnpass.document import Document
from cnpass.errors import ModelError
from cnpass.inspection import inspect
from cnpass.mapping import plan
from cnpass.passes import Pipeline
from cnpass.records import SCHEMAS, InspectRecord


def conv(build, shape, x, **attributes) -> Document:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "c", **attributes)
    return Document.from_proto(build([node], {"w": np.ones(shape, np.float32)}, inputs={"x": x}))


@pytest.mark.parametrize(
    ("shape", "x", "attributes", "tile", "tiles", "conversions"),
    [
        ((6, 3, 5, 5), ["n", 3, 9, 9], {}, (256, 256), 1, 25 * 6),
        ((6, 3, 5, 5), ["n", 3, 9, 9], {}, (75, 6), 1, 25 * 6),
        ((6, 3, 5, 5), ["n", 3, 9, 9], {}, (74, 6), 2, 25 * 6 * 2),
        ((6, 3, 5, 5), ["n", 3, 9, 9], {}, (30, 4), 6, 25 * 6 * 3),
        ((64, 1, 3, 3), ["n", 64, 5, 5], {"group": 64}, (256, 256), 3, 9 * 64),
        ((8, 2, 3, 3), ["n", 4, 5, 5], {"group": 2}, (16, 16), 4, 9 * 8 * 2),
        ((8, 2, 3, 3), ["n", 4, 5, 5], {"group": 2}, (18, 4), 2, 9 * 8),
        ((8, 2, 3, 3), ["n", 4, 5, 5], {"group": 2}, (36, 4), 2, 9 * 8),
        ((8, 2, 3, 3), ["n", 4, 5, 5], {"group": 2}, (36, 8), 1, 9 * 8),
        ((6, 3, 5, 5), [4, 3, 9, 9], {}, (256, 256), 1, 25 * 6 * 4),
    ],
)
def test_tiles_and_conversions(build, shape, x, attributes, tile, tiles, conversions):
    record = inspect(conv(build, shape, x, **attributes), tile_rows=tile[0], tile_cols=tile[1])
    [node], totals = record.nodes, record.totals
    assert (node.tiles, node.adc_conversions) == (tiles, conversions)
    assert (totals.tiles, totals.adc_conversions) == (tiles, conversions)
    assert totals.cells_used == prod(shape)
    assert totals.cells == tiles * tile[0] * tile[1]
    assert totals.utilisation == pytest.approx(totals.cells_used / totals.cells)
    assert node.macs == conversions // -(-node.rows // tile[0]) * node.rows


def test_a_fixed_batch_counts_as_one_sample(build):
    document = conv(build, (6, 3, 5, 5), [4, 3, 9, 9])
    document.graph.outputs[0].shape = [4, 6, 5, 5]
    document.graph.outputs[0].dtype = np.float32
    assert inspect(document).nodes[0].macs == 25 * 6 * 75


def test_copies_count_as_rows_and_cells(build):
    document = conv(build, (6, 3, 5, 5), ["n", 3, 9, 9])
    Pipeline.parse("map-crossbar").run(document)
    document.graph.nodes[0].attrs["copies"] = 3
    # A tile holds 75, 74, 25, 24 and one of the 75 inputs; the last one takes two tiles for each of them.
    for rows, tiles in ((256, 1), (225, 1), (224, 2), (75, 3), (74, 4), (3, 75), (2, 150)):
        record = inspect(document, tile_rows=rows)
        assert (record.nodes[0].rows, record.nodes[0].copies, record.nodes[0].tiles) == (75, 3, tiles)
        assert record.nodes[0].adc_conversions == 25 * 6 * tiles
        totals = record.totals
        assert (totals.analog_params, totals.cells_used) == (6 * 75, 3 * 6 * 75)
        assert totals.cells_free == totals.cells - totals.cells_used


def test_mapped_nodes_lie_in_their_own_tiles(build):
    document = conv(build, (6, 3, 5, 5), ["n", 3, 9, 9])
    Pipeline.parse("map-crossbar{tile-rows=30,tile-cols=4}").run(document)
    totals = inspect(document).totals
    assert (totals.tile_rows, totals.tile_cols, totals.tiles, totals.cells) == (30, 4, 6, 6 * 30 * 4)
    totals = inspect(document, tile_rows=75).totals
    assert (totals.tile_rows, totals.tile_cols, totals.tiles) == (75, 4, 2)


def test_tiles_of_several_sizes(build):
    nodes = [helper.make_node("MatMul", [a, w], [b], b) for a, w, b in (("x", "v", "h"), ("h", "w", "y"))]
    weights = {name: np.ones((4, 4), np.float32) for name in "vw"}
    document = Document.from_proto(build(nodes, weights))
    Pipeline.parse("map-crossbar{tile-rows=4,tile-cols=8,portable=never}").run(document)
    document.graph.nodes[0].attrs["tile_rows"] = 2
    record = inspect(document)
    assert [node.tiles for node in record.nodes] == [2, 1]
    totals = record.totals
    assert (totals.tile_rows, totals.tile_cols, totals.cells) == (None, 8, 2 * 2 * 8 + 4 * 8)


def test_impossible_tiles(build):
    document = conv(build, (6, 3, 5, 5), ["n", 3, 9, 9])
    Pipeline.parse("map-crossbar").run(document)
    document.graph.nodes[0].attrs["tile_rows"] = -1
    with pytest.raises(ModelError, match=r"node 'c': attribute 'tile_rows': .* greater than or equal to 0"):
        inspect(document)


@pytest.mark.parametrize("copies", [0, 2**16 + 1, 1.5])
def test_impossible_copies(build, copies):
    document = conv(build, (6, 3, 5, 5), ["n", 3, 9, 9])
    Pipeline.parse("map-crossbar").run(document)
    document.graph.nodes[0].attrs["copies"] = copies
    with pytest.raises(ModelError, match=f"node 'c': copies is {copies}; it must be between 1 and 65536"):
        inspect(document)


def test_a_shared_weight_counts_once(build):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "w"], ["y"], transB=1),
    ]
    record = inspect(Document.from_proto(build(nodes, {"w": np.ones((4, 4), np.float32)})))
    assert [node.tiles for node in record.nodes] == [1, 1]
    totals = record.totals
    assert (totals.tiles, totals.params, totals.analog_params, totals.macs) == (1, 16, 16, 32)


def test_unknown_shapes_are_null(build):
    nodes = [
        helper.make_node("Odd", ["x"], ["a"], domain="odd"),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    record = inspect(Document.from_proto(build(nodes, {"w": np.ones((4, 4), np.float32)})))
    assert record.nodes[1].macs is None
    assert record.nodes[1].adc_conversions is None
    assert record.totals.macs is None
    assert record.totals.adc_conversions is None
    assert record.totals.tiles == 1


def test_nothing_analog(build):
    totals = inspect(Document.from_proto(build([helper.make_node("Relu", ["x"], ["y"])]))).totals
    assert (totals.analog, totals.digital, totals.tiles, totals.utilisation) == (0, 1, 0, 0.0)


def test_groups_that_do_not_divide_the_filters(build):
    document = conv(build, [4, 2, 3, 3], [1, 4, 5, 5], group=2)
    Pipeline.parse("map-crossbar").run(document)
    for group in (-(2**31), 0, 3):
        document.graph.nodes[0].attrs["group"] = group
        with pytest.raises(ModelError, match=rf"group is {group}; it must divide the 4 filters"):
            inspect(document)


def test_a_tile_needs_cells(build):
    document = Document.from_proto(build([helper.make_node("Relu", ["x"], ["y"])]))
    with pytest.raises(ValueError, match="has no cells"):
        inspect(document, tile_rows=0)


def test_mapping_changes_no_figure(build):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "c", group=2, pads=[1] * 4),
        helper.make_node("Flatten", ["h"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "v", "b"], ["y"], "fc", transB=1, alpha=2.0),
    ]
    weights = {
        "w": np.ones((4, 1, 3, 3), np.float32),
        "v": np.ones((3, 64), np.float32),
        "b": np.ones(3, np.float32),
    }
    document = Document.from_proto(build(nodes, weights, inputs={"x": ["n", 2, 4, 4]}))
    before = inspect(document)
    Pipeline.parse("map-crossbar").run(document)
    after = inspect(document)
    names = [node.name for node in before.nodes if node.domain == "analog"]
    for name in names:
        [a], [b] = ([n for n in r.nodes if n.name == name and n.domain == "analog"] for r in (before, after))
        assert a.model_dump(exclude={"reason", "params"}) == b.model_dump(exclude={"reason", "params"})
    for field in ("analog", "analog_macs", "tiles", "cells_used", "adc_conversions", "macs"):
        assert getattr(before.totals, field) == getattr(after.totals, field)


def test_record_fits_its_schema_and_reads_back(build):
    record = inspect(conv(build, (6, 3, 5, 5), ["n", 3, 9, 9]))
    text = record.to_json()
    jsonschema.validate(json.loads(text), json.loads((SCHEMAS / "inspect.json").read_text()))
    assert InspectRecord.model_validate_json(text) == record


def test_bad_files_are_one_line(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        inspect(tmp_path / "none.onnx")


def independent_count(path) -> tuple[int, int]:
    """Parameters and MACs of Conv, Gemm and MatMul, from shapes that ONNX infers for the model at batch 1."""
    model = onnx.load(path)
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value > 0:
            dims[0].dim_value = 1
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
              for v in (*model.graph.value_info, *model.graph.output, *model.graph.input)}  # fmt: skip
    shapes |= {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    macs = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            macs += prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
        elif node.op_type in ("Gemm", "MatMul"):
            weight = shapes[node.input[1]]
            cols = shapes[node.output[0]][-1]
            macs += prod(shapes[node.output[0]]) * (prod(weight) // cols)
    params = sum(prod(t.dims) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)
    return params, macs


@pytest.mark.parametrize(
    "name",
    [
        *("cifar10_oval_base_kw", "cifar10_oval_wide_kw", "cifar10_resnet2b", "cifar10_resnet4b"),
        *("mb_cnn_max_mninst2", "mnist_verivital_avgpool", "mnist_verivital_maxpool", "espcn_float_subpixel"),
        *("fashion_dynamo_mlp", "trt_residual_block", "dory_proxyless"),
    ],
)
def test_counts_agree_with_an_independent_count(zoo, name):
    path, _ = zoo(name)
    totals = inspect(path).totals
    assert (totals.params, totals.macs) == independent_count(path)


def test_every_zoo_model(zoo_model):
    path, entry = zoo_model
    if entry["name"] == "vs_resnet18_cifar10":
        with pytest.raises(ModelError, match=r"'resnet18_cifar10\.onnx\.data' .* is missing"):
            inspect(path)
        return
    record = inspect(path)
    assert (
        record.totals.analog + record.totals.digital
        == len(record.nodes)
        == len(plan(Document.load(path)).nodes)
    )
    assert record.model.sha256
    jsonschema.validate(json.loads(record.to_json()), json.loads((SCHEMAS / "inspect.json").read_text()))
