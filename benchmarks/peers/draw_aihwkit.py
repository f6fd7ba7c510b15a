"""Draw devices from aihwkit's own noise models, for compare_devices.py; runs where aihwkit is installed.

python draw_aihwkit.py aihwkit.npz
"""

from __future__ import annotations

import sys
from importlib.metadata import version

import numpy as np
import torch
from aihwkit.inference.noise import hermes, pcm, reram
from cases import AIHWKIT, DEVICES, LEVELS


def conductances(model: object, target: torch.Tensor, time: float | None) -> torch.Tensor:
    """Conductances in uS of one device for each target."""
    programmed = model.apply_programming_noise_to_conductance(target)
    if time is None:
        return programmed
    drift = model.generate_drift_coefficients(target)
    return model.apply_drift_noise_to_conductance(programmed, drift, time)


def main() -> None:
    """Write the weights that pairs of devices hold, of shape [level, device], for every case."""
    torch.manual_seed(1)  # noqa: TID251 (aihwkit draws from the global generator)
    models = vars(pcm) | vars(hermes) | vars(reram)
    drawn = {}
    for name, case in AIHWKIT.items():
        model, g_max = models[case.model](**case.arguments), case.arguments["g_max"]
        target = torch.tensor(LEVELS)[:, None].expand(len(LEVELS), DEVICES) * g_max
        active, idle = (
            conductances(model, part, case.time) for part in (target.clone(), torch.zeros_like(target))
        )
        drawn[name] = ((active - idle) / g_max).numpy()
    np.savez(sys.argv[1], peer=f"aihwkit {version('aihwkit')}", **drawn)


if __name__ == "__main__":
    main()
