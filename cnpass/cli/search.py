"""``cnpass search``: a place for compensation."""

from __future__ import annotations

from cnpass.cli.console import Console, Format, percent
from cnpass.cli.evaluate import UNITS, shown
from cnpass.cli.optimize import print_placement, print_points
from cnpass.cli.verbs import ForceOption, ModelArgument, OutputOption, RestartOption, RunOption
from cnpass.recipe import SearchRecipe
from cnpass.records import Placement
from cnpass.runfolder import default_run

SHOWN = 10
"""Trials in the table; the record has all."""


def run(
    model: ModelArgument,
    *,
    console: Console,
    recipe: SearchRecipe,
    output: OutputOption = None,
    force: ForceOption = False,
    run: RunOption = None,
    restart: RestartOption = False,
) -> None:
    """Search where digital compensation helps most, and write the model with it as plain ONNX."""
    from cnpass.optimization import search

    record = search(
        model,
        recipe=recipe,
        output=output,
        force=force,
        run=run or default_run(model),
        restart=restart,
        progress=console,
    )
    if console.form is Format.JSON:
        console.json(record.to_json())
        return
    print_points(record, record.n.val, "validation", console)
    console.line()
    best = sorted(record.trials, key=lambda trial: -trial.value)[:SHOWN]
    console.table(
        (f">shared weights, {UNITS[record.metric]}", ">parameters", ">MACs", "placement"),
        (
            (
                shown(trial.value, record.metric),
                percent(trial.overhead.params),
                percent(trial.overhead.macs),
                ", ".join(map(_short, trial.placement)) or "none",
            )
            for trial in best
        ),
    )
    console.line()
    print_placement(record.placement, record.overhead, console)
    console.line(f"wrote {record.output}")


def _short(place: Placement) -> str:
    return f"{place.node} {place.kind} {place.ratio:g}"
