"""Verbs from functions: a verb's flags come from the fields of its recipe, so that they are declared once."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BeforeValidator

from cnpass.allocator import keep_freed_memory
from cnpass.cli.console import Console, Format
from cnpass.errors import CnpassError, UsageError
from cnpass.files import check_output, write_text
from cnpass.recipe import CalibrateRecipe, DataRecipe, Recipe, TrainRecipe

PANEL = "Recipe options"
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file", show_default=False)]
OutputOption = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="file to write (default: beside MODEL)", show_default=False),
]
ForceOption = Annotated[bool, typer.Option("--force", help="overwrite files that exist")]
RunOption = Annotated[
    Path | None,
    typer.Option(
        "--run", help="folder that keeps the run's state (default: beside MODEL)", show_default=False
    ),
]
RestartOption = Annotated[
    bool,
    typer.Option("--restart/--resume", help="drop what an earlier run left, or go on from it"),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="print the plan with a reason per node, and do no more")
]
FormatOption = Annotated[Format, typer.Option("--format", help="how data are printed")]
VerboseOption = Annotated[
    bool, typer.Option("-v", "--verbose", help="more detail, and traces of internal errors")
]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="only warnings and errors")]
RecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", help="TOML file with options; flags win over it", show_default=False),
]
SaveOption = Annotated[
    Path | None,
    typer.Option("--save-config", help="write the recipe that repeats this run", show_default=False),
]

Verb = Callable[..., None]


class Stopped(Exception):  # noqa: N818 (no error of anyone's)
    """A verb ended early from outside.

    It passes typer, which would otherwise end the process its own way.

    Attributes:
        pipe: whether because nobody reads our output any more; else it was Ctrl-C.
    """

    def __init__(self, *, pipe: bool) -> None:
        super().__init__("pipe closed" if pipe else "interrupted")
        self.pipe = pipe


def verb(
    app: typer.Typer, *, name: str | None = None, recipe: type[Recipe] | None = None
) -> Callable[[Verb], Verb]:
    """Make a function a verb.

    The function takes a ``console``, and a ``recipe`` if its type is given; its other parameters are
    typer's. Added are ``--format``, ``-v``, ``-q``, and for recipes ``--recipe``, ``--save-config`` and a
    flag per field.
    """

    def decorate(function: Verb) -> Verb:
        own = inspect.signature(function, eval_str=True).parameters
        parameters = [p for key, p in own.items() if key not in {"console", "recipe"}]
        fields = {} if recipe is None else _flags(recipe)
        parameters += [_parameter(key, annotation, None) for key, annotation in fields.items()]
        if recipe is not None:
            parameters += [
                _parameter("recipe_file", RecipeOption, None),
                _parameter("save_config", SaveOption, None),
            ]
        parameters += [
            _parameter("format_", FormatOption, Format.TABLE),
            _parameter("verbose", VerboseOption, False),
            _parameter("quiet", QuietOption, False),
        ]

        def command(**values: Any) -> None:
            try:
                call(**values)
                sys.stdout.flush()
            except BrokenPipeError:
                raise Stopped(pipe=True) from None
            except KeyboardInterrupt:
                raise Stopped(pipe=False) from None

        def call(**values: Any) -> None:
            console = Console(values.pop("format_"), verbose=values.pop("verbose"), quiet=values.pop("quiet"))
            if recipe is not None:
                flags = {key: _clean(values.pop(key)) for key in fields}
                file, config = values.pop("recipe_file"), values.pop("save_config")
                values["recipe"] = recipe.build(file, flags)
                _check_paths(values, file, config)
                _save(values["recipe"], config, force=values.get("force"))
                if issubclass(recipe, DataRecipe):
                    keep_freed_memory()
            function(console=console, **values)

        command.__doc__ = function.__doc__
        command.__name__ = function.__name__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # typer reads it
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name=name)(command)
        return function

    return decorate


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _check_paths(values: Mapping[str, Any], file: Path | None, config: Path | None) -> None:
    """Refuse files to write that the verb reads, or that two options name.

    Raises:
        UsageError: names the options.
    """
    given = {"--output": values.get("output"), "--split": values.get("split"), "--save-config": config}
    written = {option: path for option, path in given.items() if path is not None}
    if not written:
        return
    from cnpass.data import data_files

    model, recipe = values["model"], values["recipe"]
    read = [("MODEL", path) for path in _model_files(model)]
    read += [("--recipe", file)] if file is not None else []
    read += [("--data", path) for path in data_files(getattr(recipe, "data", None), model)]
    seen = {path.resolve(): option for option, path in read}
    if "--output" in written and isinstance(recipe, TrainRecipe | CalibrateRecipe):
        written["--output (its record)"] = written["--output"].with_suffix(".json")
    for option, path in written.items():
        other = seen.setdefault(path.resolve(), option)
        if other.partition(" ")[0] != option.partition(" ")[0]:
            raise UsageError(f"option {option}: {path} is the file of {other}, too; name another one")


def _model_files(model: Path) -> list[Path]:
    """The files of a model; of one that cannot be read its own, for the verb will say why."""
    from cnpass.document import Document

    try:
        return [model, *Document.load(model).sources]
    except CnpassError:
        return [model]


def _save(recipe: Recipe, path: Path | None, *, force: bool | None) -> None:
    if path is not None:
        hint = "name another file" if force is None else "--force overwrites it"
        check_output(path, force=bool(force), hint=hint)
        write_text(path, f"# cnpass {recipe.verb} --recipe {path.name}\n{recipe.to_toml()}")


def _clean(value: Any) -> Any:
    """Typer gives an empty list for a repeatable flag that was not given."""
    return None if value == [] else value


def _flags(recipe: type[Recipe]) -> Mapping[str, Any]:
    """A typer annotation per field. What typer has no type for travels as text, for pydantic to read."""
    flags = {}
    for name, field in recipe.model_fields.items():
        flag = f"--{recipe.flag(name)}"
        kind = _kind(field.annotation)
        declared = f"{flag}/--no-{recipe.flag(name)}" if kind is bool else flag
        short = field.json_schema_extra.get("short") if isinstance(field.json_schema_extra, dict) else None
        help_text = field.description or ""
        if field.default not in (None, {}):
            help_text += f" (default: {_shown(field.default)})"
        option = typer.Option(
            *([str(short)] if short else []),
            declared,
            help=help_text,
            show_default=False,
            rich_help_panel=PANEL,
            metavar=_choices(field.annotation) or _META[kind],
        )
        flags[name] = Annotated[kind | None, option]
    return flags


_META: dict[Any, str | None] = {int: "N", float: "X", str: "TEXT", bool: None, list[str]: "NAME=VALUE"}


def _choices(annotation: Any) -> str | None:
    """The values of a field that takes some words only, as help shows them; None for others."""
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    parts = get_args(annotation) if get_origin(annotation) in {Union, types.UnionType} else ()
    return next(filter(None, map(_choices, parts)), None)


def _kind(annotation: Any) -> Any:
    """The type in which typer takes a field: int, float, bool, repeatable text, or text."""
    arguments = get_args(annotation)
    if get_origin(annotation) in {Union, types.UnionType}:
        return _kind(next(part for part in arguments if part is not types.NoneType))
    if get_origin(annotation) is Annotated:
        return str if any(isinstance(part, BeforeValidator) for part in arguments) else _kind(arguments[0])
    if get_origin(annotation) is dict:
        return list[str]
    if annotation in {bool, int, float}:
        return annotation
    return str


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return ",".join(value if isinstance(value, str) else f"{value:g}" for value in default)
    return f"{default:g}" if isinstance(default, float) else str(default)
