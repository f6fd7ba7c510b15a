"""Splitting, preprocessing and shaping data for a model."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cnpass.data import Dataset, RawData, class_count, fit, input_specs, prepare
from cnpass.data.dataset import Split, shuffled
from cnpass.data.inputs import random_dataset
from cnpass.errors import DataError, ModelError
from cnpass.recipe import DataRecipe, Preprocess

Shape = tuple[int | str | None, ...]


def model(
    *shapes: Shape | None, dtype: int = TensorProto.FLOAT, output: Shape = ("N", 10)
) -> onnx.ModelProto:
    """A graph of declared inputs and one output; its nodes do not matter here."""
    inputs = [helper.make_tensor_value_info(f"in{i}", dtype, shape) for i, shape in enumerate(shapes)]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, output)]
    return helper.make_model(helper.make_graph([], "g", inputs, outputs))


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.int16)


def fitted(
    arrays: dict[str, np.ndarray], proto: onnx.ModelProto, parts=("train", "val", "test"), **options
) -> Dataset:
    preprocess = Preprocess.build(None, options)
    return fit(
        RawData(arrays, "d.npz"), input_specs(proto), preprocess, classes=class_count(proto), parts=parts
    )


# Splits


def test_order_is_fixed_for_ever() -> None:
    assert shuffled(10).tolist() == [2, 4, 6, 8, 5, 1, 7, 0, 9, 3]
    assert sorted(shuffled(1000)) == list(range(1000))


def test_few_samples_are_of_all_classes_where_the_samples_lie_sorted_by_class() -> None:
    labels = np.repeat(np.arange(10), 200)
    few = Split({"x": labels[:, None]}, labels).few(300)
    assert np.bincount(few.y).min() > 15
    assert np.array_equal(few.x[:, 0], few.y)
    assert np.all(np.diff(few.y) >= 0)
    assert few.few(300) is few


def test_given_parts_stay_as_they_are() -> None:
    arrays = {f"x_{part}": images(n, 4) for part, n in (("train", 5), ("val", 3), ("test", 2))}
    data = fitted(arrays, model(("N", 4)))
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(data, part).x, arrays[f"x_{part}"])
    assert data.notes == ()


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        ({"x": 100}, (70, 10, 20)),
        ({"x_train": 100, "x_test": 7}, (90, 10, 7)),
        ({"x_train": 100, "x_val": 7}, (80, 7, 20)),
        ({"x_train": 100}, (70, 10, 20)),
        ({"x": 100, "x_test": 7}, (90, 10, 7)),
        ({"x_test": 7}, (0, 0, 7)),
        ({"x": 3}, (1, 1, 1)),
    ],
)
def test_missing_parts_are_split_off(names: dict[str, int], sizes: tuple[int, int, int]) -> None:
    arrays = {name: np.arange(count)[:, None] for name, count in names.items()}
    arrays |= {name.replace("x", "y"): np.arange(count) % 3 for name, count in names.items()}
    data = fitted(arrays, model(("N", 1)))
    assert (len(data.train), len(data.val), len(data.test)) == sizes
    assert bool(data.notes) == (names.keys() != {"x_test"})
    again = fitted(arrays, model(("N", 1)))
    assert again.sha256 == data.sha256
    if names.keys() in ({"x"}, {"x_train"}):
        parts = [data.train, data.val, data.test]
        assert sorted(np.concatenate([part.x[:, 0] for part in parts])) == list(range(sum(sizes)))
        for part in parts:
            assert part.y is not None
            np.testing.assert_array_equal(part.x[:, 0] % 3, part.y)


def test_only_the_parts_asked_for() -> None:
    data = fitted({"x": images(50, 4)}, model(("N", 4)), parts=("test",))
    assert (len(data.train), len(data.val), len(data.test)) == (0, 0, 10)


# Preprocessing


def test_formula_in_float64_rounded_once() -> None:
    x = images(5000, 3, 2, 2)
    mean, std = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    data = fitted(
        {"x_test": x}, model(("N", 3, 2, 2)), scale="1/255", mean=",".join(map(str, mean)), std=tuple(std)
    )
    shape = (1, 3, 1, 1)
    expected = (x.astype(np.float64) * (1 / 255) - np.reshape(mean, shape)) / np.reshape(std, shape)
    assert data.test.x.dtype == np.float32
    np.testing.assert_array_equal(data.test.x, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("sample", "layout", "axis"),
    [
        ((3, 5, 5), None, 0),
        ((5, 5, 3), None, 2),
        ((3, 5, 3), None, 0),
        ((3, 5, 3), "nhwc", 2),
        ((3,), None, 0),
    ],
)
def test_channels_are_found_by_shape(sample: tuple[int, ...], layout: str | None, axis: int) -> None:
    x = np.ones((2, *sample), np.float32)
    data = fitted({"x_test": x}, model(("N", *sample)), mean=[1, 2, 3], layout=layout)
    moved = np.moveaxis(data.test.x, axis + 1, -1)
    np.testing.assert_array_equal(moved, np.broadcast_to([0, -1, -2], moved.shape))


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_type_of_the_model(dtype: int) -> None:
    data = fitted({"x_test": images(2, 4)}, model(("N", 4), dtype=dtype), scale=0.5)
    assert data.test.x.dtype == helper.tensor_dtype_to_np_dtype(dtype)


def test_integer_inputs_pass_unchanged() -> None:
    data = fitted({"x_test": images(2, 4)}, model(("N", 4), dtype=TensorProto.INT64))
    assert data.test.x.dtype == np.int64


# Shapes


@pytest.mark.parametrize(
    ("sample", "declared", "noted"),
    [
        ((1, 6, 6), (1, 6, 6), False),
        ((6, 6), (1, 6, 6), True),
        ((6, 6), (6, 6, 1), True),
        ((1, 6, 6), (6, 6, 1), True),
        ((3, 6, 6), (108,), True),
        ((108,), (3, 6, 6), True),
        ((3, 6, 6), (3, "h", "w"), False),
        ((3, 6, 6), (None,), True),
    ],
)
def test_plain_reshapes_are_done_and_told(sample: Shape, declared: Shape, noted: bool) -> None:
    x = images(4, *sample)
    data = fitted({"x_test": x}, model(("N", *declared)))
    np.testing.assert_array_equal(data.test.x.ravel(), x.ravel())
    assert len(data.test.x.shape) == 1 + len(declared)
    assert bool(data.notes) == noted


@pytest.mark.parametrize("declared", [("N", 6, 5, 3), ("N", None, None, None), ("N", 90), None])
def test_layout_transposes(declared: Shape | None) -> None:
    x = images(4, 3, 6, 5)
    data = fitted({"x_test": x}, model(declared), layout="nhwc")
    np.testing.assert_array_equal(data.test.x.ravel(), x.transpose(0, 2, 3, 1).ravel())
    assert "transposed images to nhwc" in data.notes


def test_layout_of_many_channels_is_decided_by_the_model() -> None:
    x = images(2, 16, 8, 8)
    data = fitted({"x_test": x}, model(("N", 8, 8, 16)), layout="nhwc")
    np.testing.assert_array_equal(data.test.x, x.transpose(0, 2, 3, 1))


def test_layout_that_data_have_already() -> None:
    x = images(2, 6, 6, 3)
    data = fitted({"x_test": x}, model(("N", 6, 6, 3)), layout="nhwc")
    np.testing.assert_array_equal(data.test.x, x)


def test_several_inputs() -> None:
    a, b = images(4, 2), images(4, 3)
    data = fitted({"x_test.in0": a, "x_test.in1": b, "y_test": np.arange(4)}, model(("N", 2), ("N", 3)))
    np.testing.assert_array_equal(data.test.inputs["in1"], b)
    np.testing.assert_array_equal(data.test.x, a)
    assert len(data.test.take(slice(2))) == 2


GOOD = {"x_test": images(4, 3, 6, 6), "y_test": np.array([0, 1, 2, 9])}
TYPICAL = model(("N", 3, 6, 6))


@pytest.mark.parametrize(
    ("arrays", "options", "proto", "said"),
    [
        ({"x_test": images(4, 6, 6, 3)}, {}, TYPICAL, "6x6x3, .*'in0' takes samples 3x6x6; --layout nchw"),
        ({"x_test": images(4, 3, 6, 5)}, {}, TYPICAL, "samples are 3x6x5, input 'in0' takes samples 3x6x6"),
        (GOOD, {"layout": "nhwc"}, TYPICAL, "--layout nhwc does not fit"),
        ({"x_test": np.array(["a", "b"])}, {}, TYPICAL, "type <U1 are no numbers"),
        ({"x_test": np.ones((4, 3, 6, 6), complex)}, {}, TYPICAL, "type complex128 are no numbers"),
        ({"x_test": np.full((4, 3, 6, 6), np.nan)}, {}, TYPICAL, "NaN or infinite"),
        ({"x_test": np.full((4, 3, 6, 6), 1e39)}, {}, TYPICAL, "NaN or infinite"),
        ({"x_test": np.full((4, 3, 6, 6), np.inf)}, {"scale": 2}, TYPICAL, "NaN or infinite"),
        (GOOD, {"mean": "1,2"}, TYPICAL, "--mean has 2 values, which is no channel count"),
        ({"x_test": images(4, 6, 6)}, {"std": "1,2,3"}, model(("N", 36)), "--std has 3 values"),
        ({"x_test": np.int64(1)}, {}, TYPICAL, "holds no samples"),
        ({"x_test": images(0, 3, 6, 6)}, {}, TYPICAL, "holds no samples"),
        ({"x_val": images(4, 3, 6, 6)}, {}, TYPICAL, "no test samples"),
        ({"x": images(2, 3, 6, 6)}, {}, TYPICAL, "2 samples are too few to split off test and val"),
        ({"x": images(9, 2), "x_train": images(9, 2)}, {}, TYPICAL, "both x and x_train"),
        ({"images": images(4, 3, 6, 6)}, {}, TYPICAL, r"none of the arrays x_train.*\(it has: images\)"),
        ({}, {}, TYPICAL, "it has: none"),
        ({"y_test": np.arange(4)}, {}, TYPICAL, "none of the arrays"),
        (GOOD | {"y_val": np.arange(4)}, {}, TYPICAL, "has y_val but no x_val"),
        (GOOD | {"x_val": images(4, 3, 6, 6)}, {}, TYPICAL, "x_val has no labels y_val"),
        (GOOD | {"y_test": np.arange(3)}, {}, TYPICAL, r"differ in length \(4 and 3\)"),
        (GOOD | {"y_test": np.int64(3)}, {}, TYPICAL, "y_test is a scalar"),
        (GOOD | {"y_test": np.eye(4)}, {}, TYPICAL, r"labels have shape \(4, 4\)"),
        (GOOD | {"y_test": np.ones(4)}, {}, TYPICAL, "labels are float64"),
        (GOOD | {"y_test": np.array([0, 1, -1, 2])}, {}, TYPICAL, "label -1 is negative"),
        (
            GOOD | {"y_test": np.array([0, 1, 10, 2])},
            {},
            TYPICAL,
            "label 10 is outside the model's 10 classes",
        ),
        (GOOD, {}, model(("N", 2), ("N", 3)), "lacks x_test.in0, x_test.in1"),
        ({"x_test.other": images(4, 3, 6, 6)}, {}, TYPICAL, "lacks x_test.in0"),
        (
            {"x_test": np.ones((4, 2))},
            {},
            model(("N", 2), dtype=TensorProto.INT64),
            "takes int64, .* float64",
        ),
        (
            {"x_test": images(4, 2)},
            {"scale": 2},
            model(("N", 2), dtype=TensorProto.INT64),
            "--scale, .* do not",
        ),
        (
            {"x_test": np.full((4, 2), 200)},
            {},
            model(("N", 2), dtype=TensorProto.INT8),
            "outside the range of int8",
        ),
    ],
)
def test_data_that_do_not_fit(arrays, options, proto: onnx.ModelProto, said: str) -> None:
    with pytest.raises(DataError, match=f"d.npz.*{said}") as error:
        fitted(arrays, proto, **options)
    assert "\n" not in str(error.value)


def test_unused_arrays_are_told() -> None:
    assert fitted(GOOD | {"weights": np.ones(2)}, TYPICAL).notes == ("ignored arrays: weights",)


@pytest.mark.parametrize(("scale", "noted"), [(1, True), (0.5, False)])
def test_unscaled_bytes_are_told(scale: float, noted: bool) -> None:
    data = fitted({"x_test": images(4, 2).astype(np.uint8)}, model(("N", 2)), scale=scale)
    assert data.notes == (("bytes go in as 0 to 255; --scale 1/255 makes them 0 to 1",) if noted else ())


def test_column_of_labels() -> None:
    data = fitted(GOOD | {"y_test": np.array([[0], [1], [2], [3]], np.uint8)}, TYPICAL)
    assert data.test.y is not None
    assert data.test.y.tolist() == [0, 1, 2, 3]
    assert data.test.y.dtype == np.int64


def test_hash_tells_values_types_and_parts_apart() -> None:
    base = fitted(GOOD, TYPICAL)
    other = GOOD | {"y_test": GOOD["y_test"][::-1]}
    hashes = {base.sha256, fitted(other, TYPICAL).sha256, fitted(GOOD, TYPICAL, scale=2).sha256}
    hashes.add(fitted({"x_test": GOOD["x_test"]}, TYPICAL).sha256)
    assert len(hashes) == 4
    assert fitted(dict(GOOD), TYPICAL).sha256 == base.sha256


# Model inputs


def test_initialised_inputs_need_no_data() -> None:
    proto = model(("N", 4), (2, 2))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "in1"))
    assert [spec.name for spec in input_specs(proto)] == ["in0"]


@pytest.mark.parametrize(
    ("proto", "said"),
    [
        (model(), "no inputs"),
        (model(("N",), dtype=TensorProto.STRING), "'in0' is no tensor of numbers"),
        (model(("N",), dtype=TensorProto.UNDEFINED), "'in0' has the unknown type 0"),
        (model(("N",), dtype=127), "'in0' has the unknown type 127"),
        (model((7, "N", 4)), r"'in0' has its samples along axis 1 \('N', the first axis of output 'out'\)"),
        (model(("time", "N", 4)), "'in0' has its samples along axis 1"),
        (model(("N", 7, 4), (2, "N", 5)), "'in1' has its samples along axis 1"),
    ],
)
def test_models_that_take_no_data(proto: onnx.ModelProto, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        input_specs(proto)


@pytest.mark.parametrize(
    ("shape", "output"),
    [
        ((1, "N", 4), ("N", 10)),
        (("N", "N"), ("N", 10)),
        (("B", "N"), ("N", "B")),
        ((7, 5, 4), ("N", 10)),
        ((7, "M", 4), ("N", 10)),
        ((7, "", 4), ("", 10)),
    ],
)
def test_symbols_that_say_nothing_against_the_first_axis(shape: Shape, output: Shape) -> None:
    assert len(input_specs(model(shape, output=output))) == 1


def test_a_scalar_input_takes_one_number_per_sample() -> None:
    specs = input_specs(model(("N", 4), ()))
    assert [spec.sample for spec in specs] == [(4,), ()]
    assert random_dataset(specs).test.inputs["in1"].shape == (256,)


@pytest.mark.parametrize(
    ("output", "count"),
    [(("N", 10), 10), ((1, 10, 1, 1), 10), (("N", "C"), None), ((5,), None), (("N", 3, 8, 8), None)],
)
def test_class_count(output: Shape, count: int | None) -> None:
    assert class_count(model(("N", 4), output=output)) == count


def test_random_inputs_when_there_is_nothing() -> None:
    data = prepare(model((1, 3, 4, 4), (1, 2)), None, DataRecipe())
    assert data.random
    assert data.test.inputs["in0"].shape == (256, 3, 4, 4)
    assert not data.labelled
    assert "random inputs" in data.notes[0]
    assert data.sha256 == prepare(model((1, 3, 4, 4), (1, 2)), None, DataRecipe()).sha256


def test_random_inputs_of_types_that_only_onnx_has() -> None:
    data = prepare(model((1, 3), dtype=TensorProto.BFLOAT16), None, DataRecipe())
    assert data.test.x.dtype == ml_dtypes.bfloat16
    assert data.sha256 == prepare(model((1, 3), dtype=TensorProto.BFLOAT16), None, DataRecipe()).sha256


def test_random_inputs_larger_than_memory() -> None:
    with pytest.raises(DataError, match="would take too much memory"):
        prepare(model(("N", 2**31 - 1, 2**31 - 1)), None, DataRecipe())


@pytest.mark.parametrize("shape", [("N", "length"), None])
def test_random_inputs_need_a_shape(shape: Shape | None) -> None:
    with pytest.raises(DataError, match=r"no fixed shape.*give --data"):
        prepare(model(shape), None, DataRecipe())
