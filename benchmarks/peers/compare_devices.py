"""Compare what our device models and a peer's draw, level by level.

    python compare_devices.py drawn.npz

Prints mean and standard deviation of both, in fractions of the full scale, and the two-sample
Kolmogorov-Smirnov statistic D: above the limit that is printed with it, the distributions differ, at 99.9 %
confidence over all rows together.
"""

from __future__ import annotations

import sys

import numpy as np
from cases import AIHWKIT, DEVICES, LEVELS
from scipy.stats import ks_2samp, kstwo

from cnpass.runtime.devices import make_device
from cnpass.runtime.reference import program_weight


def ours(name: str, parameters: dict[str, float], stream: int) -> np.ndarray:
    """Programmed weights of shape [level, device]; the last level is the full scale."""
    weight = np.repeat(np.float32(LEVELS)[:, None], DEVICES, axis=1)
    device = make_device(name, **parameters)
    return np.asarray(program_weight(weight, device, seed=0, stream=stream, chip=0))


def main() -> None:
    """Print one row per case and level."""
    tests = len(AIHWKIT) * len(LEVELS)
    limit = kstwo.isf(0.001 / tests, DEVICES // 2)
    print(f"{DEVICES} pairs each; D above {limit:.4f} is a difference\n")
    print("| case | w / F | mean, ours | mean, peer | std, ours | std, peer | D | |")
    print("|---|---|---|---|---|---|---|---|")
    with np.load(sys.argv[1]) as drawn:
        for stream, (name, ((device, parameters), _, _)) in enumerate(AIHWKIT.items()):
            for level, a, b in zip(LEVELS, ours(device, parameters, stream), drawn[name], strict=True):
                distance = ks_2samp(a, b).statistic
                figures = " | ".join(f"{v:.4f}" for v in (a.mean(), b.mean(), a.std(), b.std(), distance))
                print(f"| {name} | {level} | {figures} | {'differs' if distance > limit else 'agrees'} |")


if __name__ == "__main__":
    main()
