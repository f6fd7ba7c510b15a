"""``cnpass rewrite`` and ``cnpass lower``: run passes and write the model."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnpass.cli.console import Console, Format
from cnpass.cli.verbs import DryRunOption, ForceOption, ModelArgument, OutputOption
from cnpass.files import check_output
from cnpass.recipe import RewriteRecipe

if TYPE_CHECKING:
    from cnpass.document import Document
    from cnpass.passes.base import Pass
    from cnpass.passes.pipeline import Pipeline


def run(
    model: ModelArgument,
    *,
    console: Console,
    recipe: RewriteRecipe,
    output: OutputOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Run a pipeline of passes over a model and write the result."""
    from cnpass.document import Document
    from cnpass.passes.pipeline import Pipeline

    pipeline = Pipeline.parse(recipe.pipeline)
    pipeline = Pipeline(tuple(_seeded(step, recipe.seed) for step in pipeline.passes))
    output = output or default_output(model)
    document = Document.load(model)
    if dry_run:
        print_plan(document, console, {"pipeline": str(pipeline), "output": str(output)})
        return
    _write(document, pipeline, output, console, force=force)


def run_lower(
    model: ModelArgument, *, console: Console, output: OutputOption = None, force: ForceOption = False
) -> None:
    """Turn analog nodes back into plain ONNX; compensation stays."""
    from cnpass.document import Document
    from cnpass.passes.pipeline import Pipeline

    output = output or model.with_name(f"{model.stem.removesuffix('.cnpass')}.lowered.onnx")
    _write(Document.load(model), Pipeline.parse("lower-analog"), output, console, force=force)


def default_output(model: Path) -> Path:
    """Where a rewritten model goes unless said otherwise: ``{stem}.cnpass.onnx`` beside it."""
    return model.with_name(f"{model.stem.removesuffix('.cnpass')}.cnpass.onnx")


def _seeded(step: Pass, seed: int | None) -> Pass:
    takes = any(option.name == "seed" for option in fields(step))  # type: ignore[arg-type] # passes are dataclasses
    if seed is None or not takes or "seed" in step.options():
        return step
    changed: Pass = replace(step, seed=seed)  # type: ignore[type-var] # passes are dataclasses
    return changed


def _write(document: Document, pipeline: Pipeline, output: Path, console: Console, *, force: bool) -> None:
    check_output(output, force=force, sources=document.sources)
    result = pipeline.run(document)
    document.save(output, force=force)
    for note in result.notes:
        console.detail(note)
    if console.form is Format.JSON:
        console.json(
            json.dumps(
                {
                    "schema": 1,
                    "input": str(document.path),
                    "output": str(output),
                    "pipeline": str(pipeline),
                    "modified": result.modified,
                    "notes": list(result.notes),
                },
                indent=2,
            )
        )
    else:
        console.line(f"wrote {output}" + ("" if result.modified else " (nothing to change)"))


def print_plan(document: Document, console: Console, about: dict[str, Any]) -> None:
    """What would be done: where every node would run, and why."""
    from cnpass.mapping import plan

    nodes = plan(document).nodes
    if console.form is Format.JSON:
        listed = [
            {"name": n.label, "op_type": n.op_type, "domain": n.domain, "reason": n.reason} for n in nodes
        ]
        console.json(json.dumps({"schema": 1, **about, "nodes": listed}, indent=2))
        return
    for name, value in about.items():
        console.line(f"{name}: {value}")
    console.line()
    console.table(
        ("node", "op", "domain", "reason"), ((n.label, n.op_type, n.domain, n.reason) for n in nodes)
    )
