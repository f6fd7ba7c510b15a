"""From files, folders, functions or nothing at all to the arrays that a model takes.

``prepare(proto, path, recipe)`` does it all. Arrays are called ``x_train``, ``y_train``, ``x_val``,
``y_val``, ``x_test``, ``y_test``, or only ``x``, ``y``; a model of several inputs takes ``x_test.<input>``.
Labels ``y`` are optional. Preprocessing is ``(x * scale - mean) / std``, computed in float64 and rounded once
to the type of the model's input.
"""

from cnpass.data.dataset import Dataset, Split
from cnpass.data.fitting import fit
from cnpass.data.inputs import InputSpec, class_count, data_inputs, input_specs
from cnpass.data.prepare import prepare
from cnpass.data.sources import RawData, data_files, load_data

__all__ = [
    "Dataset",
    "InputSpec",
    "RawData",
    "Split",
    "class_count",
    "data_files",
    "data_inputs",
    "fit",
    "input_specs",
    "load_data",
    "prepare",
]
