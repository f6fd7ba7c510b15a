"""The device models that analog nodes can name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
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
from cnpass.runtime.devices.conductance import Conductance
from cnpass.runtime.devices.gaussian import Gaussian
from cnpass.runtime.devices.lognormal import LogNormal
from cnpass.runtime.devices.pair import PairModel
from cnpass.runtime.devices.pcm import Pcm
from cnpass.runtime.devices.proportional import Proportional
from cnpass.runtime.devices.reram import Reram
from cnpass.runtime.ops import PROGRAMMED, STUCK_HIGH, STUCK_LOW

_DEVICES: dict[str, type[DeviceModel]] = {
    device.name: device for device in (LogNormal, Gaussian, Proportional, Conductance, Pcm, Reram)
}


ENTRY_POINTS = "cnpass.devices"
"""Group of entry points through which other packages add device models, named as the models are."""


def device_names() -> list[str]:
    """Names of all device models, ours first."""
    return [*_DEVICES, *sorted(_others())]


def in_ops(name: str) -> bool:
    """Whether analog nodes can name the device model; those of other packages program weights upstream."""
    return name in _DEVICES


def get_device(name: str) -> type[DeviceModel]:
    """The device model of that name; a preset may follow, as in `pcm:joshi`.

    Raises:
        UsageError: there is none, or it has no such preset.
    """
    return _find(name)[0]


def make_device(name: str, **parameters: float) -> DeviceModel:
    """A device model with parameters; those not given keep the preset's value, or their default.

    Args:
        name: of the device model, or of that and a preset: `pcm` or `pcm:joshi`.
        **parameters: by name.

    Raises:
        UsageError: name or parameter is unknown, or a value is out of range.
    """
    device, preset = _find(name)
    try:
        return device(**{**preset, **parameters})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        place = f", parameter {where!r}" if where else ""
        if first["type"] == "unexpected_keyword_argument":
            known = ", ".join(field.name for field in device.describe().fields)
            raise UsageError(f"device {name!r} has no parameter {where!r}; it has: {known}") from None
        raise UsageError(f"device {name!r}{place}: {first['msg'].lower()}") from None


def _find(name: str) -> tuple[type[DeviceModel], Mapping[str, float]]:
    """A device model, and the parameters of the preset that the name holds."""
    model, colon, preset = name.partition(":")
    if model in _DEVICES:
        device = _DEVICES[model]
    elif model in (others := _others()):
        device = _load(others[model])
    else:
        raise UsageError(f"device {model!r} is unknown; known are {', '.join(device_names())}")
    presets = device.presets
    if colon and preset not in presets:
        known = ", ".join(presets) or "none"
        raise UsageError(f"device {model!r} has no preset {preset!r}; it has: {known}")
    return device, presets[preset].parameters if colon else {}


def _others() -> dict[str, EntryPoint]:
    """The entry points of other packages; ours come first where a name is taken."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in _DEVICES}


def _load(point: EntryPoint) -> type[DeviceModel]:
    where = f"device {point.name!r}, entry point {point.value!r}"
    try:
        device = point.load()
    except Exception as error:  # whatever the other package raises
        raise UsageError(f"{where} cannot be loaded: {error}") from error
    if not (isinstance(device, type) and issubclass(device, DeviceModel) and device.name == point.name):
        raise UsageError(f"{where} is no device model of that name")
    return device


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
        if not in_ops(name):
            raise ModelError(f"device {name!r} is none that analog nodes can name: {', '.join(_DEVICES)}")
        if missing := [parameter for parameter in parameters if parameter not in attributes]:
            raise ModelError(f"device {name!r} needs attribute {missing[0]!r}")
        parameters += [rate for rate in (STUCK_LOW, STUCK_HIGH) if rate in attributes]
        return make_device(name, **{parameter: attributes[parameter] for parameter in parameters})
    except UsageError as error:
        raise ModelError(str(error)) from None


__all__ = [
    "ENTRY_POINTS",
    "FULL_SCALE",
    "SCALE_FLOOR",
    "Conductance",
    "DeviceDescription",
    "DeviceModel",
    "Draws",
    "FieldDescription",
    "Gaussian",
    "LogNormal",
    "PairModel",
    "Pcm",
    "Preset",
    "Proportional",
    "Reram",
    "ScaledModel",
    "TorchDraws",
    "device_from_attributes",
    "device_names",
    "get_device",
    "in_ops",
    "make_device",
]
