"""Compare what our device models and a peer's draw, level by level.

    python compare_devices.py aihwkit.npz crosssim.npz

Writes devices.json beside this file: mean and standard deviation of both, in fractions of the full scale, and
the two-sample Kolmogorov-Smirnov statistic D. Above the limit that is written with them, the distributions
differ, at 99.9 % confidence over all rows together.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cases import DEVICES, LEVELS, PEERS, Case
from scipy.stats import ks_2samp, kstwo

from cnpass.runtime.devices import make_device
from cnpass.runtime.reference import program_weight

STORE = Path(__file__).with_name("devices.json")
_DIGITS = 6


def ours(case: Case, stream: int) -> np.ndarray:
    """Programmed weights of shape [level, device]; the last level is the full scale."""
    weight = np.repeat(np.float32(LEVELS)[:, None], DEVICES, axis=1)
    device = make_device(case.device, **case.parameters)
    return np.asarray(program_weight(weight, device, seed=0, stream=stream, chip=0))


def compare(case: Case, stream: int, theirs: np.ndarray) -> list[dict[str, float]]:
    """Figures of both at every level."""
    rows = []
    for level, a, b in zip(LEVELS, ours(case, stream), theirs, strict=True):
        figures = {
            "level": level,
            "mean": a.mean(dtype=np.float64),
            "peer_mean": b.mean(dtype=np.float64),
            "std": a.std(dtype=np.float64),
            "peer_std": b.std(dtype=np.float64),
            "distance": ks_2samp(a, b).statistic,
        }
        rows.append({name: round(float(value), _DIGITS) for name, value in figures.items()})
    return rows


def main() -> None:
    """Compare every case of the peers whose draws are given."""
    known = [(name, case) for cases in PEERS.values() for name, case in cases.items()]
    limit = float(kstwo.isf(0.001 / (len(known) * len(LEVELS)), DEVICES // 2))
    store: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {"peers": {}}
    store |= {"devices": DEVICES, "limit": round(limit, _DIGITS)}
    for path in sys.argv[1:]:
        with np.load(path) as drawn:
            peer = str(drawn["peer"])
            store["peers"][peer.split(maxsplit=1)[0]] = {
                "version": peer,
                "cases": {
                    name: {"differs": case.differs, "rows": compare(case, stream, drawn[name])}
                    for stream, (name, case) in enumerate(known)
                    if name in drawn
                },
            }
    STORE.write_text(json.dumps(store, indent=1) + "\n")


if __name__ == "__main__":
    main()
