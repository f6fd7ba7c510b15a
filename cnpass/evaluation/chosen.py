"""Which chips the options of a verb mean, for a model that may be mapped to some already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cnpass.document import Document
from cnpass.errors import ModelError, UsageError
from cnpass.passes import analog
from cnpass.runtime.devices import DeviceModel, device_from_attributes, make_device
from cnpass.runtime.ops import only_chip

DEFAULT_DEVICE = "lognormal"


def analog_attributes(document: Document) -> dict[str, Any] | None:
    """Attributes of the first analog node of a mapped model; None if the model is not mapped."""
    node = next(iter(analog.analog_nodes(document)), None)
    return None if node is None else dict(node.attrs)


def own_device(attributes: Mapping[str, Any]) -> DeviceModel | None:
    """Return the device model that an analog node's attributes name; None if others program its weight.

    Floats get the fewest digits that give the same float32, which is what ONNX stores.
    """
    return device_from_attributes(
        {k: float(str(np.float32(v))) if isinstance(v, float) else v for k, v in attributes.items()}
    )


def chosen_parameters(
    document: Document, name: str | None, param: Mapping[str, float]
) -> tuple[str, dict[str, float]]:
    """Return a device model and its parameters, by name.

    A mapped model's own parameters hold where no option says otherwise, unless another device is named.

    Args:
        document: The model.
        name: Device model asked for; None for the model's own, else the default one.
        param: Parameters asked for.

    Raises:
        UsageError: No device is named, and the model's weights are programmed by nodes of its own.
        ModelError: The model's attributes make no device.
    """
    attributes = analog_attributes(document)
    if attributes is None or "device" not in attributes:
        return name or DEFAULT_DEVICE, dict(param)
    own = own_device(attributes)
    if own is None and name is None:
        raise UsageError("the model's weights are programmed by nodes of its own; name a --device")
    if own is None or name not in {None, own.name}:
        return str(name), dict(param)
    return own.name, own.attributes() | dict(param)


def chosen_device(
    document: Document, name: str | None, sigma: float | None, param: Mapping[str, float]
) -> DeviceModel:
    """Return the device model that options mean; see `chosen_parameters`.

    Raises:
        UsageError: It is unknown, a parameter is unknown or out of range, or sigma is given twice.
    """
    check_sigma(sigma, param)
    name, parameters = chosen_parameters(document, name, param)
    return make_device(name, **parameters | ({} if sigma is None else {"sigma": sigma}))


def check_sigma(sigma: object, param: Mapping[str, float]) -> None:
    """Refuse a sigma that is given by two options."""
    if sigma is not None and "sigma" in param:
        raise UsageError("option --param: sigma is given by --sigma already")


def refuse_only_chip(document: Document) -> None:
    """Refuse a model that was made for one chip.

    Raises:
        ModelError: It is.
    """
    chip = only_chip(document.metadata)
    if chip is not None:
        raise ModelError(
            f"{document.path or 'the model'}: was made for chip {chip} alone; start from what it was made of"
        )
