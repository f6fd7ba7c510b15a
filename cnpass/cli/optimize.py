"""``cnpass optimize``: the main job."""

from __future__ import annotations

from collections.abc import Sequence

from cnpass.cli.console import Console, Format, hundredths, percent
from cnpass.cli.evaluate import METRICS, UNITS, device, figure_columns, figures, shown
from cnpass.cli.rewrite import default_output, print_plan
from cnpass.cli.verbs import DryRunOption, ForceOption, ModelArgument, OutputOption, RestartOption, RunOption
from cnpass.errors import GateError
from cnpass.recipe import OptimizeRecipe
from cnpass.records import (
    Metric,
    OptimizeRecord,
    Overhead,
    Placement,
    Replication,
    TrainedRecord,
    Tuning,
    retained,
)
from cnpass.runfolder import default_run


def run(
    model: ModelArgument,
    *,
    console: Console,
    recipe: OptimizeRecipe,
    output: OutputOption = None,
    force: ForceOption = False,
    run: RunOption = None,
    restart: RestartOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Retrain and compensate a model so that it stays accurate on analog chips."""
    output = output or default_output(model)
    if dry_run:
        from cnpass.document import Document
        from cnpass.optimization.run import check
        from cnpass.optimization.setting import Call, build

        document = Document.load(model)
        call = Call(document, None, output, force, run or default_run(model), restart, console, {})
        chosen = build(OptimizeRecipe, recipe, call)
        print_plan(document, console, {"recipe": chosen.identity(), "output": str(output)})
        check(call, chosen)
        return
    from cnpass.optimization import optimize

    record = optimize(
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
    else:
        print_record(record, console)
    least, kept = recipe.min_retention, record.retention
    if least is not None and kept is not None and kept.after < least:
        reached, asked = percent(kept.after), percent(least)
        raise GateError(
            f"{record.output} retains {reached} of the clean figure, less than the {asked} asked for"
        )


def print_record(record: OptimizeRecord, console: Console) -> None:
    """The record as tables."""
    metric, unit = record.metric, UNITS[record.metric]
    print_points(record, record.n.test, "test", console)
    console.line()
    if record.ladder:
        console.table(
            ("step", "scope", "kept", *figure_columns(unit)),
            ((r.step, r.scope, "yes" if r.kept else "no", *figures(r.point, metric)) for r in record.ladder),
        )
        console.line()
    print_tuned(record.tuned, metric, console)
    print_placement(record.placement, record.overhead, console)
    console.line(f"wrote {record.output}")


def print_points(record: TrainedRecord, samples: int, part: str, console: Console) -> None:
    """The model that came in and the one that went out, on samples of a part of the data."""
    metric, unit = record.metric, UNITS[record.metric]
    console.line(f"{METRICS[metric]} on {samples} {part} samples")
    console.line(f"{record.after.chips} chips of {device(record.after)}")
    if record.replication is not None:
        _print_replication(record.replication, console)
    console.line()
    console.table(
        ("model", f">clean {unit}", *figure_columns(unit), ">retention"),
        (
            (
                *(name, shown(clean, metric), *figures(point, metric)),
                percent(retained(point.mean, record.clean, metric)),
            )
            for name, clean, point in (
                ("before", record.clean, record.before),
                ("after", record.after_clean, record.after),
            )
        ),
    )


def _print_replication(replication: Replication, console: Console) -> None:
    """How many devices each weight has, and what they take."""
    copies = ", ".join(f"{node} {hundredths(count)}" for node, count in replication.copies.items())
    before, after = replication.before, replication.after
    console.line(f"devices per weight: {copies}")
    console.line(
        f"tiles of {replication.tile_rows} x {replication.tile_cols}: {_change(before.tiles, after.tiles)}; "
        f"cells used: {_change(before.cells_used, after.cells_used)}; "
        f"ADC conversions: {_change(before.adc_conversions, after.adc_conversions)}"
    )


def _change(before: int | None, after: int | None) -> str:
    if before is None:
        return "unknown"
    return f"{before}" if before == after else f"{before} to {after}"


def print_tuned(tuned: Tuning | None, metric: Metric, console: Console) -> None:
    """What a study chose; nothing if there was none."""
    if tuned is None:
        return
    own, chosen = tuned.trials[0], tuned.trials[tuned.chosen]
    options = ", ".join(
        f"{name} {','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in chosen.options.items()
        if value is not None
    )
    console.line(f"tuned in {len(tuned.trials)} trainings of {tuned.epochs} epochs: {options}")
    console.line(
        f"after such a training {shown(chosen.point.mean, metric)} {UNITS[metric]}, "
        f"with the recipe's own options {shown(own.point.mean, metric)}"
    )


def print_placement(placement: Sequence[Placement], overhead: Overhead, console: Console) -> None:
    """Where compensation is, and what it costs."""
    for place in placement:
        console.line(f"compensation at {place.node}: {place.kind}, ratio {place.ratio:g}")
    console.line(
        f"overhead: {percent(overhead.params)} parameters, {percent(overhead.macs) or 'unknown'} MACs"
    )
