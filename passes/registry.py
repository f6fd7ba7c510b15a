"""All passes by name; a pass is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from cnpass.errors import UsageError
from cnpass.passes.base import Pass

_PASSES = {
    "fold-batch-norm": ("fold_batch_norm", "FoldBatchNorm"),
    "correct-mean-gain": ("correct_mean_gain", "CorrectMeanGain"),
    "centre-inputs": ("centre_inputs", "CentreInputs"),
    "insert-compensation": ("insert_compensation", "InsertCompensation"),
    "map-crossbar": ("map_crossbar", "MapCrossbar"),
    "replicate-weights": ("replicate_weights", "ReplicateWeights"),
    "calibrate-ranges": ("calibrate_ranges", "CalibrateRanges"),
    "lower-analog": ("lower_analog", "LowerAnalog"),
    "strip-portable": ("strip_portable", "StripPortable"),
}


def pass_names() -> list[str]:
    """Names of all passes."""
    return list(_PASSES)


def get_pass(name: str) -> type[Pass]:
    """The pass of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in _PASSES:
        raise UsageError(f"pass {name!r} is unknown; known are {', '.join(_PASSES)}")
    module, kind = _PASSES[name]
    found: type[Pass] = getattr(import_module(f"cnpass.passes.{module}"), kind)
    return found
