"""``cnpass retrain``: the analog weights alone."""

from __future__ import annotations

from cnpass.cli.console import Console, Format
from cnpass.cli.optimize import print_points, print_tuned
from cnpass.cli.verbs import ForceOption, ModelArgument, OutputOption, RestartOption, RunOption
from cnpass.recipe import RetrainRecipe
from cnpass.runfolder import default_run


def run(
    model: ModelArgument,
    *,
    console: Console,
    recipe: RetrainRecipe,
    output: OutputOption = None,
    force: ForceOption = False,
    run: RunOption = None,
    restart: RestartOption = False,
) -> None:
    """Train a model's weights under variation, and write it as plain ONNX."""
    from cnpass.optimization import retrain

    record = retrain(
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
    print_tuned(record.tuned, record.metric, console)
    kept = "" if record.kept else "; nothing better came of it"
    console.line(f"epochs trained: {record.epochs}{kept}")
    console.line(f"wrote {record.output}")
