"""``cnpass inspect``: what of a model is analog, why, and what hardware that takes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cnpass.cli.console import Console, Format, hundredths, percent
from cnpass.cli.verbs import ForceOption, ModelArgument
from cnpass.files import check_output, write_text
from cnpass.recipe import InspectRecipe
from cnpass.records import InspectRecord


def run(
    model: ModelArgument,
    *,
    console: Console,
    recipe: InspectRecipe,
    split: Annotated[
        Path | None,
        typer.Option("--split", help="also write the analog/digital split as JSON", show_default=False),
    ] = None,
    force: ForceOption = False,
) -> None:
    """List the nodes that would run on crossbars, those that stay digital, and why."""
    from cnpass.document import Document
    from cnpass.inspection import inspect

    if split is not None:
        sources = Document.load(model).sources
        hint = "--force overwrites it, --split names another file"
        check_output(split, force=force, sources=sources, hint=hint)
    record = inspect(model, tile_rows=recipe.tile_rows, tile_cols=recipe.tile_cols)
    if split is not None:
        write_text(split, split_text(record), force=force)
        console.note(f"wrote {split}")
    if console.form is Format.JSON:
        console.json(record.to_json())
        return
    console.table(
        (
            "node",
            "op",
            "domain",
            ">rows",
            ">cols",
            ">groups",
            ">copies",
            ">tiles",
            ">params",
            ">MACs",
            "reason",
        ),
        _rows(record),
    )
    total = record.totals
    console.line()
    console.table(
        ("total", ">"),
        (
            ("analog nodes", total.analog),
            ("digital nodes", total.digital),
            ("parameters", total.params),
            ("parameters on crossbars", total.analog_params),
            ("MACs per inference", total.macs),
            ("MACs on crossbars", total.analog_macs),
            (f"tiles of {total.tile_rows or '?'} x {total.tile_cols or '?'}", total.tiles),
            ("cells used", f"{total.cells_used} of {total.cells}"),
            ("cells free", total.cells_free),
            ("utilisation", percent(total.utilisation)),
            ("ADC conversions per inference", total.adc_conversions),
        ),
    )


def _rows(record: InspectRecord) -> Iterator[tuple[object, ...]]:
    """One row per node, but a single one for all compensation of a node."""
    compensation = defaultdict(list)
    for node in record.nodes:
        compensation[node.compensates].append(node)
    for n in record.nodes:
        if n.compensates is None:
            hardware = (n.rows, n.cols, n.groups, hundredths(n.copies), n.tiles)
            yield (n.name, n.op_type, n.domain, *hardware, n.params, n.macs, n.reason)
        elif n is compensation[n.compensates][0]:
            nodes = compensation[n.compensates]
            macs = [node.macs for node in nodes]
            yield (
                *(n.name, "compensation", n.domain, *[None] * 5, sum(node.params for node in nodes)),
                None if None in macs else sum(filter(None, macs)),
                f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}; --format json lists them",
            )


def split_text(record: InspectRecord) -> str:
    """The analog/digital split: per node its domain and the reason, without hardware figures."""
    nodes = [
        {"name": node.name, "op_type": node.op_type, "domain": node.domain, "reason": node.reason}
        for node in record.nodes
    ]
    document = {"schema": 1, "model": record.model.model_dump(), "nodes": nodes}
    return json.dumps(document, indent=2) + "\n"
