"""Writing the periphery of analog nodes, alike on all of an op type, and the number of the first sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_graphsurgeon as gs

from cnpass.document import Document
from cnpass.errors import ModelError
from cnpass.nodes import label
from cnpass.passes import analog
from cnpass.runtime import ops
from cnpass.runtime.copies import Copies
from cnpass.runtime.periphery import PERIPHERY, Periphery
from cnpass.shapes import infer


def write(document: Document, options: Mapping[str, float]) -> tuple[str, ...]:
    """Give the analog nodes a periphery, and a number of the first sample where there is read noise.

    Args:
        document: a model with analog nodes.
        options: attributes to set on every node, by name; others stay as they are. Other tiles than before
            unset the ADC's range, which is that of their sums.

    Returns:
        What a user may want to know, one line each.

    Raises:
        ModelError: a tile has no room for the copies of a node's weights.
    """
    nodes = list(analog.analog_nodes(document))
    for node in nodes:
        before = node.attrs.get(ops.TILE_ROWS, 0)
        node.attrs.update({name: value for name, value in options.items() if value or name in node.attrs})
        if node.attrs.get(ops.TILE_ROWS, 0) != before and ops.OUTPUT_RANGE in node.attrs:
            node.attrs[ops.OUTPUT_RANGE] = 0.0
    for node in nodes:
        _check_copies(node)
    for op in (ops.ANALOG_CONV, ops.ANALOG_MATMUL):
        _level([node for node in nodes if node.op == op])
    return (*_number_samples(document, nodes), *missing_ranges(nodes))


def missing_ranges(nodes: Iterable[gs.Node]) -> tuple[str, ...]:
    """A line on how many analog nodes cannot run because a converter has no range; none if all can."""
    unset = sum(of_node(node).missing is not None for node in nodes)
    if not unset:
        return ()
    return (f"{unset} nodes lack the range of a converter; calibrate-ranges must set it before they run",)


def _check_copies(node: gs.Node) -> None:
    try:
        Copies.from_attributes(node.attrs).check(node.attrs.get(ops.TILE_ROWS, 0))
    except ModelError as error:
        raise ModelError(f"node {label(node)!r}: {error}") from None


def of_node(node: gs.Node) -> Periphery:
    """The periphery of an analog node."""
    return Periphery.from_attributes(node.attrs)


def _level(nodes: list[gs.Node]) -> None:
    """Write every attribute on all nodes, which then share a body, or on none if none has a periphery."""
    bare = Periphery()
    plain = all(of_node(node) == bare for node in nodes)
    for node in nodes:
        around = of_node(node)
        for name in PERIPHERY:
            node.attrs.pop(name, None)
            if not plain and not (name == ops.SAMPLE_ROWS and node.op == ops.ANALOG_CONV):
                node.attrs[name] = getattr(around, name)


def _number_samples(document: Document, nodes: list[gs.Node]) -> tuple[str, ...]:
    """Feed `first_sample` to all analog nodes if any has read noise, else to none."""
    if not any(node.attrs.get(ops.READ_NOISE) for node in nodes):
        name = document.metadata.pop(ops.META_FIRST_SAMPLE_INPUT, None)
        for node in nodes:
            if len(node.inputs) > analog.first_sample_slot(node):
                node.inputs.pop()
        if name is not None:
            analog.drop_selector(document, name)
        return ()
    found = [node.inputs[-1] for node in nodes if len(node.inputs) > analog.first_sample_slot(node)]
    first = found[0] if found else None
    if first is None:
        first = analog.selector(document, ops.META_FIRST_SAMPLE_INPUT, ops.FIRST_SAMPLE_INPUT)
    for node in nodes:
        if len(node.inputs) == analog.first_sample_slot(node):
            node.inputs.append(first)
    return _count_rows(document, nodes)


def _count_rows(document: Document, nodes: list[gs.Node]) -> tuple[str, ...]:
    """Set `sample_rows` where a model has folded rows of a sample, such as tokens, into the first axis."""
    shapes = infer(document)
    unknown = []
    for node in nodes:
        if node.op != ops.ANALOG_MATMUL:
            continue
        first = (shapes.known.get(node.inputs[0].name) or (None,))[0]
        if not first or first % shapes.batch:
            unknown.append(label(node))
        else:
            node.attrs[ops.SAMPLE_ROWS] = first // shapes.batch
    return tuple(
        f"node {name!r}: how many rows one sample has is not known, so its read noise depends on the batch"
        for name in unknown
    )
