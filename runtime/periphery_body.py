"""Tiles, converters and read noise in standard ONNX operators, for function bodies.

All tiles are computed side by side, along an axis of their own: correct, and as slow as there are tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from cnpass.runtime import ops
from cnpass.runtime.periphery import Periphery
from cnpass.runtime.philox import (
    GROUP,
    LANES,
    MASK,
    box_muller,
    key_words,
    philox4x32,
    read_noise_words,
)
from cnpass.runtime.tracer import Tracer, Value


@dataclass(frozen=True)
class PeripheryBody:
    """Writes the periphery of one op type's nodes.

    Attributes:
        tracer: of the function.
        names: attributes of the function; those of the periphery that are not among them are 0.
        nodes: the periphery of every node that shares the function.
    """

    tracer: Tracer
    names: Collection[str]
    nodes: Sequence[Periphery]

    @property
    def reads(self) -> bool:
        """Whether any node's sums are touched before they are added up."""
        return any(node.adc_bits or node.read_noise for node in self.nodes)

    @property
    def noisy(self) -> bool:
        """Whether any node has read noise."""
        return any(node.read_noise for node in self.nodes)

    def convert(self, x: Value) -> Value:
        """X as it comes out of the DAC."""
        if not any(node.dac_bits for node in self.nodes):
            return x
        codes, step = self._codes(x, ops.DAC_BITS, ops.INPUT_RANGE)
        return self._if_bits(ops.DAC_BITS, codes * step, x)

    def matmul(self, x: Value, weight: Value) -> Value:
        """Y of AnalogMatMul."""
        tracer = self.tracer
        rows, columns = self._dims(weight)
        depth, tiles = self._tiles(rows)
        leading = self._slice(self._shape(x), 0, -1)
        vectors = tracer.op("ReduceProd", leading, dtype=np.int64, keepdims=1)
        filling = self._list(0, 0, 0, tiles * depth - rows)
        flat = self._reshape(x, vectors, rows)
        wide = self._reshape(tracer.op("Pad", flat, filling, dtype=np.float32), vectors, tiles, depth)
        filling = self._list(0, 0, tiles * depth - rows, 0)
        deep = self._reshape(tracer.op("Pad", weight, filling, dtype=np.float32), tiles, depth, columns)
        # The Reshape keeps ONNX Runtime from fusing Transpose and MatMul, which divides by an empty batch.
        turned = self._reshape(self._transpose(wide, 1, 0, 2), tiles, vectors, depth)
        sums = tracer.op("MatMul", turned, deep, dtype=np.float32)
        # A vector X has no leading axes and is one sample.
        sample_rows = self._attribute(ops.SAMPLE_ROWS, 1)
        entries = self._list(leading, sample_rows)
        samples = self._slice(entries, 0, 1) / sample_rows
        # An empty batch has no samples to divide by.
        elements = (
            vectors * columns / tracer.op("Max", samples, tracer.constant([1], np.int64), dtype=np.int64)
        )
        readings = self._transpose(self._reshape(sums, tiles, samples, elements), 1, 0, 2)
        y = self._read(readings, samples, tiles, elements)
        return self._reshape(y, leading, columns)

    def conv(self, weight: Value, groups: Value, convolve: Callable[[Value], Value], bias: Value) -> Value:
        """Y of AnalogConv.

        Args:
            weight: effective weight [filters, channels / group, *kernel].
            groups: attribute of the node.
            convolve: gives the convolution of the converted X with a weight in place of the node's.
            bias: [1, filters, 1].
        """
        tracer = self.tracer
        shape = self._shape(weight)
        filters = self._slice(shape, 0, 1)
        kernel = self._slice(shape, 1, None)
        rows = tracer.op("ReduceProd", kernel, dtype=np.int64, keepdims=1)
        depth, tiles = self._tiles(rows)
        of_row = self._range(rows) / depth
        held = tracer.op("Equal", self._reshape(self._range(tiles), tiles, 1), of_row, dtype=np.bool_)
        grouped = self._reshape(weight, groups, 1, filters / groups, rows)
        parts = tracer.where(self._reshape(held, 1, tiles, 1, rows), grouped, 0.0)
        sums = convolve(self._reshape(parts, filters * tiles, kernel))
        size = self._shape(sums)
        images, spatial = self._slice(size, 0, 1), self._slice(size, 2, None)
        positions = tracer.op("ReduceProd", spatial, dtype=np.int64, keepdims=1)
        apart = self._reshape(sums, images, groups, tiles, filters / groups * positions)
        readings = self._reshape(self._transpose(apart, 0, 2, 1, 3), images, tiles, filters * positions)
        y = self._read(readings, images, tiles, filters * positions)
        biased = self._reshape(y, images, filters, positions) + bias
        return self._reshape(biased, images, filters, spatial)

    def _read(self, sums: Value, samples: Value, tiles: Value, elements: Value) -> Value:
        """The digital sum of what is read: [samples, elements] of [samples, tiles, elements]."""
        tracer = self.tracer
        if self.noisy:
            drawn = self._reshape(self._normals(samples, tiles * elements), samples, tiles, elements)
            sums = sums + drawn * self._deviation()
        axis = tracer.constant([1], np.int64)
        plain = tracer.op("ReduceSum", sums, axis, dtype=np.float32, keepdims=0)
        if not any(node.adc_bits for node in self.nodes):
            return plain
        codes, step = self._codes(sums, ops.ADC_BITS, ops.OUTPUT_RANGE)
        total = tracer.op("ReduceSum", codes, axis, dtype=np.float32, keepdims=0) * step
        return self._if_bits(ops.ADC_BITS, total, plain)

    def _codes(self, x: Value, bits: str, largest: str) -> tuple[Value, Value]:
        """Codes and step of a converter; see `cnpass.runtime.periphery.Quantiser`."""
        tracer = self.tracer
        power = tracer.cast(self._attribute(bits, 0) - 1, np.float64)
        two = tracer.constant(2.0, np.float64)
        highest = tracer.op("Pow", two, power, dtype=np.float64) - 1.0
        wide = tracer.cast(self._range_of(largest), np.float64)
        scale, step, end = (tracer.cast(v, np.float32) for v in (highest / wide, wide / highest, highest))
        # Clip would make something of NaN.
        scaled = x * scale
        below = tracer.where(scaled > end, end, scaled)
        kept = tracer.where(below < -end, -end, below)
        return tracer.op("Round", kept, dtype=np.float32), step

    def _if_bits(self, bits: str, converted: Value, plain: Value) -> Value:
        """What goes on: the plain value at nodes without that converter."""
        if all(getattr(node, bits) for node in self.nodes):
            return converted
        return self.tracer.where(self._attribute(bits, 0) > 0, converted, plain)

    def _deviation(self) -> Value:
        """See `Periphery.deviation`."""
        tracer = self.tracer
        fraction = tracer.attribute(ops.READ_NOISE, np.float32)
        deviation = tracer.where(fraction > 0.0, fraction * self._range_of(ops.OUTPUT_RANGE), 0.0)
        ideal = tracer.constant(ops.IDEAL_CHIP, np.int64)
        is_ideal = tracer.op("Equal", tracer.input("chip", np.int64), ideal, dtype=np.bool_)
        return tracer.where(is_ideal, 0.0, deviation)

    def _normals(self, samples: Value, count: Value) -> Value:
        """Standard normals [samples, count]; see `cnpass.runtime.philox.read_normals`."""
        tracer = self.tracer
        groups = (count + (GROUP - 1)) / GROUP
        numbers = tracer.input("first_sample", np.int64) + self._range(samples)
        counter = read_noise_words(
            self._range(groups * LANES),
            sample=self._reshape(numbers, samples, 1),
            chip=tracer.input("chip", np.int64) & MASK,
            stream=tracer.attribute("stream", np.int64),
        )
        x0, x1, x2, x3 = philox4x32(counter, key_words(tracer.attribute("seed", np.int64)))
        made = (*box_muller(x0, x1, tracer), *box_muller(x2, x3, tracer))
        parts = [self._reshape(part, samples, groups, LANES) for part in made]
        together = self._reshape(
            tracer.op("Concat", *parts, dtype=np.float32, axis=2), samples, groups * GROUP
        )
        first, axis = tracer.constant([0], np.int64), tracer.constant([1], np.int64)
        return tracer.op("Slice", together, first, count, axis, dtype=np.float32)

    def _tiles(self, rows: Value) -> tuple[Value, Value]:
        """Rows of a tile and number of tiles, each [1]; see `Periphery.tiles`."""
        tracer = self.tracer
        tile_rows = self._list(self._attribute(ops.TILE_ROWS, 0))
        held = tile_rows / self._attribute(ops.COPIES, 1)
        if ops.EXTRA_COPIES in self.names:
            stated = self._slice(tracer.integers(ops.EXTRA_COPIES), 1, 2)
            held = tracer.where(stated > 0, stated, held)
        least = tracer.op("Max", held, tracer.constant([1], np.int64), dtype=np.int64)
        depth = tracer.where(tile_rows > 0, tracer.op("Min", least, rows, dtype=np.int64), rows)
        return depth, (rows + depth - 1) / depth

    def _range_of(self, name: str) -> Value:
        """A range; NaN where it is not set, since a body cannot refuse to run."""
        largest = self.tracer.attribute(name, np.float32)
        return self.tracer.where(largest > 0.0, largest, float("nan"))

    def _attribute(self, name: str, default: int) -> Value:
        tracer = self.tracer
        return tracer.attribute(name, np.int64) if name in self.names else tracer.constant(default, np.int64)

    # integers about shapes: lists, of one element unless said

    def _shape(self, x: Value) -> Value:
        return self.tracer.op("Shape", x, dtype=np.int64)

    def _dims(self, matrix: Value) -> tuple[Value, Value]:
        shape = self._shape(matrix)
        return self._slice(shape, 0, 1), self._slice(shape, 1, 2)

    def _slice(self, x: Value, start: int, stop: int | None) -> Value:
        ends = (self.tracer.constant([end], np.int64) for end in (start, 2**31 if stop is None else stop))
        return self.tracer.op("Slice", x, *ends, dtype=x.dtype)

    def _list(self, *items: Value | int) -> Value:
        """Numbers, scalars and lists after one another."""
        tracer = self.tracer
        lists = [
            tracer.constant([i], np.int64) if isinstance(i, int) else tracer.reshape(i, [-1]) for i in items
        ]
        return tracer.op("Concat", *lists, dtype=np.int64, axis=0)

    def _reshape(self, x: Value, *shape: Value | int) -> Value:
        """`x` in a shape in which 0 means 0."""
        return self.tracer.op("Reshape", x, self._list(*shape), dtype=x.dtype, allowzero=1)

    def _transpose(self, x: Value, *perm: int) -> Value:
        return self.tracer.op("Transpose", x, dtype=x.dtype, perm=perm)

    def _range(self, count: Value) -> Value:
        tracer = self.tracer
        ends = tracer.constant(0, np.int64), tracer.reshape(count, []), tracer.constant(1, np.int64)
        return tracer.op("Range", *ends, dtype=np.int64)
