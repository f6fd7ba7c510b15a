"""Copies fill the rows that tiles leave free, and nothing else changes."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from cnpass.document import Document
from cnpass.errors import ModelError, UsageError
from cnpass.inspection import inspect
from cnpass.nodes import node_metadata
from cnpass.passes import Pipeline
from cnpass.passes.analog import analog_nodes
from cnpass.passes.base import PassPreconditionError
from cnpass.passes.pipeline import Verifying
from cnpass.runtime.copies import Copies
from cnpass.runtime.devices import LogNormal
from cnpass.runtime.reference import program_weight
from cnpass.runtime.session import Session


def replicate(document: Document, options: str = "") -> tuple[str, ...]:
    """Map and replicate in place; gives the last pass's notes."""
    Pipeline.parse("map-crossbar{sigma=0.5}").run(document, [Verifying()])
    notes = Pipeline.parse(f"replicate-weights{options}").run(document, [Verifying()]).notes
    return tuple(note.removeprefix("replicate-weights: ") for note in notes)


def copies(document: Document) -> list[str]:
    return [str(Copies.from_attributes(node.attrs)) for node in analog_nodes(document)]


def counts(document: Document) -> list[int]:
    """Devices that the weights of all rows have."""
    return [Copies.from_attributes(node.attrs).count for node in analog_nodes(document)]


def chain(build, *sizes: int) -> Document:
    """A model of matrix products m0, m1, ..., as many as there are steps between sizes."""
    tensors = ["x", *(f"h{i}" for i in range(len(sizes) - 2)), "y"]
    shapes = list(pairwise(sizes))
    nodes = [
        helper.make_node("MatMul", [tensors[i], f"w{i}"], [tensors[i + 1]], f"m{i}")
        for i in range(len(shapes))
    ]
    weights = {f"w{i}": np.ones(shape, np.float32) for i, shape in enumerate(shapes)}
    return Document.from_proto(build(nodes, weights, inputs={"x": ["n", sizes[0]]}))


def test_lenet5(models):
    """75, 150, 400, 120 and 84 rows in tiles of 256."""
    path = models / "lenet5-cifar10.onnx"
    before, document = inspect(path).totals, Document.load(path)
    notes = replicate(document)
    assert copies(document) == ["3+31/75", "1+106/150", "1+56/200", "2+16/120", "3+4/84"]
    assert notes == ("5 of 5 weights have several copies, 1 to 4",)
    after = inspect(document).totals
    for field in ("tiles", "cells", "adc_conversions", "analog_params", "macs"):
        assert getattr(after, field) == getattr(before, field)
    added = (2 * 75 + 31) * 6 + 106 * 16 + 2 * 56 * 120 + (120 + 16) * 84 + (2 * 84 + 4) * 10
    assert [node.copies for node in inspect(document).nodes if node.copies] == [
        256 / 75,
        256 / 150,
        1.28,
        256 / 120,
        256 / 84,
    ]
    assert (after.cells_used - before.cells_used, before.cells_free - after.cells_free) == (added, added)


@pytest.mark.parametrize(
    ("shape", "group", "options", "expected"),
    [
        ((6, 3, 5, 5), 1, "", "3+31/75"),
        ((6, 3, 5, 5), 1, "{tile-rows=150}", "2"),
        ((6, 3, 5, 5), 1, "{tile-rows=149}", "1+74/75"),
        ((6, 3, 5, 5), 1, "{tile-rows=75}", "1"),
        # two tiles of 38 and of 37 rows
        ((6, 3, 5, 5), 1, "{tile-rows=74}", "1+36/38"),
        ((6, 3, 5, 5), 1, "{tile-cols=4}", "3+31/75"),
        ((6, 3, 5, 5), 1, "{max-copies=2}", "2"),
        ((6, 3, 5, 5), 1, "{max-copies=1}", "1"),
        # Three groups of nine rows share a tile; have one each; or two tiles, one of them for two groups.
        ((6, 1, 3, 3), 3, "", str(256 // 3 // 9)),
        ((6, 1, 3, 3), 3, "{tile-cols=2}", "28+4/9"),
        ((6, 1, 3, 3), 3, "{tile-cols=4}", str(256 // 2 // 9)),
    ],
)
def test_copies_that_fit(build, shape, group, options, expected):
    node = helper.make_node("Conv", ["x", "w"], ["y"], "c", group=group)
    weights = {"w": np.ones(shape, np.float32)}
    document = Document.from_proto(build([node], weights, inputs={"x": ["n", shape[1] * group, 9, 9]}))
    replicate(document, options)
    assert copies(document) == [expected]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [(0, [1, 2, 1]), (1, [2, 2, 1]), (2, [3, 2, 1]), (3, [2, 2, 2]), (4, [3, 2, 2]), (5, [3, 2, 3])],
)
def test_extra_tiles(build, extra, expected):
    """What a tile takes off 1 / copies: of m0 1/2, then 1/6, of m1 3/20, of m2 1/4 (if two are left), 1/6."""
    document = chain(build, 200, 100, 400, 10)
    notes = replicate(document, f"{{extra-tiles={extra}}}")
    assert counts(document) == expected
    assert inspect(document).totals.tiles == 5 + extra
    assert extra == 0 or notes[0].endswith(f"; {extra} tiles added")


def test_extra_tiles_buy_no_more_than_may_be(build):
    document = chain(build, 200, 10)
    notes = replicate(document, "{extra-tiles=1000,max-copies=4}")
    assert (copies(document), inspect(document).totals.tiles) == (["4"], 4)
    assert notes == ("1 of 1 weights have several copies, 4 to 4; 3 tiles added",)


def test_tied_weights_have_one_number_of_copies(build, weight):
    nodes = [helper.make_node("MatMul", [a, "w"], [b], b) for a, b in (("x", "h"), ("h", "y"))]
    document = Document.from_proto(build(nodes, {"w": weight(4, 4)}))
    assert replicate(document, "{tile-rows=9}") == ("1 of 1 weights have several copies, 2 to 3",)
    assert copies(document) == ["2+1/4", "2+1/4"]


@pytest.mark.parametrize("square", [False, True])
def test_a_weight_read_along_and_across_keeps_one_copy(build, weight, square):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "w"], ["y"], transB=1),
    ]
    document = Document.from_proto(build(nodes, {"w": weight(4, 4 if square else 3)}))
    notes = replicate(document)
    assert copies(document) == ["1", "1"]
    assert notes[1:] == ("weight 'w' keeps one copy: nodes read it in different ways",)


def test_weights_programmed_elsewhere_stay(build):
    document = chain(build, 4, 4, 4)
    Pipeline.parse("map-crossbar{portable=never}").run(document)
    document.graph.nodes[0].attrs.clear()
    document.graph.nodes[0].attrs["device"] = "programmed"
    assert "node 'm0' stays: its weight is programmed already" in replicate(document, "{tile-rows=8}")
    assert copies(document) == ["1", "2"]


def test_running_it_again_starts_anew(build):
    document = chain(build, 100, 80, 7)
    replicate(document)
    assert copies(document) == ["2+56/100", "3+16/80"]
    again = Pipeline.parse("replicate-weights")
    assert not again.run(document, [Verifying()]).modified
    Pipeline.parse("replicate-weights{max-copies=1}").run(document, [Verifying()])
    plain = chain(build, 100, 80, 7)
    Pipeline.parse("map-crossbar{sigma=0.5}").run(plain)
    assert document.fingerprint() == plain.fingerprint()


def test_chips_hold_the_mean_of_the_copies(build, weight):
    """With the function body, which the pass rewrites, and with the native library where it is there."""
    document = Document.from_proto(
        build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight(4, 3)})
    )
    replicate(document, "{tile-rows=21}")
    assert copies(document) == ["5+1/4"]
    x = weight(2, 4)
    chip = {"seed": 0, "stream": 0, "chip": 6}
    held = program_weight(weight(4, 3), LogNormal(sigma=0.5), **chip, copies=5)
    held[0] = program_weight(weight(4, 3), LogNormal(sigma=0.5), **chip, copies=6)[0]
    np.testing.assert_allclose(Session(document.to_proto()).run(x, chip=6)[0], x @ held, rtol=1e-5, atol=1e-6)
    body = ReferenceEvaluator(document.to_proto()).run(None, {"x": x, "chip": np.array(6)})[0]
    np.testing.assert_allclose(body, x @ held, rtol=1e-5, atol=1e-6)


def tiled(build, rows: int, cols: int) -> Document:
    """A convolution of 75 rows, mapped in tiles of a size."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], "c")
    weights = {"w": np.ones((6, 3, 5, 5), np.float32)}
    document = Document.from_proto(build([node], weights, inputs={"x": ["n", 3, 9, 9]}))
    Pipeline.parse(f"map-crossbar{{tile-rows={rows},tile-cols={cols}}}").run(document, [Verifying()])
    return document


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (150, "", "2"),
        (149, "", "1+74/75"),
        (0, "", "3+31/75"),
        (0, "{tile-rows=150}", "2"),
        (150, "{tile-rows=150}", "2"),
    ],
)
def test_tiles_of_the_nodes_are_filled(build, rows, options, expected):
    document = tiled(build, rows, 4)
    Pipeline.parse(f"replicate-weights{options}").run(document, [Verifying()])
    assert copies(document) == [expected]
    assert [node.attrs["tile_cols"] for node in analog_nodes(document)] == [4]


@pytest.mark.parametrize(("options", "kept"), [("", True), ("{extra-tiles=1}", False)])
def test_the_range_of_other_partial_sums_is_unset(build, options, kept):
    """75 rows in a tile of 150: two copies leave one tile with all rows, and a third one does not."""
    document = tiled(build, 150, 6)
    for node in analog_nodes(document):
        node.attrs |= {"adc_bits": 8, "output_range": 3.0}
    notes = Pipeline.parse(f"replicate-weights{options}").run(document, [Verifying()]).notes
    assert [node.attrs["output_range"] for node in analog_nodes(document)] == [3.0 if kept else 0.0]
    assert any("1 nodes lack the range of a converter" in note for note in notes) != kept


@pytest.mark.parametrize("option", ["tile-rows=256", "tile-cols=256"])
def test_options_against_the_tiles_of_the_nodes(build, option):
    name = option.partition("=")[0]
    with pytest.raises(PassPreconditionError, match=f"node 'c' has {name} 64, the option says 256; leave it"):
        Pipeline.parse(f"replicate-weights{{{option}}}").run(tiled(build, 64, 64))


def test_a_weight_in_tiles_of_two_sizes_keeps_one_copy(build, weight):
    nodes = [helper.make_node("MatMul", [a, "w"], [b], b) for a, b in (("x", "h"), ("h", "y"))]
    document = Document.from_proto(build(nodes, {"w": weight(4, 4)}))
    Pipeline.parse("map-crossbar{tile-rows=9,portable=never}").run(document)
    next(analog_nodes(document)).attrs["tile_rows"] = 12
    notes = Pipeline.parse("replicate-weights").run(document).notes
    assert notes[1:] == ("replicate-weights: weight 'w' keeps one copy: nodes read it in different ways",)


def test_copies_survive_lowering(models):
    """A lowered model says in its nodes what copies there were; mapped again, it has them, bit for bit."""
    document = Document.load(models / "lenet5-cifar10.onnx")
    replicate(document)
    again = document.copy()
    Pipeline.parse("lower-analog").run(again, [Verifying()])
    assert [entry.copies for entry in inspect(again).nodes if entry.copies] == [
        256 / 75,
        256 / 150,
        1.28,
        256 / 120,
        256 / 84,
    ]
    stated = {node.name: node_metadata(node).get("cnpass.copies") for node in again.graph.nodes}
    assert [stated[node.name] for node in analog_nodes(document)] == copies(document)
    Pipeline.parse("map-crossbar{sigma=0.5}").run(again, [Verifying()])
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    outputs = [Session(each.to_proto()).run(x, chip=5)[0] for each in (document, again)]
    np.testing.assert_array_equal(*outputs)
    assert not any("cnpass.copies" in node_metadata(node) for node in again.graph.nodes)
    Pipeline.parse("replicate-weights{max-copies=1},lower-analog").run(again, [Verifying()])
    assert not any("cnpass.copies" in node_metadata(node) for node in again.graph.nodes)


def test_a_tile_too_small_for_the_copies_is_an_error(build):
    document = chain(build, 100, 80)
    replicate(document, "{tile-rows=128}")
    assert copies(document) == ["1+28/100"]
    Pipeline.parse("lower-analog").run(document)
    with pytest.raises(
        ModelError, match=r"node 'm0': copies 1\+28/100 needs tiles of 128 rows, and they have 64"
    ):
        Pipeline.parse("map-crossbar{tile-rows=64}").run(document)
    Pipeline.parse("map-crossbar{tile-rows=130}").run(document)
    assert copies(document) == ["1+28/100"]


@pytest.mark.parametrize("stated", ["2+0/4", "2+4/4", "2+5/4", "65536+1/2"])
def test_extra_copies_that_no_rows_can_have(models, stated):
    document = Document.load(models / "digits-lenet5.onnx")
    node_metadata(document.graph.nodes[0])["cnpass.copies"] = stated
    with pytest.raises(
        ModelError, match=r"extra_copies is .*; it must be some, but not all, of so many rows"
    ):
        inspect(document)


@pytest.mark.parametrize("stated", ["0", "-1", "many", "65537", "2+1"])
def test_copies_that_no_weight_can_have(models, stated):
    document = Document.load(models / "digits-lenet5.onnx")
    node_metadata(document.graph.nodes[0])["cnpass.copies"] = stated
    with pytest.raises(ModelError, match=f"copies is {re.escape(stated)}; it must be between 1 and 65536"):
        inspect(document)


def test_needs_analog_nodes(build):
    with pytest.raises(PassPreconditionError, match="no analog node; put map-crossbar before it"):
        Pipeline.parse("replicate-weights").run(chain(build, 4, 4))


@pytest.mark.parametrize(
    "option", ["tile-rows=0", "tile-cols=-1", "max-copies=0", "max-copies=65537", "extra-tiles=-1"]
)
def test_options_out_of_range(option):
    with pytest.raises(UsageError, match=f"option '{option.partition('=')[0]}'"):
        Pipeline.parse(f"replicate-weights{{{option}}}")
