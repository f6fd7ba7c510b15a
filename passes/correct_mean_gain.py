"""`correct-mean-gain`: weights over the mean factor of the device, so that chips are right on average."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from pydantic.dataclasses import dataclass

from cnpass.constants import constant_values
from cnpass.document import Document
from cnpass.mapping import Product, plan
from cnpass.nodes import bodies
from cnpass.passes.base import PASS_CONFIG, PassPreconditionError, PassResult, without_defaults
from cnpass.passes.device import DevicePass
from cnpass.passes.mean_gain import keep_mean_gains, mean_gains, stored_constant


@dataclass(frozen=True, config=PASS_CONFIG)
class CorrectMeanGain(DevicePass):
    """Divide analog weights by the mean factor that programming multiplies them by.

    Where the device gives weight w the mean m w, programming w / m makes the mean right, at no digital cost.
    The ideal chip is then off by 1 / m: the model is made for real ones. A stored weight is divided once,
    however many analog nodes share it; what something digital reads too, or a node makes of integers,
    is left alone, and a note says so. The model keeps the factor in its metadata, as retraining does with the
    one that weights learn: corrected again, a weight is divided by what the factor has changed by since. So a
    model that was made for one device is made right for another.
    """

    name: ClassVar[str] = "correct-mean-gain"

    def apply(self, document: Document) -> PassResult:
        """See `Pass.apply`."""
        mean, gains = float(self.device.mean(np.ones(1))[0]), mean_gains(document)
        if not 0 < mean < np.inf:
            raise PassPreconditionError(
                self.name, f"{self.device.name} programs weights whose mean factor is {mean:.3g}"
            )
        if mean == 1 and not gains:
            return PassResult(False, (f"{self.device.name} programs the right mean; nothing to correct",))
        products: dict[str, list[tuple[gs.Node, Product]]] = defaultdict(list)
        for entry in plan(document).analog:
            if entry.product is not None and entry.node is not None:
                products[entry.product.weight.key].append((entry.node, entry.product))
        had = sum(gains.get(key, 1.0) == mean for key in products)
        corrected, notes, before = 0, [], document.defaults
        for key, users in products.items():
            if gains.get(key, 1.0) == mean:
                continue
            reason = self._correct(document, users, mean, gains.get(key, 1.0))
            if reason is None:
                corrected += 1
                gains[key] = mean
            else:
                notes.append(f"weight {key!r} stays: {reason}")
        keep_mean_gains(document, gains)
        done = f"{corrected} of {len(products)} weights divided by the mean factor {mean:.6g}"
        done += f"; {had} have been before" if had else ""
        return PassResult(bool(corrected), (done, *notes, *without_defaults(before, document)))

    def _correct(
        self, document: Document, users: list[tuple[gs.Node, Product]], mean: float, had: float
    ) -> str | None:
        """Divide one stored weight; returns the reason where that cannot be."""
        weight = users[0][1].weight
        if weight.kind == "converted":
            return "it is made of integers or of a shape"
        if _read_elsewhere(document, users):
            return "something digital reads it too"
        stored = stored_constant(weight)
        if stored is None:
            return "it is no tensor attribute"
        values = constant_values(stored)
        wide = values.astype(np.float64)
        if not np.allclose(self.device.mean(wide), mean * wide, rtol=1e-6, atol=0):
            raise PassPreconditionError(
                self.name, f"{self.device.name} has no constant mean factor on weight {weight.key!r}"
            )
        stored.values = (wide / (mean / had)).astype(values.dtype)
        document.pin(stored)
        return None


def _read_elsewhere(document: Document, users: Iterable[tuple[gs.Node, Product]]) -> bool:
    """Whether anything reads a weight but the analog nodes, as their weight, and what leads to them."""
    ends = {id(tensor) for tensor in document.graph.outputs}
    ends |= {id(tensor) for node in document.all_nodes() for body in bodies(node) for tensor in body.outputs}
    known = {(id(node), product.operand) for node, product in users}
    path = {id(node): node for _, product in users for node in product.weight.path}
    known |= {(node, 0) for node in path}
    tensors = [product.weight.root for _, product in users]
    tensors += [tensor for node in path.values() for tensor in node.outputs]
    readers = {
        (id(node), slot)
        for tensor in tensors
        for node in tensor.outputs
        for slot, read in enumerate(node.inputs)
        if read is tensor
    }
    return bool(readers - known) or any(id(tensor) in ends for tensor in tensors)
