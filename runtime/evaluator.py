"""AnalogConv and AnalogMatMul as operators of `onnx.reference.ReferenceEvaluator`."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from cnpass.runtime.copies import Copies
from cnpass.runtime.devices import device_from_attributes
from cnpass.runtime.ops import CONV_ATTRIBUTES, DOMAIN, WEIGHT_PERM
from cnpass.runtime.periphery import Periphery
from cnpass.runtime.reference import analog_conv, analog_matmul


class AnalogMatMul(OpRun):
    """AnalogMatMul of the op contract."""

    op_domain = DOMAIN

    def _run(
        self,
        x: np.ndarray,
        w: np.ndarray,
        chip: np.ndarray,
        first_sample: np.ndarray | None = None,
        **attributes: Any,
    ) -> tuple[np.ndarray]:
        return (analog_matmul(x, w, **_common(chip, first_sample, attributes)),)


class AnalogConv(OpRun):
    """AnalogConv of the op contract."""

    op_domain = DOMAIN

    def _run(
        self,
        x: np.ndarray,
        w: np.ndarray,
        b: np.ndarray | None,
        chip: np.ndarray,
        first_sample: np.ndarray | None = None,
        **attributes: Any,
    ) -> tuple[np.ndarray]:
        conv = {name: value for name, value in attributes.items() if name in CONV_ATTRIBUTES}
        return (analog_conv(x, w, b, **_common(chip, first_sample, attributes), **conv),)


def _common(chip: np.ndarray, first_sample: np.ndarray | None, attributes: dict[str, Any]) -> dict[str, Any]:
    """The arguments that both ops share."""
    return {
        "chip": int(chip),
        "device": device_from_attributes(attributes),
        "seed": attributes.get("seed", 0),
        "stream": attributes.get("stream", 0),
        "copies": Copies.from_attributes(attributes),
        WEIGHT_PERM: attributes.get(WEIGHT_PERM),
        "periphery": Periphery.from_attributes(attributes),
        "first_sample": 0 if first_sample is None else int(first_sample),
    }
