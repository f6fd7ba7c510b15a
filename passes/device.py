"""The base of passes that take a device model as an option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, InstanceOf
from pydantic.dataclasses import dataclass

from cnpass.passes.base import PASS_CONFIG, OptionDescription, Pass, PassDescription
from cnpass.runtime.devices import DeviceModel, LogNormal, device_names, get_device, make_device


@dataclass(frozen=True, config=PASS_CONFIG)
class DevicePass(Pass):
    """A pass with a device model; in text, the device's parameters stand beside its name."""

    device: InstanceOf[DeviceModel] = Field(
        default=LogNormal(), description="device model; its parameters are options too"
    )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """See `Pass.from_options`; `device` is a name, and the device's parameters stand beside it."""
        rest = dict(options)
        device = rest.pop("device", LogNormal.name)
        if not isinstance(device, DeviceModel):
            kind = get_device(str(device))
            parameters = {key: rest.pop(key) for key in kind().attributes() if key in rest}
            device = make_device(kind.name, **parameters)
        return super().from_options({"device": device, **rest})

    def options(self) -> dict[str, Any]:
        """See `Pass.options`."""
        options = super().options()
        if options.pop("device", None) is None:
            return options
        default = type(self.device)().attributes()
        parameters = {k: v for k, v in self.device.attributes().items() if v != default[k]}
        named = {} if self.device.name == LogNormal.name else {"device": self.device.name}
        return {**named, **parameters, **options}

    @classmethod
    def describe(cls) -> PassDescription:
        """See `Pass.describe`."""
        base = super().describe()
        first = OptionDescription(
            "device", "choice", LogNormal.name, None, None, tuple(device_names()), base.options[0].help
        )
        parameters = tuple(
            OptionDescription(f.name, "float", f.default, f.minimum, f.maximum, (), f"{f.help} ({name})")
            for name in device_names()
            for f in get_device(name).describe().fields
        )
        return PassDescription(base.name, base.summary, (first, *parameters, *base.options[1:]))
