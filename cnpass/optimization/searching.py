"""``search``: where compensation goes, of which kind and how wide; written as plain ONNX with it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from cnpass.compensation.overhead import overhead
from cnpass.document import Document, as_document
from cnpass.optimization import stages
from cnpass.optimization.setting import Call, Setting, build, carry_out
from cnpass.placement import space
from cnpass.progress import Progress
from cnpass.recipe import SearchRecipe
from cnpass.records import Placement, SearchRecord, Trial


def search(
    model: str | Path | onnx.ModelProto | Document,
    data: str | Path | None = None,
    *,
    recipe: SearchRecipe | None = None,
    output: str | Path | None = None,
    force: bool = False,
    run: str | Path | None = None,
    restart: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> SearchRecord:
    """Search for a placement of compensation, and train what was found, the analog weights as they are.

    Args:
        model: Any ONNX model; one that was retrained, as a rule.
        data: As for ``cnpass.optimize``.
        recipe: All options; default: every default.
        output: The file to write; default: ``{stem}.compensated.onnx`` beside the model. The record goes
            beside it as JSON.
        force: Whether existing files may be replaced.
        run: Folder that keeps the state of a long run; default: none is kept.
        restart: Drop what that folder holds.
        progress: Told what happens; default: silence.
        options: Single options of ``SearchRecipe``, which win over the recipe.

    Returns:
        The record: candidates, every placement that was measured, and the figures on validation chips.

    Raises:
        UsageError: An option, the output, or the run folder belongs to other inputs.
        ModelError: The model is invalid, has nothing for a crossbar, or operators that cannot be trained.
        DataError: The data do not fit, or there are none to train on.
    """
    call = Call(as_document(model), data, output, force, run, restart, progress, options)
    return carry_out(call, build(SearchRecipe, recipe, call), SearchRecord, "compensated", _result)


def _result(setting: Setting[SearchRecipe]) -> tuple[Document, SearchRecord]:
    with setting.chips(setting.dataset.val, "val") as val:
        job, effort, ladder = setting.begin(val)
        searched = stages.place(job, job.base, effort)
        placed = searched.placed
        setting.heed(placed)
        if placed.placement:
            document, result = stages.compensate(job, placed.document, effort)
            setting.heed(result)
            ladder.climb("compensation", document, placed.placement)
        return ladder.document, SearchRecord(
            **setting.on_validation(val, ladder),
            candidates=list(searched.candidates.nodes),
            excluded=searched.candidates.excluded,
            suffix=searched.candidates.suffix,
            trials=[_trial(searched, placement) for placement in searched.figures],
            front=[_trial(searched, placement) for placement in searched.front],
            placement=_listed(ladder.placement),
            overhead=overhead(ladder.document),
        )


def _trial(searched: stages.Searched, placement: space.Placement) -> Trial:
    figures = searched.figures[placement]
    return Trial(
        placement=_listed(placement),
        value=sum(figures) / len(figures),
        chips=len(figures),
        overhead=searched.overhead(placement),
    )


def _listed(placement: space.Placement) -> list[Placement]:
    return [Placement(**asdict(choice)) for choice in placement]
