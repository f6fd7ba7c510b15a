from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

DIGITS = ("digits-vgg9", "digits-lenet5")
REAL = {"lenet5-mnist": "mnist", "lenet5-cifar10": "cifar10"}
REQUIRED = {"digits-vgg9": 0.97, "digits-lenet5": 0.95, "lenet5-mnist": 0.989, "lenet5-cifar10": 0.68}


def stated(models: Path, name: str, column: str) -> float:
    """The fraction that the table in models/README.md states for a model."""
    lines = (models / "README.md").read_text().splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    row = next(row for row in cells if row[0] == f"`{name}`")
    number = re.match(r"[\d.]+", row[cells[0].index(column)])
    assert number is not None
    return float(number.group()) / 100


def accuracy(model: onnx.ModelProto, x: np.ndarray, y: np.ndarray) -> float:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": x})
    return float((logits.argmax(1) == y).mean())


@pytest.mark.parametrize("name", REQUIRED)
def test_a_bundled_file_is_as_its_readers_expect(models, name):
    model = onnx.load(models / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 18
    (source,), (result,) = model.graph.input, model.graph.output
    assert (source.name, result.name) == ("input", "logits")
    for value in (source, result):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {node.name for node in model.graph.node} >= {i.name.split(".")[0] for i in model.graph.initializer}


def test_vgg9_is_nine_plain_convolutions_and_one_linear_layer(models):
    graph = onnx.load(models / "digits-vgg9.onnx").graph
    count = Counter(node.op_type for node in graph.node)
    assert (count["Conv"], count["Gemm"], count["BatchNormalization"]) == (9, 1, 0)
    weights = [i for i in graph.initializer if re.fullmatch(r"conv\d\.weight", i.name)]
    assert [w.dims[2:] for w in weights] == [[3, 3]] * 9


@pytest.mark.parametrize("name", DIGITS)
def test_digits_splits_are_disjoint_balanced_and_complete(models, name):
    with np.load(models / f"{name}.npz", allow_pickle=False) as data:
        parts = {part: (data[f"x_{part}"], data[f"y_{part}"]) for part in ("train", "val", "test")}
    assert [len(y) for _, y in parts.values()] == [1000, 297, 500]
    images = [{row.tobytes() for row in x} for x, _ in parts.values()]
    assert len(set.union(*images)) == sum(len(y) for _, y in parts.values())
    for x, y in parts.values():
        assert x.dtype == np.float32
        assert (x.shape[1:], x.min(), x.max()) == ((1, 8, 8), 0, 1)
        counts = np.bincount(y, minlength=10)
        assert counts.min() >= 0.9 * len(y) / 10


@pytest.mark.parametrize("name", DIGITS)
def test_digits_accuracy_is_the_stated_one(models, name):
    with np.load(models / f"{name}.npz", allow_pickle=False) as data:
        x, y = data["x_test"], data["y_test"]
    measured = accuracy(onnx.load(models / f"{name}.onnx"), x, y)
    assert measured == pytest.approx(stated(models, name, "clean"), abs=1 / len(y))
    assert measured >= REQUIRED[name]


@pytest.mark.parametrize("name", DIGITS)
def test_digits_accuracy_under_variation_is_the_stated_one(models, name):
    """Stated over 250 chips of torch's random numbers, measured over 50 of NumPy's."""
    with np.load(models / f"{name}.npz", allow_pickle=False) as data:
        x, y = data["x_test"], data["y_test"]
    nominal = onnx.load(models / f"{name}.onnx")
    rng = np.random.default_rng(0)
    chips = []
    for _ in range(50):
        chip = onnx.ModelProto()
        chip.CopyFrom(nominal)
        for tensor in chip.graph.initializer:
            if tensor.name.endswith(".weight"):
                weight = numpy_helper.to_array(tensor)
                factor = np.exp(0.5 * rng.standard_normal(weight.shape, np.float32))
                tensor.CopyFrom(numpy_helper.from_array(weight * factor, tensor.name))
        chips.append(accuracy(chip, x, y))
    # standard error of the difference of the two means, times four
    tolerance = 4 * np.std(chips) * np.sqrt(1 / 50 + 1 / 250)
    assert np.mean(chips) == pytest.approx(stated(models, name, "sigma 0.5"), abs=tolerance)


@pytest.mark.parametrize("name", REAL)
def test_real_accuracy_is_the_stated_one(models, dataset, name):
    *_, x, y = dataset(REAL[name])
    model = onnx.load(models / f"{name}.onnx")
    flags = dict(re.findall(r"--(scale|mean|std) ([\d.]+)", model.doc_string))
    scale, mean, std = (np.float32(flags[key]) for key in ("scale", "mean", "std"))
    measured = accuracy(model, (x.astype(np.float32) * scale - mean) / std, y)
    assert measured == pytest.approx(stated(models, name, "clean"), abs=2e-4)
    assert measured >= REQUIRED[name]
