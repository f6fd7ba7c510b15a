"""The op contract, device models, references, function bodies and sessions."""

from cnpass.runtime.bodies import BITWISE_OPSET, function_bodies
from cnpass.runtime.copies import Copies
from cnpass.runtime.devices import (
    Conductance,
    DeviceModel,
    Gaussian,
    LogNormal,
    Pcm,
    Proportional,
    Reram,
    device_names,
    get_device,
    make_device,
)
from cnpass.runtime.library import get_library_path, has_library
from cnpass.runtime.program import PROGRAM_DOMAIN, program_function, program_node
from cnpass.runtime.reference import analog_conv, analog_matmul, program_weight, reference_ops
from cnpass.runtime.session import Session

__all__ = [
    "BITWISE_OPSET",
    "PROGRAM_DOMAIN",
    "Conductance",
    "Copies",
    "DeviceModel",
    "Gaussian",
    "LogNormal",
    "Pcm",
    "Proportional",
    "Reram",
    "Session",
    "analog_conv",
    "analog_matmul",
    "device_names",
    "function_bodies",
    "get_device",
    "get_library_path",
    "has_library",
    "make_device",
    "program_function",
    "program_node",
    "program_weight",
    "reference_ops",
]
