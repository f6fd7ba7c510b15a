"""``cnpass devices`` and ``cnpass passes``: what there is to choose from."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cnpass.cli.console import Console, Format
from cnpass.cli.verbs import verb

devices = typer.Typer(help="Device models that chips can be simulated with.", no_args_is_help=False)
passes = typer.Typer(help="Passes that pipelines are made of.", no_args_is_help=False)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


def list_devices(console: Console) -> None:
    """List all device models."""
    from cnpass.runtime.devices import device_names, get_device

    _list([get_device(name).describe() for name in device_names()], console)


def show_device(name: NameArgument, console: Console) -> None:
    """Show the formula, source and parameters of a device model."""
    from cnpass.runtime.devices import get_device

    found = get_device(name).describe()
    given = name.partition(":")[2]
    chosen = found.presets[given].parameters if given else {}
    name = found.name
    if console.form is Format.JSON:
        console.json(json.dumps(asdict(found), indent=2))
        return
    for label, text in (("", found.name), ("", found.summary), ("formula: ", found.formula)):
        console.line(f"{label}{text}")
    console.line(f"source: {found.source}")
    console.line()
    console.table(
        ("parameter", f">{given or 'default'}", ">from", ">to", "unit", "meaning"),
        ((f.name, chosen.get(f.name, f.default), f.minimum, f.maximum, f.unit, f.help) for f in found.fields),
    )
    if found.presets:
        console.line()
        console.table(
            ("preset", "source"), ((f"{name}:{key}", item.source) for key, item in found.presets.items())
        )


def list_passes(console: Console) -> None:
    """List all passes."""
    from cnpass.passes.registry import get_pass, pass_names

    _list([get_pass(name).describe() for name in pass_names()], console)


def show_pass(name: NameArgument, console: Console) -> None:
    """Show the options of a pass."""
    from cnpass.passes.registry import get_pass

    found = get_pass(name).describe()
    if console.form is Format.JSON:
        console.json(json.dumps(asdict(found), indent=2, default=str))
        return
    console.line(found.name)
    console.line(found.summary)
    if found.options:
        console.line()
        console.table(
            ("option", "type", ">default", ">from", ">to", "meaning"),
            (
                (o.name, "|".join(o.choices) or o.type, o.default, o.minimum, o.maximum, o.help)
                for o in found.options
            ),
        )


def _list(items: list[Any], console: Console) -> None:
    if console.form is Format.JSON:
        console.json(json.dumps([{"name": item.name, "summary": item.summary} for item in items], indent=2))
    else:
        console.table(("name", "summary"), ((item.name, item.summary) for item in items))


verb(devices, name="list")(list_devices)
verb(devices, name="show")(show_device)
verb(passes, name="list")(list_passes)
verb(passes, name="show")(show_pass)
