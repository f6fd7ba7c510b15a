"""The mean factor of a device that weights are made for, in the model's metadata, as JSON by weight.

`correct-mean-gain` makes weights for one by division, training under variation by learning.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.constants import constant_values
from cnpass.document import Document
from cnpass.mapping import plan
from cnpass.runtime.devices import DeviceModel
from cnpass.runtime.ops import META_MEAN_GAIN
from cnpass.weights import Weight


def mean_gains(document: Document) -> dict[str, float]:
    """Return the mean factors that weights are made for, by the weight's key; 1 where none is named."""
    try:
        found = json.loads(document.metadata.get(META_MEAN_GAIN, "{}"))
    except ValueError:
        return {}
    factors = found.items() if isinstance(found, dict) else ()
    return {key: float(value) for key, value in factors if type(value) is float and 0 < value < np.inf}


def keep_mean_gains(document: Document, gains: Mapping[str, float]) -> None:
    """Say in a document which mean factors its weights are made for."""
    named = {key: factor for key, factor in gains.items() if factor != 1}
    if named:
        document.metadata[META_MEAN_GAIN] = json.dumps(named)
    else:
        document.metadata.pop(META_MEAN_GAIN, None)


def mean_factor(device: DeviceModel) -> float | None:
    """Return the factor that a device multiplies any weight by on average; None if it is no constant."""
    weights = np.array([-1.0, -0.25, 0.5, 1.0])
    means = np.asarray(device.mean(weights))
    return float(means[-1]) if np.allclose(means, means[-1] * weights, rtol=1e-6, atol=0) else None


def keep_trained(document: Document, device: DeviceModel, trained: Collection[str]) -> None:
    """Say in a document that analog weights have learned the mean factor of a device.

    Where it has no constant one they are made for none: what they were made for before is unlearned.

    Args:
        document: the document.
        device: the device.
        trained: keys of weights that were trained; the others stay made for what they were made for.
    """
    factor = mean_factor(device) or 1.0
    keys = (entry.product.weight.key for entry in plan(document).analog if entry.product)
    learned = dict.fromkeys((key for key in keys if key in trained), factor)
    keep_mean_gains(document, mean_gains(document) | learned)


def stored_constant(weight: Weight) -> gs.Constant | None:
    """Return what holds a weight's values: an initializer, or the constant in the node that makes it."""
    if isinstance(weight.root, gs.Constant):
        return weight.root
    value = weight.root.inputs[0].attrs.get("value")
    return value if isinstance(value, gs.Constant) else None


@contextmanager
def as_chips_have_it(document: Document) -> Iterator[None]:
    """Multiply weights by the mean factor that they are made for, for as long as this lasts.

    What is measured on such a model without a device would else be too small from layer to layer.
    """
    gains = mean_gains(document)
    analog = plan(document).analog if gains else ()
    weights = {entry.product.weight.key: entry.product.weight for entry in analog if entry.product}
    stored = [(stored_constant(weight), gains[key]) for key, weight in weights.items() if key in gains]
    kept = [(constant, constant_values(constant), gain) for constant, gain in stored if constant is not None]
    for constant, values, gain in kept:
        constant.values = (values.astype(np.float64) * gain).astype(values.dtype)
    try:
        yield
    finally:
        for constant, values, _ in kept:
            constant.values = values


def intended(document: Document) -> Document:
    """Return what computes on the ideal chip what chips of the weights' mean factor do on average.

    That is the document itself where no weight is made for one.
    """
    if not mean_gains(document):
        return document
    with as_chips_have_it(document):
        copy = document.copy()
    keep_mean_gains(copy, {})
    return copy
