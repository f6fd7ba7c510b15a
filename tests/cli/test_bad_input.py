"""Bad input: the exact exit code, one line on stderr, no traceback, no new files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

EVALUATE = ("evaluate", "--chips", 2, "--workers", 1)


def arrays(**changes: np.ndarray | None) -> Callable[[Path], None]:
    """Writes digits.npz with changed arrays."""

    def write(folder: Path) -> None:
        with np.load(folder / "digits.npz") as archive:
            kept = dict(archive) | changes
        np.savez(folder / "digits.npz", **{name: value for name, value in kept.items() if value is not None})

    return write


def truncate(folder: Path) -> None:
    data = (folder / "digits.onnx").read_bytes()
    (folder / "digits.onnx").write_bytes(data[: len(data) // 2])


def no_onnx(folder: Path) -> None:
    (folder / "digits.onnx").write_text("this is no model\n")


def empty(folder: Path) -> None:
    (folder / "digits.onnx").write_bytes(b"")


def external(folder: Path) -> None:
    model = onnx.load(folder / "digits.onnx")
    onnx.save_model(
        model, folder / "digits.onnx", save_as_external_data=True, location="w.data", size_threshold=0
    )
    (folder / "w.data").unlink()


def large(folder: Path) -> None:
    location = "large.onnx.data"
    options = {"save_as_external_data": True, "location": location, "size_threshold": 0}
    onnx.save_model(onnx.load(folder / "digits.onnx"), folder / "large.onnx", **options)


def nothing_analog(folder: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save_model(model, folder / "digits.onnx")
    (folder / "digits.npz").unlink()


def refused_by_runtime(folder: Path) -> None:
    model = onnx.load(folder / "digits.onnx")
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(np.ones((6, 9, 3, 3), np.float32), weight.name))
    onnx.save_model(model, folder / "digits.onnx")


def taken(folder: Path) -> None:
    (folder / "digits.cnpass.onnx").write_text("mine")


def nothing(folder: Path) -> None:
    pass


IMAGES = np.zeros((4, 1, 5, 7), np.float32)

TABLE = {
    "missing file": (nothing, ("inspect", "{}/none.onnx"), 3, "none.onnx: "),
    "a folder": (nothing, ("inspect", "{}"), 3, "is a folder"),
    "no ONNX, inspect": (no_onnx, ("inspect", "{}/digits.onnx"), 3, "digits.onnx: "),
    "no ONNX, evaluate": (no_onnx, (*EVALUATE, "{}/digits.onnx"), 3, "digits.onnx: "),
    "no ONNX, rewrite": (no_onnx, ("rewrite", "{}/digits.onnx"), 3, "digits.onnx: "),
    "no ONNX, lower": (no_onnx, ("lower", "{}/digits.onnx"), 3, "digits.onnx: "),
    "empty": (empty, ("inspect", "{}/digits.onnx"), 3, "empty"),
    "truncated, inspect": (truncate, ("inspect", "{}/digits.onnx"), 3, "cut short"),
    "truncated, rewrite": (truncate, ("rewrite", "{}/digits.onnx"), 3, "cut short"),
    "truncated, evaluate": (truncate, (*EVALUATE, "{}/digits.onnx"), 3, "cut short"),
    "external data missing, rewrite": (external, ("rewrite", "{}/digits.onnx"), 3, "w.data"),
    "external data missing, evaluate": (external, (*EVALUATE, "{}/digits.onnx"), 3, "w.data"),
    "refused by the runtime": (refused_by_runtime, (*EVALUATE, "{}/digits.onnx"), 3, "/digits.onnx failed"),
    "nothing analog, rewrite": (
        nothing_analog,
        ("rewrite", "{}/digits.onnx"),
        3,
        "no node can run on a crossbar",
    ),
    "nothing analog, evaluate": (
        nothing_analog,
        (*EVALUATE, "{}/digits.onnx"),
        3,
        "no node can run on a crossbar",
    ),
    "nothing mapped, lower": (nothing, ("lower", "{}/digits.onnx"), 3, "no analog nodes"),
    "data missing": (nothing, (*EVALUATE, "{}/digits.onnx", "--data", "{}/no.npz"), 4, "no such file"),
    "data no NPZ": (
        nothing,
        (*EVALUATE, "{}/digits.onnx", "--data", "{}/digits.onnx"),
        4,
        "cannot be read as NPZ",
    ),
    "data of wrong shape": (
        arrays(x_test=IMAGES, y_test=np.arange(4)),
        (*EVALUATE, "{}/digits.onnx"),
        4,
        "1x5x7",
    ),
    "data of text": (arrays(x_test=np.array(["a"] * 100)), (*EVALUATE, "{}/digits.onnx"), 4, "no numbers"),
    "data of objects": (
        arrays(x_test=np.array([None] * 100)),
        (*EVALUATE, "{}/digits.onnx"),
        4,
        "Object arrays",
    ),
    "labels too large": (
        arrays(y_test=np.full(100, 10)),
        (*EVALUATE, "{}/digits.onnx"),
        4,
        "label 10 is outside",
    ),
    "labels negative": (
        arrays(y_test=np.full(100, -1)),
        (*EVALUATE, "{}/digits.onnx"),
        4,
        "label -1 is negative",
    ),
    "labels of floats": (arrays(y_test=np.ones(100)), (*EVALUATE, "{}/digits.onnx"), 4, "must be integers"),
    "labels too few": (arrays(y_test=np.arange(9)), (*EVALUATE, "{}/digits.onnx"), 4, "differ in length"),
    "no arrays that fit": (
        arrays(x_test=None, y_test=None),
        (*EVALUATE, "{}/digits.onnx"),
        4,
        "none of the arrays",
    ),
    "output exists": (taken, ("rewrite", "{}/digits.onnx"), 2, "exists already; --force overwrites it"),
    "output is the source": (
        nothing,
        ("rewrite", "{}/digits.onnx", "-o", "{}/digits.onnx", "--force"),
        2,
        "option --output: {}/digits.onnx is the file of MODEL, too",
    ),
    "retrain: output is the source": (
        nothing,
        ("retrain", "{}/digits.onnx", "-o", "{}/digits.onnx", "--force"),
        2,
        "is the file of MODEL, too",
    ),
    "output is the data": (
        nothing,
        ("optimize", "{}/digits.onnx", "-o", "{}/digits.npz", "--force"),
        2,
        "option --output: {}/digits.npz is the file of --data, too",
    ),
    "output is where the record goes": (
        nothing,
        ("calibrate", "{}/digits.onnx", "-o", "{}/chip.json"),
        2,
        "is where the record goes",
    ),
    "split is the source": (
        nothing,
        ("inspect", "{}/digits.onnx", "--split", "{}/digits.onnx", "--force"),
        2,
        "option --split: {}/digits.onnx is the file of MODEL, too",
    ),
    "config is the data": (
        nothing,
        ("rewrite", "{}/digits.onnx", "--save-config", "{}/digits.npz", "--force", "--dry-run"),
        2,
        "is the file of --data, too",
    ),
    "config is the output": (
        nothing,
        ("rewrite", "{}/digits.onnx", "--save-config", "{}/q.onnx", "-o", "{}/q.onnx"),
        2,
        "is the file of --output, too",
    ),
    "config is the record": (
        nothing,
        ("optimize", "{}/digits.onnx", "--save-config", "{}/q.json", "-o", "{}/q.onnx"),
        2,
        "option --output (its record): {}/q.json is the file of --save-config, too",
    ),
    "config is the model's data": (
        large,
        (*EVALUATE, "{}/large.onnx", "--save-config", "{}/large.onnx.data"),
        2,
        "option --save-config: {}/large.onnx.data is the file of MODEL, too",
    ),
    "split is the model's data": (
        large,
        ("inspect", "{}/large.onnx", "--split", "{}/large.onnx.data", "--force"),
        2,
        "is the file of MODEL, too",
    ),
    "output is a file of the data's folder": (
        lambda folder: [np.save(folder / f"{name}_test.npy", np.zeros(4, np.int64)) for name in "xy"],
        ("optimize", "{}/digits.onnx", "--data", "{}", "-o", "{}/x_test.npy", "--force"),
        2,
        "is the file of --data, too",
    ),
    "output is the data of a pass": (
        lambda folder: (folder / "o.npz").hardlink_to(folder / "digits.npz"),
        (
            *("rewrite", "{}/digits.onnx", "-p", "map-crossbar,calibrate-ranges{{data={}/o.npz}}"),
            *("-o", "{}/o.npz", "--force"),
        ),
        2,
        "is the source, which is never written",
    ),
    "external data would be the dataset": (
        lambda folder: (folder / "digits.npz").rename(folder / "o.onnx.data"),
        (
            *("optimize", "{}/digits.onnx", "--data", "{}/o.onnx.data", "-o", "{}/o.onnx"),
            *("--no-retrain", "--no-compensation"),
        ),
        2,
        "{}/o.onnx.data: is the source, which is never written",
    ),
    "config is the recipe": (
        lambda folder: (folder / "r.toml").write_text("seed = 1\n"),
        ("rewrite", "{}/digits.onnx", "--recipe", "{}/r.toml", "--save-config", "{}/r.toml", "--force"),
        2,
        "is the file of --recipe, too",
    ),
    "name that is no text": (
        nothing,
        ("inspect", "{}/n\udcff.onnx"),
        2,
        "names must be valid UTF-8",
    ),
    "no data at all": (nothing, (*EVALUATE, "{}/digits.onnx", "--data", ""), 2, "option --data"),
    "a converter of one bit": (
        nothing,
        ("rewrite", "{}/digits.onnx", "-p", "map-crossbar{{dac-bits=1}}"),
        2,
        "pass 'map-crossbar', option 'dac-bits': a converter has 2 to",
    ),
    "no node to compensate": (
        nothing,
        ("rewrite", "{}/digits.onnx", "-p", "insert-compensation"),
        2,
        "option 'node' is required: one of conv1",
    ),
    "parameter given twice": (
        nothing,
        (*EVALUATE, "{}/digits.onnx", "--param", "sigma=1", "--param", "sigma=2"),
        2,
        "option --param: 'sigma' is given twice",
    ),
    "parameter without a name": (nothing, (*EVALUATE, "{}/digits.onnx", "--param", "=1"), 2, "NAME=VALUE"),
    "output in no folder": (
        nothing,
        ("rewrite", "{}/digits.onnx", "-o", "{}/none/o.onnx"),
        2,
        "there is no folder",
    ),
    "output is a folder": (nothing, ("rewrite", "{}/digits.onnx", "-o", "{}"), 2, "is a folder"),
    "split exists": (
        taken,
        ("inspect", "{}/digits.onnx", "--split", "{}/digits.cnpass.onnx"),
        2,
        "exists already; --force overwrites it, --split names another file",
    ),
    "config exists": (
        lambda folder: (folder / "c.toml").write_text(""),
        (*EVALUATE, "{}/digits.onnx", "--save-config", "{}/c.toml"),
        2,
        "exists already; name another file",
    ),
    "run folder is a file": (
        nothing,
        (*EVALUATE, "{}/digits.onnx", "--run", "{}/digits.npz"),
        2,
        "run folder",
    ),
    "optimize: output exists": (taken, ("optimize", "{}/digits.onnx"), 2, "exists already"),
    "unknown pass": (nothing, ("rewrite", "{}/digits.onnx", "-p", "fold"), 2, "pass 'fold' is unknown"),
    "unknown pass option": (
        nothing,
        ("rewrite", "{}/digits.onnx", "-p", "map-crossbar{{x=1}}"),
        2,
        "no option 'x'",
    ),
    "pipeline cut short": (nothing, ("rewrite", "{}/digits.onnx", "-p", "map-crossbar{{"), 2, "pipeline"),
    "unknown device": (nothing, (*EVALUATE, "{}/digits.onnx", "--device", "magic"), 2, "'magic' is unknown"),
    "unknown parameter": (
        nothing,
        (*EVALUATE, "{}/digits.onnx", "--param", "x=1"),
        2,
        "no parameter 'x'; it has: sigma",
    ),
    "sigma twice": (
        nothing,
        (*EVALUATE, "{}/digits.onnx", "--sigma", 1, "--param", "sigma=1"),
        2,
        "by --sigma already",
    ),
    "sigma out of range": (nothing, (*EVALUATE, "{}/digits.onnx", "--sigma", "-1"), 2, "sigma"),
    "show no device": (nothing, ("devices", "show", "magic"), 2, "'magic' is unknown"),
    "show no pass": (nothing, ("passes", "show", "magic"), 2, "'magic' is unknown"),
    "no model": (nothing, ("evaluate",), 2, "Missing argument 'MODEL'"),
    "no verb of that name": (nothing, ("polish",), 2, "No such command 'polish'"),
    "no flag of that name": (nothing, (*EVALUATE, "{}/digits.onnx", "--colour"), 2, "--colour"),
    "number in words": (nothing, ("evaluate", "{}/digits.onnx", "--chips", "many"), 2, "'--chips'"),
    "number out of range": (nothing, ("evaluate", "{}/digits.onnx", "--chips", "1"), 2, "--chips"),
    "no recipe": (
        nothing,
        (*EVALUATE, "{}/digits.onnx", "--recipe", "{}/no.toml"),
        2,
        "no.toml: recipe cannot be read",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_bad_input(cnpass, digits: Path, name: str) -> None:
    spoil, arguments, code, said = TABLE[name]
    folder = digits.parent
    spoil(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = cnpass(*(str(argument).format(folder) for argument in arguments))
    lines = [
        line for line in done.err.splitlines() if not line.startswith(("cnpass: note: ", "cnpass: warning: "))
    ]
    assert len(lines) == 1, done.err
    assert lines[0].startswith("cnpass: error: ")
    assert said.replace("{}", str(folder)) in lines[0]
    assert done.code == code
    assert done.out == ""
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert not [
        path for path in folder.rglob("*") if path.suffix in {".jsonl", ".tmp"} and path.stat().st_size
    ]


@pytest.mark.parametrize("verb", ["evaluate", "calibrate", "optimize"])
@pytest.mark.parametrize("spoil", [nothing_analog, external])
def test_a_model_is_refused_before_its_data_are_looked_for(cnpass, digits: Path, spoil, verb: str) -> None:
    spoil(digits.parent)
    (digits.parent / "digits.npz").unlink(missing_ok=True)
    done = cnpass(verb, digits)
    assert done.code == 3
    assert done.err.count("\n") == 1


def test_a_model_without_candidates_is_no_error_to_look_at(cnpass, digits: Path) -> None:
    nothing_analog(digits.parent)
    done = cnpass("inspect", digits)
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("rewrite", "-p", "lower-analog"), 3, "no analog nodes"),
        (("rewrite", "-p", "insert-compensation{node=zzz}"), 3, "zzz"),
        (("rewrite", "-o", "nowhere/x.onnx"), 2, "nowhere"),
        (("optimize", "--device", "nope"), 2, "nope"),
        (("optimize", "--param", "foo=1"), 2, "foo"),
        (("optimize", "--data", "nofile.npz"), 4, "nofile.npz"),
        (("optimize", "-o", "nowhere/x.onnx"), 2, "nowhere"),
        (("optimize",), 4, "no training samples"),
    ],
)
def test_a_dry_run_shows_the_plan_and_then_what_would_fail(
    cnpass, digits: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, named: str
) -> None:
    monkeypatch.chdir(digits.parent)
    before = sorted(digits.parent.iterdir())
    verb, *options = arguments
    done = cnpass(verb, "digits.onnx", "--dry-run", *options)
    assert "conv1" in done.out
    assert (done.code, done.err.count("\n")) == (code, 1)
    assert named in done.err
    assert sorted(digits.parent.iterdir()) == before


@pytest.mark.parametrize("verb", ["inspect", "evaluate", "optimize", "search", "retrain", "rewrite", "lower"])
@pytest.mark.parametrize("model", [".", "/"])
def test_a_folder_without_a_name_is_no_model(cnpass, verb: str, model: str) -> None:
    done = cnpass(verb, model)
    assert (done.code, done.out) == (3, "")
    assert done.err == f"cnpass: error: {model}: is a folder, not an ONNX file\n"


def test_inspect_needs_no_external_data(cnpass, digits: Path) -> None:
    """Shapes suffice; but the hash in the record covers the weights, so that missing ones are named."""
    external(digits.parent)
    done = cnpass("inspect", digits)
    assert done.code == 3
    assert "w.data" in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_write_permission(cnpass, digits: Path) -> None:
    digits.parent.chmod(0o500)
    try:
        done = cnpass("rewrite", digits)
    finally:
        digits.parent.chmod(0o700)
    assert done.code == 2
    assert "cannot be written" in done.err


def test_folder_in_which_nobody_can_make_a_file(cnpass, digits: Path) -> None:
    """Its permissions do not say so to root: the check has to try, and before any work is done."""
    done = cnpass("optimize", digits, "-o", "/proc/out.onnx")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("cnpass: error: /proc/out.onnx: the folder /proc cannot be")


def test_internal_errors_are_one_line(cnpass, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug\nof two lines")

    monkeypatch.setattr("cnpass.inspection.inspect", broken)
    done = cnpass("inspect", digits)
    assert done.code == 70
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("cnpass: internal error: RuntimeError: a bug of two lines (")
    assert "Traceback" in cnpass("inspect", digits, "-v").err


def test_an_interrupt_inside_an_import_is_an_interrupt(
    cnpass, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr("cnpass.inspection.inspect", broken)
    done = cnpass("inspect", digits)
    assert (done.code, done.err.strip()) == (130, "cnpass: interrupted")


def test_a_full_disk_is_one_line(cnpass, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    done = cnpass(*EVALUATE, digits)
    journal = digits.with_name("digits.cnpass.run") / "evaluate" / "chips.jsonl"
    assert (done.code, done.err) == (2, f"cnpass: error: {journal}: the disk is full\n")
