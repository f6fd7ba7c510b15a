"""A device model from another package: found through its entry point, held by the same contract."""

from __future__ import annotations

import textwrap

import numpy as np
import onnx
import pytest

from cnpass.document import Document
from cnpass.errors import ModelError, UsageError
from cnpass.passes import Pipeline
from cnpass.passes.base import PassPreconditionError
from cnpass.runtime import LogNormal, program_function
from cnpass.runtime.devices import device_from_attributes, device_names, get_device, in_ops, make_device
from cnpass.runtime.testing import DeviceContract

SOURCE = '''
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from cnpass.runtime.devices import ScaledModel
from cnpass.runtime.devices.base import DEVICE_CONFIG


@dataclass(frozen=True, config=DEVICE_CONFIG)
class Skewed(ScaledModel):
    """Programmed weights lose a part of the full scale."""

    name: ClassVar[str] = "skewed"
    formula: ClassVar[str] = "w' = w (1 + 0.1 n) - loss F"
    source: ClassVar[str] = "a test"

    loss: float = Field(
        default=0.1, ge=0, le=1, allow_inf_nan=False, description="loss", json_schema_extra={"unit": "1"}
    )

    @classmethod
    def respond(cls, weight, draws, functions, parameters):
        return weight * (draws.normals() * 0.1 + 1.0) - parameters["full_scale"] * parameters["loss"]

    def moments(self, weight, full_scale):
        return weight - self.loss * full_scale, (0.1 * weight) ** 2
'''

ENTRY_POINTS = """
    [cnpass.devices]
    skewed = skewed_devices:Skewed
    broken = skewed_devices:Missing
    other = skewed_devices:Skewed
    lognormal = skewed_devices:Skewed
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """An installed package, for this process and its children."""
    (tmp_path / "skewed_devices.py").write_text(SOURCE)
    installed = tmp_path / "skewed_devices-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: skewed-devices\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(textwrap.dedent(ENTRY_POINTS))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield
    import sys

    sys.modules.pop("skewed_devices", None)


class TestSkewed(DeviceContract):
    in_ops = False

    @pytest.fixture
    def device(self):
        return make_device("skewed", loss=0.2)


def test_found_through_its_entry_point():
    assert device_names()[-3:] == ["broken", "other", "skewed"]
    assert make_device("skewed", loss=0.5).attributes() == {"loss": 0.5, "scale_floor": 1.0}
    assert get_device("lognormal") is LogNormal
    assert not in_ops("skewed")


@pytest.mark.parametrize(
    ("name", "reason"), [("broken", "cannot be loaded"), ("other", "no device model of that")]
)
def test_bad_entry_points(name, reason):
    with pytest.raises(UsageError, match=f"device {name!r}, entry point 'skewed_devices:.*' .*{reason}"):
        make_device(name)


def test_no_analog_node_can_name_it(build):
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    model = build([node], {"w": np.ones((4, 3), np.float32)})
    with pytest.raises(
        PassPreconditionError, match="no analog node can name device 'skewed' of another package"
    ):
        Pipeline.parse("map-crossbar{device=skewed}").run(Document.from_proto(model))
    with pytest.raises(ModelError, match="device 'skewed' is none that analog nodes can name"):
        device_from_attributes({"device": "skewed", "loss": 0.1, "scale_floor": 1.0})


def test_old_opsets_are_refused():
    with pytest.raises(ModelError, match="need opset 18, the model has 17"):
        program_function(LogNormal, 17)
