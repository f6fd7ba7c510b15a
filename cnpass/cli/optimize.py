"""``cnpass optimize``: the main job."""

from __future__ import annotations

from cnpass.cli.console import Console, Format, percent
from cnpass.cli.evaluate import METRICS, POINT_COLUMNS, point_cells, shown
from cnpass.cli.rewrite import default_output, print_plan
from cnpass.cli.verbs import DryRunOption, ForceOption, ModelArgument, OutputOption, RestartOption, RunOption
from cnpass.errors import GateError
from cnpass.files import check_output
from cnpass.recipe import OptimizeRecipe
from cnpass.records import OptimizeRecord
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

        print_plan(Document.load(model), console, {"recipe": recipe.identity(), "output": str(output)})
        return
    check_output(output, force=force)
    from cnpass.optimize import optimize

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
    if recipe.min_retention is not None and record.retention.after < recipe.min_retention:
        reached, asked = percent(record.retention.after), percent(recipe.min_retention)
        raise GateError(
            f"{record.output} retains {reached} of the clean figure, less than the {asked} asked for"
        )


def print_record(record: OptimizeRecord, console: Console) -> None:
    """The record as tables."""
    metric = record.metric
    console.line(f"{METRICS[metric]} on {record.n.test} test samples")
    console.table(
        ("", ">clean", *POINT_COLUMNS, ">retention"),
        (
            (name, shown(clean, metric), *point_cells(point, metric), percent(retention))
            for name, clean, point, retention in (
                ("before", record.clean, record.before, record.retention.before),
                ("after", record.after_clean, record.after, record.retention.after),
            )
        ),
    )
    console.line()
    if record.ladder:
        console.table(
            ("step", "scope", "kept", ">mean on validation", ">std"),
            (
                (
                    r.step,
                    r.scope,
                    "yes" if r.kept else "no",
                    shown(r.point.mean, metric),
                    shown(r.point.std, metric),
                )
                for r in record.ladder
            ),
        )
        console.line()
    for place in record.placement:
        console.line(f"compensation at {place.node}: {place.kind}, ratio {place.ratio:g}")
    parameters, macs = percent(record.overhead.params), percent(record.overhead.macs) or "unknown"
    console.line(f"overhead: {parameters} parameters, {macs} MACs")
    console.line(f"wrote {record.output}")
