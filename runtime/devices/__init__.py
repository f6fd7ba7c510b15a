"""The device models that analog nodes can name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cnpass.errors import ModelError, UsageError
from cnpass.runtime.devices.base import (
    FULL_SCALE,
    SCALE_FLOOR,
    DeviceDescription,
    DeviceModel,
    Draws,
    FieldDescription,
    Preset,
    ScaledModel,
    TorchDraws,
)
from cnpass.runtime.devices.gaussian import Gaussian
from cnpass.runtime.devices.lognormal import LogNormal
from cnpass.runtime.devices.proportional import Proportional
from cnpass.runtime.ops import PROGRAMMED, STUCK_HIGH, STUCK_LOW

_DEVICES: dict[str, type[DeviceModel]] = {
    device.name: device for device in (LogNormal, Gaussian, Proportional)
}


def device_names() -> list[str]:
    """Names of all device models."""
    return list(_DEVICES)


def get_device(name: str) -> type[DeviceModel]:
    """The device model of that name.

    Raises:
        UsageError: there is none.
    """
    try:
        return _DEVICES[name]
    except KeyError:
        raise UsageError(f"device {name!r} is unknown; known are {', '.join(_DEVICES)}") from None


def make_device(name: str, **parameters: float) -> DeviceModel:
    """A device model with parameters; those not given keep their default.

    Raises:
        UsageError: name or parameter is unknown, or a value is out of range.
    """
    try:
        return get_device(name)(**parameters)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        place = f", parameter {where!r}" if where else ""
        raise UsageError(f"device {name!r}{place}: {first['msg'].lower()}") from None


def device_from_attributes(attributes: Mapping[str, Any]) -> DeviceModel | None:
    """The device model that an analog node's attributes name; None if its weight is programmed upstream.

    Args:
        attributes: by name, as Python values; text may be bytes. Those that are not the device's are ignored.

    Raises:
        ModelError: `device` or one of the model's parameters is not there, unknown or out of range.
    """
    name = attributes.get("device")
    if name is None:
        raise ModelError("attribute 'device' is missing")
    if isinstance(name, bytes):
        name = name.decode()
    if name == PROGRAMMED:
        return None
    try:
        parameters = get_device(name).parameter_names()
        if missing := [parameter for parameter in parameters if parameter not in attributes]:
            raise ModelError(f"device {name!r} needs attribute {missing[0]!r}")
        parameters += [rate for rate in (STUCK_LOW, STUCK_HIGH) if rate in attributes]
        return make_device(name, **{parameter: attributes[parameter] for parameter in parameters})
    except UsageError as error:
        raise ModelError(str(error)) from None


__all__ = [
    "FULL_SCALE",
    "SCALE_FLOOR",
    "DeviceDescription",
    "DeviceModel",
    "Draws",
    "FieldDescription",
    "Gaussian",
    "LogNormal",
    "Preset",
    "Proportional",
    "ScaledModel",
    "TorchDraws",
    "device_from_attributes",
    "device_names",
    "get_device",
    "make_device",
]
