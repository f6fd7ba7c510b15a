"""``evaluate``: figures of a model over chips, as a record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cnpass import data as datasets
from cnpass.data import Dataset
from cnpass.document import Document, as_document
from cnpass.evaluation.chosen import analog_attributes, check_sigma, chosen_parameters, own_device
from cnpass.evaluation.montecarlo import MonteCarlo
from cnpass.functions import check_analog
from cnpass.passes.mean_gain import mean_factor, mean_gains
from cnpass.progress import Progress
from cnpass.recipe import EvaluateRecipe
from cnpass.records import DataInfo, EvaluateRecord, ModelInfo
from cnpass.runfolder import RunFolder
from cnpass.runtime.devices import DeviceModel, get_device, make_device
from cnpass.runtime.ops import only_chip

DEFAULT_SIGMAS = (0.1, 0.3, 0.5)


def evaluate(
    model: str | Path | onnx.ModelProto | Document,
    data: str | Path | None = None,
    *,
    recipe: EvaluateRecipe | None = None,
    run: str | Path | None = None,
    restart: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> EvaluateRecord:
    """Measure a model on simulated analog chips.

    Args:
        model: any ONNX model; one that is not mapped to analog chips yet is mapped in memory.
        data: NPZ file, folder, or ``package.module:function``; default: the NPZ of the model's name beside
            it, else random inputs.
        recipe: all options; default: every default.
        run: folder that keeps finished chips, so that a killed run goes on; default: none is kept.
        restart: drop what that folder holds.
        progress: told what happens; default: silence.
        options: single options of ``EvaluateRecipe``, which win over the recipe: ``sigma=(0.3, 0.5)``.

    Returns:
        The record; with the same seed the same, but for ``seconds``.

    Raises:
        UsageError: an option, or the run folder belongs to other inputs.
        ModelError: the model is invalid, or no node of it can run on a crossbar.
        DataError: the data do not fit.
    """
    start = time.perf_counter()
    given = {} if recipe is None else recipe.model_dump(exclude_unset=True)
    chosen = EvaluateRecipe.build(None, given | options | ({} if data is None else {"data": str(data)}))
    progress = progress or Progress()
    document = as_document(model)
    devices = chosen_devices(chosen, document)
    check_analog(document)
    notes = []
    if (chip := only_chip(document.metadata)) is not None:
        notes.append(
            f"the model was made for chip {chip} alone, and is measured on others here; the record of cnpass "
            "calibrate has its own figure"
        )
        progress.warn(notes[0])
    if (gain := _other_gain(document, devices)) is not None:
        notes.append(gain)
        progress.note(gain)
    identity = {"model": document.sha256}
    dataset = datasets.prepare(document.proto, document.path, chosen, parts=("test",))
    _tell(dataset, progress)
    split = dataset.test if chosen.limit is None else dataset.test.take(slice(chosen.limit))
    identity |= {"data": split.sha256}
    with (
        RunFolder(Path(run), "evaluate", identity, restart=restart) if run else nullcontext() as folder,
        MonteCarlo(
            document,
            split,
            workers=chosen.workers,
            folder=folder.path / "scratch" if folder else None,
            progress=progress,
        ) as chips,
    ):
        store = folder.journal("chips") if folder else None
        targets = [chips.prepare(document, device, chosen.seed) for device in devices]
        numbers = range(chosen.chips)
        with progress.task("chips", len(numbers) * len(targets)) as task:
            points = [
                chips.point(target, numbers, store=store, until_ci=chosen.until_ci, task=task)
                for target in targets
            ]
        return EvaluateRecord(
            model=ModelInfo(
                path=None if document.path is None else str(document.path),
                sha256=document.sha256,
                opset=document.opset,
            ),
            data=DataInfo(name=dataset.name, sha256=split.sha256, notes=list(dataset.notes)),
            metric=chips.metric,
            n=len(split),
            clean=chips.clean,
            points=points,
            notes=[*notes, *chips.notes],
            seconds=round(time.perf_counter() - start, 3),
        )


def _other_gain(document: Document, devices: Sequence[DeviceModel | None]) -> str | None:
    """Say what mean factor weights are made for, where a device has another one; None where none has."""
    gains = sorted(set(mean_gains(document).values()))
    own = own_device(analog_attributes(document) or {}) if None in devices and gains else None
    factors = [mean_factor(device) for device in (device or own for device in devices) if device]
    others = [factor for factor in factors if factor and not np.allclose(gains, factor, rtol=1e-6, atol=0)]
    if not others:
        return None
    made, found = (", ".join(f"{factor:.4g}" for factor in listed) for listed in (gains, others))
    return (
        f"weights are made for a device that multiplies them by {made} on average, here it is {found}; "
        "the pass correct-mean-gain makes them right for another device"
    )


def _tell(dataset: Dataset, progress: Progress) -> None:
    for note in dataset.notes:
        (progress.warn if dataset.random else progress.note)(note)


def chosen_devices(recipe: EvaluateRecipe, document: Document) -> list[DeviceModel | None]:
    """The device models that a recipe asks for, one per point; None for the one that a mapped model has.

    Raises:
        UsageError: the device model is unknown, or has no such parameter.
    """
    asked = recipe.device is not None or recipe.sigma is not None or bool(recipe.param)
    if not asked and analog_attributes(document) is not None:
        return [None]
    check_sigma(recipe.sigma, recipe.param)
    name, parameters = chosen_parameters(document, recipe.device, recipe.param)
    sigmas = recipe.sigma
    if sigmas is None and "sigma" in _parameters(name) and "sigma" not in parameters:
        sigmas = DEFAULT_SIGMAS
    if sigmas is None:
        return [make_device(name, **parameters)]
    return [make_device(name, **parameters | {"sigma": sigma}) for sigma in sigmas]


def _parameters(name: str) -> set[str]:
    return {parameter.name for parameter in get_device(name).describe().fields}
