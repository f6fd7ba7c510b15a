"""``cnpass search``: a place for compensation."""

from __future__ import annotations

from collections.abc import Sequence

from cnpass.cli.console import Console, Format, percent
from cnpass.cli.evaluate import UNITS, shown
from cnpass.cli.optimize import print_placement, print_points
from cnpass.cli.verbs import ForceOption, ModelArgument, OutputOption, RestartOption, RunOption
from cnpass.recipe import SearchRecipe
from cnpass.records import Placement, SearchRecord, Trial
from cnpass.runfolder import default_run

SHOWN = 10
"""Trials in the first table; the record has all."""


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
    whole = max(trial.chips for trial in record.trials) if record.trials else 0
    measured = [trial for trial in record.trials if trial.chips == whole]
    _print(sorted(measured, key=lambda trial: -trial.value)[:SHOWN], record, "best placements", console)
    given_up = len(record.trials) - len(measured)
    if given_up:
        console.line(f"{given_up} more of {len(record.trials)} were given up as surely worse")
    console.line()
    _print(record.front, record, "what each overhead buys", console)
    console.line()
    if not record.kept:
        console.line("no compensation helps on validation samples, so there is none")
    print_placement(record.placement, record.overhead, console)
    console.line(f"wrote {record.output}")


def _print(trials: Sequence[Trial], record: SearchRecord, title: str, console: Console) -> None:
    console.table(
        (f">shared weights, {UNITS[record.metric]}", ">parameters", ">MACs", title),
        (
            (
                shown(trial.value, record.metric),
                percent(trial.overhead.params),
                percent(trial.overhead.macs),
                ", ".join(map(_short, trial.placement)) or "none",
            )
            for trial in trials
        ),
    )


def _short(place: Placement) -> str:
    return f"{place.node} {place.kind} {place.ratio:g}"
