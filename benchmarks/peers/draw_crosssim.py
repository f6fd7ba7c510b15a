"""Draw devices from CrossSim's own arrays, for compare_devices.py; runs where CrossSim is installed.

python draw_crosssim.py crosssim.npz
"""

from __future__ import annotations

import sys
from importlib.metadata import version

import numpy as np
from cases import CROSSSIM, DEVICES, LEVELS, Case
from simulator import AnalogCore, CrossSimParameters


def parameters(case: Case) -> CrossSimParameters:
    """CrossSim's description of an array of pairs (its default) of the case's devices."""
    described = CrossSimParameters()
    device = described.xbar.device
    device.programming_error.enable = True
    device.programming_error.model = case.model
    for name, value in case.arguments.items():
        setattr(device.programming_error if name == "magnitude" else device, name, value)
    return described


def main() -> None:
    """Write the weights that an array holds, of shape [level, device], for every case."""
    np.random.seed(1)  # noqa: NPY002, TID251 (CrossSim draws from the global generator)
    matrix = np.repeat(np.float32(LEVELS)[:, None], DEVICES, axis=1)
    drawn = {name: AnalogCore(matrix, parameters(case)).get_matrix() for name, case in CROSSSIM.items()}
    np.savez(sys.argv[1], peer=f"CrossSim {version('CrossSim')}", **drawn)


if __name__ == "__main__":
    main()
