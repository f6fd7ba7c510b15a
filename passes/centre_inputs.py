"""`centre-inputs`: the mean of what enters an analog node goes around the crossbar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field
from pydantic.dataclasses import dataclass

from cnpass.compensation import inputs
from cnpass.compensation.activations import Rows
from cnpass.compensation.site import Site, find_sites
from cnpass.document import Document
from cnpass.mapping import plan
from cnpass.nodes import Node, node_metadata
from cnpass.passes.base import PASS_CONFIG, PassResult, without_defaults
from cnpass.passes.mean_gain import as_chips_have_it
from cnpass.passes.padding import taps
from cnpass.passes.samples import SamplesPass
from cnpass.runtime import ops
from cnpass.shapes import infer
from cnpass.weights import constant_array

_BIAS = 2
"""Slot of the bias of Conv and Gemm."""
_SPACE = 2
"""First axis of space."""
_WORTH = 0.01
"""Fraction of the energy of its input from which on a mean is worth taking away."""


@dataclass(frozen=True, config=PASS_CONFIG)
class CentreInputs(SamplesPass):
    """Take the mean over samples off what enters analog nodes, and add what the weights make of it behind.

    ``W x = W (x - m) + W m``: on the ideal chip nothing changes. A device that varies multiplies its error by
    its input, so that the error falls with the energy of what enters the crossbar; behind a Relu much of
    that is the mean. It costs a value per channel of the input, and no multiplication: W m goes into
    the bias. Where a convolution pads with zeros, W m differs along the border and is kept for each place.
    Weights that `correct-mean-gain` has divided count as chips have them on average.
    """

    name: ClassVar[str] = "centre-inputs"

    samples: int = Field(default=inputs.SAMPLES, ge=1, description="how many samples to run")

    def apply(self, document: Document) -> PassResult:
        """See `Pass.apply`."""
        split, dataset = self.take(document)
        before = document.defaults
        done, notes = centre(document, split.inputs)
        told = f"{done} inputs centred by {len(split)} samples of {dataset.name}"
        return PassResult(bool(done), (told, *dataset.notes, *notes, *without_defaults(before, document)))


def centre(
    document: Document, samples: Mapping[str, Rows], *, for_first_output: bool = False
) -> tuple[int, tuple[str, ...]]:
    """Centre the inputs of all analog nodes of a document in place, where a mean is worth it.

    Args:
        document: A model, not mapped.
        samples: Samples [N, ...] by input name.
        for_first_output: Whether only nodes count that the model's first output depends on.

    Returns:
        How many nodes were changed, and one line for each that could not be, with the reason.

    Raises:
        DataError: What enters a node is not finite.
        ModelError: ONNX Runtime refuses the model.
    """
    with as_chips_have_it(document):
        return _centre(document, samples, for_first_output)


def _centre(
    document: Document, samples: Mapping[str, Rows], for_first_output: bool
) -> tuple[int, tuple[str, ...]]:
    """See `centre`."""
    sites, reasons = find_sites(document, plan(document), for_first_output=for_first_output)
    borders: dict[str, list[np.ndarray]] = {}
    known = infer(document).known
    for label, site in sites.items():
        if site.is_conv:
            found = taps(site.node, site.weight.shape[2:], known.get(site.x.name), site.extent)
            if isinstance(found, str):
                reasons[label] = found
            else:
                borders[label] = found
    sites = {label: site for label, site in sites.items() if label not in reasons}
    done = 0
    for label, gathered in inputs.moments(document, sites, samples).items() if sites else ():
        mean = gathered.z_mean
        energy = np.trace(gathered.zz) / gathered.count + np.sum(mean**2)
        if np.sum(mean**2) > _WORTH * energy:
            _around(document, sites[label], mean, borders.get(label, []))
            done += 1
    return done, tuple(f"node {label!r} stays: {reason}" for label, reason in reasons.items())


def _around(document: Document, site: Site, mean: np.ndarray, borders: list[np.ndarray]) -> None:
    """Lead the mean around one node.

    Args:
        document: The site's document.
        site: The node.
        mean: [inputs].
        borders: For every axis of space, which taps of the kernel lie in the input, [positions, taps].
    """
    name, dtype = site.y.name, site.dtype
    shape = (1, -1, *[1] * len(borders)) if site.is_conv else (-1,)
    given = document.initializer(f"{name}.mean", mean.reshape(shape).astype(dtype))
    centred = gs.Variable(document.fresh(f"{name}.centred"), dtype=dtype)
    before = _node("Sub", [site.x, given], centred)
    site.node.inputs[0] = centred
    weight = site.matrix(document.opset)
    document.pin(site.weight.root)
    if site.is_conv:
        offset, positions = _of_convolution(weight, mean, borders)
    else:
        offset, positions = mean @ weight, []
    nodes, maker = document.graph.nodes, site.node
    at = next(i for i, node in enumerate(nodes) if node is maker)
    if not maker.name:
        node_metadata(maker)[ops.META_NAME] = site.label  # it was called by its output
    nodes[at : at + 1] = [before, maker, *_add(document, site, offset, positions)]


def _add(document: Document, site: Site, offset: np.ndarray, positions: list[np.ndarray]) -> list[gs.Node]:
    """Add what the mean makes to a node's output: in its bias where that can be, else by nodes behind it.

    Args:
        document: The site's document.
        site: The node.
        offset: [outputs] of a product, [1, outputs, ...] of a convolution.
        positions: For every axis of space the index of each position in the offset.

    Returns:
        The nodes to insert behind it.
    """
    node, name, dtype = site.node, site.y.name, site.dtype
    if offset.size == site.outputs and node.op in {"Conv", "Gemm"} and node.attrs.get("beta", 1.0) == 1:
        bias = constant_array(node.inputs[_BIAS]) if len(node.inputs) > _BIAS else np.zeros(1)
        if bias is not None and bias.ndim == 1:
            held = document.initializer(f"{name}.bias", (bias + offset.reshape(-1)).astype(dtype))
            if len(node.inputs) > _BIAS:
                node.inputs[_BIAS] = held
            else:
                node.inputs.append(held)
            return []
    behind: list[gs.Node] = []
    added: gs.Tensor = document.initializer(f"{name}.offset", offset.astype(dtype))
    for axis, index in enumerate(positions, start=_SPACE):
        if offset.shape[axis] > 1:
            place = document.initializer(f"{name}.offset.places", index)
            spread = gs.Variable(document.fresh(f"{name}.offset.spread"), dtype=dtype)
            behind.append(_node("Gather", [added, place], spread, axis=axis))
            added = spread
    product = gs.Variable(document.fresh(f"{name}.product"), dtype=dtype, shape=site.y.shape)
    node.outputs[0] = product
    return [*behind, _node("Add", [product, added], site.y)]


def _of_convolution(
    weight: np.ndarray, mean: np.ndarray, borders: list[np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return what a convolution makes of a mean: its distinct values, and where along each axis they go.

    Args:
        weight: [C_out, C_in / groups, ...].
        mean: [C_in].
        borders: See `_around`.

    Returns:
        Values [1, C_out, ...], and for every axis of space the index of each position among them.
    """
    groups = len(mean) // weight.shape[1]
    means = mean.reshape(groups, -1).repeat(len(weight) // groups, axis=0)
    values = np.einsum("oi...,oi->o...", weight.astype(np.float64), means)
    positions = []
    for axis, border in enumerate(borders):
        distinct, index = np.unique(border, axis=0, return_inverse=True)
        values = np.moveaxis(np.tensordot(values, distinct.astype(np.float64), (axis + 1, 1)), -1, axis + 1)
        positions.append(index.reshape(-1).astype(np.int64))
    return values[None], positions


def _node(op: str, read: list[gs.Tensor], written: gs.Tensor, **attributes: int) -> gs.Node:
    node = Node(op, f"{written.name}.{op.lower()}", attributes, read, [written])
    node_metadata(node).update(
        {ops.META_PASS: CentreInputs.name, ops.META_OP_TYPE: op, ops.META_ROLE: ops.ROLE_COMPENSATION}
    )
    return node
