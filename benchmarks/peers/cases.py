"""What is compared: each a device model of ours, with the parameters that make it the peer's."""

from __future__ import annotations

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Weights, in fractions of the full scale."""

DEVICES = 200_000
"""Pairs of devices per case and level."""

DAY = 86_400.0

# Name: device model of ours and its parameters; the peer's class and its arguments; time of inference in
# seconds, None for programming alone. aihwkit's pairs have g_min = 0: ours an on/off ratio of a million.
AIHWKIT = {
    "pcm, programming": (
        ("pcm", {"on_off": 1e6, "drift_scale": 0.0, "read_scale": 0.0}),
        ("PCMLikeNoiseModel", {"g_max": 25.0}),
        None,
    ),
    "pcm, drift of a day": (
        ("pcm", {"on_off": 1e6, "read_scale": 0.0, "t": DAY}),
        ("PCMLikeNoiseModel", {"g_max": 25.0, "read_noise_scale": 0.0}),
        DAY,
    ),
    "pcm, drift and 1/f noise of a day": (
        ("pcm", {"on_off": 1e6, "t": DAY}),
        ("PCMLikeNoiseModel", {"g_max": 25.0}),
        DAY,
    ),
    "reram:wan-1s": (("reram:wan-1s", {"on_off": 1e6}), ("ReRamWan2022NoiseModel", {"g_max": 40.0}), 1.0),
    "reram:wan-1d": (("reram:wan-1d", {"on_off": 1e6}), ("ReRamWan2022NoiseModel", {"g_max": 40.0}), DAY),
    "reram:wan-2d": (("reram:wan-2d", {"on_off": 1e6}), ("ReRamWan2022NoiseModel", {"g_max": 40.0}), 2 * DAY),
    "reram:wan-1s at 25 uS": (
        ("reram:wan-1s", {"on_off": 1e6, "g_max": 25.0}),
        ("ReRamWan2022NoiseModel", {"g_max": 25.0}),
        1.0,
    ),
}
