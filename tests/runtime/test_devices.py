"""Every device model keeps the contract; their registry refuses what it does not know."""

import numpy as np
import pytest

from cnpass.errors import UsageError
from cnpass.runtime.devices import LogNormal, device_names, get_device, make_device
from cnpass.runtime.testing import DeviceContract


class TestEveryDevice(DeviceContract):
    @pytest.fixture(params=device_names())
    def device(self, request):
        return make_device(request.param)


class TestMildLogNormal(DeviceContract):
    @pytest.fixture
    def device(self):
        return LogNormal(sigma=0.1)


def test_lognormal_moments():
    """At sigma 0.5 the mean factor is 1.1331 and its deviation 0.6039."""
    device = LogNormal(sigma=0.5)
    np.testing.assert_allclose(device.mean([2.0, -1.0]), [2.26629691, -1.13314845], rtol=1e-7)
    np.testing.assert_allclose(device.std([2.0, -1.0]), [1.2078011, 0.60390053], rtol=1e-7)


def test_lognormal_without_variation_is_nominal():
    from cnpass.runtime.reference import program_weight

    weight = np.linspace(-2, 2, 101, dtype=np.float32)
    programmed = program_weight(weight, LogNormal(sigma=0.0), seed=0, stream=0, chip=0)
    np.testing.assert_array_equal(programmed, weight)


def test_registry():
    assert get_device("lognormal") is LogNormal
    assert make_device("lognormal", sigma=0.2) == LogNormal(sigma=0.2)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("lognorm", {}, "device 'lognorm' is unknown; known are lognormal"),
        ("lognormal", {"sigma": -0.1}, "parameter 'sigma': input should be greater than or equal to 0"),
        ("lognormal", {"sgima": 0.1}, "has no parameter 'sgima'; it has: sigma"),
        ("lognormal", {"sigma": "much"}, "parameter 'sigma': input should be a valid number"),
    ],
)
def test_refusals_are_one_line(name, parameters, message):
    with pytest.raises(UsageError, match=message) as error:
        make_device(name, **parameters)
    assert "\n" not in str(error.value)
