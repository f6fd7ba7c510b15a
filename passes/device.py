"""The base of passes that take a device model as an option."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Self

from pydantic import Field, InstanceOf
from pydantic.dataclasses import dataclass

from cnpass.errors import UsageError
from cnpass.passes.base import PASS_CONFIG, OptionDescription, Pass, PassDescription
from cnpass.runtime.devices import DeviceModel, LogNormal, device_names, get_device, make_device


@dataclass(frozen=True, config=PASS_CONFIG)
class DevicePass(Pass):
    """A pass with a device model; in text, the device's parameters stand beside its name."""

    device: InstanceOf[DeviceModel] = Field(
        default=LogNormal(),
        description="device model; its parameters, as `cnpass devices show` lists them, are options too",
    )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """See `Pass.from_options`; `device` is a name, and the device's parameters stand beside it."""
        rest = {option.replace("-", "_"): value for option, value in options.items()}
        device = rest.pop("device", LogNormal.name)
        if not isinstance(device, DeviceModel):
            known = [field.name for field in fields(get_device(str(device)))]
            given = {key: rest.pop(key) for key in known if key in rest}
            own = [option.name for option in super().describe().options]
            for option in (key.replace("_", "-") for key in rest):
                if option not in own:
                    listed = ", ".join([*own, *(name.replace("_", "-") for name in known)])
                    what = f"pass {cls.name!r} has no option {option!r} for device {str(device)!r}"
                    raise UsageError(f"{what}; it has: {listed}")
            device = make_device(str(device), **given)
        return super().from_options({"device": device, **rest})

    def options(self) -> dict[str, Any]:
        """See `Pass.options`."""
        options = super().options()
        if options.pop("device", None) is None:
            return options
        default = type(self.device)().attributes()
        parameters = {
            name.replace("_", "-"): value
            for name, value in self.device.attributes().items()
            if value != default.get(name, 0.0)
        }
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
            OptionDescription(
                f.name.replace("_", "-"),
                "float",
                f.default,
                f.minimum,
                f.maximum,
                (),
                f"{f.help} ({LogNormal.name})",
            )
            for f in LogNormal.describe().fields
        )
        return PassDescription(base.name, base.summary, (first, *parameters, *base.options[1:]))
