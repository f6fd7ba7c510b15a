"""``retrain``: train all weights of a model under variation, and write it as plain ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from cnpass.document import Document, as_document
from cnpass.optimization import stages
from cnpass.optimization.setting import Call, Setting, build, carry_out
from cnpass.optimization.tuning import tune
from cnpass.progress import Progress
from cnpass.recipe import RetrainRecipe
from cnpass.records import Check, RetrainRecord


def retrain(
    model: str | Path | onnx.ModelProto | Document,
    data: str | Path | None = None,
    *,
    recipe: RetrainRecipe | None = None,
    output: str | Path | None = None,
    force: bool = False,
    run: str | Path | None = None,
    restart: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> RetrainRecord:
    """Train all weights of a model under variation.

    The graph stays as it is, but for BatchNormalization, which is folded into the weights before it where
    that is possible: the chip holds the folded ones. Figures are of validation samples and chips; what was
    trained is written only if it is better than what came in, else that.

    Args:
        model: Any ONNX model.
        data: As for ``cnpass.optimize``.
        recipe: All options; default: every default.
        output: The file to write; default: ``{stem}.retrained.onnx`` beside the model. The record goes beside
            it as JSON.
        force: Whether existing files may be replaced.
        run: Folder that keeps the state of a long run; default: none is kept.
        restart: Drop what that folder holds.
        progress: Told what happens; default: silence.
        options: Single options of ``RetrainRecipe``, which win over the recipe.

    Returns:
        The record.

    Raises:
        UsageError: An option, the output, or the run folder belongs to other inputs.
        ModelError: The model is invalid, has nothing for a crossbar, or operators that cannot be trained.
        DataError: The data do not fit, or there are none to train on.
    """
    call = Call(as_document(model), data, output, force, run, restart, progress, options)
    return carry_out(call, build(RetrainRecipe, recipe, call), RetrainRecord, "retrained", _result)


def _result(setting: Setting[RetrainRecipe]) -> tuple[Document, RetrainRecord]:
    with setting.chips(setting.dataset.val, "val") as val:
        job, effort, ladder = setting.begin(val)
        recipe, tuned = setting.recipe, None
        if recipe.tune:
            tuned = tune(job, recipe, effort.tuning, setting.folder.journal("tuning"))
            setting.epochs += tuned.epochs
            job, recipe = tuned.job, tuned.recipe
        # Nothing follows here, so this training is as long as the last one of an optimisation.
        document, result = stages.retrain(job, effort.last(ladder.missing), recipe.beta)
        setting.heed(result)
        ladder.climb("retraining", document)
        return ladder.document, RetrainRecord(
            **setting.on_validation(val, ladder),
            history=[Check.model_validate(check) for check in result.history],
            tuned=None if tuned is None else tuned.record,
        )
