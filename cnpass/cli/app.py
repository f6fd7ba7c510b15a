"""The command line's verbs, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from cnpass.cli import calibrate, catalogue, evaluate, inspect, optimize, retrain, rewrite, search
from cnpass.cli.verbs import verb
from cnpass.recipe import (
    CalibrateRecipe,
    EvaluateRecipe,
    InspectRecipe,
    OptimizeRecipe,
    RetrainRecipe,
    RewriteRecipe,
    SearchRecipe,
)

app = typer.Typer(
    name="cnpass",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        import cnpass

        typer.echo(f"cnpass {cnpass.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="show the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Keep ONNX models accurate on analog in-memory-computing chips."""
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


verb(app, name="optimize", recipe=OptimizeRecipe)(optimize.run)
verb(app, name="inspect", recipe=InspectRecipe)(inspect.run)
verb(app, name="evaluate", recipe=EvaluateRecipe)(evaluate.run)
verb(app, name="retrain", recipe=RetrainRecipe)(retrain.run)
verb(app, name="search", recipe=SearchRecipe)(search.run)
verb(app, name="calibrate", recipe=CalibrateRecipe)(calibrate.run)
verb(app, name="rewrite", recipe=RewriteRecipe)(rewrite.run)
verb(app, name="lower")(rewrite.run_lower)
app.add_typer(catalogue.devices, name="devices")
app.add_typer(catalogue.passes, name="passes")
