"""``cnpass rewrite`` and ``cnpass lower``: run passes and write the model."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnpass.cli.console import Console, Format
from cnpass.cli.verbs import DryRunOption, ForceOption, ModelArgument, OutputOption
from cnpass.files import check_output, sha256, sibling
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
        check_output(output, force=force, sources=_sources(document, pipeline))
        pipeline.run(document.copy())
        return
    _write(document, pipeline, output, console, force=force)


def run_lower(
    model: ModelArgument, *, console: Console, output: OutputOption = None, force: ForceOption = False
) -> None:
    """Turn analog nodes back into plain ONNX; compensation stays."""
    from cnpass.document import Document
    from cnpass.passes.pipeline import Pipeline

    output = output or sibling(model, f"{model.stem.removesuffix('.cnpass')}.lowered.onnx")
    _write(Document.load(model), Pipeline.parse("lower-analog"), output, console, force=force)


def default_output(model: Path) -> Path:
    """Where a rewritten model goes unless said otherwise: ``{stem}.cnpass.onnx`` beside it."""
    return sibling(model, f"{model.stem.removesuffix('.cnpass')}.cnpass.onnx")


def _seeded(step: Pass, seed: int | None) -> Pass:
    takes = any(option.name == "seed" for option in fields(step))  # type: ignore[arg-type] # passes are dataclasses
    if seed is None or not takes or "seed" in step.options():
        return step
    changed: Pass = replace(step, seed=seed)  # type: ignore[type-var] # passes are dataclasses
    return changed


def _write(document: Document, pipeline: Pipeline, output: Path, console: Console, *, force: bool) -> None:
    check_output(output, force=force, sources=_sources(document, pipeline))
    result = pipeline.run(document)
    stale = _record_of(output)
    document.save(output, force=force)
    if stale is not None:
        stale.unlink()
        console.note(f"removed {stale}, the record of the model that was there")
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


def _sources(document: Document, pipeline: Pipeline) -> list[Path]:
    """The files that a pipeline reads: the model's, and the data of its passes."""
    from cnpass.data import data_files
    from cnpass.passes.samples import SamplesPass

    steps = [step for step in pipeline.passes if isinstance(step, SamplesPass)]
    data = [file for step in steps for file in data_files(step.data or None, document.path)]
    return [*document.sources, *data]


def _record_of(output: Path) -> Path | None:
    """The record that lies beside a model and is of that model, bit for bit; None if there is none."""
    path = output.with_suffix(".json")
    if path == output or not (output.is_file() and path.is_file()):
        return None
    try:
        digest = json.loads(path.read_text(encoding="utf-8"))["hashes"]["output"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is somebody else's
    return path if digest == sha256(output) else None


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
        options = value.items() if isinstance(value, dict) else ()
        console.line(f"{name}: {', '.join(f'{option} {given}' for option, given in options) or value}")
    console.line()
    console.table(
        ("node", "op", "domain", "reason"), ((n.label, n.op_type, n.domain, n.reason) for n in nodes)
    )
