"""``cnpass evaluate``: figures of a model on simulated chips."""

from __future__ import annotations

from cnpass.cli.console import Console, Format
from cnpass.cli.verbs import ModelArgument, RestartOption, RunOption
from cnpass.recipe import EvaluateRecipe
from cnpass.records import Metric, Point
from cnpass.runfolder import default_run

METRICS: dict[Metric, str] = {
    "top1": "top-1 accuracy",
    "agreement": "agreement with the clean model",
    "ser": "signal-to-error ratio",
}

UNITS: dict[Metric, str] = {"top1": "%", "agreement": "%", "ser": "dB"}


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
    unit = UNITS[record.metric]
    console.line(f"{METRICS[record.metric]} on {record.n} samples of {record.data.name}")
    console.line(f"clean: {shown(record.clean, record.metric)} {unit}")
    console.line()
    console.table(
        ("device model", ">chips", *figure_columns(unit)),
        ((device(point), point.chips, *figures(point, record.metric)) for point in record.points),
    )


def device(point: Point) -> str:
    """The device model of a point with its parameters."""
    return " ".join([point.device, *(f"{name}={value:g}" for name, value in point.params.items())])


def figure_columns(unit: str) -> tuple[str, ...]:
    """Column names for ``figures``."""
    return (f">mean {unit}", ">95 % interval", ">std", ">min", ">5th pct.")


def figures(point: Point, metric: Metric) -> tuple[str, ...]:
    """The figures of a point as cells of one row."""
    mean, low, high, *rest = (
        shown(value, metric) for value in (point.mean, *point.ci95, point.std, point.min, point.p05)
    )
    return (mean, f"{low} .. {high}", *rest)


def shown(value: float, metric: Metric) -> str:
    """A figure in its unit."""
    return f"{value:.1f}" if metric == "ser" else f"{100 * value:.2f}"
