"""The op contract, device models, references, function bodies and sessions."""

from cnpass.runtime.devices import DeviceModel, LogNormal, device_names, get_device, make_device
from cnpass.runtime.library import get_library_path, has_library
from cnpass.runtime.reference import analog_conv, analog_matmul, program_weight, reference_ops
from cnpass.runtime.session import Session

__all__ = [
    "DeviceModel",
    "LogNormal",
    "Session",
    "analog_conv",
    "analog_matmul",
    "device_names",
    "get_device",
    "get_library_path",
    "has_library",
    "make_device",
    "program_weight",
    "reference_ops",
]
