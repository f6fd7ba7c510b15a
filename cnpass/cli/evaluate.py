"""``cnpass evaluate``: figures of a model on simulated chips."""

from __future__ import annotations

from cnpass.cli.console import Console, Format, percent
from cnpass.cli.verbs import ModelArgument, RestartOption, RunOption
from cnpass.recipe import EvaluateRecipe
from cnpass.records import Metric, Point
from cnpass.runfolder import default_run

METRICS: dict[Metric, str] = {
    "top1": "top-1 accuracy",
    "agreement": "agreement with the clean model",
    "ser": "signal-to-error ratio",
}


def run(
    model: ModelArgument,
    *,
    console: Console,
    recipe: EvaluateRecipe,
    run: RunOption = None,
    restart: RestartOption = False,
) -> None:
    """Measure accuracy over many simulated chips."""
    from cnpass.evaluation import evaluate

    record = evaluate(model, recipe=recipe, run=run or default_run(model), restart=restart, progress=console)
    if console.form is Format.JSON:
        console.json(record.to_json())
        return
    console.line(f"{METRICS[record.metric]} on {record.n} samples of {record.data.name}")
    console.line(f"clean: {shown(record.clean, record.metric)}")
    console.line()
    console.table(POINT_COLUMNS, (point_cells(point, record.metric) for point in record.points))


POINT_COLUMNS = (
    "device",
    "parameters",
    ">chips",
    ">mean",
    ">95 % interval",
    ">std",
    ">min",
    ">5th percentile",
)


def point_cells(point: Point, metric: Metric) -> tuple[object, ...]:
    """A point as the cells of one row."""
    low, high = (shown(end, metric) for end in point.ci95)
    params = " ".join(f"{name}={value:g}" for name, value in point.params.items())
    figures = (shown(figure, metric) for figure in (point.std, point.min, point.p05))
    return (point.device, params, point.chips, shown(point.mean, metric), f"{low} .. {high}", *figures)


def shown(value: float, metric: Metric) -> str | None:
    """A figure with its unit."""
    return f"{value:.1f} dB" if metric == "ser" else percent(value)
