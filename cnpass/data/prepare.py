"""One call from a recipe to data that fit the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from cnpass.data.dataset import Dataset
from cnpass.data.fitting import PARTS, fit
from cnpass.data.inputs import class_count, input_specs, random_dataset
from cnpass.data.sources import load_data
from cnpass.recipe import DataRecipe


def prepare(
    proto: onnx.ModelProto, model: Path | None, recipe: DataRecipe, parts: Sequence[str] = PARTS
) -> Dataset:
    """Load the recipe's data, or those beside the model, or make random inputs, and fit them to the model.

    Args:
        proto: the model; its external data are not needed.
        model: its path, for the NPZ of its name that may lie beside it.
        recipe: where the data are and how they are preprocessed.
        parts: of train, val and test those that are wanted.

    Raises:
        DataError: the data cannot be read or do not fit.
        ModelError: the model has no inputs that data could feed.
    """
    specs = input_specs(proto)
    raw = load_data(recipe.data, model)
    if raw is None:
        return random_dataset(specs)
    return fit(raw, specs, recipe, classes=class_count(proto), parts=parts)
