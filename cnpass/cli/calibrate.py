"""``cnpass calibrate``: one chip's own correction."""

from __future__ import annotations

from cnpass.cli.console import Console, Format, percent
from cnpass.cli.evaluate import METRICS, UNITS, shown
from cnpass.cli.verbs import ForceOption, ModelArgument, OutputOption
from cnpass.recipe import CalibrateRecipe
from cnpass.records import retained


def run(
    model: ModelArgument,
    *,
    console: Console,
    recipe: CalibrateRecipe,
    output: OutputOption = None,
    force: ForceOption = False,
) -> None:
    """Fit a digital correction for one chip and write that chip's model."""
    from cnpass.optimization import calibrate

    record = calibrate(model, recipe=recipe, output=output, force=force, progress=console)
    if console.form is Format.JSON:
        console.json(record.to_json())
        return
    metric = record.metric
    parameters = " ".join(f"{name}={value:g}" for name, value in record.params.items())
    console.line(f"{METRICS[metric]} on {record.n.test} test samples")
    console.line(f"chip {record.chip} of {record.device} {parameters}")
    console.line()
    console.table(
        ("model", f">{UNITS[metric]}", ">retention"),
        (
            ("clean", shown(record.clean, metric), None),
            *(
                (name, shown(figure, metric), percent(retained(figure, record.clean, metric)))
                for name, figure in (("before", record.before), ("after", record.after))
            ),
        ),
    )
    console.line()
    if record.kept:
        console.table(
            ("node", ">rank", ">error before", ">after"),
            (
                (n.node, n.rank or "affine", f"{n.error_before:.3f}", f"{n.error_after:.3f}")
                for n in record.nodes
            ),
        )
        console.line()
    else:
        console.line("the correction does not help on validation samples, so there is none")
    for name, cost in (("the correction", record.added), ("all compensation", record.overhead)):
        console.line(
            f"overhead of {name}: {percent(cost.params)} parameters, {percent(cost.macs) or 'unknown'} MACs"
        )
    console.line(f"wrote {record.output}")
