"""``calibrate``: a digital correction for one chip, fitted on what that chip makes of calibration inputs."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cnpass import data as datasets
from cnpass.compensation.batch_norm import recalibrate
from cnpass.compensation.closed_form import MAX_FEATURES, Fit, fit
from cnpass.compensation.kinds import Kind
from cnpass.compensation.overhead import overhead
from cnpass.compensation.site import find_sites
from cnpass.data import Split, data_files
from cnpass.document import Document, as_document
from cnpass.errors import DataError, ModelError
from cnpass.evaluation import MonteCarlo
from cnpass.evaluation.chosen import analog_attributes, chosen_device, refuse_only_chip
from cnpass.files import write_text
from cnpass.mapping import plan
from cnpass.optimization.setting import (
    check_outputs,
    lost,
    output_path,
    record_path,
    unmapped,
)
from cnpass.passes.fold_batch_norm import FoldBatchNorm
from cnpass.passes.map_crossbar import MapCrossbar
from cnpass.placement.sharing import widest
from cnpass.progress import Progress
from cnpass.recipe import CalibrateRecipe
from cnpass.records import CalibrateRecord, Corrected, Overhead, SplitSizes, retention
from cnpass.runtime.ops import META_CHIP_INPUT, META_ONLY_CHIP

_KINDS: dict[str, Kind] = {"affine": "affine", "low-rank": "linear"}
_BATCH_NORM = "batch-norm"


def calibrate(
    model: str | Path | onnx.ModelProto | Document,
    data: str | Path | None = None,
    *,
    recipe: CalibrateRecipe | None = None,
    output: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> CalibrateRecord:
    """Fit a digital correction for one chip, and write that chip's model.

    Behind every analog node, and before a compensation that it has already, comes a linear correction fitted
    by least squares of what the ideal chip gives on what this one does; or BatchNormalization, which then is
    not folded, gets statistics for the chip. Where weights are made for a mean factor of the device, the
    ideal chip is one that has it. Nothing is trained and labels are not looked at. What does not
    help on validation samples is left out.

    Args:
        model: A model mapped to analog chips, such as ``optimize`` writes; any other is mapped.
        data: As for ``cnpass.optimize``.
        recipe: All options; default: every default.
        output: The file to write; default: ``{stem}.chip{N}.onnx`` beside the model. Its default chip is this
            one. The record goes beside it as JSON.
        force: Whether existing files may be replaced.
        progress: Told what happens; default: silence.
        options: Single options of ``CalibrateRecipe``, which win over the recipe: ``chip=7``.

    Returns:
        The record; with the same seed the same, but for ``seconds``.

    Raises:
        UsageError: An option or the output cannot be used.
        ModelError: The model is invalid, has nothing to put on a crossbar, or nothing that can be corrected.
        DataError: The data do not fit, or there are none to measure with.
    """
    given = {} if recipe is None else recipe.model_dump(exclude_unset=True)
    chosen = CalibrateRecipe.build(None, given | options | ({} if data is None else {"data": str(data)}))
    source = as_document(model)
    target = output_path(source, output, f"chip{chosen.chip}")
    check_outputs(target, force=force, sources=source.sources)
    return _Calibration(source, chosen, progress or Progress()).record(target, force=force)


class _Calibration:
    def __init__(self, source: Document, recipe: CalibrateRecipe, progress: Progress) -> None:
        self.started = time.perf_counter()
        self.source, self.recipe, self.progress = source, recipe, progress
        refuse_only_chip(source)
        self.device = chosen_device(source, recipe.device, recipe.sigma, recipe.param)
        own = analog_attributes(source) or {}
        self.seed = int(own.get("seed", 0)) if recipe.seed is None else recipe.seed
        self.document = unmapped(source)
        plan(self.document).check()
        if recipe.correction != _BATCH_NORM:
            FoldBatchNorm()(self.document)
        self.dataset = datasets.prepare(self.document.proto, self.document.path, recipe)
        self.document.samples = self.dataset.shapes
        self.notes = list(self.dataset.notes)
        for note in self.notes:
            (progress.warn if self.dataset.random else progress.note)(note)
        for text in (*lost(source), *recipe.idle()):
            progress.warn(text)
            self.notes.append(text)
        self.sources = [*source.sources, *data_files(self.dataset.name)]
        for name, split in (("training", self.dataset.train), ("validation", self.dataset.val)):
            if not len(split):
                raise DataError(f"{self.dataset.name}: has no {name} samples, on which a chip is measured")

    def record(self, output: Path, *, force: bool) -> CalibrateRecord:
        """Fit, decide, write, and say what it brought."""
        recipe, dataset = self.recipe, self.dataset
        check_outputs(output, force=force, sources=self.sources)
        fitted = self._fit()
        kept = self._figure(dataset.val, fitted.document) > self._figure(dataset.val, self.document)
        best = fitted.document if kept else self.document
        with self._chips(dataset.test) as test:
            before, after = (self._on_chip(test, document) for document in (self.document, best))
            written = self._write(best, output, force=force)
            clean, found, had = test.clean, overhead(best), overhead(self.document)
            record = CalibrateRecord(
                input=str(self.source.path or ""),
                output=str(output),
                metric=test.metric,
                n=SplitSizes(train=len(dataset.train), val=len(dataset.val), test=len(dataset.test)),
                device=self.device.name,
                params=self.device.attributes(),
                chip=recipe.chip,
                clean=clean,
                before=before,
                after=after,
                retention=retention(before, after, clean, test.metric),
                kept=kept,
                overhead=found,
                added=Overhead(
                    params=found.params - had.params,
                    macs=None if found.macs is None or had.macs is None else found.macs - had.macs,
                ),
                nodes=[
                    Corrected(
                        node=node.node,
                        rank=node.width if node.kind == "linear" else 0,
                        error_before=node.before,
                        error_after=node.after,
                    )
                    for node in fitted.nodes
                ],
                recipe=json.loads(recipe.model_dump_json(by_alias=True)),
                hashes={
                    "model": self.source.sha256,
                    "data": dataset.sha256,
                    **written,
                },
                seeds={"chips": self.seed},
                notes=list(dict.fromkeys([*self.notes, *test.notes])),
                seconds=round(time.perf_counter() - self.started, 3),
            )
        write_text(record_path(output), record.to_json() + "\n")
        return record

    def _fit(self) -> Fit:
        """Correct as many nodes, and as wide, as the limit allows."""
        if self.recipe.correction == _BATCH_NORM:
            return self._normalise()
        kind, document = _KINDS[self.recipe.correction], self.document
        sites, reasons = find_sites(document, plan(document), behind=True)
        nodes = [name for name, site in sites.items() if site.inputs + site.outputs <= MAX_FEATURES]
        if not nodes:
            why = next(iter(reasons.values()), "there is none")
            raise ModelError(f"no analog node of the model can be corrected: {why}")
        choices = widest(document, nodes, kind, limit=self.recipe.max_overhead, seed=self.seed)
        if not choices:
            other = "" if kind == "affine" else ", or try --correction affine"
            raise ModelError(
                f"no correction fits within --max-overhead {self.recipe.max_overhead:g}; allow more{other}"
            )
        chip = self.recipe.chip
        return fit(
            document,
            choices,
            self.dataset.train,
            self.device,
            seed=self.seed,
            chips=range(chip, chip + 1),
            samples=self.recipe.samples,
            behind=True,
            progress=self.progress,
        )

    def _normalise(self) -> Fit:
        recipe = self.recipe
        fitted = recalibrate(
            self.document,
            self.dataset.train,
            self.device,
            seed=self.seed,
            chip=recipe.chip,
            samples=recipe.samples,
            progress=self.progress,
        )
        if not fitted.nodes:
            raise ModelError(
                "the model has no BatchNormalization with statistics of its own; where it is folded into "
                "weights, --correction affine does what it would do"
            )
        return fitted

    def _figure(self, split: Split, document: Document) -> float:
        with self._chips(split) as chips:
            return self._on_chip(chips, document)

    def _chips(self, split: Split) -> MonteCarlo:
        folder = Path(tempfile.mkdtemp(prefix="cnpass-"))  # MonteCarlo removes it
        return MonteCarlo(self.document, split, workers=1, folder=folder, progress=self.progress)

    def _on_chip(self, chips: MonteCarlo, document: Document) -> float:
        target = chips.prepare(document, self.device, self.seed)
        (value,) = chips.values(target, [self.recipe.chip])
        return value

    def _write(self, document: Document, output: Path, *, force: bool) -> dict[str, str]:
        """Write a document for the chip; return the hashes of what was written."""
        mapped = document.copy()
        MapCrossbar(device=self.device, seed=self.seed)(mapped)
        selector = mapped.tensors()[mapped.metadata[META_CHIP_INPUT]]
        if hasattr(selector, "values"):  # an overridable initializer, else an input that callers must give
            selector.values = np.array(self.recipe.chip, np.int64)
        mapped.metadata[META_ONLY_CHIP] = str(self.recipe.chip)
        hashes: dict[str, str] = {}
        mapped.save(output, force=force, announce=hashes.update)
        return hashes
