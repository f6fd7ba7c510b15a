"""`calibrate-ranges`: ranges of the converters from samples, for every analog node."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field
from pydantic.dataclasses import dataclass

from cnpass.compensation.activations import Runs
from cnpass.data.dataset import Array
from cnpass.document import Document
from cnpass.nodes import label
from cnpass.passes import analog, periphery
from cnpass.passes.base import (
    PASS_CONFIG,
    PassError,
    PassPostconditionError,
    PassPreconditionError,
    PassResult,
)
from cnpass.passes.samples import SamplesPass
from cnpass.runtime import ops
from cnpass.runtime.copies import Copies
from cnpass.runtime.devices import device_from_attributes
from cnpass.runtime.library import has_library
from cnpass.runtime.periphery import PERIPHERY, SMALLEST_RANGE
from cnpass.runtime.reference import conv_columns, conv_partial_sums, effective_weight
from cnpass.weights import Weight, resolve

_BITS = 15
"""Low bits of a float32 that counting leaves out: bins are 1/256 wide."""


@dataclass(frozen=True, config=PASS_CONFIG)
class CalibrateRanges(SamplesPass):
    """Set the ranges of converters, and of read noise, to what samples of the data make of them.

    The model runs without converters and noise; for every analog node, `input_range` becomes the given
    percentile of the magnitudes that enter it, zeros counted in, and `output_range` that of the sums of all
    its tiles. Tiles, copies and devices must be as they will be, so the pass goes behind those that set them.
    """

    name: ClassVar[str] = "calibrate-ranges"

    percentile: float = Field(
        default=99.99, gt=50, le=100, description="share of magnitudes within the range; 100: the largest"
    )
    chips: int = Field(
        default=0, ge=0, le=10**6, description="how many chips (0, 1, ...) to run; 0: the ideal one alone"
    )

    def requires(self, document: Document) -> None:
        """There is an analog node."""
        if not any(analog.analog_nodes(document)):
            raise PassPreconditionError(self.name, "the model has no analog node; put map-crossbar before it")

    def apply(self, document: Document) -> PassResult:
        """See `Pass.apply`."""
        split, dataset = self.take(document)
        chips = range(self.chips) if self.chips else (ops.IDEAL_CHIP,)
        nodes = list(analog.analog_nodes(document))
        before = [dict(node.attrs) for node in nodes]
        notes = calibrate(document, split.inputs, percentile=self.percentile, chips=chips)
        modified = [dict(node.attrs) for node in nodes] != before
        done = f"ranges from {len(split)} samples of {dataset.name}"
        return PassResult(modified, (done, *dataset.notes, *notes))

    def ensures(self, document: Document) -> None:
        """What could be calibrated has its ranges."""
        for tap in _taps(document)[0]:
            if periphery.of_node(tap.node).missing:
                raise PassPostconditionError(self.name, f"node {label(tap.node)!r} lacks a range")


def calibrate(
    document: Document,
    inputs: Mapping[str, Array],
    *,
    percentile: float = 99.99,
    chips: Sequence[int] = (ops.IDEAL_CHIP,),
) -> tuple[str, ...]:
    """Set `input_range` and `output_range` of every analog node in place.

    Args:
        document: a model with analog nodes.
        inputs: samples [N, ...] by input name.
        percentile: share of the magnitudes that lie within the range, above 50; 100 is the largest of them.
        chips: the chips to run; ranges serve all of them together.

    Returns:
        One line for each node that was left as it was, with the reason.

    Raises:
        PassError: a node sees no finite number.
        ModelError: ONNX Runtime refuses the model.
        DataError: the samples do not fit.
    """
    taps, notes = _taps(document)
    with tempfile.TemporaryDirectory(prefix="cnpass-") as folder:
        names = [tap.node.inputs[0].name for tap in taps]
        runs = Runs(_ideal_periphery(document), names, inputs, Path(folder))
        for chip in chips:
            weights = [tap.on_chip(chip) for tap in taps]
            for tensors in runs.tensors(inputs, chip):
                for tap, weight in zip(taps, weights, strict=True):
                    tap.count(tensors[tap.node.inputs[0].name], weight)
    for tap in taps:
        tap.node.attrs[ops.INPUT_RANGE] = tap.entering.range(percentile, tap.node)
        tap.node.attrs[ops.OUTPUT_RANGE] = tap.leaving.range(percentile, tap.node)
    notes = (*notes, *periphery.write(document, {}))
    if analog.drop_bodies(document):
        analog.write_bodies(document)
    return notes


class _Magnitudes:
    """Counts of magnitudes, in bins of float32 numbers with the same leading bits."""

    def __init__(self) -> None:
        self._counts = np.zeros(1 << (32 - _BITS), np.int64)
        self._largest = np.float32(0)

    def add(self, values: np.ndarray) -> None:
        """Count what is finite."""
        magnitudes = np.abs(values, dtype=np.float32).ravel()
        magnitudes = magnitudes[np.isfinite(magnitudes)]
        if magnitudes.size:
            self._largest = max(self._largest, magnitudes.max())
            bins = magnitudes.view(np.uint32) >> _BITS
            self._counts += np.bincount(bins, minlength=len(self._counts))

    def range(self, percentile: float, node: gs.Node) -> float:
        """The upper end of the percentile's bin, at most the largest magnitude; 1 if all are 0."""
        total = int(self._counts.sum())
        if total == 0:
            raise PassError(
                CalibrateRanges.name, f"node {label(node)!r} sees no finite number on these samples"
            )
        found = int(np.searchsorted(np.cumsum(self._counts), total * percentile / 100))
        edge = np.array([(min(found, len(self._counts) - 2) + 1) << _BITS], np.uint32).view(np.float32)[0]
        largest = float(min(edge, self._largest) if percentile < 100 else self._largest)
        return largest if largest > SMALLEST_RANGE else 1.0


@plain_dataclass(frozen=True, eq=False)
class _Tap:
    """One analog node, with the magnitudes that enter it and those of its tiles' sums."""

    node: gs.Node
    weight: Weight
    opset: int
    entering: _Magnitudes
    leaving: _Magnitudes

    def on_chip(self, chip: int) -> np.ndarray:
        """The weight that the chip holds, as the op computes with it."""
        attributes = self.node.attrs
        return effective_weight(
            self.node.op,
            self.weight.values(self.opset).astype(np.float32),
            device_from_attributes(attributes),
            attributes.get(ops.WEIGHT_PERM),
            Copies.from_attributes(attributes),
            chip=chip,
            seed=attributes.get("seed", 0),
            stream=attributes.get("stream", 0),
        )

    def count(self, x: np.ndarray, weight: np.ndarray) -> None:
        """Count what enters the node, and what its tiles add up."""
        self.entering.add(x)
        for sums in self._sums(x, weight):
            self.leaving.add(sums)

    def _sums(self, x: np.ndarray, weight: np.ndarray) -> Iterator[np.ndarray]:
        around, copies = periphery.of_node(self.node), Copies.from_attributes(self.node.attrs)
        if self.node.op == ops.ANALOG_CONV:
            columns, _ = conv_columns(x, weight.shape, self.node.attrs)
            yield from conv_partial_sums(columns, weight, around, copies)
        else:
            for tile in around.tiles(len(weight), copies):
                yield x[..., tile] @ weight[tile]


def _taps(document: Document) -> tuple[list[_Tap], tuple[str, ...]]:
    """The nodes that can be calibrated, and the reasons for the others."""
    taps, notes = [], []
    main = {id(node) for node in document.graph.nodes}
    for node in analog.analog_nodes(document):
        weight = resolve(node.inputs[1])
        if id(node) not in main:
            notes.append(f"node {label(node)!r} stays: what enters a body cannot be looked at from outside")
        elif weight is None:
            notes.append(f"node {label(node)!r} stays: its weight is programmed by another node")
        else:
            taps.append(_Tap(node, weight, document.opset, _Magnitudes(), _Magnitudes()))
    return taps, tuple(notes)


def _ideal_periphery(document: Document) -> Document:
    """Return a copy without converters and noise."""
    twin = document.copy()
    for node in analog.analog_nodes(twin):
        for name in PERIPHERY:
            node.attrs.pop(name, None)
    analog.drop_bodies(twin)
    if not has_library():
        analog.write_bodies(twin)
    return twin
