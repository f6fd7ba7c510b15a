"""What the verbs print and write, and that records fit their schemas."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import onnx
import pytest

import cnpass as package
from cnpass.evaluation.statistics import summarise
from cnpass.recipe import EvaluateRecipe, OptimizeRecipe, Recipe
from cnpass.records import (
    SCHEMAS,
    BeforeAfter,
    OptimizeRecord,
    Overhead,
    Placement,
    Point,
    Rung,
    SplitSizes,
)

QUICK = ("--chips", 3, "--workers", 1, "--sigma", 0.5)


def check(text: str, record: str) -> dict:
    document = json.loads(text)
    jsonschema.validate(document, json.loads((SCHEMAS / f"{record}.json").read_text()))
    return document


def test_nothing_heavy_is_imported_for_help() -> None:
    heavy = ("torch", "optuna", "onnxruntime", "onnx", "numpy")
    for arguments in ("['--help']", "['inspect', '--help']"):
        code = (
            f"import sys; sys.argv = ['cnpass', *{arguments}]\n"
            "from cnpass.__main__ import main\n"
            "try: main()\n"
            f"finally: print([name for name in {heavy} if name in sys.modules], file=sys.stderr)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "cnpass" in done.stdout
        assert done.stderr.strip() == "[]"


def test_inspect_never_imports_torch(digits: Path) -> None:
    code = (
        "import sys, cnpass\n"
        f"cnpass.inspect({str(digits)!r})\n"
        "print([name for name in ('torch', 'optuna', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_api() -> None:
    assert set(package.__all__) <= set(dir(package))
    assert package.errors.DataError.exit_code == 4
    assert package.Session.__name__ == "Session"
    assert package.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help(cnpass, arguments) -> None:
    done = cnpass(*arguments)
    assert (done.code, done.err) == (0, "")
    for name in ("optimize", "inspect", "evaluate", "rewrite", "lower", "devices", "passes"):
        assert name in done.out


def test_version(cnpass) -> None:
    assert cnpass("--version").out == f"cnpass {package.__version__}\n"


@pytest.mark.parametrize(("verb", "recipe"), [("evaluate", EvaluateRecipe), ("optimize", OptimizeRecipe)])
def test_every_option_has_a_flag(cnpass, verb: str, recipe: type[Recipe]) -> None:
    text = cnpass(verb, "--help").out
    for name in recipe.model_fields:
        assert f"--{recipe.flag(name)}" in text


# inspect


def test_inspect(cnpass, digits: Path) -> None:
    done = cnpass("inspect", digits, "--format", "json")
    record = check(done.out, "inspect")
    assert done.err == ""
    domains = {node["op_type"]: node["domain"] for node in record["nodes"]}
    assert domains["Conv"] == "analog"
    assert domains["Relu"] == "digital"
    assert record["totals"]["analog"] == 5
    small = check(cnpass("inspect", digits, "--format", "json", "--tile-rows", 32).out, "inspect")
    assert small["totals"]["tiles"] > record["totals"]["tiles"]
    table = cnpass("inspect", digits).out
    for node in record["nodes"]:
        assert any(node["name"] in line and node["reason"] in line for line in table.splitlines())


def test_inspect_sums_up_compensation(cnpass, digits: Path) -> None:
    path = digits.with_name("compensated.onnx")
    pipeline = "fold-batch-norm,insert-compensation{kind=residual,node=conv2}"
    assert cnpass("rewrite", digits, "-p", pipeline, "-o", path).code == 0
    nodes = [
        node
        for node in check(cnpass("inspect", path, "--format", "json").out, "inspect")["nodes"]
        if node["compensates"] == "conv2"
    ]
    assert len(nodes) > 2
    assert {node["reason"] for node in nodes} == {"compensation of 'conv2'"}
    lines = [line.split() for line in cnpass("inspect", path).out.splitlines()]
    (line,) = [line for line in lines if line[1:2] == ["compensation"]]
    sums = [str(sum(node[key] for node in nodes)) for key in ("params", "macs")]
    assert line == ["conv2", "compensation", "digital", *"-----", *sums, *line[10:]]
    assert line[10:12] == [str(len(nodes)), "nodes;"]


def test_inspect_writes_the_split(cnpass, digits: Path) -> None:
    path = digits.with_name("split.json")
    assert cnpass("inspect", digits, "--split", path).code == 0
    document = json.loads(path.read_text())
    assert {node["domain"] for node in document["nodes"]} == {"analog", "digital"}
    again = cnpass("inspect", digits, "--split", path)
    assert (again.code, again.out) == (2, "")
    assert cnpass("inspect", digits, "--split", path, "--force").code == 0


# copies


def test_copies_from_rewrite_to_evaluate(cnpass, digits: Path) -> None:
    """Before and after in `inspect`; in `evaluate` chips that deviate less."""
    totals, means = [], []
    for name, last in (("one", ""), ("several", ",replicate-weights")):
        path = digits.with_name(f"{name}.onnx")
        pipeline = f"fold-batch-norm,map-crossbar{{sigma=0.5}}{last}"
        assert cnpass("rewrite", digits, "-p", pipeline, "-o", path).code == 0
        totals.append(check(cnpass("inspect", path, "--format", "json").out, "inspect")["totals"])
        data = ("--data", digits.with_name("digits.npz"), "--chips", 20)
        done = cnpass("evaluate", path, *data, "--format", "json")
        means.append(check(done.out, "evaluate")["points"][0]["mean"])
    one, several = totals
    assert (one["tiles"], one["adc_conversions"]) == (several["tiles"], several["adc_conversions"])
    assert several["cells_used"] > one["cells_used"]
    assert several["cells_free"] < one["cells_free"]
    assert means[1] > means[0]


# evaluate


def test_evaluate(cnpass, digits: Path) -> None:
    done = cnpass("evaluate", digits, *QUICK, "--format", "json", "--seed", 4)
    record = check(done.out, "evaluate")
    assert (record["metric"], record["n"]) == ("top1", 100)
    assert record["clean"] > 0.9
    (point,) = record["points"]
    assert (point["device"], point["params"], point["seed"], point["chips"]) == (
        "lognormal",
        {"sigma": 0.5},
        4,
        3,
    )
    lines = (digits.with_name("digits.cnpass.run") / "evaluate" / "chips.jsonl").read_text().splitlines()
    assert len(lines) == 3
    table = cnpass("evaluate", digits, *QUICK, "--seed", 4).out
    assert f"{100 * point['mean']:.2f}" in table
    assert f"{100 * record['clean']:.2f} %" in table


def test_same_seed_same_record(cnpass, digits: Path, tmp_path: Path) -> None:
    texts = []
    for workers in (1, 2):
        run = ("--run", tmp_path / f"run-{workers}", "--workers", workers)
        record = json.loads(cnpass("evaluate", digits, *QUICK[:2], *run, "--format", "json").out)
        del record["seconds"]
        texts.append(json.dumps(record))
    assert texts[0] == texts[1]
    assert [point["params"]["sigma"] for point in json.loads(texts[0])["points"]] == [0.1, 0.3, 0.5]


def test_more_chips_reuse_those_that_are_there(cnpass, digits: Path) -> None:
    journal = digits.with_name("digits.cnpass.run") / "evaluate" / "chips.jsonl"
    cnpass("evaluate", digits, *QUICK)
    first = journal.read_text()
    done = cnpass("evaluate", digits, *QUICK, "--chips", 5, "--format", "json")
    assert json.loads(done.out)["points"][0]["chips"] == 5
    assert journal.read_text().startswith(first)
    assert len(journal.read_text().splitlines()) == 5
    cnpass("evaluate", digits, *QUICK, "--restart")
    assert len(journal.read_text().splitlines()) == 3


def test_changed_inputs_are_refused(cnpass, digits: Path) -> None:
    cnpass("evaluate", digits, *QUICK)
    done = cnpass("evaluate", digits, *QUICK, "--limit", 50)
    assert done.code == 2
    assert "holds a run with another data (or the same, limited or prepared otherwise); --restart" in done.err
    model = onnx.load(digits)
    model.doc_string = "changed"
    onnx.save_model(model, digits)
    done = cnpass("evaluate", digits, *QUICK)
    assert done.code == 2
    assert "another model" in done.err
    assert cnpass("evaluate", digits, *QUICK, "--restart").code == 0


def test_no_data_is_said_loudly(cnpass, digits: Path) -> None:
    digits.with_suffix(".npz").unlink()
    done = cnpass("evaluate", digits, *QUICK, "--format", "json", "--quiet")
    record = check(done.out, "evaluate")
    assert (record["metric"], record["clean"], record["n"]) == ("agreement", 1.0, 256)
    assert "cnpass: warning: no data given, so random inputs" in done.err


def test_quiet_says_nothing_but_warnings(cnpass, digits: Path) -> None:
    assert cnpass("evaluate", digits, *QUICK, "--quiet").err == ""


# rewrite, lower


def test_rewrite_evaluate_lower(cnpass, digits: Path, tmp_path: Path) -> None:
    done = cnpass("rewrite", digits, "-p", "map-crossbar{sigma=0.4}", "--seed", 7, "--format", "json")
    mapped = tmp_path / "digits.cnpass.onnx"
    assert json.loads(done.out)["output"] == str(mapped)
    record = json.loads(cnpass("evaluate", mapped, *QUICK[:4], "--format", "json").out)
    plain = json.loads(
        cnpass("evaluate", digits, *QUICK[:4], "--sigma", 0.4, "--seed", 7, "--format", "json").out
    )
    assert record["points"] == plain["points"]
    assert record["clean"] == plain["clean"]
    assert cnpass("lower", mapped, "-o", tmp_path / "back.onnx").code == 0
    ops = [
        {node.op_type for node in onnx.load(tmp_path / name).graph.node}
        for name in ("digits.onnx", "back.onnx")
    ]
    assert ops[0] == ops[1]


def test_a_record_goes_with_the_model_that_is_overwritten(cnpass, digits: Path, tmp_path: Path) -> None:
    """If it is that model's own, that is; any other file stays."""
    output, record = tmp_path / "out.onnx", tmp_path / "out.json"
    assert cnpass("rewrite", digits, "-o", output).code == 0
    record.write_text("[1]")
    assert cnpass("rewrite", digits, "-o", output, "--force").err == ""
    assert record.exists()
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    record.write_text(json.dumps({"hashes": {"output": digest}}))
    done = cnpass("rewrite", digits, "-o", output, "--force")
    assert "removed" in done.err
    assert not record.exists()


def test_dry_run_changes_nothing(cnpass, digits: Path) -> None:
    before = sorted(digits.parent.iterdir())
    done = cnpass("rewrite", digits, "--dry-run", "--format", "json")
    plan = json.loads(done.out)
    assert plan["pipeline"] == "fold-batch-norm,map-crossbar"
    assert all(node["reason"] for node in plan["nodes"])
    assert "no product with a constant matrix" in cnpass("rewrite", digits, "--dry-run").out
    assert cnpass("optimize", digits, "--dry-run", "--no-retrain", "--no-compensation").code == 0
    assert sorted(digits.parent.iterdir()) == before


def test_saved_config_repeats_the_run(cnpass, digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    cnpass("evaluate", digits, *QUICK, "--mean", "1/8", "--save-config", file)
    assert "mean = 0.125" in file.read_text()
    done = cnpass("evaluate", digits, "--recipe", file, "--format", "json")
    assert done.code == 0
    record = json.loads(done.out)
    assert (record["points"][0]["chips"], len(record["points"])) == (3, 1)
    wins = json.loads(cnpass("evaluate", digits, "--recipe", file, "--chips", 2, "--format", "json").out)
    assert wins["points"][0]["chips"] == 2


# optimize


def point(mean: float) -> Point:
    return summarise("lognormal", {"sigma": 0.5}, 0, [mean - 0.01, mean, mean + 0.01])


@pytest.fixture
def optimized(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Puts a finished record in the place of the work; gives what the work was called with."""
    seen: dict[str, object] = {}

    def finished(model: Path, *, recipe: OptimizeRecipe, output: Path, **rest: object) -> OptimizeRecord:
        seen.update(rest, recipe=recipe, output=output)
        return OptimizeRecord(
            input=str(model),
            output=str(output),
            metric="top1",
            n=SplitSizes(train=10, val=10, test=10),
            clean=0.98,
            after_clean=0.97,
            before=point(0.34),
            after=point(0.95),
            retention=BeforeAfter(before=0.34 / 0.98, after=0.95 / 0.98),
            overhead=Overhead(params=0.021, macs=None),
            placement=[Placement(node="conv3", kind="residual", ratio=0.25)],
            ladder=[Rung(step="noise injection", scope="agnostic", kept=True, point=point(0.94))],
            recipe={},
            hashes={},
            seeds={"chips": 0},
            seconds=1.0,
        )

    monkeypatch.setattr("cnpass.optimization.optimize", finished)
    return seen


def test_optimize(cnpass, digits: Path, optimized: dict[str, object]) -> None:
    done = cnpass("optimize", digits, "--sigma", 0.5, "--no-retrain", "--budget", "5m", "--format", "json")
    assert (done.code, check(done.out, "optimize")["after_clean"]) == (0, 0.97)
    recipe = optimized["recipe"]
    assert isinstance(recipe, OptimizeRecipe)
    assert (recipe.sigma, recipe.retrain, recipe.compensation, recipe.budget) == (0.5, False, True, 300)
    assert optimized["output"] == digits.with_name("digits.cnpass.onnx")
    assert optimized["run"] == digits.with_name("digits.cnpass.run")
    table = cnpass("optimize", digits).out
    for said in (
        "98.00",
        "34.00",
        "96.94 %",
        "noise injection",
        "conv3: residual, ratio 0.25",
        "unknown MACs",
    ):
        assert said in table


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(("asked", "code"), [(0.96, 0), (0.97, 1)])
def test_retention_gate(cnpass, digits: Path, asked: float, code: int) -> None:
    done = cnpass("optimize", digits, "--min-retention", asked)
    assert done.code == code
    assert "96.94 %" in done.out
    assert ("retains 96.94 % of the clean figure, less than the 97.00 % asked for" in done.err) == bool(code)


# devices, passes


def test_devices(cnpass) -> None:
    assert "lognormal" in cnpass("devices", "list").out
    shown = json.loads(cnpass("devices", "show", "lognormal", "--format", "json").out)
    assert shown["fields"][0]["name"] == "sigma"
    assert "sigma" in cnpass("devices", "show", "lognormal").out


def test_passes(cnpass) -> None:
    names = [item["name"] for item in json.loads(cnpass("passes", "list", "--format", "json").out)]
    assert {"fold-batch-norm", "map-crossbar", "lower-analog", "strip-portable"} <= set(names)
    for name in names:
        assert json.loads(cnpass("passes", "show", name, "--format", "json").out)["name"] == name
        assert name in cnpass("passes", "show", name).out
